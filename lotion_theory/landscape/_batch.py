"""A quantizer seen at many weight arrays at once: what pictures need, without a loop over their points."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .. import kernels
from .._arrays import doubles
from ..formats.lattice import Lattice
from ..formats.law import BlockLaw, Branch, law_of
from ..formats.quantizer import Quantizer
from ..formats.scaling_frozen import frozen_rule
from ..smoothing import closed_form
from ..smoothing.losses import Loss, Quadratic, values_of

CORNERS = 2**14
"""Most rounding outcomes enumerated per point: 14 weights off the lattice."""


class Batch:
    """``q`` on points of shape (n, *shape), each point being rounded on its own lattice, in float64.

    Raises ValueError for complex codebooks, and for a ``shape`` that the partition of ``q`` does not divide.
    """

    def __init__(self, q: Quantizer | str, shape: tuple[int, ...]) -> None:
        self.q, self.shape = Quantizer.parse(q), tuple(shape)
        if self.q.codebook.is_complex:
            raise ValueError(
                f"landscapes are drawn over real weights; format {self.q} is complex (use its pairs Re ± Im)"
            )
        template, _ = self.q.blocks(np.zeros(self.shape))
        self.blocks, self.size = template.shape

    def _rows(self, points: np.ndarray) -> np.ndarray:
        points = doubles(points, "points")
        if points.shape[1:] != self.shape:
            raise ValueError(f"points have shape {points.shape}, expected (n, {', '.join(map(str, self.shape))})")
        return points.reshape(-1, self.size)

    def _tiled(self, count: int) -> Quantizer:
        """A frozen lattice is known per block of one point: repeat it for every point."""
        (draw,) = self.q.scale.draws(np.zeros((self.blocks, self.size)), self.q.codebook, "float64")
        kept: Lattice = draw.lattice
        bottom = None if kept.bottom is None else np.tile(kept.bottom, (count, 1))
        tiled = replace(kept, top=np.tile(kept.top, (count, 1)), bottom=bottom)
        return replace(self.q, scale=frozen_rule(lambda *_: tiled), text="")

    def law(self, points: np.ndarray) -> BlockLaw:
        """As :meth:`Quantizer.block_law`, the blocks of all points stacked: arrays (n * blocks, weights per block)."""
        rows = self._rows(points)
        if self.q.scale.couples_blocks:
            stored, common = self.two_levels(points)
            lattice = replace(stored.draw.lattice, top=stored.draw.lattice.top * common)
            branch = Branch(stored.draw, rows)
            branch.cell = lattice.locate(rows)  # on the stored scale times the factor of each point
            return BlockLaw(rows, "float64", [branch])
        return law_of(rows, "float64", self.on_rows(len(rows) // self.blocks).scale, self.q.codebook)

    def branches(self, points: np.ndarray) -> list[Branch]:
        """The branches of :meth:`law`."""
        return self.law(points).branches

    def on_rows(self, count: int) -> Quantizer:
        """The quantizer of ``count`` points whose blocks are the rows of one array."""
        q = self._tiled(count) if self.q.scale.is_frozen else self.q
        return q.with_partition("row")

    def two_levels(self, points: np.ndarray) -> tuple[Branch, np.ndarray]:
        """For two-level scales: the law on weights divided by the factor common to their tensor, and that factor,
        (n * blocks, 1). Unlike the two-level rule itself this keeps the tensors of a batch apart."""
        one_level = self.q.scale.one_level
        if one_level is None or one_level.storage is None:
            raise ValueError(
                f"scale {self.q.scale.name} couples the blocks of a tensor in a way that landscapes do not know"
            )
        rows, book = self._rows(points), self.q.codebook
        largest = float(one_level.storage.largest)
        size = np.abs(rows).reshape(-1, self.blocks * self.size).max(axis=1)
        common = np.repeat(size / (float(book.high) * largest), self.blocks)[:, None]
        return law_of(rows / (common + (common == 0)), "float64", one_level, book).branches[0], common

    def cast(self, points: np.ndarray) -> np.ndarray:
        """``q.cast`` of every point."""
        return self.law(points).nearest().reshape(np.shape(points))

    def mean(self, points: np.ndarray) -> np.ndarray:
        """``E[RR(w)]`` of every point."""
        return self.law(points).mean().reshape(np.shape(points))

    def variance(self, points: np.ndarray) -> np.ndarray:
        """Variance of ``RR(w)`` at every point, elementwise."""
        return self.law(points).variance().reshape(np.shape(points))

    def outcomes(self, branches: list[Branch]) -> int:
        """How many rounding outcomes there are per point, those of probability zero included."""
        free = np.zeros((self.blocks, self.size), dtype=bool)
        for b in branches:
            free |= (b.cell.hi > b.cell.lo).reshape(-1, self.blocks, self.size).any(axis=0)
        return 2 ** (int(free.sum()) + (self.blocks if len(branches) == 2 else 0))

    def expectation(self, f: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> np.ndarray:
        """``E[f(RR(w))]`` of a batched ``f`` at every point, by enumeration of all outcomes.

        ``f`` maps (n, *shape) to (n, ...). ValueError beyond 2^14 outcomes.
        """
        points = doubles(points, "points")
        branches = self.branches(points)
        if (count := self.outcomes(branches)) > CORNERS:
            raise ValueError(f"{count} rounding outcomes per point exceed {CORNERS}: at most about 14 weights")
        n, total = len(points), np.zeros(())
        full = (n, self.blocks, self.size)
        lo, hi, up = ([], [], [])
        for b in branches:
            lo.append(b.cell.lo.reshape(full))
            hi.append(b.cell.hi.reshape(full))
            up.append(kernels.prob_up(b.cell.target, b.cell.lo, b.cell.hi).reshape(full))
        free = np.argwhere(np.any([(h > low).any(axis=0) for h, low in zip(hi, lo, strict=True)], axis=0))
        for drawn in itertools.product(range(len(branches)), repeat=self.blocks if len(branches) == 2 else 0):
            # Which lattice each block drew; one entry is chosen per block.
            chosen = np.array(drawn or [0] * self.blocks)
            low, high, p = (_choose(part, chosen) for part in (lo, hi, up))
            drawn_with = np.ones(n)
            if drawn:
                probs = [chance(b).reshape(n, self.blocks) for b in branches]
                drawn_with = np.prod(_choose(probs, chosen), axis=1)
            for choice in itertools.product((False, True), repeat=len(free)):
                goes = np.broadcast_to(p == 1, full).copy()
                weight = drawn_with.copy()
                for (block, place), risen in zip(free, choice, strict=True):
                    weight *= p[:, block, place] if risen else 1 - p[:, block, place]
                    goes[:, block, place] = risen
                if not weight.any():
                    continue
                value = np.asarray(f(kernels.select(low, high, goes).reshape(points.shape)))
                term = weight.reshape(-1, *[1] * (value.ndim - 1)) * value
                total = total + term
        return total

    def smoothed(self, loss: Loss, points: np.ndarray) -> np.ndarray:
        """``E[L(RR(w))]`` at every point, by enumeration or, where that is long, the closed form of a Quadratic."""
        points = doubles(points, "points")
        if isinstance(loss, Quadratic) and self.outcomes(self.branches(points)) > 64:
            return np.array([closed_form.smoothed_loss(loss, w, self.q) for w in points])
        return np.asarray(self.expectation(lambda x: values_of(loss, x), points), dtype=np.float64)


def chance(branch: Branch) -> np.ndarray:
    """The probability of a drawn lattice, (n * blocks, 1); ones where it is certain."""
    return np.ones(branch.draw.lattice.top.shape) if branch.prob is None else branch.prob


def _choose(parts: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Per block, the array of the lattice it drew; ``parts`` are (n, blocks, ...)."""
    if len(parts) == 1:
        return parts[0]
    pick = chosen.reshape(1, -1, *[1] * (parts[0].ndim - 2))
    return np.where(pick == 1, parts[1], parts[0])
