"""What a rounding scheme is given, and how it describes itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .. import Quantizer, Stream
from .._arrays import Array, alike, detach, dtype_name, is_torch, namespace, require_finite, to_numpy
from .grid import Grid, assembled, kind_of


class Regrid(NamedTuple):
    """Lattices that are found when a scheme enters a group of columns: only ``gptq`` with natural order takes them.

    ``find(weights, rows, columns)`` gives the :class:`Grid` of the group. ``weights`` (rows, columns): as earlier
    columns' errors have left them; ``rows`` and ``columns``: slices, their place in the whole case. ``group``: columns
    per group, from the left.
    """

    group: int
    find: Callable[[Array, slice, slice], Grid]


@dataclass(frozen=True, eq=False)
class Case:
    """Rows that share a Hessian: ``L(Q) = ½ Σ_r (Q_r - W_r)ᵀ H (Q_r - W_r)`` on a frozen lattice.

    ``weights`` W: (rows, n), the minimiser over unquantized weights. ``hessian``: (n, n), symmetric positive
    semidefinite. ``grid``: the lattice on which Q must lie. One row is a plain quadratic. All are numpy arrays or torch
    tensors on one device, of one type, float32 or float64; rounded points are of the same kind. ``regrid``: what
    replaces ``grid`` group by group.
    """

    hessian: Array
    weights: Array
    grid: Grid
    regrid: Regrid | None = None
    # Not arguments: what `replace` makes is a case of its own.
    _part: _Part | None = field(default=None, init=False, repr=False)
    _memo: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def make(cls, hessian: Array, weights: Array, q: Quantizer | str) -> Case:
        """The case with the lattice that ``q`` (absmax scale, balanced codebook) gives ``weights`` (n,) or (rows, n).

        Torch tensors stay what they are; anything else becomes float64 in numpy. Raises ValueError for other scale
        rules and codebooks, for shapes that do not fit and values not finite.
        """
        q = Quantizer.parse(q)
        if is_torch(weights):
            w, h = detach(weights), detach(hessian)
            w = w[None] if w.ndim == 1 else w
        else:
            w = np.atleast_2d(np.asarray(weights, dtype=np.float64))
            h = np.asarray(hessian, dtype=np.float64)
        for name, array in (("weights", w), ("hessian", h)):
            require_finite(array, name)
        _fits(h, w)
        return cls(h, w, Grid.balanced(absmax_tops(q, w), q.codebook))

    def checked(self) -> Case:
        """The case, cut from autograd; ValueError or TypeError, saying what, unless it is as the class says."""
        case = self
        if is_torch(self.weights) and (self.weights.requires_grad or self.hessian.requires_grad):
            case = replace(self, hessian=detach(self.hessian), weights=detach(self.weights))
        if dtype_name(case.weights) not in ("float32", "float64"):
            raise TypeError(f"weights have type {dtype_name(case.weights)}; valid: float32, float64")
        _fits(case.hessian, case.weights)
        kind = kind_of(case.weights)
        if kind_of(case.hessian) != kind or kind_of(case.grid.step) != kind:
            others = f"the Hessian {kind_of(case.hessian)}, the grid {kind_of(case.grid.step)}"
            raise TypeError(f"weights are {kind}, {others}; they must be alike")
        if case.grid.step.shape != case.weights.shape:
            shapes = tuple(case.grid.step.shape), tuple(case.weights.shape)
            raise ValueError(f"the grid has shape {shapes[0]}, expected {shapes[1]}, that of the weights")
        for name in ("weights", "hessian"):
            require_finite(getattr(case, name), name)
        return case

    def loss(self, points: Array) -> Array:
        """Losses (k,) of quantized ``points`` (k, rows, n)."""
        error = points - self.weights
        return (error * (error @ self.hessian)).sum(axis=(1, 2)) / 2

    def row_losses(self, points: Array) -> Array:
        """Loss of every row of ``points`` (rows, n), (rows,)."""
        error = points - self.weights
        return (error * (error @ self.hessian)).sum(axis=1) / 2

    @cached_property
    def curvature(self) -> Array:
        """Diagonal of the Hessian, (n,)."""
        return namespace(self.hessian).linalg.diagonal(self.hessian) + 0.0

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` computes of the Hessian, computed once for the case and its parts under ``key``."""
        if self._part is not None:
            return self._part.whole.once(key, make)
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    # --- batches of rows ---------------------------------------------------------------------------------------------

    def parts(self, batch: int | None) -> Iterator[Case]:
        """The case in batches of up to ``batch`` rows, which know their place in the whole; itself for None."""
        rows = len(self.weights)
        if batch is None or batch >= rows:
            yield self
            return
        for start in range(0, rows, batch):
            place = slice(start, min(start + batch, rows))
            part = replace(self, weights=self.weights[place], grid=self.grid.rows(place))
            object.__setattr__(part, "_part", _Part(self, place, batch))
            yield part

    @property
    def place(self) -> slice:
        """The rows of the whole case that this part has."""
        return slice(0, len(self.weights)) if self._part is None else self._part.rows

    def mean_of_all(self, key: Hashable, value: Callable[[Case], Array]) -> float:
        """The mean over all rows of the whole case of ``value(part)``, an array (rows, ...) of some of them; once."""
        whole, batch = (self, None) if self._part is None else (self._part.whole, self._part.batch)

        def mean() -> float:
            share = [(float(value(part).mean()), len(part.weights) / len(whole.weights)) for part in whole.parts(batch)]
            return sum(m * s for m, s in share)

        return self.once(key, mean)

    def uniforms(self, stream: Stream, step: int = 0) -> Array:
        """Uniforms (rows, n) of the case's kind, the same whatever the batches."""
        shape = tuple(self.weights.shape)
        return stream.uniforms(shape, step=step, like=self.weights, start=self.place.start * shape[1])


