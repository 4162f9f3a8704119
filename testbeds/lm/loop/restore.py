"""Whether what a checkpoint holds fits the run: what is missing, too much or of another shape is named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...documents import first_line, short
from .checkpoint import Checkpoint, Damaged

FIXED = ("betas", "eps", "weight_decay")
"""Numbers of an optimizer's group that do not change in training."""


def check_model(stored: Checkpoint, model: nn.Module) -> None:
    """:class:`Damaged` unless ``model.pt`` holds exactly the weights of ``model``."""
    own = {name: value.shape for name, value in model.state_dict().items()}
    _check_tensors(stored, "model", own, stored.part("model"))


def check_optimizer(stored: Checkpoint, model: nn.Module, optimizer: torch.optim.AdamW) -> None:
    """:class:`Damaged` unless ``optimizer.pt`` holds averages of every weight, in the groups of ``optimizer``."""
    given = stored.part("optimizer")
    file = stored.path / "optimizer.pt"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    own = {
        f"{name}.{key}": shape
        for name, whole in shapes.items()
        for key, shape in (("step", ()), ("exp_avg", whole), ("exp_avg_sq", whole))
    }
    state, groups = given.get("state"), given.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        raise Damaged(f"{file} does not fit: no state and groups of AdamW")
    flat = {
        f"{name}.{key}": value
        for name, values in state.items()
        for key, value in (values.items() if isinstance(values, Mapping) else [("", values)])
    }
    _check_tensors(stored, "optimizer", own, flat)
    if len(groups) != len(optimizer.param_groups):
        raise Damaged(f"{file} does not fit: {len(groups)} groups of weights, not {len(optimizer.param_groups)}")
    for number, (mine, theirs) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        wanted = {**{key: mine[key] for key in FIXED}, "params": sorted(names[id(p)] for p in mine["params"])}
        for key, value in wanted.items():
            other = theirs.get(key) if isinstance(theirs, Mapping) else None
            if (sorted(map(str, other)) if key == "params" and isinstance(other, list) else other) != value:
                raise Damaged(f"{file} does not fit: {key} of group {number} is {short(other)}, not {short(value)}")


def check_rng(stored: Checkpoint) -> None:
    """:class:`Damaged` unless ``rng.pt`` holds a state of torch's generator."""
    try:
        torch.Generator().set_state(stored.part("rng")["cpu"])
    except (KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise Damaged(f"{stored.path / 'rng.pt'} does not fit: {first_line(error)}") from None


def check_facts(stored: Checkpoint, steps: int, batch: int) -> None:
    """:class:`Damaged` for a step or position that a run of ``steps`` steps of ``batch`` sequences never has."""
    manifest = stored.path / "manifest.json"
    if stored.step > steps:
        raise Damaged(f"{manifest} does not fit: step {stored.step} of a run of {steps} steps")
    if stored.facts.get("position") != stored.step * batch:
        raise Damaged(
            f"{manifest} does not fit: position {stored.facts.get('position')!r}, not {stored.step} steps of {batch}"
        )
    seconds = stored.facts.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise Damaged(f"{manifest} does not fit: seconds = {seconds!r}")
    if not isinstance(stored.facts.get("tokens", ""), str) or not isinstance(stored.facts.get("tokenizer", ""), str):
        raise Damaged(f"{manifest} does not fit: tokens and tokenizer must be texts")


def take_method(stored: Checkpoint, method: Any) -> None:
    """The method's state; :class:`Damaged` if it does not fit."""
    try:
        method.load_state_dict(stored.part("method"))
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(f"{stored.path / 'method.pt'} does not fit: {first_line(error)}") from None


def _check_tensors(stored: Checkpoint, part: str, own: Mapping[str, Any], given: Mapping[Any, Any]) -> None:
    file = stored.path / f"{part}.pt"
    for what, names in (("lacks", own.keys() - given.keys()), ("has unknown", given.keys() - own.keys())):
        if names:
            raise Damaged(f"{file} does not fit: it {what} {_listed(names)}")
    for name, shape in own.items():
        value = given[name]
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            raise Damaged(f"{file} does not fit: {name} is no tensor of floats")
        if tuple(value.shape) != tuple(shape):
            raise Damaged(f"{file} does not fit: {name} has shape {tuple(value.shape)}, not {tuple(shape)}")


def _listed(names: Iterable[Any], most: int = 4) -> str:
    ordered = sorted(map(str, names))
    more = len(ordered) - most
    return ", ".join(ordered[:most]) + (f" and {more} more" if more > 0 else "")
