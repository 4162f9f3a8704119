"""Quantized models as files and folders that other programs run, made like the source that was quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import library
from ..sources.source import Source
from .codes import Encoded
from .compressed import compressed_parts, quantization_config
from .folders import write_folder
from .gguf_models import write_gguf_model
from .model_tensors import checked, is_stored, values_of
from .packed import save_packed

KINDS = ("packed", "gguf", "folder", "compressed-tensors")


@dataclass(frozen=True)
class Written:
    """What :func:`write_like` wrote. ``path``, ``kind``; ``bytes``: of the file, or of all files of the folder;
    ``types``: how each weight that was given is stored."""

    path: Path
    kind: str
    bytes: int
    types: dict[str, str] = field(default_factory=dict)


def write_like(
    source: Source, out: str | Path, tensors: Mapping[str, Any], kind: str | None = None, dequantized: bool = False
) -> Written:
    """Write the model of ``source`` with other weights, so that other programs run it.

    Args:
        source: from :func:`~lotion_theory.sources.open_source`, or a run of ``lotion train``.
        out: a file or a new folder, which appears whole or not at all.
        tensors: parameter -> :class:`Encoded`, :class:`~lotion_theory.stored.StoredTensor`, or an array of any other
            values; weights that are not given stay as they are in the source.
        kind: "gguf": a model that llama.cpp runs. Of a GGUF file the same container: metadata and tokenizer, and every
            tensor that is not given, keep their bytes. "folder": a Hugging Face folder in the layout of
            ``save_pretrained``, weights dequantized, in their own float type. "compressed-tensors": such a folder with
            integers packed as ``pack-quantized``, which transformers and vLLM load. "packed": one safetensors file for
            :func:`load_packed`. None: what ``out`` ends in (.gguf, .safetensors), else a folder.
        dequantized: write the values of quantized tensors to GGUF as float32, also where codes could be; without it a
            tensor whose values the kind does not hold exactly is refused. In packed files formats stay codes, and types
            of GGUF become float32.

    Values are the same bit for bit in all kinds; only a loader of compressed-tensors computes them as ``code * scale``,
    within four units of 2**-24 of themselves. Raises ValueError naming a tensor that the model lacks, that has another
    shape, or that the kind does not hold, and for models that it has no form for; FileExistsError for a folder that is
    there already; OSError where ``out`` cannot be written.
    """
    out = Path(out)
    kind = kind_of(out, kind)
    if reason := source.refused.get(kind):
        raise ValueError(reason)
    given = checked(source.names, tensors, dict(source.model.named_parameters(remove_duplicate=False)))
    if kind in ("gguf", "packed") and out.is_dir():
        raise ValueError(f"{out} is a folder, and {kind} is one file")
    if kind == "gguf":
        types = write_gguf_model(source, out, given, dequantized)
    elif kind == "packed":
        types = _write_packed(source, out, given, dequantized)
    elif kind == "folder":
        write_folder(source, out, given)
        types = {name: str(values_of(name, tensor).dtype).removeprefix("torch.") for name, tensor in given.items()}
    else:
        types = _write_compressed(source, out, given)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) if out.is_dir() else out.stat().st_size
    return Written(out, kind, size, types)


def kind_of(out: Path, kind: str | None = None) -> str:
    """``kind``, or what ``out`` ends in; ValueError for an unknown one."""
    kind = kind or {".gguf": "gguf", ".safetensors": "packed"}.get(out.suffix.lower(), "folder")
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    return kind


def _write_packed(source: Source, out: Path, tensors: Mapping[str, Any], dequantized: bool) -> dict[str, str]:
    state = {name: tensor.detach() for name, tensor in source.model.state_dict().items()}
    for name, tensor in tensors.items():
        if is_stored(tensor) and not dequantized:
            raise ValueError(
                f"{name} is stored as {tensor.type.ggml}, which packed files do not hold; write GGUF, or give "
                "dequantized=True to write it as float32"
            )
        state[name] = values_of(name, tensor) if is_stored(tensor) else tensor
    if not any(isinstance(tensor, Encoded) for tensor in state.values()):
        raise ValueError("no tensor is given as codes, which a packed file is for; write a folder of plain weights")
    tied = _tied(source.model, state)
    save_packed(out, tied, {name: tensor.frozen for name, tensor in tied.items() if isinstance(tensor, Encoded)})
    return {name: state[name].format if isinstance(state[name], Encoded) else "float32" for name in tensors}


def _tied(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` with one object for all names of a tied weight."""
    first: dict[int, str] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {name: first.setdefault(id(parameter), name) for name, parameter in parameters.items()}
    return {name: state[names.get(name, name)] for name in state}


def _write_compressed(source: Source, out: Path, tensors: Mapping[str, Any]) -> dict[str, str]:
    linear = library("torch", "writing compressed-tensors", "models").nn.Linear
    layers = {name for name, module in source.model.named_modules() if isinstance(module, linear)}
    packed: dict[str, dict[str, Any]] = {}
    groups: dict[tuple[int, int | None], list[str]] = {}
    types: dict[str, str] = {}
    for name, tensor in tensors.items():
        if is_stored(tensor):
            raise ValueError(
                f"{name} is stored as {tensor.type.ggml}, which compressed-tensors does not hold; write GGUF"
            )
        if not isinstance(tensor, Encoded):
            continue
        layer = name.removesuffix(".weight")
        if layer not in layers:
            raise ValueError(f"{name} is no weight of a linear layer, and compressed-tensors packs those only")
        packed[name], bits, group = compressed_parts(name, tensor)
        own = source.names[name].name.removesuffix(".weight") if source.kind == "run" else layer
        groups.setdefault((bits, group), []).append(own)
        types[name] = f"int{bits}"
    if not packed:
        raise ValueError(
            "no tensor is given as codes, which compressed-tensors is for; write a folder of plain weights"
        )
    rest = sorted(layers - {name.removesuffix(".weight") for name in packed})
    ignored = [
        source.names[f"{name}.weight"].name.removesuffix(".weight") if source.kind == "run" else name for name in rest
    ]
    write_folder(source, out, tensors, packed, quantization_config(groups, ignored))
    return {name: types.get(name, "float") for name in tensors}
