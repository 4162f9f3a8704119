"""Weights of a model cast to nearest or rounded at random for a while, and which weights those are."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lotion_theory import Quantizer, Stream

from .shards import assign, whole

Grid = Callable[[str, Tensor], Quantizer | None]
"""The quantizer of a weight that has one of its own, by its name and values; else None."""
Change = Callable[[str, Tensor], Tensor]
"""What a weight is replaced by, by its name and values."""


@dataclass(frozen=True)
class Casting:
    """The weights ``names`` of a model and what they are cast with: the ``quantizer`` of a format, or, where there is
    one, the weight's own of ``grid``. Such a grid may clip: weights beyond its range go to its end, so that randomized
    rounding is biased there."""

    quantizer: Quantizer
    names: tuple[str, ...]
    grid: Grid | None = None

    @classmethod
    def fitting(cls, model: nn.Module, names: Sequence[str], format: str) -> Casting:
        """Of these weights to ``format``; ValueError for an unknown one, and as :func:`check_blocks`."""
        quantizer = Quantizer.parse(format)
        check_blocks(quantizer, {name: model.get_parameter(name) for name in names})
        return cls(quantizer, tuple(names))

    def quantizer_of(self, name: str, w: Tensor) -> Quantizer:
        """What weight ``name`` with the values ``w`` is cast with."""
        own = None if self.grid is None else self.grid(name, w)
        return self.quantizer if own is None else own

    def nearest(self, name: str, w: Tensor) -> Tensor:
        """Weight ``name`` cast to nearest."""
        return self.quantizer_of(name, w).cast(w)

    def rounding(self, seed: int, sample: int) -> Change:
        """Randomized rounding number ``sample`` of every weight, from streams of ``seed`` and the weight's name."""
        streams = Stream(seed, "lm/evaluation/rounding")

        def rounded(name: str, w: Tensor) -> Tensor:
            stream, quantizer, scale = streams.spawn(name), self.quantizer_of(name, w), None
            if quantizer.scale.is_drawn:
                blocks = quantizer.partition.to_blocks(w).shape[0]
                scale = stream.spawn("scale").uniforms(blocks, sample, like=w)
            return quantizer.round(w, stream.uniforms(tuple(w.shape), sample, like=w), scale)

        return rounded

    @contextmanager
    def cast(self, model: nn.Module, change: Change) -> Iterator[None]:
        """Within the block the weights of ``model`` hold what ``change`` makes of them, see :func:`replaced`."""
        with replaced({name: model.get_parameter(name) for name in self.names}, change):
            yield


@contextmanager
def replaced(weights: Mapping[str, Tensor], change: Change) -> Iterator[None]:
    """Within the block each of ``weights`` holds ``change(name, weight)``; after it, its own bits again."""
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                value = change(name, whole(weight))
                kept[name] = weight.detach().clone()
                assign(weight, value)
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                weights[name].detach().copy_(value)


def quantized_names(model: nn.Module, include: Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
    """Names of the matrices (2-D parameters) that match a pattern of ``include`` and none of ``exclude``.

    Patterns are those of a shell: ``*``, ``?``, ``[ab]``. Raises ValueError naming a pattern that matches no matrix,
    and if nothing is left.
    """
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
    for label, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(matrices, pattern):
                shown = ", ".join(dict.fromkeys(_general(name) for name in matrices))
                raise ValueError(f"method.{label}: pattern {pattern!r} matches no matrix; valid: {shown}")

    def among(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    names = [name for name in matrices if among(name, include) and not among(name, exclude)]
    if not names:
        raise ValueError(f"method.exclude = {list(exclude)} leaves nothing of method.include = {list(include)}")
    return names


def _general(name: str) -> str:
    """``blocks.3.feed.up.weight`` as ``blocks.*.feed.up.weight``."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def check_blocks(quantizer: Quantizer, weights: Mapping[str, Tensor]) -> None:
    """ValueError naming the first weight that the quantizer's blocks do not divide."""
    for name, weight in weights.items():
        try:
            quantizer.partition.length(tuple(weight.shape))
        except ValueError as error:
            raise ValueError(f"method.format = {str(quantizer)!r}: {name}: {error}") from None
