"""States as nested dicts of tensors, and loading them back into the tensors they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..selection import Quantized


def facts(items: list[Quantized]) -> dict[str, Any]:
    """What a state belongs to: the format, partition included, and each tensor's name and shape."""
    return {"format": str(items[0].quantizer), "shapes": {item.name: list(item.parameter.shape) for item in items}}


def pack(state: Mapping[str, list[Tensor] | Tensor], names: list[str]) -> dict[str, Any]:
    """Lists with one tensor per name as dicts from names to tensors; single tensors as they are."""
    return {
        key: dict(zip(names, value, strict=True)) if isinstance(value, list) else value for key, value in state.items()
    }


@torch.no_grad()
def copy_state(own: Mapping[str, Any], given: Mapping[str, Any], where: str = "state") -> None:
    """Copy the tensors of ``given`` into those of ``own``, in place. ValueError for keys, shapes or kinds that differ,
    before anything is copied."""
    _compare(own, given, where)
    _copy(own, given)


def _compare(own: Any, given: Any, where: str) -> None:
    if isinstance(own, Mapping):
        if not isinstance(given, Mapping) or set(own) != set(given):
            found = sorted(given) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"{where} has {found}, expected {sorted(own)}")
        for key in own:
            _compare(own[key], given[key], f"{where}[{key!r}]")
    elif isinstance(own, Tensor):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        if shape != tuple(own.shape):
            raise ValueError(f"{where} has shape {shape}, expected {tuple(own.shape)}")
        if own.is_floating_point() != given.is_floating_point():
            raise ValueError(f"{where} has type {given.dtype}, expected {own.dtype}")
    elif isinstance(own, str | list) and own != given:
        raise ValueError(f"{where} is {given!r}, expected {own!r}")


def _copy(own: Any, given: Any) -> None:
    for key, value in own.items():
        if isinstance(value, Mapping):
            _copy(value, given[key])
        elif isinstance(value, Tensor):
            value.copy_(given[key])