class _Part(NamedTuple):
    """Where a batch of rows comes from."""

    whole: Case
    rows: slice
    batch: int


def swift(case: Case) -> Case:
    """The case of tensors on a CPU in numpy, on the same memory: numpy spends half the time on short columns."""
    if not is_torch(case.weights) or case.weights.device.type != "cpu":
        return case
    regrid = case.regrid
    if regrid is not None:
        find, weights = regrid.find, case.weights
        regrid = regrid._replace(find=lambda w, *place: find(alike(w, weights), *place).carried(to_numpy))
    return Case(to_numpy(case.hessian), to_numpy(case.weights), case.grid.carried(to_numpy), regrid)


def as_given(x: Array, case: Case) -> Array:
    """``x``, made of a case that :func:`swift` gave, in the library of ``case``."""
    return x if is_torch(x) else alike(x, case.weights)


def _fits(hessian: Array, weights: Array) -> None:
    n = tuple(weights.shape[1:])
    if len(weights.shape) != 2:
        raise ValueError(f"weights have shape {tuple(weights.shape)}, expected (rows, n)")
    if tuple(hessian.shape) != 2 * n:
        raise ValueError(f"the Hessian has shape {tuple(hessian.shape)}, expected {2 * n} for rows of {n[0]}")


def absmax_tops(q: Quantizer, w: Array) -> Array:
    """Largest magnitude of each weight's block, in ``w``'s shape; ValueError unless ``q`` is absmax and balanced."""
    if not q.is_absmax:
        raise ValueError(f"format {q}: needs an absmax scale and a codebook from -c to c, e.g. int4, e2m1, nf4")
    xp = namespace(w)
    blocks = q.partition.to_blocks(abs(w))
    top = xp.broadcast_to(xp.max(blocks, axis=1, keepdims=True), blocks.shape).reshape(w.shape)
    return xp.where(top == 0, 1 + 0 * top, top)  # an all-zero block stays zero on any lattice that has a zero


@dataclass(frozen=True)
class Rounder:
    """A rounding scheme: ``run(case, settings, stream)`` returns quantized weights (rows, n).

    ``information``: what it is told ("none", "diagonal of H", "H"). ``grid``: "fixed", or "searched" where it may
    change the scale. ``source``: paper and equation. ``settings``: defaults; ``tuning``: values tried per setting.
    ``evaluations``: how many products with H one run costs, as text, e.g. "1 Cholesky" or "steps". ``by_rows``:
    whether rows can be rounded in batches, one not seeing another. ``search``: of schemes that search their grid, as
    ``run``, but with the :class:`Grid` found: ``(points, grid)``.
    """

    name: str
    run: Callable[[Case, Mapping[str, Any], Stream], Array]
    information: str
    grid: str
    source: str
    evaluations: str
    settings: Mapping[str, Any]
    tuning: Mapping[str, tuple[Any, ...]]
    by_rows: bool = True
    search: Callable[[Case, Mapping[str, Any], Stream], tuple[Array, Grid]] | None = None

    def __call__(self, case: Case, stream: Stream, *, batch: int | None = None, **settings: Any) -> Array:
        """Round ``case`` with ``settings`` over the defaults; ValueError for a setting it does not have.

        ``batch``: most rows at a time, which bounds the memory needed beside the case and its result. The result does
        not depend on it, but for sums that BLAS rounds in another order. Raises TypeError and ValueError for a case
        that is not as :class:`Case` says, and ValueError where the scheme takes no batches.
        """
        case, chosen = self._prepared(case, settings)
        if batch is not None and batch < 1:
            raise ValueError(f"batch={batch}: needs at least 1")
        if batch is not None and not self.by_rows and batch < len(case.weights):
            raise ValueError(f"{self.name} takes all rows together: leave batch out")
        quick = swift(case)
        if batch is None or batch >= len(case.weights):
            return as_given(self.run(quick, chosen, stream), case)
        out = namespace(quick.weights).empty_like(quick.weights)
        for part in quick.parts(batch):
            out[part.place] = self.run(part, chosen, stream)
        return as_given(out, case)

    def placed(self, case: Case, stream: Stream, *, batch: int | None = None, **settings: Any) -> tuple[Array, Grid]:
        """As a call, with the lattice that the points are on: the case's, or the one that was found."""
        if self.search is not None:
            case, chosen = self._prepared(case, settings)
            points, grid = self.search(swift(case), chosen, stream)
            return as_given(points, case), grid.carried(lambda x: as_given(x, case))
        if case.regrid is None:
            return self(case, stream, batch=batch, **settings), case.grid
        group, find = case.regrid
        pieces: list[tuple[slice, slice, Grid]] = []

        def noted(weights: Array, rows: slice, columns: slice) -> Grid:
            grid = find(weights, rows, columns)
            pieces.append((rows, columns, grid))
            return grid

        points = self(replace(case, regrid=Regrid(group, noted)), stream, batch=batch, **settings)
        return points, assembled(pieces, case.weights)

    def _prepared(self, case: Case, settings: Mapping[str, Any]) -> tuple[Case, Mapping[str, Any]]:
        for key in settings:
            if key not in self.settings:
                raise ValueError(f"{self.name} has no setting {key!r}; valid: {', '.join(self.settings) or 'none'}")
        if case.regrid is not None and self.name not in REGRIDDING:
            raise ValueError(f"{self.name} needs a frozen grid, and the case finds its own; valid: {REGRIDDING[0]}")
        return case.checked(), {**self.settings, **settings}


REGRIDDING = ("gptq",)
"""Schemes that take lattices found on the way."""
