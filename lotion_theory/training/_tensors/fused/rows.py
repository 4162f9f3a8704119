"""The loops themselves: what is compiled, and runs as plain Python too.

No formula is written here: the loops call the functions of ``kernels``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .... import kernels
from ....formats.compiled import largest_bits
from ..blocks import SPAN


class Table(NamedTuple):
    """The levels of a codebook as the loops see them, in the working type; see ``Levels``. ``high``: 0 where levels are
    looked up."""

    magnitude: Any
    zero: Any
    one: Any
    high: Any
    step_high: Any
    step_low: Any
    bins: Any
    units: np.ndarray
    of_bin: np.ndarray


def _integers_beside(x: np.ndarray, top: Any, share: Any, t: Table, first: np.ndarray, second: np.ndarray) -> None:
    """Unit levels beside each weight: the one nearest to it, and its neighbour on the weight's side."""
    for j in range(x.size):
        k = np.rint(x[j] / share * t.high)
        first[j] = k * t.step_high + k * t.step_low
        off = x[j] - top * first[j]
        k += t.one if off > t.zero else (-t.one if off < t.zero else t.zero)
        second[j] = k * t.step_high + k * t.step_low


def _levels_beside(x: np.ndarray, top: Any, share: Any, t: Table, first: np.ndarray, second: np.ndarray) -> None:
    """The same for levels that are looked up."""
    for j in range(x.size):
        place = np.rint(x[j] / share * t.bins) + t.bins
        # NaN, and what lies an ulp beyond the range, must not become an index; unsigned, so that none counts backwards.
        bin = np.uint32(place) if place >= t.zero else np.uint32(0)
        k = t.of_bin[min(bin, np.uint32(t.of_bin.size - 1))]
        first[j] = t.units[np.uint32(k)]
        off = x[j] - top * first[j]
        second[j] = t.units[np.uint32(k + (off > t.zero) - (off < t.zero))]


def _fold(x: np.ndarray, n: int) -> Any:
    """The sum of the first ``n`` entries, which are overwritten, in the order of ``blocks.fold``."""
    while n > 1:
        half = (n + 1) // 2
        for j in range(n - half):
            x[j] += x[half + j]
        n = half
    return x[0]


def _to_leaders(x: np.ndarray, top: Any, total: Any, out: np.ndarray) -> None:
    """Share ``total``, the derivative in the largest magnitude, among the weights that have it."""
    count, place = 0, 0
    for j in range(x.size):
        hit = abs(x[j]) == top
        count += hit
        place += j * hit
    part = total / (x.dtype.type(count) * top)
    if count == 1:
        out[place] += x[place] * part  # x / top is its sign
        return
    for j in range(x.size):
        if abs(x[j]) == top:
            out[j] += x[j] * part


class Blocks(NamedTuple):
    """Arrays (blocks, n): what is added to, weights, the same as integers of their bits, and curvature."""

    out: np.ndarray
    w: np.ndarray
    bits: np.ndarray
    g: np.ndarray


def gradient_rows(t: Table, blocks: Blocks, half: Any, attached: bool) -> None:
    """Add to ``out`` the gradient of ``half Σ g Var(RR(w))``."""
    out, w, bits, g = blocks
    peak_bits = np.empty(1, bits.dtype)
    peak = peak_bits.view(w.dtype)
    first, second, through = np.empty(SPAN, w.dtype), np.empty(SPAN, w.dtype), np.empty(SPAN, w.dtype)
    spans = np.empty((w.shape[1] + SPAN - 1) // SPAN, w.dtype)
    for b in range(w.shape[0]):
        peak_bits[0] = largest_bits(bits[b], t.magnitude)
        top = peak[0]
        share = top if top != t.zero else t.one
        for start in range(0, w.shape[1], SPAN):
            x, h, y = w[b, start : start + SPAN], g[b, start : start + SPAN], out[b, start : start + SPAN]
            if t.high > t.zero:
                _integers_beside(x, top, share, t, first, second)
            else:
                _levels_beside(x, top, share, t, first, second)
            for j in range(x.size):
                weight = h[j] * half
                one, other = top * first[j], top * second[j]
                y[j] += weight * kernels.variance_dw(x[j], one, other)
                through[j] = weight * kernels.variance_danchor(x[j], one, other, first[j], second[j])
            spans[start // SPAN] = _fold(through, x.size)
        if attached and top > t.zero:
            _to_leaders(w[b], top, _fold(spans, spans.size), out[b])


CALLEES = (
    kernels.variance_dlo, kernels.variance_dhi, kernels.variance_dw, kernels.variance_danchor, largest_bits,
    _integers_beside, _levels_beside, _fold, _to_leaders, gradient_rows,
)  # fmt: skip
"""The functions that are compiled, each after those that it calls."""
