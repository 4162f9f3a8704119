"""Tokenizers: bytes, GPT-2's byte-pair encoding from a file of ranks, and any tokenizer file of Hugging Face."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lotion_theory.files import read_by_others, write_text

from ...documents import regular_file

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """``name`` is written into token files; ``vocabulary`` counts ids, ``end_of_text`` (None if there is no such id)
    included."""

    name: str
    vocabulary: int
    end_of_text: int | None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, ``end_of_text`` not among them."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is no text becomes U+FFFD."""
        ...


class Bytes:
    """The bytes of UTF-8; the zero byte, which no text contains, ends a document."""

    name = "bytes"
    vocabulary = 256
    end_of_text: int | None = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Bytes of each text; ValueError for a text with a zero byte."""
        out = [np.frombuffer(text.encode(), np.uint8) for text in texts]
        for text, ids in zip(texts, out, strict=True):
            if len(ids) and not ids.min():
                raise ValueError(f"a text with a zero byte cannot be encoded as bytes: {text[:40]!r} ...")
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """The text of bytes, those that are no UTF-8 as U+FFFD."""
        return bytes(ids).decode(errors="replace")


class BytePairs:
    """A tokenizer of the library ``tokenizers``; ``end_of_text`` is the id of its token ``<|endoftext|>``. Truncation
    and padding that a file asks for are switched off, as they would change every text; ``ignored`` names them."""

    def __init__(self, name: str, tokenizer: Any) -> None:
        self.name = name
        asked = {"truncation": tokenizer.truncation, "padding": tokenizer.padding}
        self.ignored = tuple(what for what, settings in asked.items() if settings is not None)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocabulary = tokenizer.get_vocab_size(with_added_tokens=True)
        self.end_of_text: int | None = tokenizer.token_to_id(END_OF_TEXT)
        # A text that spells the end of text does not end there.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text; on all cores, unless the environment says TOKENIZERS_PARALLELISM=false."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int64) for one in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    @property
    def text(self) -> str:
        """The tokenizer as the library's JSON."""
        return self._tokenizer.to_str()

    def save(self, path: Path) -> None:
        """Write the tokenizer as the library's JSON file, all or nothing."""
        write_text(path, self.text)


def tokenizer(source: str) -> Tokenizer:
    """``"bytes"``, a ``.tiktoken`` file of ranks (GPT-2's has 50,256 lines), or a ``.json`` file of ``tokenizers``.

    Raises ValueError or FileNotFoundError naming the source, and ImportError without the library.
    """
    if source == Bytes.name:
        return Bytes()
    path = Path(source)
    if path.suffix not in (".tiktoken", ".json"):
        raise ValueError(f"tokenizer = {source!r}; valid: bytes, a .tiktoken file of ranks, a tokenizer.json file")
    try:
        content = regular_file(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"tokenizer = {source!r}: no such file") from None
    name = f"bpe-{hashlib.sha256(content).hexdigest()[:16]}"
    library = _library()
    ranks = read_ranks(content, source) if path.suffix == ".tiktoken" else None
    with read_by_others(f"{source} is no tokenizer file"):
        text = "" if ranks is not None else content.decode("utf-8-sig")
        return BytePairs(name, library.Tokenizer.from_str(text) if ranks is None else from_ranks(ranks))


def train_bpe(texts: Iterable[str], vocabulary: int) -> BytePairs:
    """A byte-level BPE with ``vocabulary`` ids learned from ``texts``, ``<|endoftext|>`` being the last.

    Raises ValueError for a vocabulary that does not hold the 256 bytes and the end of text.
    """
    if not 257 <= vocabulary <= 2**16:
        raise ValueError(f"vocabulary = {vocabulary}; valid: 257 to 65536")
    library = _library()
    made = library.Tokenizer(library.models.BPE())
    _byte_level(made)
    made.train_from_iterator(
        texts,
        library.trainers.BpeTrainer(
            vocab_size=vocabulary - 1, initial_alphabet=sorted(_letters().values()), show_progress=False
        ),
    )
    made.add_special_tokens([END_OF_TEXT])
    return BytePairs(f"bpe-{hashlib.sha256(made.to_str().encode()).hexdigest()[:16]}", made)


def read_ranks(content: bytes, source: str) -> dict[bytes, int]:
    """Ranks by token from the lines ``BASE64 RANK`` of a tiktoken file; ValueError naming ``source`` for others."""
    try:
        pairs = (line.split() for line in content.splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise ValueError(f"{source} is no file of ranks: {error}") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise ValueError(f"{source} is no complete file of ranks: {len(ranks)} tokens, some byte or rank is missing")
    return ranks


def from_ranks(ranks: Mapping[bytes, int]) -> Any:
    """The byte-level BPE whose merges are implied by ``ranks``, with GPT-2's way of splitting words.

    Each token of two or more bytes was made by merging two of lower rank: those that remain when the tokens of lower
    rank are merged in its bytes.
    """
    library, letters = _library(), _letters()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merged(token, ranks, rank)
            if len(parts) != 2:
                raise ValueError(f"no two tokens of lower rank make {token!r}")
            merges.append((text(parts[0]), text(parts[1])))
    made = library.Tokenizer(library.models.BPE({text(t): rank for t, rank in ranks.items()}, merges))
    _byte_level(made)
    made.add_special_tokens([END_OF_TEXT])
    return made


def byte_tokenizer() -> Any:
    """:class:`Bytes` as a tokenizer of the library: byte pairs without pairs. The zero byte, which no text contains, is
    its token ``<|endoftext|>``."""
    library = _library()
    vocabulary = {END_OF_TEXT if byte == Bytes.end_of_text else text: byte for byte, text in _letters().items()}
    made = library.Tokenizer(library.models.BPE(vocabulary, []))
    _byte_level(made)
    made.add_special_tokens([END_OF_TEXT])
    return made


def _merged(token: bytes, ranks: Mapping[bytes, int], below: int) -> list[bytes]:
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 1:
        pairs = [(ranks.get(a + b, below), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(pairs)
        if rank >= below:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _byte_level(made: Any) -> None:
    library = _library()
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = library.decoders.ByteLevel()


def _letters() -> dict[int, str]:
    """GPT-2's visible letter for every byte: itself if printable, else one of those after the first 256."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(256 + n) for n, b in enumerate(hidden)}}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError("this tokenizer needs the library tokenizers: pip install 'lotion-theory[lm]'") from None
    return tokenizers
