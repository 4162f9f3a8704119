"""The law of randomized rounding, written a second time, slowly: lists of Fractions, one block at a time.

Nothing of ``scaling``, ``lattice`` or ``scale_formats`` is used; storage formats are enumerated and searched. Of the
package only the codebook's levels come in, which ``test_grids`` holds to other libraries.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from lotion_theory.formats.codebooks import Codebook

# Mantissa bits, exponent of the smallest normal number, largest value. E8M0 has no zero code and no subnormals; here 0
# is its value for a block of zeros, and for drawn scales the lower neighbour of its smallest value.
_STORAGE = {
    "e8m0": (0, -127, Fraction(2) ** 127),
    "e4m3": (3, -6, Fraction(448)),
    "ue5m3": (3, -14, Fraction(114688)),
    "fp16": (10, -14, Fraction(65504)),
}


class Drawn(NamedTuple):
    """A lattice, the probability that it is drawn, and where each weight stands on it before it is rounded."""

    prob: Fraction
    levels: list[Fraction]
    targets: list[Fraction]


@cache
def stored_values(fmt: str) -> tuple[Fraction, ...]:
    """Every non-negative value of a storage format, increasing from 0."""
    bits, lowest, top = _STORAGE[fmt]
    values = {Fraction(0)}
    e = lowest
    while Fraction(2) ** e <= top:
        values |= {Fraction(m) * Fraction(2) ** (e - bits) for m in range(2**bits, 2 ** (bits + 1))}
        e += 1
    if bits:
        values |= {Fraction(m) * Fraction(2) ** (lowest - bits) for m in range(2**bits)}
    return tuple(sorted(v for v in values if v <= top))


def nearest(levels: list[Fraction] | tuple[Fraction, ...], x: Fraction, even: list[bool] | None = None) -> Fraction:
    """The nearest level, of two equally near ones that whose position is even (or which ``even`` marks)."""
    distance = min(abs(v - x) for v in levels)
    tied = [i for i, v in enumerate(levels) if abs(v - x) == distance]
    chosen = [i for i in tied if (i % 2 == 0 if even is None else even[i])]
    return levels[tied[0] if len(tied) == 1 else chosen[0]]


def _stored_nearest(fmt: str, x: Fraction) -> Fraction:
    values = stored_values(fmt)
    i = min(max(bisect_right(values, x) - 1, 0), len(values) - 2)
    low, high = values[i], values[i + 1]
    # The codes of these formats count up, so the parity of the position is that of the code.
    return high if 2 * x > low + high or (2 * x == low + high and i % 2 == 1) else low


def _stored_up(fmt: str, x: Fraction) -> Fraction:
    return next((v for v in stored_values(fmt) if v >= x), stored_values(fmt)[-1])


def _log2_floor(x: Fraction) -> int:
    e = 0
    while Fraction(2) ** e > x:
        e -= 1
    while Fraction(2) ** (e + 1) <= x:
        e += 1
    return e


def _power(e: int) -> Fraction:
    return Fraction(2) ** min(max(e, -127), 127)


def single_scale(book: Codebook, rule: str, block: list[Fraction]) -> Fraction | None:
    """The scale of rules whose levels are ``scale * code``, sign included; None for other rules."""
    high, low = book.high, book.low
    size = max(map(abs, block))
    leader = max(block) if max(block) >= -min(block) else min(block)
    if rule in ("absmax", "l1"):
        return size / high
    if rule == "gauge":
        return max(max(block) / high, min(block) / low, Fraction(0))
    if rule.startswith("absmax") and rule != "absmax" and rule != "absmean":
        return size / Fraction(rule.removeprefix("absmax"))
    if rule.startswith("slack"):
        return size * Fraction(rule.removeprefix("slack")) / high
    if rule == "signed-absmax":
        return leader / low
    if rule == "q4_0":
        exact = leader / low
        return (1 if exact >= 0 else -1) * _stored_nearest("fp16", abs(exact))
    if rule == "absmean":
        return sum(map(abs, block)) / len(block)
    if rule == "l2l1":
        return sum(v * v for v in block) / sum(map(abs, block)) if size else Fraction(0)
    if rule == "modulus":
        squares = max(a * a + b * b for a, b in zip(block[::2], block[1::2], strict=True)) / 2
        root = Fraction(math.isqrt(squares.numerator), math.isqrt(squares.denominator))
        if root * root != squares:
            raise ValueError("irrational modulus")
        return root
    fmt, _, how = rule.partition("-")
    if how == "nearest":
        return _stored_nearest(fmt, size / high)
    if how == "up" or how == "ceil":
        return _stored_up(fmt, size / high)
    if how in ("floor", "even"):
        if size == 0:
            return Fraction(0)
        e, top = _log2_floor(size), _log2_floor(high)
        if how == "floor":
            return _power(e - top)
        # OCP's "even": the largest magnitude is first rounded half up to as many mantissa bits as the top binade has.
        binade = [v for v in book.levels if v >= Fraction(2) ** top]
        step = (binade[1] - binade[0]) / Fraction(2) ** top if len(binade) > 1 else Fraction(1)
        mantissa = size / Fraction(2) ** e
        rounded = ((mantissa / step + Fraction(1, 2)).__floor__()) * step
        return _power(e + (rounded >= 2) - top)
    return None


def law(book: Codebook, rule: str, block: list[Fraction], tensor: list[Fraction] | None = None) -> list[Drawn]:
    """Lattices of a block with their probabilities. ``tensor``: all weights, for two-level scales."""
    high, low = book.high, book.low
    size = max(map(abs, block))

    def on(levels: list[Fraction], prob: Fraction = Fraction(1), targets: list[Fraction] | None = None) -> Drawn:
        levels = sorted(levels)
        kept = block if targets is None else targets
        return Drawn(prob, levels, [min(max(w, levels[0]), levels[-1]) for w in kept])

    if rule == "zp-real":
        step = (max(block) - min(block)) / (high - low)
        return [on([min(block) + step * (c - low) for c in book.levels])]
    if rule == "zp-int":
        top, bottom = max(max(block), Fraction(0)), min(min(block), Fraction(0))
        scale = (top - bottom) / high
        zero = round(-bottom / scale) if scale else 0
        return [on([scale * (c - min(max(zero, 0), high)) for c in book.levels])]
    if rule == "zp-fp16":
        bottom, step = min(block), _stored_nearest("fp16", (max(block) - min(block)) / high)
        bottom = (1 if bottom >= 0 else -1) * _stored_nearest("fp16", abs(bottom))
        return [on([bottom + step * c for c in book.levels])]
    if rule.endswith("-2level"):
        common = max(map(abs, tensor or block)) / (high * _STORAGE["e4m3"][2])
        inner = rule.removesuffix("-2level")
        scale = single_scale(book, inner, [v / common for v in block]) * common if common else Fraction(0)
        return [on([scale * c for c in book.levels])]
    if rule.endswith("-sr"):
        values = stored_values(rule.removesuffix("-sr"))
        i = bisect_right(values, size / high) - 1
        s_lo, s_hi = values[i], values[min(i + 1, len(values) - 1)]
        threshold = high * s_lo
        # The next point of the two grids' union above T; where the signs differ (NF4), one that both have.
        shared = [c for c in book.levels if -c in book.levels] if not book.symmetric else book.levels
        reach = min((s_hi * c for c in shared if s_hi * c > threshold), default=threshold)
        p = min(Fraction(1), (size - threshold) / (reach - threshold)) if size > threshold else Fraction(0)
        moved = [
            w if abs(w) <= threshold or p in (0, 1) else (1 if w > 0 else -1) * (abs(w) - (1 - p) * threshold) / p
            for w in block
        ]
        return [on([s_lo * c for c in book.levels], 1 - p), on([s_hi * c for c in book.levels], p, moved)]
    scale = single_scale(book, rule, block)
    if scale is None:
        raise ValueError(f"no reference for {rule}")
    return [on([scale * c for c in book.levels])]


def neighbours(drawn: Drawn, i: int) -> tuple[Fraction, Fraction]:
    """The adjacent levels around weight ``i``; twice the same where it stands on a level."""
    x, levels = drawn.targets[i], sorted(set(drawn.levels))
    return max(v for v in levels if v <= x), min(v for v in levels if v >= x)


def mean(found: list[Drawn], i: int) -> Fraction:
    """``E RR(w_i)``, from the two-point laws."""
    return sum((d.prob * d.targets[i] for d in found), Fraction(0))


def second_moment(found: list[Drawn], i: int) -> Fraction:
    """``E RR(w_i)²``, summed over the support rather than through the variance formula."""
    total = Fraction(0)
    for d in found:
        lo, hi = neighbours(d, i)
        up = (d.targets[i] - lo) / (hi - lo) if hi > lo else Fraction(0)
        total += d.prob * ((1 - up) * lo * lo + up * hi * hi)
    return total
