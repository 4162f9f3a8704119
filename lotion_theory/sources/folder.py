"""Models of Hugging Face folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import library, read_by_others
from .source import Place, Source
from .tokenizers import from_folder

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def open_folder(folder: Path) -> Source:
    """The model of a Hugging Face folder, in float32: of the class that its ``config.json`` names, else of the type's
    plain one.

    Raises ValueError for a folder without a model, an architecture that transformers does not know, weights that are
    missing or damaged, and a model that is quantized already.
    """
    config = read_config(folder)
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method")
        raise ValueError(f"{folder} is quantized by {method} already; give the model that it was made from")
    torch = library("torch", "reading models", "models")
    transformers = library("transformers", "reading models", "models")
    maker: Any = getattr(transformers, (config.get("architectures") or [""])[0], None)
    if not (isinstance(maker, type) and issubclass(maker, transformers.PreTrainedModel)):
        maker = transformers.AutoModel
    with read_by_others(f"{folder}: its model cannot be read"):
        model, report = maker.from_pretrained(
            os.fspath(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    if missing := sorted(map(str, report["missing_keys"])):
        raise ValueError(f"{folder} lacks the weights of {missing[0]} ({len(missing)} in all)")
    names = _places(model, tensor_names(folder))
    return Source(model.eval(), from_folder(folder), "folder", folder, names, config)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder; ValueError if there is none or it is damaged."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no model: neither {CONFIG} of Hugging Face nor a run of lotion train")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{path} names no model_type, so its architecture is unknown")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder's model; none if its weights are in another form."""
    index = folder / INDEX
    if index.is_file():
        return [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def tensor_names(folder: Path) -> list[str]:
    """Names of the tensors in a folder's safetensors files."""
    safetensors = library("safetensors", "reading models", "models")
    names: list[str] = []
    for path in weight_files(folder):
        with safetensors.safe_open(path, framework="np") as file:
            names += file.keys()
    return names


def _places(model: Any, stored: Iterable[str]) -> dict[str, Place]:
    """Names of the parameters in the files, which may leave the prefix of the base model away or add it."""
    stored, base = set(stored), f"{getattr(model, 'base_model_prefix', '')}."
    tied: dict[int, Place] = {}
    names: dict[str, Place] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        spellings = (name, base + name, name.removeprefix(base))
        found = next((one for one in spellings if one in stored), None if stored else name)
        if found is not None:
            tied.setdefault(id(parameter), Place(found))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in tied:
            names[name] = tied[id(parameter)]
    return names
