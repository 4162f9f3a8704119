"""The weights of a torch model that can be rounded as matrices, and the inputs that each of them meets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training._model.held import clean

_CONVOLUTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
_CALLED = "is not the weight of a Linear, Conv1d to Conv3d or Embedding layer"


@dataclass(frozen=True)
class Layer:
    """One weight. ``name``: of the parameter, of tied ones the first; ``modules``: all layers that multiply by it.

    ``kind``: "linear", "conv" or "embedding". ``shape``: of :meth:`matrix`, (rows, n): what is rounded is
    ``rows`` vectors of ``n`` inputs. ``groups``: parts of the rows that meet inputs of their own (grouped
    convolutions), else 1. ``turned``: whether the parameter has its inputs first (transformers' Conv1D).
    """

    name: str
    modules: tuple[nn.Module, ...]
    paths: tuple[str, ...]
    kind: str
    groups: int = 1
    turned: bool = False

    @property
    def module(self) -> nn.Module:
        """The layer, of tied ones the first."""
        return self.modules[0]

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def shape(self) -> tuple[int, int]:
        size = self.weight.shape
        return (size[1], size[0]) if self.turned else (size[0], math.prod(size[1:]))

    @property
    def reason_for_rtn(self) -> str | None:
        """Why no second moment can guide the rounding, or None."""
        if self.kind == "embedding":
            return "an embedding has no inputs to weigh errors by"
        if len(self.modules) > 1:
            return f"tied: {' and '.join(self.paths)}"
        return None

    def matrix(self, x: Tensor) -> Tensor:
        """An array of the parameter's shape as (rows, n)."""
        return x.T if self.turned else x.reshape(self.shape)

    def tensor(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`."""
        return x.T.contiguous() if self.turned else x.reshape(self.weight.shape)

    def inputs(self, x: Tensor) -> Tensor:
        """What the rows multiply, (groups, vectors, n), of the input ``x`` of the module."""
        n = self.shape[1]
        if self.kind == "linear":
            return x.reshape(1, -1, n)
        return _patches(self.module, x, self.groups, n)


def _patches(module: Any, x: Tensor, groups: int, n: int) -> Tensor:
    """The patches under a convolution's kernel, (groups, patches, n), in the order of its weight's entries."""
    convolve = next(f for kind, f in _CONVOLUTIONS.items() if isinstance(module, kind))
    spatial = len(module.kernel_size)
    if x.ndim == spatial + 1:
        x = x[None]
    padding = module.padding
    if module.padding_mode != "zeros":
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    # A convolution with unit vectors as kernels picks the entries one by one: exact, for every stride and dilation.
    pick = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, -1, *module.kernel_size)
    parts = x.unflatten(1, (groups, -1)).transpose(0, 1)
    found = [convolve(part, pick, None, module.stride, padding, module.dilation) for part in parts]
    return torch.stack([y.movedim(1, -1).reshape(-1, n) for y in found])


def find_layers(model: nn.Module) -> tuple[list[Layer], dict[str, str]]:
    """Every weight that can be rounded, in the order of the model's modules; and by name, why other weights of two or
    more dimensions are kept."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and _kind(module) is not None:
            owners.setdefault(id(weight), []).append((path, module))
    layers, kept = [], {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        found = owners.get(id(parameter))
        if found is None:
            kept[clean(name)] = _CALLED
            continue
        paths, modules = zip(*found, strict=True)
        # An embedding tied to the head is rounded as an embedding: its own inputs weigh nothing.
        kind = next((k for k in map(_kind, modules) if k == "embedding"), _kind(modules[0]))
        assert kind is not None, "owners have a kind"
        first = modules[0]
        layers.append(
            Layer(clean(name), tuple(modules), tuple(clean(f"{path}.weight".lstrip(".")) for path in paths), kind,
                  getattr(first, "groups", 1) if kind == "conv" else 1, _is_turned(first))
        )  # fmt: skip
    return layers, kept


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, nn.Linear) or _is_turned(module):
        return "linear"
    if isinstance(module, tuple(_CONVOLUTIONS)):
        return "conv"
    return "embedding" if isinstance(module, nn.Embedding) else None


def _is_turned(module: nn.Module) -> bool:
    """Whether it is what GPT-2 has for linear layers, with the inputs along the first axis."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def chosen_layers(
    model: nn.Module, format: Any, exclude: tuple[str, ...] | list[str] = ()
) -> tuple[list[tuple[Layer, Any]], dict[str, str]]:
    """The layers to round, each with its format, and by name, why other weights are kept as they are.

    ``format``: one for all, or ``pattern -> format`` (shell patterns over the parameters' names), each of which takes
    what it matches. Raises ValueError for a pattern that matches no weight that can be rounded, for two that match the
    same weight, and where nothing is left to round.
    """
    for argument, patterns in (("exclude", exclude), ("format", format if isinstance(format, Mapping) else ())):
        if argument == "exclude" and isinstance(patterns, str):
            raise ValueError(f"exclude = {patterns!r}; give a tuple or list of patterns, e.g. ({patterns!r},)")
    layers, kept = find_layers(model)
    names = [path for layer in layers for path in layer.paths]
    by_pattern = isinstance(format, Mapping)
    patterns = dict(format) if by_pattern else {"*": format}
    for pattern in (*(patterns if by_pattern else ()), *exclude):
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        known = next((f"{name} {why}" for name, why in kept.items() if fnmatchcase(name, pattern)), None)
        raise ValueError(
            f"pattern {pattern!r} matches no weight that can be rounded: "
            + (known or f"there are {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
        )
    found = []
    for layer in layers:
        if any(fnmatchcase(path, pattern) for path in layer.paths for pattern in exclude):
            kept[layer.name] = "excluded"
            continue
        hits = [p for p in patterns if any(fnmatchcase(path, p) for path in layer.paths)]
        if len(hits) > 1:
            raise ValueError(f"{layer.name} matches the patterns {' and '.join(map(repr, hits))}; give it one format")
        if hits:
            found.append((layer, patterns[hits[0]]))
        else:
            kept[layer.name] = "no pattern of format matches it"
    if not found:
        raise ValueError("nothing to quantize: no Linear, Conv1d to Conv3d or Embedding weight is left")
    return found, kept
