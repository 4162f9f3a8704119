"""Reads files of packed quantized weights. Needs numpy and safetensors only, so this file can be copied beside a model.

A file holds per quantized tensor ``NAME::codes``, positions in a codebook as a little-endian stream of ``bits`` bits
each, ``NAME::top`` and, for two anchors per block, ``NAME::bottom``; any other tensor is stored as it is. bfloat16,
which numpy lacks, is stored as the uint16 of its bits. The metadata entry ``lotion_packed`` is JSON: how to decode.
The entry ``lotion_sha256`` is the SHA-256 of the whole file, its own 64 digits taken as zeros. Files of version 1 have
instead a CRC-32 of each tensor's arrays in their entries, and nothing that covers the description.
"""

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np

VERSION = 2
SEAL = "lotion_sha256"
BLANK = "0" * 64


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` codes of ``bits`` (1 to 8) bits in a stream of bytes, as uint8."""
    if not 1 <= bits <= 8 or data.size != (count * bits + 7) // 8:
        raise ValueError(f"{count} codes of {bits} bits do not fill {data.size} bytes exactly")
    out = np.empty(count, np.uint8)
    # Parts that begin on a byte keep the memory for single bits small.
    for first in range(0, count, 1 << 20):
        n = min(1 << 20, count - first)
        part = data[first * bits // 8 : ((first + n) * bits + 7) // 8]
        single = np.unpackbits(part, count=n * bits, bitorder="little").reshape(n, bits)
        out[first : first + n] = np.packbits(single, axis=1, bitorder="little")[:, 0]
    return out


def anchor_table(kind: str) -> np.ndarray | None:
    """The value of every byte of a one-byte anchor type, as float64; None for types stored as floats.

    ``e8m0``: powers of two, the byte 255 standing for 0; ``e4m3`` and ``ue5m3``: non-negative values; ``uint8``.
    """
    byte = np.arange(256)
    if kind == "uint8":
        return byte.astype(float)
    if kind == "e8m0":
        return np.where(byte == 255, 0.0, np.ldexp(1.0, byte - 127))
    if kind not in ("e4m3", "ue5m3"):
        return None
    bias, (e, m) = (7 if kind == "e4m3" else 15), np.divmod(byte, 8)
    return np.where(e == 0, np.ldexp(m / 8, 1 - bias), np.ldexp(1 + m / 8, e - bias))


def seal(path: str | Path, write: bool = False) -> bool:
    """Whether the file's SHA-256 is the one it names; with ``write`` it is made to be.

    ValueError for a file whose header is not whole or does not have exactly one place for that number.
    """
    with open(path, "rb+" if write else "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise ValueError("its header is not whole")
        header = file.read(length)
        # Inside a JSON string no quotation mark stands alone, so that no name can look like this.
        mark = f'"{SEAL}":"'.encode()
        place = header.find(mark) + len(mark)
        if header.count(mark) != 1 or header[place + len(BLANK) : place + len(BLANK) + 1] != b'"':
            raise ValueError(f"it has no entry {SEAL}")
        found = header[place : place + len(BLANK)]
        digest = hashlib.sha256(start + header[:place] + BLANK.encode() + header[place + len(BLANK) :])
        while part := file.read(1 << 20):
            digest.update(part)
        if write:
            file.seek(8 + place)
            file.write(digest.hexdigest().encode())
        return write or found == digest.hexdigest().encode()


def _anchors(data: np.ndarray, kind: str, work: type) -> np.ndarray:
    table = anchor_table(kind)
    stored = "uint8" if table is not None else {"bfloat16": "uint16", "fp16": "float16"}.get(kind, kind)
    if data.dtype.name != stored:
        raise ValueError(f"anchors of type {kind} are stored as {stored}, not as {data.dtype.name}")
    if table is not None:
        data = table[data]
    return (_wide(data) if kind == "bfloat16" else data).astype(work)[:, None]


def _wide(words: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits in uint16."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def _halved(top: np.ndarray, bottom: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Levels from ``bottom`` to ``top``, on halves where the difference could overflow; the ends are exact."""
    factor = np.where(np.maximum(abs(top), abs(bottom)) > 1, 2, 1).astype(top.dtype)
    inner = (bottom / factor + (top / factor - bottom / factor) * share) * factor
    # Adding zero makes +0 of -0.
    return np.where(share == 1, top + 0 * share, np.where(share == 0, bottom + 0 * share, inner))


def _stored(x: np.ndarray, dtype: str) -> np.ndarray:
    """``x`` clipped to the finite range of a float type and rounded to it, to nearest even."""
    if dtype != "bfloat16":
        end = np.finfo(dtype).max
        return np.clip(x, -end, end).astype(dtype)
    limit = (2.0 - 2.0**-7) * 2.0**127
    word = np.ascontiguousarray(np.clip(x, -limit, limit), np.float32).view(np.uint32)
    return _bfloat16(((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16))


def _bfloat16(words: np.ndarray) -> np.ndarray:
    if words.dtype.name != "uint16":
        raise ValueError(f"bfloat16 is stored as uint16, not as {words.dtype.name}")
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return _wide(words)
    return words.view(bfloat16)


def dequantize(entry: dict, table: list, parts: dict) -> np.ndarray:
    """The weights of one tensor from its metadata, its codebook and its arrays ``codes``, ``top`` and ``bottom``."""
    if entry["dtype"] not in ("float64", "float32", "float16", "bfloat16"):
        raise ValueError(f"{entry['dtype']!r} is no type of quantized weights")
    work = np.float64 if entry["dtype"] == "float64" else np.float32
    size = math.prod(entry["shape"])
    if any(part.shape != (size / entry["block"],) for name, part in parts.items() if name != "codes"):
        raise ValueError("it does not have one anchor per block")
    place = unpack(parts["codes"], entry["bits"], size).reshape(-1, entry["block"])
    unit = np.array(table, float).astype(work)[place]
    top = _anchors(parts["top"], entry["anchors"][0], work)
    if entry["factor"] is not None:
        top = top * work(entry["factor"])
    bottom = _anchors(parts["bottom"], entry["anchors"][1], work) if "bottom" in parts else None
    with np.errstate(over="ignore"):
        if bottom is None:
            x = top * unit
        elif entry["lattice"] == "affine":
            x = _halved(top, bottom, unit)
        elif entry["lattice"] == "scaled":
            x = top * (unit - bottom)
        elif entry["lattice"] == "offset":
            x = top * unit + bottom
        else:
            x = np.where(unit >= 0, top * unit, bottom * -unit)
        return _stored(x, entry["dtype"]).reshape(entry["shape"])


def load_packed(path: str | Path, unchecked: bool = False) -> dict[str, np.ndarray]:
    """All tensors of a packed file by name: quantized ones dequantized, bit for bit those that were saved.

    bfloat16 comes as ``ml_dtypes.bfloat16`` where that package is installed, else as float32 with the same values.
    ``unchecked``: also read files of version 1, in which a change of the description goes unnoticed.
    Raises FileNotFoundError, or ValueError naming the file if it is truncated, changed in any bit, or not such a file.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError("packed weights need safetensors: pip install safetensors") from None
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if "lotion_packed" not in metadata:
                raise ValueError("it has no entry lotion_packed in its metadata")
            if SEAL in metadata and not seal(path):
                raise ValueError("its checksum does not fit: it has changed since it was saved")
            index = json.loads(metadata["lotion_packed"])
            _check_version(index["version"], SEAL in metadata, unchecked)
            out = {}
            for name, entry in index["tensors"].items():
                parts = {part: file.get_tensor(f"{name}::{part}" if part else name) for part in entry["parts"]}
                if index["version"] == 1 and _crc32(parts) != entry["crc32"]:
                    raise ValueError(f"the bytes of {name} have changed")
                if "format" in entry:
                    out[name] = dequantize(entry, index["tables"][entry["table"]], parts)
                else:
                    out[name] = _bfloat16(parts[""]) if entry["dtype"] == "bfloat16" else parts[""]
            return out | {alias: out[name] for alias, name in index["aliases"].items()}
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as e:
        raise ValueError(f"{path} is not a complete file of packed weights: {e}") from None


def _check_version(version: int, sealed: bool, unchecked: bool) -> None:
    if version not in (1, VERSION):
        raise ValueError(f"its version is {version}, this loader reads up to {VERSION}")
    if version != 1 and not sealed:
        raise ValueError(f"it has no entry {SEAL} in its metadata")
    if version == 1 and not unchecked:
        raise ValueError(
            "its version is 1, whose checksum does not cover its description; if you know it to be whole, load it with "
            "unchecked=True and save it again"
        )


def _crc32(parts: dict) -> int:
    crc = 0
    for array in parts.values():
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, crc)
    return crc
