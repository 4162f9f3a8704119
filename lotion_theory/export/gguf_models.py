"""Models as GGUF files that runtimes run: a GGUF file with its tensors replaced, or a model of transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import to_numpy
from ..files import library
from ..sources.container import (
    ALIGNMENT,
    FILE_TYPE,
    QUANTIZATION_VERSION,
    Raw,
    companion,
    packed_fields,
    read_container,
    with_number,
    write_container,
)
from ..sources.families import fields_of, place_of
from ..sources.source import Place, Source
from .gguf_file import typed_fields
from .gguf_tokens import tokenizer_fields
from .model_tensors import PLAIN, raw_tensors


def write_gguf_model(source: Source, out: Path, tensors: Mapping[str, Any], dequantized: bool) -> dict[str, str]:
    """Write a model as GGUF with ``tensors`` in place of its weights, and return the type of each; for the arguments
    see :func:`~lotion_theory.export.write_like`."""
    if source.kind == "gguf":
        return _replaced(source, out, tensors, dequantized)
    return _new(source, out, tensors, dequantized)


def _replaced(source: Source, out: Path, tensors: Mapping[str, Any], dequantized: bool) -> dict[str, str]:
    """The same container: all metadata but the type of the file are its bytes, and so are the other tensors."""
    container = read_container(source.path)
    made = {source.names[name].name: raw_tensors(name, tensor, source.names[name], dequantized)
            for name, tensor in tensors.items()}  # fmt: skip
    dropped = {companion(name) for name in made}
    written: list[Raw] = []
    for name, tensor in container.tensors.items():
        if name in made:
            written += made[name]
        elif name not in dropped:
            shape = [int(n) for n in reversed(tensor.shape)]
            written.append(Raw(name, shape, int(tensor.tensor_type), int(tensor.n_bytes), tensor.data))
    metadata, entries = container.metadata
    for key, number in (_file_type(written), _version()):
        metadata, entries = with_number(metadata, entries, container.reader, key, number)
    write_container(out, metadata, entries, written, container.alignment)
    return _types(source.names, tensors, written)


def _new(source: Source, out: Path, tensors: Mapping[str, Any], dequantized: bool) -> dict[str, str]:
    """A container for a model that had another: its metadata from ``config.json`` and its tokenizer."""
    fields = [("general.architecture", source.config.get("model_type")), ("general.name", source.path.name)]
    fields += [*fields_of(source.config, str(source.path)), *tokenizer_fields(source)]
    names: dict[str, Place] = {}
    written: list[Raw] = []
    for name, parameter in source.model.named_parameters():
        # Parameters of transformers have their own names there, those of a run the names of their places.
        place = place_of(source.names[name].name if source.kind == "run" else name, source.config)
        if place is None:
            raise ValueError(
                f"{source.path}: {name} has no place in a GGUF model of type {source.config['model_type']}"
            )
        names[name] = place
        if name in tensors:
            written += raw_tensors(name, tensors[name], place, dequantized)
        else:
            written.append(_kept(parameter, place, source.config))
    typed = [(key, *(*entry, None)[:3]) for key, entry in typed_fields(dict(fields)).items()]
    types = library("gguf", "writing GGUF", "models").GGUFValueType
    typed += [(key, number, types.UINT32, None) for key, number in (_file_type(written), _version())]
    write_container(out, packed_fields(typed), len(typed), written, ALIGNMENT)
    return _types(names, tensors, written)


def _kept(parameter: Any, place: Place, config: Mapping[str, Any]) -> Raw:
    """A weight that is not replaced: a matrix in the type that it was read from, a vector in float32."""
    torch = library("torch", "writing models", "models")
    ggml = library("gguf", "writing GGUF", "models").GGMLQuantizationType
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    own = own if own in PLAIN and parameter.ndim > 1 else "float32"

    def data() -> np.ndarray:
        values = parameter.detach().to(getattr(torch, own))
        values = values.view(torch.uint16) if own == "bfloat16" else values
        return place.to_file(to_numpy(values))

    size = parameter.numel() * (4 if own == "float32" else 2)
    return Raw(place.name, tuple(parameter.shape), int(ggml[PLAIN[own]]), size, data)


def _types(names: Mapping[str, Place], tensors: Mapping[str, Any], written: Sequence[Raw]) -> dict[str, str]:
    ggml = library("gguf", "writing GGUF", "models").GGMLQuantizationType
    types = {raw.name: ggml(raw.type).name for raw in written}
    return {name: types[names[name].name] for name in tensors}


# Types whose file type has another name than theirs.
_FILE_TYPES = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"} | {
    f"Q{bits}_K": f"MOSTLY_Q{bits}_K_S" for bits in (3, 4, 5)
}


def _file_type(written: Sequence[Raw]) -> tuple[str, int]:
    """What the file says of itself: the type in which most of its numbers are."""
    gguf = library("gguf", "writing GGUF", "models")
    sizes: Counter[str] = Counter()
    for raw in written:
        sizes[gguf.GGMLQuantizationType(raw.type).name] += int(np.prod(raw.shape))
    kind = sizes.most_common(1)[0][0]
    named = _FILE_TYPES.get(kind, f"MOSTLY_{kind}")
    return FILE_TYPE, int(getattr(gguf.LlamaFileType, named, gguf.LlamaFileType.GUESSED))


def _version() -> tuple[str, int]:
    return QUANTIZATION_VERSION, int(library("gguf", "writing GGUF", "models").GGML_QUANT_VERSION)
