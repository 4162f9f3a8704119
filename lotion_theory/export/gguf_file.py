"""GGUF files of quantized points: what ``ggml`` runtimes dequantize is what was cast, bit for bit, or is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import Array, detach, dtype_name, to_numpy
from ..files import library, whole_file
from .codes import Encoded, decode, without_numbers

BLOCK = 32
# Lowest and highest code of a block; a value is its code times an fp16 scale, of either sign.
KINDS = {"Q4_0": (-8, 7), "Q8_0": (-128, 127)}

_STORED = "with scales fp16-nearest, fp16-up or fp16-sr, in blocks of 32, 64, ..., rows, channels or whole tensors"
EXACT_FORMATS = {
    "Q4_0": f"q4_0; int2, int3, int4, ternary and binary {_STORED}",
    "Q8_0": f"q8_0; q4_0; int2 ... int8, ternary, binary, e2m1 and e2m3 {_STORED}; mxfp4, mxfp6 and mxint8 while their "
    "scales are in the range of fp16",
}  # fmt: skip


def write_gguf(
    path: str | Path,
    tensors: Mapping[str, Array | Encoded],
    kind: str,
    metadata: Mapping[str, Any] | None = None,
    plain: Mapping[str, Array] | None = None,
    requantize: bool = False,
) -> dict[str, float]:
    """Write quantized points to a GGUF file, and return per tensor the largest error relative to its largest weight.

    A point is written if each of its blocks of 32 along a row is ``d * code`` with an fp16 ``d`` exactly; runtimes then
    dequantize it to the same bits (in a block that holds zeros of both signs, the zeros get one) and its error is 0.
    That holds for float32 weights in formats whose scales are fp16: q4_0 and q8_0 above all. But by chance it holds
    neither for real scales such as those of int4/absmax, nor for levels that were rounded to float16 or bfloat16.

    Args:
        path: written aside and renamed, so that it is never half a file.
        tensors: ``name -> point``: what ``cast`` returned (numpy or torch), or :class:`Encoded`. Rows are a multiple of
            32 long; at most 4 axes.
        kind: "Q4_0" or "Q8_0".
        metadata: keys and strings, booleans, numbers (integers of 64 bits; others as float32, as runtimes read them)
            or lists of one kind of them; ``general.architecture`` is "lotion" by default.
        plain: further tensors to be stored unquantized, in their own type: float16, bfloat16, float32, float64 and
            integers with a sign.
        requantize: round tensors that have no exact form again, by gguf's own quantizer, instead of refusing them.

    Raises ValueError for a path that ends in .safetensors, naming the tensor for one without an exact form, NaN, rows
    of another length, types and shapes that GGUF lacks and names longer than 63 bytes, and naming the key for metadata
    that GGUF cannot hold; OSError where the file cannot be written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    if str(path).lower().endswith(".safetensors"):
        raise ValueError(f"path {path} ends in .safetensors, and the file is GGUF; save_packed writes safetensors")
    plain = {} if plain is None else plain
    if not tensors:
        raise ValueError("tensors is empty; there is nothing to quantize")
    _check_names(tensors, plain)
    gguf = library("gguf", "writing GGUF")
    fields = {"general.architecture": "lotion", **(metadata or {})}
    typed = typed_fields(fields)
    written, errors = {}, {}
    for name, tensor in tensors.items():
        written[name], errors[name] = _quantized(gguf, name, tensor, kind, requantize)
    further = {name: _plain(name, tensor) for name, tensor in plain.items()}
    with whole_file(path) as part:
        _write(gguf, part, typed, written, kind, further)
    return errors


def _write(
    gguf: Any, part: Path, typed: dict, written: dict[str, np.ndarray], kind: str, plain: dict[str, np.ndarray]
) -> None:
    writer = gguf.GGUFWriter(part, typed.pop("general.architecture")[0])
    try:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{kind}"]))
        for key, value in typed.items():
            writer.add_key_value(key, *value)
        for name, rows in written.items():
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType[kind])
        for name, array in plain.items():
            if dtype_name(array) == "bfloat16":
                bf16 = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(name, array.view(np.uint8), raw_dtype=bf16)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _check_names(tensors: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    for name in (*tensors, *plain):
        if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) < 64 or not _is_text(name):
            raise ValueError(f"tensor name {name!r} is empty, longer than 63 bytes or no text")
        if name in tensors and name in plain:
            raise ValueError(f"tensor name {name!r} is in tensors and plain both")


