"""The exact smoothed loss by enumeration of every support point: the oracle for all other methods."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .. import _kernels
from .._arrays import Array, is_exact, is_torch, number, to_numpy
from ..quantizer import Branch, Quantizer
from .losses import Loss, total

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

    Torch tensors are enumerated in numpy. Raises ValueError when there are more than ``limit`` points.
    """
    q = Quantizer.parse(q)
    w = to_numpy(w) if is_torch(w) else np.asarray(w)
    branches = q.branches(w)
    like = branches[0].cell.lo
    blocks, size = like.shape
    per_block = [_block_law(branches, b) for b in range(blocks)]
    count = 1
    for ups, _, _ in per_block:
        count *= len(ups)
    if count > limit:
        raise ValueError(
            f"{count} support points exceed the limit of {limit}: enumeration is for at most about 20 weights off the "
            "lattice; use method='closed_form' for quadratics or 'monte_carlo'"
        )
    up = np.zeros((1, 0, size), dtype=bool)
    branch = np.zeros((1, 0), dtype=np.int64)
    probs = np.array([number(1, like)], dtype=like.dtype)
    for ups, which, p in per_block:
        n, m = len(probs), len(p)
        up = np.concatenate([np.repeat(up, m, axis=0), np.tile(ups, (n, 1))[:, None, :]], axis=1)
        branch = np.concatenate([np.repeat(branch, m, axis=0), np.tile(which, n)[:, None]], axis=1)
        probs = (probs[:, None] * p[None, :]).ravel()
    values = _kernels.select(like[None], branches[0].cell.hi[None], up)
    if len(branches) == 2:
        second = branches[1].cell
        values = np.where(branch[:, :, None] == 1, _kernels.select(second.lo[None], second.hi[None], up), values)
    points = np.stack([q._unblock(v, w) for v in values])
    return Law(points, probs, up, branch, branches)


def _block_law(branches: list[Branch], b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(up, branch, probability)`` of one block, coordinates on a level never going up."""
    ups, which, probs = [], [], []
    for k, (draw, cell) in enumerate(branches):
        lo, hi, m = cell.lo[b], cell.hi[b], cell.target[b]
        weight = number(1, lo) if draw.prob is None else draw.prob[b, 0]
        if weight == 0:
            continue
        p = _kernels.prob_up(m, lo, hi)
        free = np.flatnonzero((p > 0) & (p < 1))
        if len(free) > 24:
            raise ValueError(
                f"{len(free)} weights of one block are off the lattice: enumeration is for at most about 20; use "
                "method='closed_form' for quadratics or 'monte_carlo'"
            )
        choices = np.array(list(itertools.product((False, True), repeat=len(free))), dtype=bool).reshape(
            2 ** len(free), len(free)
        )
        up = np.zeros((len(choices), len(lo)), dtype=bool)
        up[:, free] = choices
        up[:, np.flatnonzero(p == 1)] = True
        factor = np.where(choices, p[free], 1 - p[free]).astype(lo.dtype)
        chance = weight * factor.prod(axis=1) if len(free) else np.array([weight], dtype=lo.dtype)
        ups.append(up)
        which.append(np.full(len(choices), k))
        probs.append(chance)
    return np.concatenate(ups), np.concatenate(which), np.concatenate(probs)


def smoothed_loss(loss: Loss, w: Array, q: Quantizer | str, limit: int = LIMIT) -> float:
    """``E[L(RR(w))]`` as the sum over all support points; a Fraction for exact arrays. ``loss`` is batched."""
    found = law(w, q, limit)
    return expectation(found, loss(found.points))


def expectation(found: Law, values: np.ndarray) -> float:
    """``Σ prob · value``, zero-probability points left out."""
    values = np.asarray(values)
    if values.shape != found.probs.shape:
        raise ValueError(
            f"the loss returned shape {values.shape} for {len(found.probs)} points; expected ({len(found.probs)},)"
        )
    product = found.probs * values
    return (
        total(product)
        if is_exact(product)
        else float(np.dot(found.probs.astype(np.float64), values.astype(np.float64)))
    )
