"""Packed weights in one safetensors file, read back by :mod:`lotion_theory.export.loader`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import Array, astype, detach, dtype_name, is_torch, to_numpy
from ..files import library, whole_file
from ..formats.quantizer import Quantizer
from . import loader
from .codes import Encoded, encode, without_numbers

Format = str | Quantizer
unpack = loader.unpack


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """``codes`` (uint8, each below ``2**bits``, any shape) as a little-endian stream of ``bits`` bits each, in bytes.

    :func:`unpack` with the number of codes is the inverse. ValueError for codes that do not fit or bits not in 1 ... 8.
    """
    flat = np.ascontiguousarray(codes, np.uint8).reshape(-1)
    if not 1 <= bits <= 8 or (flat.size and int(flat.max()) >= 1 << bits):
        raise ValueError(f"codes up to {flat.max(initial=0)} do not fit bits = {bits}; valid: 1 ... 8, and enough")
    out = np.empty((flat.size * bits + 7) // 8, np.uint8)
    for first in range(0, flat.size, 1 << 20):
        part = flat[first : first + (1 << 20), None]
        stream = np.packbits(np.unpackbits(part, axis=1, count=bits, bitorder="little"), bitorder="little")
        out[first * bits // 8 :][: stream.size] = stream
    return out


@dataclass(frozen=True)
class PackedReport:
    """What a file holds. ``bits``: storage per weight, codes and anchors, of every quantized tensor.

    ``weights``: numbers in all tensors, tied ones once; ``quantized``: those stored as codes; ``file_bytes``: the file.
    """

    weights: int
    quantized: int
    file_bytes: int
    bits: dict[str, float] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """The whole file's bits over all numbers in it, tensors that are not quantized and metadata included."""
        return 8 * self.file_bytes / self.weights


def save_packed(
    path: str | Path,
    weights: Any,
    format: Format | Mapping[str, Format],
    include: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
) -> PackedReport:
    """Write weights as packed codes to one .safetensors file; :func:`load_packed` returns ``format``'s cast of them.

    Args:
        path: written aside and renamed, so that it is never half a file.
        weights: a torch module, or ``name -> array`` (numpy, torch or :class:`Encoded`) as a mapping or pairs. Of a
            module all of ``state_dict()`` is written, tied tensors once, frozen ones quantized too.
        format: a format string or Quantizer, or ``pattern -> format``, of which the first pattern that matches counts
            (shell patterns, or a name itself); tensors that none matches are stored as they are. A tensor that holds a
            rounded point keeps it on a frozen format: ``{name: q.freeze(w)}`` with the weights ``w`` that were rounded,
            ``{name: q.with_top(...)}``, or :attr:`Encoded.frozen`. Any other format finds a new lattice for the point.
        include: shell patterns (``"layers.*"``) of the tensors to quantize; by default all floating-point ones with two
            or more dimensions. A tensor with fewer is quantized where a pattern is its name. Tensors given as
            :class:`Encoded` are always written as they are.
        exclude: patterns of tensors to store as they are.

    The file carries a checksum of all its bytes. Raises ValueError for a path that ends in .gguf, a pattern that
    matches nothing, if there is nothing to quantize, and, naming the tensor, for one that is sharded, sparse, without
    values or of a type that the file does not hold, for what the format refuses and, by channel, for layers whose
    outputs are not along the first axis; OSError where the file cannot be written.
    """
    if str(path).lower().endswith(".gguf"):
        raise ValueError(f"path {path} ends in .gguf, and a packed file is one of safetensors; write_gguf writes GGUF")
    tensors, aliases = _named(weights)
    chosen = _chosen(tensors, aliases, include, exclude)
    given = format if isinstance(format, Mapping) else {"*": format}
    formats = {pattern: Quantizer.parse(f) for pattern, f in given.items()}
    own = _own_names(tensors, aliases)
    for pattern in formats if isinstance(format, Mapping) else ():
        if not any(_match(pattern, own[name]) for name in chosen):
            raise ValueError(f"format pattern {pattern!r} matches no quantized tensor; they are {_some(chosen)}")
    matched = {name: next((f for pattern, f in formats.items() if _match(pattern, own[name])), None) for name in chosen}
    arrays, index, bits = _contents(tensors, matched, _inputs_first(weights))
    if not bits:
        raise ValueError(f"nothing to quantize: no format matches any of {_some(chosen)}")
    index |= {"version": loader.VERSION, "aliases": aliases}
    save_file = library("safetensors.numpy", "writing packed weights").save_file
    with whole_file(path) as part:
        try:
            save_file(arrays, part, {"lotion_packed": json.dumps(index), loader.SEAL: loader.BLANK})
            loader.seal(part, write=True)
        except library("safetensors", "writing packed weights").SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None
    sizes = {name: math.prod(tensor.shape) for name, tensor in tensors.items()}
    return PackedReport(sum(sizes.values()), sum(sizes[name] for name in bits), Path(path).stat().st_size, bits)