def representable(point: Array | Encoded, kind: str) -> np.ndarray:
    """Which blocks of 32 along the rows of ``point`` have an exact form in ``kind``: booleans, (..., row // 32)."""
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    x = _points(point)
    scale, _ = _solve(x.reshape(-1, BLOCK), *KINDS[kind])
    return np.isfinite(scale).reshape(*x.shape[:-1], -1)


def _points(point: Array | Encoded) -> np.ndarray:
    if isinstance(point, Encoded):
        point = decode(point)
    if reason := without_numbers(point):
        raise ValueError(f"it {reason}")
    if dtype_name(point) not in _PLAIN[:4]:
        raise ValueError(f"it has type {dtype_name(point)}; valid: {', '.join(_PLAIN[:4])}")
    x = to_numpy(detach(point)).astype(np.float64)
    if not x.ndim or not x.size or x.shape[-1] % BLOCK or x.ndim > 4:
        raise ValueError(f"shape {x.shape} does not fit: rows must be a multiple of {BLOCK} long, with at most 4 axes")
    if not np.isfinite(x).all():
        raise ValueError("it holds NaN or infinite values")
    return x


def exact_rows(name: str, tensor: Array | Encoded, kind: str) -> np.ndarray | None:
    """The bytes (..., bytes of a row) of a point in ``kind``, None if it has no exact form there; ValueError naming it
    for rows of another length than a multiple of 32."""
    x = _named_points(name, tensor)
    scale, codes = _solve(x.reshape(-1, BLOCK), *KINDS[kind])
    return _bytes(scale, codes, kind).reshape(*x.shape[:-1], -1) if np.isfinite(scale).all() else None


def _named_points(name: str, tensor: Array | Encoded) -> np.ndarray:
    try:
        return _points(tensor)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _quantized(gguf: Any, name: str, tensor: Array | Encoded, kind: str, requantize: bool) -> tuple[np.ndarray, float]:
    """The bytes of a tensor's rows, and its relative error."""
    x = _named_points(name, tensor)
    scale, codes = _solve(x.reshape(-1, BLOCK), *KINDS[kind])
    missing = ~np.isfinite(scale)
    if not missing.any():
        return _bytes(scale, codes, kind).reshape(*x.shape[:-1], -1), 0.0
    if not requantize:
        own = f" of format {tensor.format}, {tensor.dtype}" if isinstance(tensor, Encoded) else ""
        raise ValueError(
            f"{name}{own}: {missing.sum()} of {missing.size} blocks are not an fp16 scale times codes "
            f"{KINDS[kind][0]} ... {KINDS[kind][1]}, so {kind} cannot hold them exactly. Exact for float32 weights: "
            f"{EXACT_FORMATS[kind]}. Cast the trained weights to one of these, or give requantize=True to round once "
            "more"
        )
    quantization = gguf.GGMLQuantizationType[kind]
    # The runtime's own rounding warns where a block is zero or its scale leaves the range of fp16.
    with np.errstate(all="ignore"):
        rows = gguf.quants.quantize(x.astype(np.float32), quantization)
        back = gguf.quants.dequantize(rows, quantization).astype(np.float64).reshape(x.shape)
    if not np.isfinite(back).all():
        raise ValueError(f"{name}: its magnitudes up to {abs(x).max():g} exceed what fp16 scales of {kind} reach")
    return rows, float(abs(back - x).max() / abs(x).max())


