"""Scale rules: where the lattice of a block comes from, and how it moves with the weights.

A rule turns a block of weights into one lattice, or into a *draw* of two lattices with probabilities (the SR-scale
repairs). It also states what it promises for a codebook (:class:`Promise`); ``verify`` holds every rule to its word.

Shapes: ``x`` is always (blocks, weights per block); anchors, probabilities and thresholds are (blocks, 1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from .._arrays import Array, block_max, detach, largest, namespace, nudge, quotient, replace_value, store, with_rate
from .._tables import exponent, power_of_two
from ..functions import number, square_root
from .codebooks import Codebook
from .lattice import AffineLattice, Lattice, MirroredLattice, ScaledLattice, SpanLattice
from .scale_formats import SCALE_FORMATS, ScaleFormat
from .scale_protocol import (
    Draw,
    Family,
    Jacobian,
    Promise,
    ScaleRule,
    need,
    need_signed_real,
    rule_names,
    scale_rule,
)

__all__ = ["Draw", "Jacobian", "Promise", "ScaleRule", "absmax", "rule_names", "scale_rule"]


def absmax(x: Array) -> Array:
    """Largest magnitude of each block, shape (blocks, 1)."""
    return block_max(abs(x))


def _sum(x: Array) -> Array:
    return x.sum(axis=1, keepdims=True)


def absmax_rate(x: Array) -> Array:
    """Derivative of :func:`absmax`: the sign at the largest magnitude, shared among ties."""
    hit = (abs(x) == absmax(x)) & (x != 0)
    weight = sign(x) * hit
    count = _sum(abs(weight))
    return weight / (count + (count == 0))


def sign(x: Array) -> Array:
    """-1, 0 or 1, of the type of ``x``."""
    # Built from x itself: integer arrays would widen float32 to float64 in numpy, and only there.
    one, where = 0 * x + 1, namespace(x).where
    return where(x > 0, one, where(x < 0, -one, 0 * x))


def _extent_rate(x: Array, value: Array) -> Array:
    """Derivative of a block's maximum (or minimum) ``value``, shared among ties."""
    hit = (0 * x + 1) * (x == value)
    return hit / _sum(hit)


# --- real scales -----------------------------------------------------------------------------------------------------


def _absmax_rule() -> ScaleRule:
    def lattice(x: Array, book: Codebook, kind: str) -> Lattice:
        return SpanLattice(book, kind, absmax(x))

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        return Jacobian(absmax_rate(x))

    def promise(book: Codebook) -> Promise:
        covers = -book.low >= book.high
        # A block may be led from below: that magnitude must be a level there, too.
        return Promise(covers, True, covers and -book.high in book.levels)

    return ScaleRule(
        "absmax", "top level at the largest magnitude", lambda *a: [Draw(lattice(*a))], jacobian, promise,
        need_signed_real, spans_absmax=True, sets_scale=lambda c, book: np.abs(c).max(axis=1) == float(book.high),
    )  # fmt: skip


def _gauge_sides(x: Array, book: Codebook, kind: str) -> tuple[Array, Array, Array]:
    """``(top, bottom, top side attained)``: the smallest multiple of [low, high] that holds the block.

    In floating point the two sides are tied by ``bottom = -fl(top * r)``. Where the negative side is attained, ``top``
    is the largest float tied to a smaller ``|bottom|``; a second pass then finds the same pair again.
    """
    xp = namespace(x)
    zero = 0 * detach(x[:, :1])
    positive, negative = xp.maximum(block_max(x), zero), xp.maximum(block_max(-x), zero)
    ratio = number(-book.low / book.high, x)
    limit = largest(kind)

    def tied(t: Array) -> Array:
        return t * ratio if limit is None else store(xp.clip(t * ratio, None, limit), kind)

    on_top = detach(negative) <= detach(tied(positive))
    if limit is None:
        top = negative / ratio
    else:
        bound = detach(negative)
        value = store(xp.clip(bound / ratio, None, limit), kind)
        for _ in range(3):
            value = xp.where(tied(value) >= bound, nudge(value, kind, -1), value)
        for _ in range(3):
            above = nudge(value, kind, 1)
            value = xp.where((tied(above) < bound) & (above <= limit), above, value)
        top = replace_value(negative, xp.where(bound > 0, value, 0 * value), ratio)
    return xp.where(on_top, positive, top), -xp.where(on_top, tied(positive), negative), on_top


