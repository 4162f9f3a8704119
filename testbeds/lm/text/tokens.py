"""Token files: a header, then the ids as little-endian uint16, read by memory mapping.

The first 1024 bytes are the magic ``LOTIONT1`` and a JSON object padded with spaces: ``tokens``, ``vocabulary``,
``tokenizer``, ``end_of_text`` (the id after every document, or null), ``largest`` (id), ``sha256`` (of the ids) and,
for resuming, ``first_document`` and ``next_document``. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lotion_theory.files import whole_file

from ...documents import regular_file

MAGIC = b"LOTIONT1"
HEADER_BYTES = 1024
SUFFIX = ".tokens"
ID_TYPE = np.dtype("<u2")
LARGEST_VOCABULARY = 2**16
CURE = "make it again with lotion prepare"


@dataclass(frozen=True)
class Header:
    """What a token file says about itself; see the module's text."""

    tokens: int
    vocabulary: int
    tokenizer: str
    end_of_text: int | None
    largest: int
    sha256: str
    first_document: int
    next_document: int


def write_tokens(
    path: Path,
    documents: Iterable[tuple[int, np.ndarray]],
    vocabulary: int,
    tokenizer: str,
    end_of_text: int | None = None,
    first_document: int = 0,
) -> Header:
    """Write numbered documents one after the other, each followed by ``end_of_text``, and return the header.

    ``first_document``: number at which the file starts (documents left out count). Raises ValueError naming the file
    for ids outside [0, vocabulary), and OSError naming it where it cannot be written; nothing is left behind then.
    """
    if not 1 <= vocabulary <= LARGEST_VOCABULARY:
        raise ValueError(f"vocabulary = {vocabulary}; valid: 1 to {LARGEST_VOCABULARY}, as ids take 16 bits")
    if end_of_text is not None and not 0 <= end_of_text < vocabulary:
        raise ValueError(f"end_of_text = {end_of_text} in a vocabulary of {vocabulary}")
    end = [] if end_of_text is None else [end_of_text]
    digest, count, largest, after = hashlib.sha256(), 0, max(end, default=0), first_document
    with whole_file(path) as part, part.open("wb") as file:
        file.write(b" " * HEADER_BYTES)
        for number, ids in documents:
            if len(ids) and not (0 <= int(ids.min()) and int(ids.max()) < vocabulary):
                raise ValueError(f"{path}: ids {ids.min()} to {ids.max()} in a vocabulary of {vocabulary}")
            data = np.concatenate((ids, end)).astype(ID_TYPE).tobytes()
            digest.update(data)
            file.write(data)
            count += len(ids) + len(end)
            largest = max(largest, int(ids.max(initial=0)))
            after = number + 1
        header = Header(count, vocabulary, tokenizer, end_of_text, largest, digest.hexdigest(), first_document, after)
        file.seek(0)
        file.write((MAGIC + json.dumps(asdict(header)).encode()).ljust(HEADER_BYTES))
    return header


def read_header(path: Path) -> Header:
    """Header of a token file; ValueError naming the file if it is no such file or not as long as it says."""
    with regular_file(path).open("rb") as file:
        head = file.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        raise ValueError(f"{path} is no token file (its first bytes are {head[:8]!r}, not {MAGIC!r}): {CURE}")
    try:
        header = Header(**json.loads(head[len(MAGIC) :]))
        _check_header(header)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header ({error}): {CURE}") from None
    expected, found = HEADER_BYTES + header.tokens * ID_TYPE.itemsize, path.stat().st_size
    if found != expected:
        what = "truncated" if found < expected else "too long"
        raise ValueError(f"{path} is {what}: {found} bytes, not the {expected} that its header tells: {CURE}")
    return header


def _check_header(header: Header) -> None:
    """ValueError or TypeError for numbers that no token file has."""
    for name in ("tokenizer", "sha256"):
        if not isinstance(getattr(header, name), str):
            raise TypeError(f"{name} is no text")
    bounds = {
        "tokens": 2**60, "vocabulary": LARGEST_VOCABULARY, "largest": max(1, header.vocabulary) - 1,
        "next_document": 2**60, "first_document": header.next_document,
    }  # fmt: skip
    if header.end_of_text is not None:
        bounds["end_of_text"] = header.vocabulary - 1
    for name, most in bounds.items():
        value = getattr(header, name)
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} = {value!r}; valid: 0 to {most}")


def path_of(folder: Path, split: str, number: int) -> Path:
    """Where token file ``number`` of a split lies."""
    return folder / f"{split}-{number:05}{SUFFIX}"


