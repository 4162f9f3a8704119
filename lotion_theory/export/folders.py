"""Models as Hugging Face folders: the files of the source with weights replaced, dequantized or packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._arrays import dtype_name, is_torch, to_numpy
from ..files import library, whole_folder
from ..sources.folder import CONFIG, INDEX, WEIGHTS, weight_files
from ..sources.source import Source
from .model_tensors import values_of

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".gguf", ".index.json")
_GENERATION = "generation_config.json"
_KEYS = ("dtype", "torch_dtype")


def write_folder(
    source: Source, out: Path, tensors: Mapping[str, Any], packed: Mapping[str, Mapping[str, Any]] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the layout of ``save_pretrained``: configuration, tokenizer, and the weights in safetensors.

    ``tensors``: what takes the place of weights, by parameter; their values are written in their own float type. If
    that of the source does not hold them, the folder says float32, so that nothing is rounded as it is loaded.
    ``packed``: for weights that are written in several parts, parameter -> (ending in place of ``weight`` -> tensor);
    ``quantization``: what ``config.json`` says of them.
    """
    state, packed = {name: values_of(name, tensor) for name, tensor in tensors.items()}, packed or {}
    config = _config(source, {name: state[name] for name in state if name not in packed})
    if quantization:
        config["quantization_config"] = dict(quantization)
    with whole_folder(out) as part:
        if source.kind == "folder":
            _copy(source.path, part)
        else:
            _describe(source, part)
        (part / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        files = weight_files(source.path) if source.kind == "folder" else []
        named = {source.names[name].name: name for name in tensors}
        parts = {place: packed.get(name, {"weight": state[name]}) for place, name in named.items()}
        if files:
            _write_shards(files, part, parts)
        else:
            _save(_own_state(source, parts), part / WEIGHTS)


def _own_state(source: Source, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All weights of a model that has no safetensors of transformers, under the names that these have there."""
    state: dict[str, Any] = {}
    for name, parameter in source.model.named_parameters():
        place = source.names[name].name if source.kind == "run" else name
        own = source.names[name].name if name in source.names else name
        state |= _renamed(place, parts[own]) if own in parts else {place: parameter.detach()}
    return state


def _renamed(place: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a weight by name."""
    if list(parts) == ["weight"]:
        return {place: parts["weight"]}
    return {f"{place.removesuffix('weight')}{ending}": tensor for ending, tensor in parts.items()}


def _write_shards(files: list[Path], out: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """The files of a folder's weights, one at a time in memory."""
    safetensors = library("safetensors", "writing models", "models")
    places: dict[str, str] = {}
    total = 0
    for path in files:
        with safetensors.safe_open(path, framework="pt") as file:
            state: dict[str, Any] = {}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                state |= _renamed(name, parts[name]) if name in parts else {name: file.get_tensor(name)}
        _save(state, out / path.name)
        places |= dict.fromkeys(state, path.name)
        total += sum(tensor.nbytes for tensor in state.values())
    if len(files) > 1 or files[0].name != WEIGHTS:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _save(state: Mapping[str, Any], path: Path) -> None:
    torch, safetensors = (library(name, "writing models", "models") for name in ("torch", "safetensors.torch"))
    tensors = {
        name: (t if is_torch(t) else torch.from_numpy(to_numpy(t))).detach().contiguous() for name, t in state.items()
    }
    try:
        safetensors.save_file(tensors, path, {"format": "pt"})
    except library("safetensors", "writing models", "models").SafetensorError as error:
        raise OSError(f"{path.name} could not be written: {error}") from None


def _config(source: Source, state: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json``, with a float type that holds all that is written."""
    config = dict(source.config)
    own = next((config[key] for key in _KEYS if config.get(key)), "float32")
    if own != "float32" and any(dtype_name(t) != own and not _fits(t, own) for t in state.values()):
        own = "float32"
    for key in _KEYS:
        config.pop(key, None)
    return {**config, "dtype": own}


def _fits(tensor: Any, kind: str) -> bool:
    torch = library("torch", "writing models", "models")
    values = tensor if is_torch(tensor) else torch.from_numpy(tensor)
    return bool((values.to(getattr(torch, kind)).to(values.dtype) == values).all())


def _copy(source: Path, out: Path) -> None:
    """All files of a folder but its weights."""
    for entry in source.rglob("*"):
        relative = entry.relative_to(source)
        if (
            entry.is_file()
            and not entry.name.endswith(_NOT_COPIED)
            and not any(p.startswith(".") for p in relative.parts)
        ):
            (out / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry, out / relative)


def _describe(source: Source, out: Path) -> None:
    """Tokenizer and settings of generation."""
    if source.tokenizer is not None:
        source.tokenizer.save(out)
    ends = {f"{name}_token_id": source.config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    known = {name: value for name, value in ends.items() if value is not None}
    (out / _GENERATION).write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
