"""The exact smoothed loss by enumeration of every support point: the oracle for all other methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import kernels
from .._arrays import Array, as_array, is_exact, to_numpy, wide
from ..formats.lattice import Cell, prob_up
from ..formats.law import Branch
from ..formats.quantizer import Quantizer
from ..functions import number
from .losses import Loss, total, values_of

LIMIT = 2**20
"""Most support points enumerated: 20 weights off the lattice on one lattice."""


@dataclass
class Law:
    """The law of ``RR(w)``: ``points`` (n, *w.shape), ``probs`` (n,), summing to one.

    ``up`` (n, blocks, size) says which coordinates went up; ``branch`` (n, blocks) which lattice each block drew;
    ``branches`` are the cells they refer to.
    """

    points: np.ndarray
    probs: np.ndarray
    up: np.ndarray
    branch: np.ndarray
    branches: list[Branch]


def law(w: Array, q: Quantizer | str, limit: int = LIMIT) -> Law:
    """Every point ``RR(w)`` can take, with its probability; exact for object arrays of Fractions.

    Torch tensors are enumerated in numpy, and points of 16-bit types are given in float64. Raises ValueError when there
    are more than ``limit`` points.
    """
    q = Quantizer.parse(q)
    w = to_numpy(as_array(w))
    branches = q.branches(w)
    like = branches[0].cell.lo
    blocks, size = like.shape
    chances = [chance_up(b.cell) for b in branches]
    count = _count(branches, chances)
    if count > limit:
        raise ValueError(
            f"{count} support points exceed the limit of {limit}: enumeration is for at most about 20 weights off the "
            "lattice; use method='closed_form' for quadratics or 'monte_carlo'"
        )
    per_block = [_block_law(branches, chances, b) for b in range(blocks)]
    up = np.zeros((1, 0, size), dtype=bool)
    branch = np.zeros((1, 0), dtype=np.int64)
    probs = np.array([number(1, like)], dtype=chances[0].dtype)
    for ups, which, p in per_block:
        n, m = len(probs), len(p)
        up = np.concatenate([np.repeat(up, m, axis=0), np.tile(ups, (n, 1))[:, None, :]], axis=1)
        branch = np.concatenate([np.repeat(branch, m, axis=0), np.tile(which, n)[:, None]], axis=1)
        probs = (probs[:, None] * p[None, :]).ravel()
    values = kernels.select(like[None], branches[0].cell.hi[None], up)
    if len(branches) == 2:
        second = branches[1].cell
        values = np.where(branch[:, :, None] == 1, kernels.select(second.lo[None], second.hi[None], up), values)
    points = wide(np.stack([q.unblock(v, w) for v in values]))
    return Law(points, probs, up, branch, branches)


def chance_up(cell: Cell) -> np.ndarray:
    """Probability of going up, in float64 (or exact): a float32 one may be too small to be divided by."""
    if is_exact(cell.lo):
        return prob_up(cell)
    wider = {name: getattr(cell, name).astype(np.float64) for name in ("target", "below", "above")}
    return prob_up(replace(cell, **wider))


def _weight(branch: Branch, b: int) -> Any:
    """Probability that block ``b`` draws this lattice."""
    return number(1, branch.cell.lo) if branch.prob is None else branch.prob[b, 0]


def _count(branches: list[Branch], chances: list[np.ndarray]) -> int:
    """Number of support points, counted before any is built."""
    count = 1
    for b in range(len(chances[0])):
        drawn = [p[b] for branch, p in zip(branches, chances, strict=True) if _weight(branch, b) > 0]
        count *= sum(2 ** int(((p > 0) & (p < 1)).sum()) for p in drawn)
    return count


def _block_law(branches: list[Branch], chances: list[np.ndarray], b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(up, branch, probability)`` of one block, coordinates on a level never going up."""
    ups, which, probs = [], [], []
    for k, (branch, chance) in enumerate(zip(branches, chances, strict=True)):
        weight, p = _weight(branch, b), chance[b]
        if weight == 0:
            continue
        free = np.flatnonzero((p > 0) & (p < 1))
        codes = np.arange(2 ** len(free))[:, None]
        choices = (codes >> np.arange(len(free) - 1, -1, -1)) & 1 == 1
        up = np.zeros((len(choices), len(p)), dtype=bool)
        up[:, free] = choices
        up[:, np.flatnonzero(p == 1)] = True
        factor = np.where(choices, p[free], 1 - p[free]).astype(p.dtype)
        ups.append(up)
        which.append(np.full(len(choices), k))
        probs.append(weight * factor.prod(axis=1) if len(free) else np.array([weight], dtype=p.dtype))
    return np.concatenate(ups), np.concatenate(which), np.concatenate(probs)


def smoothed_loss(loss: Loss, w: Array, q: Quantizer | str, limit: int = LIMIT) -> float:
    """``E[L(RR(w))]`` as the sum over all support points; a Fraction for exact arrays. ``loss`` is batched."""
    found = law(w, q, limit)
    return expectation(found, values_of(loss, found.points))


def expectation(found: Law, values: np.ndarray) -> float:
    """``Σ prob · value``, zero-probability points left out."""
    values = np.asarray(values)
    if values.shape != found.probs.shape:
        raise ValueError(f"values have shape {values.shape}, expected one per support point, {found.probs.shape}")
    product = found.probs * values
    return (
        total(product)
        if is_exact(product)
        else float(np.dot(found.probs.astype(np.float64), values.astype(np.float64)))
    )