def _solve(x: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, codes)`` with ``x == scale * code`` exactly, by row; the scale is NaN where there is none.

    The entry of largest magnitude must have some code c from ``low`` to ``high``, which leaves one scale to try for
    each c. A product of an fp16 number and a code has at most 19 significant bits: exact in float32.
    """
    place = abs(x).argmax(axis=1)
    leader = x[np.arange(len(x)), place]
    zeros, minus = (x == 0), (x == 0) & np.signbit(x)
    sign = np.where(minus.any(axis=1), np.where((zeros & ~minus).any(axis=1), 0, -1), np.where(zeros.any(axis=1), 1, 0))
    scale, codes = np.full(len(x), np.nan), np.zeros(x.shape, np.int8)
    empty = leader == 0
    scale[empty] = np.where(minus[empty].any(axis=1), -0.0, 0.0)
    # From the outer codes inwards: the formats' own scales come first.
    for code in sorted((c for c in range(low, high + 1) if c), key=lambda c: (-abs(c), c)):
        left = np.flatnonzero(np.isnan(scale))
        if not left.size:
            break
        with np.errstate(over="ignore", under="ignore"):
            d = (leader[left] / code).astype(np.float16).astype(np.float64)
        fits = (d * code == leader[left]) & (sign[left] * np.sign(d) >= 0)
        left, d = left[fits], d[fits]
        q = np.rint(x[left] / d[:, None])
        fits = ((q >= low) & (q <= high) & (q * d[:, None] == x[left])).all(axis=1)
        scale[left[fits]], codes[left[fits]] = d[fits], q[fits].astype(np.int8)
    return scale, codes


def _bytes(scale: np.ndarray, codes: np.ndarray, kind: str) -> np.ndarray:
    """Blocks as ``ggml`` lays them out: the fp16 scale, then int8 codes, or pairs (i, i + 16) of offset nibbles."""
    head = np.ascontiguousarray(scale.astype("<f2")).view(np.uint8).reshape(-1, 2)
    if kind == "Q8_0":
        return np.concatenate([head, codes.view(np.uint8)], axis=1)
    nibbles = (codes + 8).astype(np.uint8)
    return np.concatenate([head, nibbles[:, :16] | (nibbles[:, 16:] << 4)], axis=1)


_PLAIN = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64")
# What write_gguf itself says, and what says where the tensors are in the file.
_OWN_KEYS = ("general.quantization_version", "general.file_type", "general.alignment")


def _plain(name: str, tensor: Array) -> np.ndarray:
    """An unquantized tensor as it is written."""
    if reason := without_numbers(tensor):
        raise ValueError(f"{name} {reason}")
    kind = dtype_name(tensor)
    if kind not in _PLAIN or not 1 <= tensor.ndim <= 4 or 0 in tensor.shape:
        raise ValueError(
            f"{name} has type {kind} and shape {tuple(tensor.shape)}; GGUF holds {', '.join(_PLAIN)} of 1 to 4 axes, "
            "none of length 0"
        )
    return np.ascontiguousarray(to_numpy(detach(tensor)))


def _is_text(text: str) -> bool:
    """Whether UTF-8 can say it: no half of a surrogate pair."""
    return text == text.encode("utf-8", "ignore").decode()


def typed_fields(fields: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Metadata with their types: key -> (value, type, and for a list the type of its entries); ValueError naming the
    key for what GGUF cannot hold."""
    types = library("gguf", "writing GGUF").GGUFValueType
    return {key: _typed(types, key, value) for key, value in fields.items()}


def _typed(types: Any, key: str, value: Any) -> tuple[Any, ...]:
    """A value of the metadata with its type in GGUF and, for a list, the type of its entries."""
    wrong = f"metadata {key!r} is {_shown(value)}"
    if not isinstance(key, str) or not key or not _is_text(key) or len(key.encode()) > 65535:
        raise ValueError(f"metadata key {_shown(key)} is no text of 1 to 65535 bytes")
    if key in _OWN_KEYS:
        raise ValueError(f"metadata {key!r} is not to be given: write_gguf sets it")
    if key == "general.architecture" and not (isinstance(value, str) and value):
        raise ValueError(f"{wrong}; valid: the name of an architecture")
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return _number(types, wrong, value)
    kinds = {kind for _, kind in (_number(types, wrong, item) for item in value)}
    if kinds and kinds <= {types.UINT32, types.INT64, types.UINT64}:
        # Lists of integers are of 32 bits with a sign where they can be.
        reach = max(max(value), -1 - min(value))
        kinds = {types.INT32 if reach < 1 << 31 else types.INT64 if reach < 1 << 63 else types.UINT64}
    if len(kinds) != 1 or (kinds == {types.UINT64} and min(value) < 0):
        raise ValueError(f"{wrong}; valid: lists that are not empty, with entries of one kind")
    return list(value), types.ARRAY, kinds.pop()


def _number(types: Any, wrong: str, value: Any) -> tuple[Any, Any]:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and _is_text(value):
        return value, types.STRING
    if isinstance(value, bool):
        return value, types.BOOL
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        # Runtimes read counts as 32-bit unsigned numbers.
        small = types.UINT32 if 0 <= value < 1 << 32 else types.INT64
        return value, small if value < 1 << 63 else types.UINT64
    if isinstance(value, float) and not _FLOAT32 < abs(value) < math.inf:
        return value, types.FLOAT32
    raise ValueError(
        f"{wrong}; valid: text, booleans, integers of 64 bits, numbers in the range of float32, and lists of one kind "
        "of them that are neither empty nor nested"
    )


_FLOAT32 = float(np.finfo(np.float32).max)


def _shown(value: Any) -> str:
    """A value in an error, which stays one sentence."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in itself
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."
