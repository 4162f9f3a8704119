"""Scales as the reference quantizers of ggml choose them, for many groups at once.

Arrays are float32 (weights of a group, groups): sums run over the first axis, one weight after another, as the
reference adds them, so that results are its bits. ``weight`` is what a squared error counts.
"""

from __future__ import annotations

import numpy as np

ONE, ZERO = np.float32(1), np.float32(0)
# Groups whose largest magnitude is below this count as zeros.
_LEAST = np.float32(1e-15)
_TENTH = np.float32(0.1)


def by_group(x: np.ndarray, group: int) -> np.ndarray:
    """Rows (rows, n) as (weights of a group, groups)."""
    return np.ascontiguousarray(x.reshape(-1, group).T)


def total(terms: np.ndarray) -> np.ndarray:
    """The sum over the first axis, added one after another."""
    out = terms[0].copy()
    for term in terms[1:]:
        out += term
    return out


def leader(x: np.ndarray) -> np.ndarray:
    """The entry of largest magnitude in each group, the first of several, with its sign; +0 in a group of zeros."""
    place = np.abs(x).argmax(axis=0)
    return np.take_along_axis(x, place[None], axis=0)[0] + ZERO


def lowest(x: np.ndarray) -> np.ndarray:
    """The least entry of each group, the first of several: of zeros, whose signs are stored, too."""
    return np.take_along_axis(x, x.argmin(axis=0)[None], axis=0)[0]


def mean_square(x: np.ndarray, times: int = 1) -> np.ndarray:
    """``times`` the mean square of every row of ``x`` (rows, n), (rows, 1)."""
    squares = np.add.accumulate(x * x, axis=1, dtype=np.float32)[:, -1:]
    return np.float32(times) * squares / np.float32(x.shape[1])


def emphasised(x: np.ndarray, importance: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """``importance * sqrt(spread + x**2)``: what errors count where the importance of inputs is known."""
    return importance * np.sqrt(spread + x * x)


def signed_scale(x: np.ndarray, top: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, codes)``, codes -top to top - 1: of 19 scales that put the leader near -top, each improved by least
    squares, the one with the least error. Codes are float32."""
    lead = leader(x)
    idle = np.abs(lead) < _LEAST
    steps = np.float32(top)
    # Below what any candidate reaches.
    scale, best, codes = np.zeros_like(lead), np.full_like(lead, -1), np.zeros_like(x)
    weighted = weight * x
    for k in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(steps + _TENTH * np.float32(k)) / lead
        code = np.clip(np.rint(inverse * x), -steps, steps - ONE)
        product, square = total(weighted * code), total(weight * code * code)
        better = (square > 0) & (product * product > best * square)
        fitted = product / square
        scale, best = np.where(better, fitted, scale), np.where(better, fitted * product, best)
        np.copyto(codes, code, where=better)
    return np.where(idle, ZERO, scale), np.where(idle, -steps, codes)


def descended_scale(x: np.ndarray, top: int) -> np.ndarray:
    """The scale of codes -top to top - 1 found by changing one code after another while the error, counted with
    ``x**2``, falls."""
    lead = leader(x)
    steps = np.float32(top)
    codes = np.clip(np.rint((-steps / lead) * x), -steps, steps - ONE)
    weight = x * x
    product, square = _descend(x, codes, weight, weight * x, -steps, steps - ONE)
    scale = np.where(square > 0, product / square, ZERO)
    return np.where(np.abs(lead) < _LEAST, ZERO, scale)


def _descend(x, codes, weight, weighted, low, high):
    """Sums ``weight x code`` and ``weight code**2`` after up to five passes over the codes, changed in place."""
    product, square = total(weighted * codes), total(weight * codes * codes)
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            own, code = weight[i], codes[i]
            rest, left = product - weighted[i] * code, square - own * code * code
            new = np.clip(np.rint(x[i] * left / rest), low, high)
            moved, grown = rest + weighted[i] * new, left + own * new * new
            better = (rest > 0) & (left > 0) & (new != code) & (moved * moved * square > product * product * grown)
            if better.any():
                changed = True
                np.copyto(code, new, where=better)
                product, square = np.where(better, moved, product), np.where(better, grown, square)
        if not changed:
            break
    return product, square


def positive_scale(x: np.ndarray, top: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, codes)``, codes 0 to top, for ``x`` not negative: of nine scales that put the largest near ``top`` the
    one of least error, then code after code while the error falls."""
    most = np.maximum(x.max(axis=0), ZERO)
    steps = np.float32(top)
    inverse = steps / most
    away = x - (ONE / inverse) * np.rint(inverse * x)
    least = total(weight * away * away)
    for k in (*range(-4, 0), *range(1, 5)):
        trial = (_TENTH * np.float32(k) + steps) / most
        away = x - (ONE / trial) * np.minimum(np.rint(trial * x), steps)
        error = total(weight * away * away)
        better = error < least
        inverse, least = np.where(better, trial, inverse), np.where(better, error, least)
    codes = np.clip(np.rint(inverse * x), ZERO, steps)
    product, square = _descend(x, codes, weight, weight * x, ZERO, steps)
    idle = most < _LEAST
    return np.where(idle | ~(square > 0), ZERO, product / square), np.where(idle, ZERO, codes)


def affine_scale(
    x: np.ndarray, top: int, weight: np.ndarray, first: float, step: float, count: int, absolute: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, minimum)`` of codes 0 to top, the minimum at most 0 and returned with its sign changed.

    The range from the least weight (or 0) to the largest is cut into ``top + first + step * k`` parts, k from 0 to
    ``count``; scale and minimum follow by least squares. ``absolute``: compare sums of magnitudes, not of squares.
    """
    low, high = lowest(x), x.max(axis=0)
    weighted = weight * x
    all_weight, all_x = total(weight), total(weighted)
    low = np.where(low > 0, ZERO, low)
    flat = high <= low
    steps = np.float32(top)

    def measured(scale: np.ndarray, low: np.ndarray, codes: np.ndarray) -> np.ndarray:
        away = scale * codes + low - x
        return total(weight * (np.abs(away) if absolute else away * away))

    inverse = steps / (high - low)
    scale = ONE / inverse
    least = measured(scale, low, np.clip(np.rint(inverse * (x - low)), ZERO, steps))
    for k in range(count + 1):
        inverse = (np.float32(first) + np.float32(step) * np.float32(k) + steps) / (high - low)
        codes = np.clip(np.rint(inverse * (x - low)), ZERO, steps)
        heavy = weight * codes
        ones, squares, products = total(heavy), total(heavy * codes), total(heavy * x)
        divisor = all_weight * squares - ones * ones
        slope = (all_weight * products - all_x * ones) / divisor
        start = (squares * all_x - ones * products) / divisor
        above = start > 0
        slope, start = np.where(above, products / squares, slope), np.where(above, ZERO, start)
        error = measured(slope, start, codes)
        better = (divisor > 0) & (error < least)
        least, scale, low = np.where(better, error, least), np.where(better, slope, scale), np.where(better, start, low)
    return np.where(flat, ZERO, scale), -low
