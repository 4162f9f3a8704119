"""What llama.cpp makes of a GGUF model: logits, loss, the likeliest continuation, and ids of texts.

It runs on the CPU in a process of its own, with attention kept in float32. Quantized matrices are multiplied with
activations that it rounds to 8 bits; of a file whose tensors are float32 it computes in float32.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import llama_worker

LIBRARIES = {"xllamacpp": "xllamacpp*.so", "llama_cpp_py_sync": "libllama.so"}
"""Packages that bring llama.cpp, and the file in them that has its C interface."""
LONGEST = 600.0
"""Seconds after which a request is given up."""


def llama_library() -> Path:
    """The library of llama.cpp; ImportError if no package that brings it is installed."""
    for package, pattern in LIBRARIES.items():
        found = importlib.util.find_spec(package)
        for folder in found.submodule_search_locations or () if found else ():
            if files := sorted(Path(folder).glob(pattern)):
                return files[0]
    raise ImportError("running GGUF models needs llama.cpp: pip install 'lotion-theory[runtimes]'")


def llama_logits(path: Path, ids: Any, threads: int = 1) -> np.ndarray:
    """Logits (B, T, V), float32, of token ids (B, T), each row a text of its own; ``threads`` of the CPU.

    These functions raise ImportError without llama.cpp, and ValueError with llama.cpp's own words for a file that it
    does not load, and for ids that it does not take.
    """
    return _ask(path, "logits", threads, ids=_rows(ids))["logits"]


def llama_losses(path: Path, ids: Any, threads: int = 1) -> np.ndarray:
    """Cross-entropy in nats of ids (B, T): of each row all but the first given those before it, (B, T - 1) float64."""
    return _ask(path, "losses", threads, ids=_rows(ids))["losses"]


def llama_loss(path: Path, ids: Any, threads: int = 1) -> float:
    """The mean of :func:`llama_losses`, in nats per token."""
    return float(llama_losses(path, ids, threads).mean())


def llama_continuation(path: Path, ids: Sequence[int], count: int, threads: int = 1) -> list[int]:
    """The ``count`` likeliest tokens after ``ids``, one after the other."""
    row = [int(i) for i in ids]
    return _ask(path, "continuation", threads, ids=row, count=count, size=len(row) + count)["ids"].tolist()


def llama_tokens(path: Path, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of texts by the tokenizer in the file, nothing added."""
    found = _ask(path, "tokens", 1, texts=list(texts), size=8)
    return [found[str(i)] for i in range(len(texts))]


def _rows(ids: Any) -> list[list[int]]:
    return np.asarray(ids).astype(int).reshape(-1, np.shape(ids)[-1]).tolist()


def _ask(path: Path, what: str, threads: int, **request: Any) -> dict[str, np.ndarray]:
    library = llama_library()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if "size" not in request:
        request["size"] = max(len(row) for row in request["ids"])
    with tempfile.TemporaryDirectory() as folder:
        asked, result = Path(folder) / "request.json", Path(folder) / "result.npz"
        asked.write_text(json.dumps({"path": str(path), "what": what, "threads": threads, **request}), encoding="utf-8")
        command = [sys.executable, llama_worker.__file__, str(library), str(asked), str(result)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=LONGEST)
        if done.returncode or not result.is_file():
            words = " ".join(done.stderr.split()[-60:]) or f"it ended with exit code {done.returncode}"
            raise ValueError(f"{path}: llama.cpp: {words}")
        with np.load(result) as arrays:
            return dict(arrays)
