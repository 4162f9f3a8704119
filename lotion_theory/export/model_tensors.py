"""What stands for a weight of a model in a file: codes, bytes of a stored type, or a plain array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._arrays import Array, detach, dtype_name, to_numpy
from ..files import library
from ..sources.container import Raw, companion
from ..sources.source import Place
from .codes import Encoded, decode, without_numbers
from .gguf_file import BLOCK, EXACT_FORMATS, KINDS, exact_rows

PLAIN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Types of arrays that runtimes take as weights, and their names in ggml."""


def is_stored(tensor: Any) -> bool:
    """Whether this is a :class:`~lotion_theory.stored.StoredTensor`: bytes of a type that runtimes store."""
    return hasattr(tensor, "to_bytes") and hasattr(tensor, "values") and hasattr(tensor, "type")


def values_of(name: str, tensor: Any) -> Array:
    """The numbers behind a tensor, a numpy array or torch tensor; ValueError naming one without numbers."""
    if is_stored(tensor):
        return tensor.values().reshape(tensor.shape)
    if isinstance(tensor, Encoded):
        return decode(tensor)
    if reason := without_numbers(tensor):
        raise ValueError(f"{name} {reason}")
    return detach(tensor)


def floats(name: str, tensor: Any) -> np.ndarray:
    """The numbers behind a tensor in float32; ValueError for integers and for float64 that float32 does not hold."""
    values = values_of(name, tensor)
    kind, values = dtype_name(values), to_numpy(values)
    out = values.astype(np.float32)
    if not kind.startswith(("float", "bfloat")) or (kind == "float64" and (out != values).any()):
        raise ValueError(f"{name} has type {kind} with values that float32 does not hold; give float32")
    return out


def raw_tensors(name: str, tensor: Any, place: Place, dequantized: bool) -> list[Raw]:
    """A weight as tensors of GGUF at ``place``: itself and, for types with a factor, that beside it.

    ``dequantized``: as float32, whatever it is. Else codes are written in the type that holds their values exactly, the
    bytes of a stored type as they are, and arrays in their own type. Raises ValueError naming the tensor for values
    that no type holds.
    """
    ggml = library("gguf", "writing GGUF", "models").GGMLQuantizationType
    shape = tuple(int(n) for n in tensor.shape)
    if dequantized or not (is_stored(tensor) or isinstance(tensor, Encoded)):
        data, kind = (floats(name, tensor), "F32") if dequantized else _plain(name, tensor)
    elif is_stored(tensor):
        kind = tensor.type.ggml
        data = np.asarray(tensor.to_bytes(), np.uint8).reshape(shape[0], -1)
    else:
        data, kind = _exact(name, tensor)
    if not hasattr(ggml, kind):
        raise ValueError(f"{name} has type {kind}, which this version of gguf does not know")
    rows = np.ascontiguousarray(place.to_file(data))
    made = [Raw(place.name, shape, int(ggml[kind]), rows.nbytes, rows)]
    for ending, beside in {} if dequantized else getattr(tensor, "companions", {}).items():
        made.append(Raw(companion(place.name, ending), beside.shape, int(ggml.F32), beside.nbytes, beside))
    return made


def _plain(name: str, tensor: Array) -> tuple[np.ndarray, str]:
    values = values_of(name, tensor)
    if (kind := dtype_name(values)) not in PLAIN:
        return floats(name, tensor), "F32"
    data = np.ascontiguousarray(to_numpy(values))
    return (data.view(np.uint16) if kind == "bfloat16" else data), PLAIN[kind]


def _exact(name: str, encoded: Encoded) -> tuple[np.ndarray, str]:
    """Rows of bytes and the type, the smallest that holds the values of ``encoded``."""
    cure = "or give dequantized=True to write it as float32"
    if encoded.shape[-1] % BLOCK:
        raise ValueError(
            f"{name} of shape {encoded.shape}: no type of GGUF holds its values exactly, as its rows are no "
            f"multiple of {BLOCK} long; leave it out, {cure}"
        )
    for kind in KINDS:
        if (rows := exact_rows(name, encoded, kind)) is not None:
            return rows, kind
    exact = "; ".join(EXACT_FORMATS[kind] for kind in KINDS)
    raise ValueError(
        f"{name} of format {encoded.format}, {encoded.dtype}: no type of GGUF holds its values exactly. Exact for "
        f"float32 weights are {exact}; {cure}"
    )


def checked(names: Mapping[str, Place], tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``tensors`` by the first name of tied ones. ValueError naming one that the model lacks or stores otherwise, that
    has another shape, and one of two tied ones that are given both."""
    given: dict[str, Any] = {}
    first = {id(parameter): name for name, parameter in reversed(list(parameters.items()))}
    for name, tensor in tensors.items():
        if name not in parameters:
            raise ValueError(f"{name} is no parameter of the model; they are {', '.join(list(parameters)[:4])}, ...")
        if name not in names:
            raise ValueError(f"{name} is not stored as one tensor in the source, so it cannot be replaced there")
        if tuple(tensor.shape) != tuple(parameters[name].shape):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, that of the model is {tuple(parameters[name].shape)}"
            )
        own = first[id(parameters[name])]
        if own in given and given[own] is not tensor:
            raise ValueError(f"{name} is tied to {own}, and both are given; give one of them")
        given[own] = tensor
    return given
