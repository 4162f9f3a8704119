"""What :mod:`.graphs` calls under ``torch.compile``: one operation that the compiler sees through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .._arrays import tracing
from . import lattice
from .codebooks import codebook
from .graphs import FUNCTIONS
from .quantizer import Quantizer
from .scale_protocol import scale_rule
from .scaling_frozen import Kept, Lattices, Scaled, Topped, frozen_rule


def run(name: str, quantizer: Quantizer, *arguments: Any) -> Any:
    """The function of this name on a quantizer; read by the compiler, which knows numbers, names and tensors."""
    return _operation(name, _named(quantizer), *_frozen(quantizer), *arguments)


def _named(quantizer: Quantizer) -> str:
    """The format as :meth:`Quantizer.parse` knows it in this process; ValueError for one that it does not know."""
    book, scale = quantizer.codebook.name, quantizer.scale.name
    if not _is_known(quantizer):
        raise ValueError(
            f"torch.compile takes formats by their names, and {book}/{scale} is not that of this one: "
            "call register_codebook(...) or register_scale(...)"
        )
    partition = quantizer.partition
    return f"{book}/{scale}/{partition.kind}" + ("" if partition.size is None else f"={partition.size}")


@torch.compiler.assume_constant_result
def _is_known(quantizer: Quantizer) -> bool:
    try:
        rule = quantizer.scale.is_frozen or scale_rule(quantizer.scale.name) == quantizer.scale
        return rule and codebook(quantizer.codebook.name) == quantizer.codebook
    except ValueError:
        return False


Frozen = tuple[str, Any, Any, Any]
"""How a frozen lattice came about, or "", its anchors, and whatever else it knows."""


def _frozen(quantizer: Quantizer) -> Frozen:
    """A frozen lattice in parts, of which tensors are inputs of the graph: they may be learned."""
    if not quantizer.scale.is_frozen:
        return "", None, None, None
    given = quantizer.scale.draws.lattices  # type: ignore[attr-defined]
    if isinstance(given, Scaled):
        return "scale", given.scale, None, None
    if isinstance(given, Topped):
        return "top", given.top, None, None
    if isinstance(given, Kept):
        return type(given.lattice).__name__, given.lattice.top, given.lattice.bottom, (given.shape, given.kind)
    return "", None, None, None


@torch.compiler.allow_in_graph
def _operation(name: str, text: str, how: str, top: Any, bottom: Any, extra: Any, *arguments: Any) -> Any:
    quantizer = Quantizer.parse(text)
    if how:
        lattices: Lattices
        if how == "scale":
            lattices = Scaled(top)
        elif how == "top":
            lattices = Topped(top)
        else:
            lattices = Kept(getattr(lattice, how)(quantizer.codebook, extra[1], top, bottom), *extra)
        quantizer = replace(quantizer, scale=frozen_rule(lattices), text="")
    with tracing():
        return FUNCTIONS[name](quantizer, *arguments)
