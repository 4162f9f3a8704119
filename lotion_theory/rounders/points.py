"""Rounding schemes on weights as they are in a model: any float type, and the lattice of that type."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import Quantizer, Stream
from .._arrays import Array, alike, as_array, astype, detach, to_numpy, working
from ..export import Encoded, encode
from ..formats.lattice import Lattice, ScaledLattice, SpanLattice
from .base import Case, Rounder
from .grid import Grid


def rounded(
    scheme: Rounder, hessian: np.ndarray, w: Array, q: Quantizer | str, stream: Stream, **settings: Any
) -> Encoded:
    """What ``scheme`` makes of ``w``, as codes on the lattice that ``q`` gives ``w`` in its own type.

    The scheme works in float64. Its choice is carried over as positions in the codebook, not as numbers, so that
    ``decode`` of the result has the very levels of the lattice: put it into the model, and give the result itself to
    :func:`~lotion_theory.export.save_packed` and :func:`~lotion_theory.export.write_gguf`, or
    :attr:`~lotion_theory.export.Encoded.frozen` to whatever would look for a lattice. All-zero blocks stay zero.

    Args:
        scheme: e.g. ``rounder("gptq")``; ``settings`` and ``stream`` are for it.
        hessian: (n, n), of rows of ``w`` along its last axis of n.
        w: a numpy array or a torch tensor of a float type.
        q: a format with levels from -c to c: absmax and stored scales with a balanced codebook. Of a drawn scale the
            more probable lattice is taken. A scheme that searches the scale ("clip_search") needs a real one: what it
            finds is rounded to the type of ``w``.

    Raises ValueError for other formats and for what the scheme refuses.
    """
    q, w = Quantizer.parse(q), detach(as_array(w))
    given = str(q)
    if q.scale.is_drawn:
        q = q.freeze(w)
    book, lattice, wide = q.codebook, q.branches(w)[0].draw.lattice, to_numpy(w).astype(np.float64)
    tops, spread = _tops(lattice, q, given), _spread(q, wide.shape)
    idle = (q.partition.to_blocks(wide) == 0).all(axis=1, keepdims=True)

    def grid_of(tops: np.ndarray) -> Grid:
        # An all-zero block has no scale; whatever its weights become on this one, they are set to zero at the end.
        return Grid.balanced(np.where(idle | (tops == 0), 1.0, tops)[spread].reshape(-1, wide.shape[-1]), book)

    grid = grid_of(tops)
    case = Case(np.asarray(hessian, np.float64), wide.reshape(grid.step.shape), grid)
    if scheme.search is not None and not isinstance(lattice, SpanLattice):
        raise ValueError(f"{scheme.name} searches real scales, and format {given} stores its own; give absmax")
    points, found = scheme.placed(case, stream, **settings)
    if scheme.search is not None:
        tops = np.where(idle, 0.0, q.partition.to_blocks(found.step.reshape(wide.shape))[:, :1])
        grid, q = found, q.with_top(_like(tops, w))
    low, high = grid.index(points)
    if (low != high).any():
        raise ValueError(f"{scheme.name} returned {int((low != high).sum())} values off its lattice")
    codes = np.where(idle[spread].reshape(low.shape), _zero(q), low).reshape(wide.shape)
    return encode(w, q, codes=alike(codes, w))


def _tops(lattice: Lattice, q: Quantizer, given: str) -> np.ndarray:
    """The highest level of each block, (blocks, 1), in float64."""
    top = to_numpy(detach(lattice.top)).astype(np.float64)
    plain = isinstance(lattice, (SpanLattice, ScaledLattice)) and lattice.bottom is None and (top >= 0).all()
    if not plain or not q.codebook.balanced:
        raise ValueError(f"format {given}: rounding schemes need levels from -c to c, as of int4, e2m1, mxfp4 or nvfp4")
    return top if isinstance(lattice, SpanLattice) else top * float(q.codebook.high)


def _spread(q: Quantizer, shape: tuple[int, ...]) -> np.ndarray:
    """The block of every weight, in ``shape``."""
    places = q.partition.to_blocks(np.arange(math.prod(shape)).reshape(shape))
    block = np.empty(places.size, int)
    block[places.reshape(-1)] = np.repeat(np.arange(len(places)), places.shape[1])
    return block.reshape(shape)


def _zero(q: Quantizer) -> int:
    """The code of all weights of a block of zeros."""
    levels = q.codebook.levels
    return levels.index(0) if q.codebook.has_zero else len(levels) - 1


def _like(tops: np.ndarray, w: Array) -> Array:
    """``tops`` rounded to the type of ``w``, in the library and type that computations on it run in."""
    return working(astype(alike(tops, w), str(w.dtype).removeprefix("torch.")))