def check_amounts(held_out_every: int, tokens_per_file: int, limit: int | None) -> None:
    """ValueError naming the argument of a preparation that is too small."""
    if held_out_every < 2:
        raise ValueError(f"held_out_every = {held_out_every}: must be at least 2")
    if tokens_per_file < 1 or (limit is not None and limit < 1):
        raise ValueError(f"tokens_per_file = {tokens_per_file}, limit = {limit}: must be at least 1")


def vocabulary_in(folder: Path, split: str) -> int:
    """The vocabulary of a folder's token files; ValueError or OSError as :func:`read_header`."""
    return read_header(path_of(folder, split, 0)).vocabulary


def read_tokens(path: Path, verify: bool = True) -> tuple[Header, np.ndarray]:
    """Header and ids, memory-mapped, (tokens,) uint16; ``verify`` reads them all once and checks their SHA-256.

    Raises FileNotFoundError, or ValueError naming the file if it is truncated, damaged or no token file.
    """
    header = read_header(path)
    if not header.tokens:
        return header, np.zeros(0, ID_TYPE)
    ids = np.memmap(path, ID_TYPE, "r", HEADER_BYTES)
    if verify:
        digest = hashlib.sha256(ids.data).hexdigest()
        if digest != header.sha256:
            raise ValueError(f"{path} is damaged: SHA-256 of its ids is {digest}, not {header.sha256}: {CURE}")
        largest = max(int(ids.max()), header.end_of_text or 0)
        if largest != header.largest:
            raise ValueError(f"{path} is damaged: its largest id is {largest}, not {header.largest}: {CURE}")
    return header, ids


class Tokens:
    """Sequences of tokens cut from one or several arrays of ids (each starts afresh: no sequence crosses into the
    next), with what their headers share: ``vocabulary`` (ids are below it), ``tokenizer``, ``end_of_text``. ``digest``:
    tells these arrays from others, as their files' SHA-256 do."""

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        vocabulary: int,
        tokenizer: str,
        end_of_text: int | None = None,
        digest: str = "",
    ) -> None:
        self.arrays = list(arrays)
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.end_of_text = end_of_text
        self.digest = digest
        self._known: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Number of ids."""
        return sum(len(array) for array in self.arrays)

    @classmethod
    def open(cls, folder: Path, split: str, verify: bool = True) -> Tokens:
        """The files ``{split}-*.tokens`` of a folder in order of name.

        Raises FileNotFoundError naming the folder, and ValueError naming the file that is damaged or belongs to another
        vocabulary than the first.
        """
        paths = sorted(folder.glob(f"{split}-*{SUFFIX}"))
        if not paths:
            raise FileNotFoundError(f"no token files {split}-*{SUFFIX} in {folder}: make them with lotion prepare")
        files = [read_tokens(path, verify) for path in paths]
        first = files[0][0]
        for path, (header, _) in zip(paths, files, strict=True):
            for name in ("vocabulary", "tokenizer", "end_of_text"):
                mine, theirs = getattr(header, name), getattr(first, name)
                if mine != theirs:
                    raise ValueError(f"{path} has {name} = {mine!r}, but {paths[0].name} has {theirs!r}")
        digest = hashlib.sha256("".join(header.sha256 for header, _ in files).encode()).hexdigest()
        return cls([ids for _, ids in files], first.vocabulary, first.tokenizer, first.end_of_text, digest)

    def sequences(self, length: int) -> int:
        """How many sequences of ``length`` inputs (and one more id, the last target) there are at any shift."""
        return int(self._ends(length)[-1])

    def sequence(self, number: int, length: int, shift: int = 0) -> np.ndarray:
        """The ``length + 1`` ids of sequence ``number``; ``shift`` in [0, length) moves all sequences to the right."""
        ends = self._ends(length)
        if not 0 <= number < ends[-1]:
            raise IndexError(f"sequence {number} of {ends[-1]}")
        place = int(np.searchsorted(ends, number, side="right"))
        start = shift + (number - (int(ends[place - 1]) if place else 0)) * length
        return self.arrays[place][start : start + length + 1]

    def _ends(self, length: int) -> np.ndarray:
        """Numbers of sequences in the first, the first two, ... arrays."""
        if length not in self._known:
            # One sequence less than fits at shift 0, where needed, so that every shift has equally many.
            self._known[length] = np.cumsum([max(0, (len(array) - length) // length) for array in self.arrays])
        return self._known[length]
