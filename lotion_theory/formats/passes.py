"""``cast``, ``round``, ``bracket``, ``mean`` and ``variance`` of a format as one compiled pass, behind :mod:`.fast`.

No formula is written here. The law of :mod:`.law`, with the format's own scale rule, is run on recording arrays
(:mod:`lotion_theory.fused`) and what it did is compiled; results are those of the plain path bit for bit. A rule that
does what is not recorded (a sum, whose order of additions is the library's own) finds its lattices in the plain way,
and the rest is compiled. Whatever is not served, or fails a check, is left to the plain path, which raises the errors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._arrays import Array, astype, dtype_name, is_torch, to_numpy, working
from ..fused import machine
from ..fused.call import contiguous, run, usable
from ..fused.graph import BLOCK, WEIGHT, Graph, Unsupported
from ..fused.programs import Outputs, Program
from ..fused.traced import Traced, entry
from .codebooks import Codebook
from .fast import TYPES, usual
from .lattice import Lattice
from .law import BlockLaw, law_of, law_on
from .scale_protocol import Draw, ScaleRule

_OUTPUTS = {
    "cast": ("out",), "round": ("out",), "mean": ("out",), "variance": ("out",), "bracket": ("lo", "hi"),
    **{f"slopes{k}": ("out", "through_top", "through_bottom")[: k + 1] for k in range(3)},
}  # fmt: skip


Shape = tuple[type[Lattice], bool, bool, bool]
"""What a draw is made of: the class of its lattice, and whether it has a bottom, a probability and a mixture."""


@dataclass(frozen=True)
class Key:
    """What a program is made for. ``scale``: the rule that is traced; None where the anchors come with each call, of
    lattices as ``draws`` says. ``dtype``, ``uniforms``: types in memory; ``columns``: see :func:`usual`."""

    book: Codebook
    scale: ScaleRule | None
    draws: tuple[Shape, ...]
    operation: str
    dtype: str
    uniforms: str | None
    columns: int | None


def compute(
    lattices: tuple[Codebook, ScaleRule], columns: int, operation: str, w: Array, *drawn: Array, out: Array = None
) -> tuple[Array, ...] | None:
    """The results of ``operation`` in the shape and type of ``w``; None to ask for the plain path.

    ``lattices``: codebook and scale rule; ``columns``: the length of blocks, which follow each other in ``w`` in C
    order; ``drawn``: for round, uniforms of ``w``'s shape and, of drawn scales, one per block; ``out``: what is to take
    the first result (it may be overwritten in vain).
    """
    size = math.prod(w.shape)
    given = _inputs(w, drawn, size // columns, lattices[1]) if dtype_name(w) in TYPES else None
    if given is None:
        return None
    uniforms = dtype_name(given["u"]) if "u" in given else None
    found = _program(lattices, operation, given, uniforms, columns)
    if found is None or id(found) in _WRONG:
        return None
    ordinary = dict(given)
    direct = out is not None and usable(out) and _writable(out)
    results = [out if k == 0 and direct else _empty_like(w) for k in range(len(_OUTPUTS[operation]))]
    given |= zip(_OUTPUTS[operation], results, strict=True)
    if not run(found, given, size // columns, columns):
        return None
    known = (id(found), is_torch(w))
    if known not in _CHECKED and not lattices[1].is_built_in:
        if not _agrees(lattices, operation, ordinary, results, columns):
            _WRONG[id(found)] = found
            return None
        _CHECKED[known] = found
    if out is None:
        return tuple(results)
    if not direct:
        out[...] = results[0]
    elif is_torch(out) and not out.is_inference():
        sys.modules["torch"].autograd.graph.increment_version(out)
    return (out,)


def _inputs(w: Array, drawn: tuple[Array, ...], blocks: int, rule: ScaleRule) -> dict[str, Array] | None:
    """The arrays of a call, contiguous; None for what the plain path is to judge."""
    given = {"x": contiguous(w)}
    if drawn:
        if rule.is_drawn != (len(drawn) == 2) or not all(_is_array(u) and is_torch(u) == is_torch(w) for u in drawn):
            return None
        shapes = [tuple(u.shape) for u in drawn]
        if shapes != [tuple(w.shape), (blocks,)][: len(drawn)] or len({dtype_name(u) for u in drawn}) > 1:
            return None
        if dtype_name(drawn[0]) not in ("float64", _working(dtype_name(w))):
            return None
        given |= zip(("u", "v"), map(contiguous, drawn), strict=False)
    return None if any(x is None for x in given.values()) else given


def _writable(out: Array) -> bool:
    if not is_torch(out):
        return out.flags.writeable
    return not out.is_inference() or sys.modules["torch"].is_inference_mode_enabled()


# Programs of rules that are not this package's: those that gave the bits of the plain path when first used, per
# library, and those that did not. They are kept, so that no other has their number.
_CHECKED: dict[tuple[int, bool], Program] = {}
_WRONG: dict[int, Program] = {}


def _agrees(
    lattices: tuple[Codebook, ScaleRule], operation: str, given: dict[str, Array], results: list[Array], columns: int
) -> bool:
    """Whether the results are those of the plain path. A rule may do what recording does not show, such as look at the
    class of an array or at a number that changes."""
    book, rule = lattices
    x = given["x"].reshape(-1, columns)
    rows = len(x) if rule.couples_blocks else 256
    try:
        law = law_of(working(x[:rows]), dtype_name(x), rule, book)
        drawn = [given["u"].reshape(x.shape)[:rows]] if "u" in given else []
        plain = _results(operation, law, lambda: [*drawn, given["v"][:rows, None]] if "v" in given else drawn)
    except Exception:
        return False
    for a, b in zip(plain, results, strict=True):
        if to_numpy(astype(a, dtype_name(x))).tobytes() != to_numpy(b.reshape(x.shape)[:rows]).tobytes():
            return False
    return True


def _is_array(x: Array) -> bool:
    return is_torch(x) or type(x) is np.ndarray


def _empty_like(w: Array) -> Array:
    if is_torch(w):
        return sys.modules["torch"].empty(w.shape, dtype=w.dtype, device=w.device)
    return np.empty(w.shape, w.dtype)


def _program(
    lattices: tuple[Codebook, ScaleRule], operation: str, given: dict[str, Array], uniforms: str | None, columns: int
) -> Program | None:
    """The program for this call, which adds what it needs to ``given``; None where there is none (yet)."""
    (book, rule), w = lattices, given["x"]
    size, dtype = math.prod(w.shape), dtype_name(w)
    key = Key(book, None if rule.is_frozen else rule, (), operation, dtype, uniforms, usual(columns))
    if machine.features() is None:
        return None
    if not rule.is_frozen:
        found = _compiled(key)
        if found is not None:
            return found
    # The lattices are found in the plain way.
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            draws = rule.draws(working(w).reshape(size // columns, columns), book, dtype)
    except (ValueError, TypeError):
        return None  # the plain path says why
    shapes = tuple(
        (type(d.lattice), d.lattice.bottom is not None, d.prob is not None, d.mixture is not None) for d in draws
    )
    found = _compiled(Key(book, None, shapes, operation, dtype, uniforms, usual(columns)))
    if found is None or not _anchors(draws, given, size // columns):
        return None
    return found


def _anchors(draws: list[Draw], given: dict[str, Array], blocks: int) -> bool:
    """Add the anchors of the draws to ``given``; False for what cannot be read as it is."""
    for k, draw in enumerate(draws):
        parts = {"top": draw.lattice.top, "bottom": draw.lattice.bottom, "prob": draw.prob}
        if draw.mixture is not None:
            parts |= dict(zip(("threshold", "p", "reach"), draw.mixture, strict=True))
        for name, x in parts.items():
            if x is None:
                continue
            x = contiguous(x) if tuple(x.shape) == (blocks, 1) else None
            if x is None or dtype_name(x) != _working(dtype_name(given["x"])) or is_torch(x) != is_torch(given["x"]):
                return False
            given[f"{name}{k}"] = x
    return True


# --- programs --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _compiled(key: Key) -> Program | None:
    """The program; None where it cannot be had."""
    if machine.features() is None:
        return None
    try:
        graph, outputs = traced(key)
        types = {"x": key.dtype} | {name: key.uniforms for name in ("u", "v") if key.uniforms is not None}
        return Program(graph, outputs, types, key.columns, _working(key.dtype))
    except (Exception, Unsupported):
        return None


def _working(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def traced(key: Key) -> tuple[Graph, Outputs]:
    """The graph of an operation and its outputs. Raises whatever a rule does with what is not recorded, mostly
    :class:`lotion_theory.fused.graph.Unsupported`."""
    graph, real = Graph(), _working(key.dtype)

    def given(name: str, rate: int = BLOCK, dtype: str = real) -> Traced:
        return entry(graph, name, dtype, rate, key.columns)

    x = given("x", WEIGHT)
    graph.require((abs(x) < math.inf).node)
    if key.scale is not None:
        law = law_of(x, key.dtype, key.scale, key.book)
    else:
        law = law_on(x, key.dtype, [_draw(k, shape, key, given) for k, shape in enumerate(key.draws)])
    for branch in law.branches:
        # A rule of the user's may leave the numbers.
        for anchor in (branch.draw.lattice.top, branch.draw.lattice.bottom):
            if isinstance(anchor, Traced):
                graph.require((abs(anchor) < math.inf).node)

    def drawn() -> list[Traced]:
        uniforms = [given("u", WEIGHT, str(key.uniforms))]
        if len(law.branches) == 2:
            uniforms.append(given("v", BLOCK, str(key.uniforms)))
        for uniform in uniforms:
            graph.require(((uniform >= 0) & (uniform < 1)).node)
        return uniforms

    found = _results(key.operation, law, drawn)
    for result in found:
        if not isinstance(result, Traced) or result.node.dtype != real or result.node.rate != WEIGHT:
            raise Unsupported("a result of another kind than the weights")
    return graph, {name: (r.node, key.dtype) for name, r in zip(_OUTPUTS[key.operation], found, strict=True)}


def _draw(k: int, shape: Shape, key: Key, given: Any) -> Draw:
    form, has_bottom, has_prob, mixed = shape
    lattice = form(key.book, key.dtype, given(f"top{k}"), given(f"bottom{k}") if has_bottom else None)
    mixture = (given(f"threshold{k}"), given(f"p{k}"), given(f"reach{k}")) if mixed else None
    return Draw(lattice, given(f"prob{k}") if has_prob else None, 0, mixture)


def _results(operation: str, law: BlockLaw, drawn: Callable[[], list[Any]]) -> tuple[Any, ...]:
    """What an operation makes of a law; ``drawn``: gives the uniforms, those of weights and of blocks."""
    if operation == "cast":
        return (law.nearest(),)
    if operation == "bracket":
        cell = law.branches[0].cell
        return cell.lo, cell.hi
    if operation in ("mean", "variance"):
        return (law.mean() if operation == "mean" else law.variance(),)
    if operation.startswith("slopes"):
        return law.slopes(int(operation[-1]))
    return (law.pick(*drawn()),)