def _gauge_rule() -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        if book.balanced:
            return [Draw(SpanLattice(book, kind, absmax(x)))]
        top, bottom, _ = _gauge_sides(x, book, kind)
        return [Draw(SpanLattice(book, kind, top, bottom))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        if book.balanced:
            return Jacobian(absmax_rate(x))
        xp = namespace(x)
        _, _, on_top = _gauge_sides(x, book, kind)
        ratio = number(book.low / book.high, x)
        high, low = extent(x)
        rise, fall = _extent_rate(x, high) * (high > 0), _extent_rate(x, low) * (low < 0)
        return Jacobian(xp.where(on_top, rise, fall / ratio), xp.where(on_top, rise * ratio, fall))

    return ScaleRule(
        "gauge", "smallest scale at which [low, high] holds the block", draws, jacobian,
        lambda book: Promise(True, True, True), need_signed_real, spans_absmax=True,
        sets_scale=lambda c, book: (c.max(axis=1) == float(book.high)) | (c.min(axis=1) == float(book.low)),
    )  # fmt: skip


def _divided_rule(name: str, divisor: Callable[[Codebook], Fraction], summary: str) -> ScaleRule:
    """Scale ``absmax / divisor``: above the top level's divisor it clips, below it leaves slack."""

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        # A scale beyond the float range is its end, as levels are: the codes beside 0 then reach the largest float.
        return [Draw(ScaledLattice(book, kind, quotient(absmax(x), number(divisor(book), x))))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        return Jacobian(absmax_rate(x) / number(divisor(book), x))

    def promise(book: Codebook) -> Promise:
        d, reach = divisor(book), min(book.high, -book.low)
        return Promise(d <= reach, True, d == reach)

    return ScaleRule(name, summary, draws, jacobian, promise, need_signed_real)


def _signed_rule(name: str, scale_format: ScaleFormat | None, summary: str) -> ScaleRule:
    """Scale = (entry of largest magnitude, with its sign) / low: that entry lands on the lowest level (GGUF Q4_0).

    ``low`` is a power of two, so the unrounded scale is exact unless it is subnormal; promises are for normal numbers.
    """

    def leader(x: Array) -> Array:
        high, low = extent(x)
        # ggml keeps the first entry that attains the maximum; here a tie of signs goes to the positive entry.
        return namespace(x).where(detach(high) >= -detach(low), high, low)

    def scale(x: Array, book: Codebook) -> Array:
        # Plus zero: the scale of a block of zeros is +0, whatever their signs.
        exact = leader(x) / number(book.low, x) + number(0, x)
        if scale_format is None:
            return exact
        plain = detach(exact)
        return sign(plain) * scale_format.nearest(abs(plain))

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(MirroredLattice(book, kind, scale(x, book)))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        return Jacobian(_extent_rate(x, leader(x)) / number(book.low, x)) if scale_format is None else Jacobian()

    def promise(book: Codebook) -> Promise:
        # A scale rounded up puts the leader between the two lowest levels: it may come out smaller, with another scale.
        return Promise(False, False, scale_format is None)

    def check(book: Codebook) -> None:
        need_signed_real(book)
        need(-book.low > book.high, f"scale {name} needs a codebook that reaches further down than up, like int4full")
        exact = scale_format is not None or math.log2(-book.low).is_integer()
        need(exact, f"scale {name} needs a codebook whose lowest level is a power of two, not {book.name}")

    return ScaleRule(name, summary, draws, jacobian, promise, check, storage=scale_format)


def _statistic_rule(
    name: str, statistic: Callable, rate: Callable, fixed: Callable[[Codebook], bool], summary: str
) -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(ScaledLattice(book, kind, statistic(x)))]

    return ScaleRule(
        name,
        summary,
        draws,
        lambda x, book, kind: Jacobian(rate(x)),
        lambda book: Promise(False, True, fixed(book)),
        need_signed_real,
    )


def _absmean(x: Array) -> Array:
    # Divided by a power of two above n where the sum could overflow; that changes no bit elsewhere.
    size, n = abs(detach(x)), number(x.shape[1], x)
    top = block_max(size)
    one = 0 * top + 1
    factor = namespace(x).where(top > 1, one * 2 ** x.shape[1].bit_length(), one)
    return with_rate(_sum(size / factor) / n * factor, x, lambda: sign(detach(x)), n)


def _normalised(x: Array) -> tuple[Array, Array]:
    """``(big, x / big)``, detached, with the largest magnitude of each block, or 1: squares of huge or tiny blocks
    would overflow or vanish."""
    big = absmax(detach(x))
    big = big + (big == 0)
    return big, detach(x) / big


def _l2l1(x: Array) -> Array:
    big, y = _normalised(x)
    total = _sum(abs(y))
    # The quotient first: for a ternary point it is exactly 1, and the largest magnitude is then found again.
    value = big * (_sum(y * y) / (total + (total == 0)))
    return with_rate(value, x, lambda: _l2l1_rate(x))


def _l2l1_rate(x: Array) -> Array:
    _, y = _normalised(x)
    total = _sum(abs(y))
    total = total + (total == 0)
    # The sign of x: a quotient may underflow.
    return 2 * y / total - _sum(y * y) / total / total * sign(detach(x))


# --- zero points -----------------------------------------------------------------------------------------------------


def extent(x: Array) -> tuple[Array, Array]:
    """Maximum and minimum of each block, (blocks, 1)."""
    return block_max(x), -block_max(-x)


def _need_unsigned(name: str) -> Callable[[Codebook], None]:
    return lambda book: need(
        book.unsigned, f"scale {name} needs an unsigned codebook (uint2 ... uint8), not {book.name}"
    )


def _zero_point_real() -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(AffineLattice(book, kind, *extent(x)))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        high, low = extent(x)
        return Jacobian(_extent_rate(x, high), _extent_rate(x, low))

    return ScaleRule(
        "zp-real", "levels from the block's minimum to its maximum, both exact", draws, jacobian,
        lambda book: Promise(True, True, True), _need_unsigned("zp-real"), zero_point="real",
        sets_scale=lambda c, book: (c.max(axis=1) == float(book.high)) & (c.min(axis=1) == float(book.low)),
    )  # fmt: skip


def _zero_point_int() -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        xp = namespace(x)
        high, low = (0 * detach(x[:, :1]) + e for e in extent(x))
        high, low = xp.maximum(high, 0 * detach(high)), xp.minimum(low, 0 * detach(low))
        # Halved where the difference could overflow, which changes no bit elsewhere.
        one = 0 * detach(high) + 1
        factor = xp.where(detach(xp.maximum(high, -low)) > 1, 2 * one, one)
        scale = (high / factor - low / factor) / number(book.high, x) * factor
        ratio = -detach(low) / (detach(scale) + (detach(scale) == 0))
        return [Draw(ScaledLattice(book, kind, scale, xp.clip(_round_half_even(ratio), 0, number(book.high, x))))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        high, low = extent(x)
        rate = _extent_rate(x, high) * (high > 0) - _extent_rate(x, low) * (low < 0)
        return Jacobian(rate / number(book.high, x))

    return ScaleRule(
        "zp-int", "(max - min) / levels, zero point rounded to an integer", draws, jacobian,
        lambda book: Promise(False, False, False), _need_unsigned("zp-int"), zero_point="integer",
    )  # fmt: skip


def _round_half_even(x: Array) -> Array:
    xp = namespace(x)
    down = x // 1
    rest = x - down
    up = (rest * 2 > 1) | ((rest * 2 == 1) & (down % 2 == 1))
    return xp.where(up, down + 1, down)


# --- shared exponents -----------------------------------------------------------------------------------------------


def shared_exponent(size: Array, emax: int, lowest: int, carry: Fraction | None = None) -> Array:
    """``2**(floor(log2 size) - emax)`` (OCP MX 1.0, §6.3) with the exponent kept in [lowest, 127]; 0 for 0.

    ``carry``: None, or the mantissa in [1, 2) from which the next power of two is taken.
    """
    xp = namespace(size)
    e = exponent(size)
    if carry is not None:
        e = e + xp.where(size / power_of_two(e, size) >= number(carry, size), 1, 0)
    scale = power_of_two(xp.clip(e - emax, lowest, 127), size)
    return xp.where(size > 0, scale, 0 * scale)


# --- complex ----------------------------------------------------------------------------------------------------------


def _need_complex(name: str) -> Callable[[Codebook], None]:
    return lambda book: need(book.is_complex, f"scale {name} needs the complex codebook fairy, not {book.name}")


def _l1_rule() -> ScaleRule:
    # In the rotated coordinates a = Re + Im, b = Re - Im: max(|a|, |b|) = |Re| + |Im|.
    return replace(
        _absmax_rule(), name="l1", summary="max(|Re| + |Im|), the gauge of {±1, ±i}", check=_need_complex("l1"),
        spans_absmax=False, sets_scale=None,
    )  # fmt: skip


def _modulus_rule() -> ScaleRule:
    def squares(y: Array) -> Array:
        pairs = y.reshape(y.shape[0], -1, 2)
        return (pairs * pairs).sum(axis=2) / 2

    def scale(x: Array) -> Array:
        big, y = _normalised(x)
        return with_rate(big * square_root(block_max(squares(y))), x, lambda: rate(x))

    def rate(x: Array) -> Array:
        _, y = _normalised(x)
        total = squares(y)
        hit = (0 * total + 1) * (total == block_max(total))
        hit = hit / _sum(hit)
        root = square_root(block_max(total))
        return (y.reshape(*hit.shape, 2) * hit[:, :, None]).reshape(y.shape) / (2 * (root + (root == 0)))

    return ScaleRule(
        "modulus", "largest complex modulus", lambda x, book, kind: [Draw(ScaledLattice(book, kind, scale(x)))],
        lambda x, book, kind: Jacobian(rate(x)), lambda book: Promise(False, True, True), _need_complex("modulus"),
        is_rational=False,
    )  # fmt: skip


# Divisors: with the levels of any codebook they stay within the normal numbers of float32.
_LEAST, _MOST = 1e-30, 1e30


def _number(name: str, family: str) -> str | None:
    """The number in ``name``, as it is written there."""
    match = re.fullmatch(rf"{family}(\d+(?:\.\d+)?)", name)
    return match[1] if match and _LEAST <= float(match[1]) <= _MOST else None


def _divided(name: str) -> ScaleRule | None:
    if (text := _number(name, "absmax")) is None:
        return None
    return _divided_rule(name, lambda book: Fraction(text), f"absmax / {text}")


def _slack(name: str) -> ScaleRule | None:
    if (text := _number(name, "slack")) is None or Fraction(text) < 1:
        return None
    return _divided_rule(name, lambda book: book.high / Fraction(text), f"{text} absmax / top level")


RULES = (
    _absmax_rule(),
    _gauge_rule(),
    _signed_rule("signed-absmax", None, "(signed entry of largest magnitude) / low"),
    _signed_rule(
        "q4_0", SCALE_FORMATS["fp16"], "(signed entry of largest magnitude) / low, stored as fp16 (GGUF Q4_0)"
    ),
    _statistic_rule(
        "absmean",
        _absmean,
        lambda x: sign(x) / number(x.shape[1], x),
        lambda b: False,
        "mean magnitude (BitNet b1.58)",
    ),
    _statistic_rule("l2l1", _l2l1, _l2l1_rate, lambda b: b.levels == (-1, 0, 1), "‖w‖²₂ / ‖w‖₁"),
    _zero_point_int(),
    _zero_point_real(),
    _l1_rule(),
    _modulus_rule(),
)
"""The rules of this module that have no number in their name."""
FAMILIES = (
    Family("absmaxD", f"divisor D, {_LEAST:g} to {_MOST:g}, as absmax7.5", _divided),
    Family("slackR", f"R, 1 to {_MOST:g}, as slack1.1", _slack),
)
"""Those that have one."""
