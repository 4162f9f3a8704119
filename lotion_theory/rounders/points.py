"""Rounding schemes on weights as they are in a model: any float type, and the lattice of that type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from .. import Quantizer, Stream
from .._arrays import Array, alike, as_array, astype, detach, namespace, to_numpy, working
from ..export import Encoded, encode
from ..formats.lattice import AffineLattice, ScaledLattice, SpanLattice
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
        q: a format with one scale per block, and an offset or none. Of a drawn scale the more probable lattice is
            taken. A scheme that searches the scale ("clip_search") needs absmax: what it finds is rounded to the type
            of ``w``.

    Raises ValueError for other formats and for what the scheme refuses.
    """
    q, w = Quantizer.parse(q), detach(as_array(w))
    given = str(q)
    if q.scale.is_drawn:
        q = q.freeze(w)
    if scheme.search is not None and not q.is_absmax:
        raise ValueError(f"{scheme.name} searches real scales, and format {given} stores its own; give absmax")
    place, wide = placement(w, q), to_numpy(w).astype(np.float64)
    n = wide.shape[-1]
    grid = place.grid(lambda x: to_numpy(x).astype(np.float64).reshape(-1, n))
    points, found = scheme.placed(Case(np.asarray(hessian, np.float64), wide.reshape(-1, n), grid), stream, **settings)
    if scheme.search is not None:
        tops = q.partition.to_blocks(found.step.reshape(wide.shape))[:, :1]
        grid, q = found, q.with_top(_like(tops, w))
    low, high = grid.index(points)
    if (low != high).any():
        raise ValueError(f"{scheme.name} returned {int((low != high).sum())} values off its lattice")
    return encoded(w, q, alike(np.where(grid.step == 0, -1, low).reshape(wide.shape), w))


class Placement(NamedTuple):
    """The lattice that a format gives an array: levels ``shift + step units``. ``step`` and ``shift`` (None for 0) are
    of the array's shape, library and working type; ``ties`` as in :class:`Grid`."""

    units: np.ndarray
    ties: int
    step: Array
    shift: Array | None

    def grid(self, rows: Callable[[Array], Array]) -> Grid:
        """The same for rows; ``rows`` turns an array of the weights' shape into (rows, n)."""
        return Grid(rows(self.step), self.units, None if self.shift is None else rows(self.shift), self.ties)


def placement(w: Array, q: Quantizer) -> Placement:
    """The lattice of ``w`` in a format that is not drawn. A block of zeros has step 0: all its levels are 0.

    ValueError for formats with one scale above zero and another below.
    """
    book, lattice = q.codebook, q.branches(w)[0].draw.lattice
    shift: Array | None = None
    units: Sequence[Fraction]
    if isinstance(lattice, SpanLattice) and lattice.bottom is None:
        units, step = book.units, lattice.top
    elif isinstance(lattice, ScaledLattice):
        units, step = book.levels, lattice.top
        shift = None if lattice.bottom is None else -lattice.top * lattice.bottom
    elif isinstance(lattice, AffineLattice):
        units, step, shift = lattice.units, lattice.top - lattice.bottom, lattice.bottom
    else:
        raise ValueError(f"format {q} has one scale above zero and another below: only the scheme rtn takes it")
    blocks = q.partition.to_blocks(w)

    def spread(x: Array) -> Array:
        return q.unblock(namespace(x).broadcast_to(detach(x), tuple(blocks.shape)), w)

    floats = np.array([float(u) for u in units])
    return Placement(floats, 0 if book.even[0] else 1, spread(step), None if shift is None else spread(shift))


def encoded(w: Array, q: Quantizer, codes: Array) -> Encoded:
    """``codes``, integers of the shape of ``w``, on the lattice of ``w``; those below 0 are in blocks of zeros, for
    which there is one spelling."""
    levels = q.codebook.levels
    zero = levels.index(0) if q.codebook.has_zero else len(levels) - 1
    return encode(w, q, codes=namespace(codes).where(codes < 0, zero, codes))


def _like(tops: np.ndarray, w: Array) -> Array:
    """``tops`` rounded to the type of ``w``, in the library and type that computations on it run in."""
    return working(astype(alike(tops, w), str(w.dtype).removeprefix("torch.")))
