"""GGUF files as containers: fields and tensors read with a sentence for every fault, and their bytes written out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import library, whole_file

MAGIC, VERSION = b"GGUF", 3
ALIGNMENT = 32
FILE_TYPE, QUANTIZATION_VERSION = "general.file_type", "general.quantization_version"


@dataclass(frozen=True)
class Container:
    """A GGUF file. ``tensors``: gguf's ``ReaderTensor`` by name, in the order of the file, whose ``data`` are mapped
    from the disk; ``reader``: gguf's own."""

    path: Path
    tensors: dict[str, Any]
    reader: Any

    def get(self, key: str, default: Any = None) -> Any:
        """An entry of the metadata; ValueError for text that is no UTF-8."""
        field = self.reader.fields.get(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: metadata {key!r} is no text") from None

    def values(self, name: str) -> np.ndarray:
        """A tensor dequantized by gguf, times the factor beside it if there is one, float32; ValueError for a type that
        gguf does not dequantize."""
        tensor, factor = self.tensors[name], self.tensors.get(companion(name))
        quants = library("gguf.quants", "reading GGUF", "models")
        try:
            values = np.array(quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
            return values if factor is None else values * np.float32(factor.data.reshape(()))
        except NotImplementedError:
            raise ValueError(
                f"{self.path}: {name} has type {tensor.tensor_type.name}, which gguf does not read"
            ) from None

    @property
    def metadata(self) -> tuple[bytes, int]:
        """The bytes of all metadata, and the number of entries."""
        first = next(iter(self.tensors.values())).field.offset
        return self.reader.data[24:first].tobytes(), int(self.get("GGUF.kv_count"))

    @property
    def alignment(self) -> int:
        """What offsets of tensors are a multiple of, in bytes."""
        return int(self.reader.alignment)


def read_container(path: str | Path) -> Container:
    """Open a GGUF file. Raises FileNotFoundError, and ValueError for a truncated, damaged, split or foreign one."""
    path, gguf = Path(path), library("gguf", "reading GGUF", "models")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not _begins(path):
        raise ValueError(f"{path} is no GGUF file")
    try:
        reader = gguf.GGUFReader(path)
        whole = all(len(tensor.data.reshape(-1)) and tensor.field.parts for tensor in reader.tensors)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise ValueError(f"{path} is not a whole GGUF file: {' '.join(str(error).split())}") from None
    if not whole or not reader.tensors:
        raise ValueError(f"{path} is not a whole GGUF file: it holds no tensors")
    if reader.byte_order != "I":
        raise ValueError(f"{path} is a GGUF file of the other byte order; convert it by gguf-convert-endian")
    container = Container(path, {tensor.name: tensor for tensor in reader.tensors}, reader)
    if int(container.get("split.count", 1)) > 1:
        raise ValueError(f"{path} is one part of a split GGUF model; join the parts by llama-gguf-split --merge")
    return container


def _begins(path: Path) -> bool:
    """Whether the file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def companion(name: str, ending: str = "scale") -> str:
    """The tensor that belongs to the weight ``name``, such as the factor of NVFP4, which multiplies all of it."""
    return f"{name.removesuffix('.weight')}.{ending}"


class Raw(NamedTuple):
    """A tensor as it is written: its ``shape`` (rows last), ggml's number of its ``type``, its size in ``bytes``, and
    these, or what makes them when it is its turn."""

    name: str
    shape: Sequence[int]
    type: int
    bytes: int
    data: np.ndarray | Callable[[], np.ndarray]


def write_container(
    path: str | Path, metadata: bytes, entries: int, tensors: Sequence[Raw], alignment: int = ALIGNMENT
) -> None:
    """Write a GGUF file, all or nothing; one tensor at a time is in memory.

    ``metadata``: the bytes of ``entries`` entries, from :attr:`Container.metadata` or :func:`packed_fields`. Raises
    OSError where the file cannot be written, ValueError for a tensor that is not as large as it says.
    """
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), entries) + metadata
    offset = 0
    for tensor in tensors:
        name = tensor.name.encode()
        head += struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape))
        head += struct.pack(f"<{len(tensor.shape)}Q", *reversed([int(n) for n in tensor.shape]))
        head += struct.pack("<IQ", tensor.type, offset)
        offset += tensor.bytes + -tensor.bytes % alignment
    with whole_file(path) as part, part.open("wb") as file:
        file.write(head + b"\0" * (-len(head) % alignment))
        for tensor in tensors:
            made = tensor.data() if callable(tensor.data) else tensor.data
            data = np.ascontiguousarray(made).reshape(-1).view(np.uint8)
            if data.size != tensor.bytes:
                raise ValueError(f"{tensor.name} has {data.size} bytes, not the {tensor.bytes} of its type and shape")
            file.write(data.data)
            file.write(b"\0" * (-tensor.bytes % alignment))


def packed_fields(fields: Iterable[tuple[str, Any, Any, Any]]) -> bytes:
    """Metadata as bytes: ``(key, value, type, type of a list's entries or None)``, types those of gguf."""
    return b"".join(_text(key) + struct.pack("<I", int(kind)) + _value(value, kind, inner)
                    for key, value, kind, inner in fields)  # fmt: skip


_FORMS = {"UINT32": "<I", "INT32": "<i", "FLOAT32": "<f", "UINT64": "<Q", "INT64": "<q", "BOOL": "<?"}


def _value(value: Any, kind: Any, inner: Any = None) -> bytes:
    if kind.name == "STRING":
        return _text(value)
    if kind.name == "ARRAY":
        return struct.pack("<IQ", int(inner), len(value)) + b"".join(_value(item, inner) for item in value)
    return struct.pack(_FORMS[kind.name], value)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def with_number(metadata: bytes, entries: int, reader: Any, key: str, number: int) -> tuple[bytes, int]:
    """The metadata of a file with the 32-bit entry ``key`` set to ``number``, added at the end if it is absent."""
    field = reader.fields.get(key)
    if field is None:
        return metadata + _text(key) + struct.pack("<II", 4, number), entries + 1
    if field.parts[-1].nbytes != 4:
        raise ValueError(f"metadata {key!r} is no number of 32 bits")
    # Offsets of fields count from the start of the file, 24 bytes before the metadata.
    place = field.offset - 24 + sum(int(part.nbytes) for part in field.parts[:-1])
    return metadata[:place] + struct.pack("<I", number) + metadata[place + 4 :], entries
