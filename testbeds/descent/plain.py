"""One training step in plain numpy: the reference that the compiled loops equal bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lotion_theory import kernels
from lotion_theory.formats.lattice import SpanLattice
from lotion_theory.methods import Place
from lotion_theory.methods.rule import LEAST_LEFT

from .state import Optimizer, State

LANES = 8
"""Sums over a block run in this many lanes, so that compiled code can add them at once in the same order."""


def lane_sum(x: np.ndarray) -> float:
    """Sum of a 1-D array in eight interleaved lanes, each and then together from left to right."""
    padded = np.zeros(-(-len(x) // LANES) * LANES)
    padded[: len(x)] = x
    lanes = np.zeros(LANES)
    for row in padded.reshape(-1, LANES):
        lanes = lanes + row
    total = 0.0
    for lane in lanes.tolist():
        total += lane
    return total


def tops(state: State) -> np.ndarray:
    """Highest level of each block, (blocks,); zero for a block of zeros under absmax."""
    rule, w, starts = state.rule, state.w, state.starts
    if rule.top == "learned":
        return state.top * state.span
    if rule.top == "rms":
        blocks = pairwise(starts)
        return np.array([rule.rms * np.sqrt(lane_sum(w[i:j] * w[i:j]) / (j - i)) for i, j in blocks])
    if rule.top == "absmean":
        return np.array([rule.rms * (lane_sum(np.abs(w[i:j])) / (j - i)) for i, j in pairwise(starts)])
    return np.maximum.reduceat(np.abs(w), starts[:-1])


def place(state: State, uniforms: np.ndarray) -> Place:
    """Where each weight lies; ``uniforms`` (P,)."""
    sizes = np.diff(state.starts)
    top, n = np.repeat(tops(state), sizes), np.repeat(sizes, sizes).astype(np.float64)
    lattice = SpanLattice(state.book, "float64", top[:, None])
    cell = lattice.locate(state.w[:, None])
    units = np.array([float(v) for v in state.book.units])
    lo, hi = cell.lo[:, 0], cell.hi[:, 0]
    index_lo, index_hi, even = cell.index_lo[:, 0], cell.index_hi[:, 0], cell.hi_even[:, 0]
    nearer, tie = kernels.compare_distances(cell.target[:, 0], lo, hi)
    up = nearer | (tie & even)
    return Place(
        state.w, lo, hi, np.where(up, hi, lo), units[index_lo], units[index_hi],
        np.where(up, units[index_hi], units[index_lo]), top, uniforms, n,
    )  # fmt: skip


def before(state: State, uniforms: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to take the loss gradient (P,), and the variance of randomized rounding there (P,)."""
    p = place(state, uniforms)
    return state.rule.point(p, a) + 0 * p.w, kernels.variance(np.clip(p.w, p.lo, p.hi), p.lo, p.hi)


def direction(state: State, p: Place, g: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """What the optimizer is given: per weight (P,), and per block (blocks,) for a learned top, else None."""
    rule, starts = state.rule, state.starts
    d = rule.direction(p, g, state.h, a) + 0 * g
    if rule.anchor is None:
        return d, None
    through = rule.anchor(p, g, state.h, a) + 0 * g
    sums = np.array([lane_sum(through[i:j]) for i, j in pairwise(starts)])
    if rule.top == "learned":
        assert rule.learned is not None, "a learned top has a LearnedTop"
        return d, sums * state.top_factor + rule.learned.decay * state.top
    if rule.top == "absmean":
        for b, (i, j) in enumerate(pairwise(starts)):
            d[i:j] += sums[b] * rule.rms / (j - i) * np.sign(state.w[i:j])
    if rule.top == "absmax":
        for b, (i, j) in enumerate(pairwise(starts)):
            k = i + int(np.argmax(np.abs(state.w[i:j])))
            d[k] += sums[b] if state.w[k] >= 0 else -sums[b]
    return d, None


def after(state: State, g: np.ndarray, uniforms: np.ndarray, a: np.ndarray, optimizer: Optimizer, rate: float) -> None:
    """Move the weights, given the loss gradient ``g`` (P,), by one step of learning rate ``rate``."""
    rule, p = state.rule, place(state, uniforms)
    d, slopes = direction(state, p, g, a)
    off = None if rule.decay is None else rule.decay(p, state.h, a)
    state.powers = state.powers * (optimizer.beta1, optimizer.beta2)
    if slopes is not None:
        floor = state.top * LEAST_LEFT
        moved = _moved(state.top, (state.top_m, state.top_v), slopes, optimizer, rate, state.powers)
        state.top[:] = np.maximum(moved, floor)
    moved = _moved(state.w, (state.m, state.v), d, optimizer, rate, state.powers)
    state.w[:] = moved if off is None else moved - rate * off
    if rule.reset is not None:
        state.w[:] = rule.reset(place(state, uniforms), a)
    state.step += 1


def _moved(x, moments, d, optimizer: Optimizer, rate: float, powers: np.ndarray):
    """The optimizer's step, which updates its ``moments``; ``powers``: of the betas, this step included."""
    if optimizer.kind == "gd":
        return x - rate * d
    (m, v), b1, b2 = moments, optimizer.beta1, optimizer.beta2
    m[:] = b1 * m + (1 - b1) * d
    v[:] = b2 * v + (1 - b2) * (d * d)
    step = (m * (1 / (1 - powers[0]))) / (np.sqrt(v * (1 / (1 - powers[1]))) + optimizer.epsilon)
    return x - rate * step