def _contents(
    tensors: dict[str, Any], matched: Mapping[str, Quantizer | None], unfit: dict[Any, str]
) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, float]]:
    """The arrays of a file, their description, and bits per weight of the tensors that are codes."""
    arrays: dict[str, np.ndarray] = {}
    tables: dict[str, list[float]] = {}
    entries: dict[str, dict[str, Any]] = {}
    bits: dict[str, float] = {}
    for name, tensor in tensors.items():
        quantizer = matched.get(name)
        if quantizer is not None and not isinstance(tensor, Encoded):
            try:
                if quantizer.partition.by_channel and _identity(tensor) in unfit:
                    raise ValueError(f"{unfit[_identity(tensor)]}; exclude it, or use another partition")
                tensor = encode(detach(tensor), quantizer)
            except (ValueError, TypeError) as error:
                raise type(error)(f"{name}: {error}") from None
        if isinstance(tensor, Encoded):
            parts, entries[name] = _packed(tensor, tables)
            arrays |= {f"{name}::{part}": array for part, array in parts.items()}
            bits[name] = tensor.bits_per_weight
        else:
            arrays[name], entries[name] = _stored(tensor), {"dtype": dtype_name(tensor), "parts": [""]}
    return arrays, {"tables": tables, "tensors": entries}, bits


def load_packed(path: str | Path, like: str = "numpy", unchecked: bool = False) -> dict[str, Array]:
    """All tensors of a packed file by name, bit for bit those that were saved; ``like``: "numpy" or "torch" arrays.

    A tied tensor comes under all its names, as one array. ``unchecked``: also read files of version 1, whose checksum
    covers the tensors but not their description. Raises FileNotFoundError, or ValueError naming the file if it is
    truncated, changed in any bit, or foreign. The work is done by the ``load_packed`` of
    :mod:`~lotion_theory.export.loader`.
    """
    if like not in ("numpy", "torch"):
        raise ValueError(f"like = {like!r}; valid: numpy, torch")
    loaded = loader.load_packed(path, unchecked)
    if like == "numpy":
        return loaded
    torch = library("torch", "loading as torch tensors")
    once: dict[int, Any] = {}
    for array in loaded.values():
        if id(array) not in once:
            is_bfloat16 = dtype_name(array) == "bfloat16"
            tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
            once[id(array)] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
    return {name: once[id(array)] for name, array in loaded.items()}


def _packed(encoded: Encoded, tables: dict[str, list[float]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The stored arrays of a tensor and its entry in the metadata; its codebook is added to ``tables``."""
    book, kinds = encoded.book, encoded.anchors
    units = {
        "scaled": book.levels, "offset": book.levels, "affine": book.shares,
        "span": book.units if encoded.bottom is None else book.sided_units,
    }[encoded.lattice]  # fmt: skip
    sided = encoded.lattice == "span" and encoded.bottom is not None
    table, values = f"{book.name}:{encoded.lattice}{2 if sided else ''}", [float(u) for u in units]
    while tables.setdefault(table, values) != values:
        # Another codebook of the same name.
        table += "'"
    parts = {"codes": pack(to_numpy(encoded.codes), encoded.bits), "top": _anchor_bytes(encoded.top, kinds[0])}
    if encoded.bottom is not None:
        parts["bottom"] = _anchor_bytes(encoded.bottom, kinds[1])
    entry = {
        "format": encoded.format, "shape": list(encoded.shape), "dtype": encoded.dtype, "bits": encoded.bits,
        "block": encoded.block, "lattice": encoded.lattice, "anchors": list(kinds), "factor": encoded.factor,
        "table": table, "parts": list(parts),
    }  # fmt: skip
    return parts, entry


def _anchor_bytes(values: Array, kind: str) -> np.ndarray:
    flat = to_numpy(values)
    table = loader.anchor_table(kind)
    if table is None:
        return _stored(astype(flat, "float16" if kind == "fp16" else kind))
    order = np.argsort(table, kind="stable")
    return order[np.searchsorted(table[order], flat.astype(float))].astype(np.uint8)


def _stored(x: Array) -> np.ndarray:
    """``x`` as it is written: contiguous, bfloat16 as the uint16 of its bits."""
    if is_torch(x):
        x = x.resolve_conj().resolve_neg()
    array = np.ascontiguousarray(to_numpy(x)).reshape(tuple(x.shape))
    return array.view(np.uint16) if dtype_name(array) == "bfloat16" else array


_TYPES = {
    "bool", "bfloat16", "complex64", *(f"float{n}" for n in (16, 32, 64)),
    *(f"{kind}{n}" for kind in ("int", "uint") for n in (8, 16, 32, 64)),
}  # fmt: skip


def _refused(tensor: Any) -> str | None:
    """Why a tensor cannot be in a file, or None."""
    if isinstance(tensor, Encoded):
        return None
    if reason := without_numbers(tensor):
        return reason
    if dtype_name(tensor) not in _TYPES:
        return f"has type {dtype_name(tensor)}, which a packed file does not hold; valid: {', '.join(sorted(_TYPES))}"
    return None


def _named(weights: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Each tensor once by its first name, and the other names of tied ones."""
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(weights, torch.nn.Module)
    pairs: Iterable[tuple[str, Any]] = weights.items() if isinstance(weights, Mapping) else weights
    if is_module:
        from ..training.selection import clean

        pairs = [(clean(name), tensor) for name, tensor in weights.state_dict().items()]
        if all(name.startswith("module.") for name, _ in pairs):
            pairs = [(name.removeprefix("module."), tensor) for name, tensor in pairs]
    tensors: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    if not isinstance(pairs, Iterable):
        raise ValueError(f"weights are a {type(weights).__name__}; valid: a module, a mapping, pairs of name and array")
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise ValueError(f"weights yield {type(pair).__name__}; valid: pairs of a name and an array")
        name, tensor = pair
        if isinstance(tensor, np.ndarray) and not tensor.dtype.isnative:
            tensor = tensor.astype(tensor.dtype.newbyteorder("="))
        if not isinstance(name, str) or name != name.encode("utf-8", "ignore").decode():
            raise ValueError(f"tensor name {name!r} is no text that a file can hold")
        if "::" in name or name == "__metadata__" or name in tensors or name in aliases:
            raise ValueError(f"tensor name {name!r} is taken: twice, by '::' between a name and a part, or by the file")
        if reason := _refused(tensor):
            raise ValueError(f"{name} {reason}")
        key = _identity(tensor)
        if key in first:
            aliases[name] = first[key]
        else:
            tensors[name], first[key] = tensor, name
    if not tensors:
        raise ValueError("weights is empty")
    return tensors, aliases


def _inputs_first(weights: Any) -> dict[Any, str]:
    """The weights of a module whose outputs are not along the first axis, with a sentence that says so."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(weights, torch.nn.Module):
        return {}
    from ..training.selection import inputs_first

    reasons = inputs_first(weights)
    return {_identity(p.detach()): reasons[id(p)] for p in weights.parameters() if id(p) in reasons}


def _identity(tensor: Any) -> Any:
    if is_torch(tensor) and tensor.numel():
        return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    return id(tensor)


def _chosen(
    tensors: dict[str, Any], aliases: dict[str, str], include: tuple[str, ...] | list[str], exclude: Any
) -> list[str]:
    """Names of the tensors to quantize."""
    names = _own_names(tensors, aliases)
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{argument} = {patterns!r}; give a tuple or list of patterns, e.g. ({patterns!r},)")
        for pattern in patterns:
            if not any(_match(pattern, own) for own in names.values()):
                raise ValueError(f"pattern {pattern!r} matches no tensor; names are {_some(list(names))}")
    chosen = []
    for name, tensor in tensors.items():
        own = names[name]
        if isinstance(tensor, Encoded):
            chosen.append(name)
            continue
        fits = dtype_name(tensor).startswith(("float", "bfloat"))
        fits = fits and (tensor.ndim >= 2 or any(other in include for other in own))
        wanted = not include or any(_match(pattern, own) for pattern in include)
        if fits and wanted and not any(_match(pattern, own) for pattern in exclude):
            chosen.append(name)
    if not chosen:
        raise ValueError(
            f"nothing to quantize: no floating-point tensor of two or more dimensions; names are {_some(list(names))}"
        )
    return chosen


def _own_names(tensors: dict[str, Any], aliases: dict[str, str]) -> dict[str, list[str]]:
    """All names of each tensor, under the first."""
    return {name: [name, *(other for other, first in aliases.items() if first == name)] for name in tensors}


def _match(pattern: str, names: list[str]) -> bool:
    """Whether a pattern matches one of a tensor's names, or is one: a name may hold brackets and stars itself."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", ... ({len(names)} in all)" if len(names) > 6 else "")
