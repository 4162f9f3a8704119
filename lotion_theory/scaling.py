"""Scale rules: where the lattice of a block comes from, and how it moves with the weights.

A rule turns a block of weights into one lattice, or into a *draw* of two lattices with probabilities (the SR-scale
repairs). It also states what it promises for a codebook (:class:`Promise`); ``verify`` holds every rule to its word.

Shapes: ``x`` is always (blocks, weights per block); anchors, probabilities and thresholds are (blocks, 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from ._arrays import (
    Array,
    block_max,
    detach,
    exponent,
    largest,
    namespace,
    nudge,
    number,
    power_of_two,
    replace_value,
    square_root,
    store,
    store_level,
)
from .grids import Codebook
from .lattice import AffineLattice, Lattice, MirroredLattice, ScaledLattice, SpanLattice
from .scale_formats import SCALE_FORMATS, ScaleFormat


class Promise(NamedTuple):
    """What a scale rule guarantees with a codebook, in exact arithmetic.

    ``unbiased``: ``E[RR(w)] = w``. ``continuous``: the law of ``RR(w)`` is continuous in ``w``, scale included.
    ``fixed``: every support point of ``RR(w)`` is itself a fixed point, its own scale included.
    """

    unbiased: bool
    continuous: bool
    fixed: bool


@dataclass
class Draw:
    """One lattice that may be drawn. ``prob``: its probability, None for certainty. ``sign``: d prob / d p, 0 or ±1.

    ``mixture``: None, or ``(threshold, p, reach)``: magnitudes above ``threshold`` are rounded from their conditional
    mean, which for the largest one is exactly ``reach``.
    """

    lattice: Lattice
    prob: Array | None = None
    sign: int = 0
    mixture: tuple[Array, Array, Array] | None = None


@dataclass
class Jacobian:
    """Derivatives of the anchors in the weights of their block, shape (blocks, n), for unrounded anchors.

    ``shared``: None, or ``(factor, rate)`` for ``top = factor * g`` with one ``g`` for the whole tensor and ``rate`` its
    derivative in every weight. ``p``: derivative of the probability of the coarse lattice. Ties for the largest
    magnitude share the derivative equally: the mean of the one-sided gradients, a Clarke subgradient.
    """

    top: Array | None = None
    bottom: Array | None = None
    p: Array | None = None
    shared: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class ScaleRule:
    """``name`` as written in format strings; ``draws(x, book, kind)``; ``jacobian(x, book, kind)``; ``promise(book)``.

    ``check(book)`` raises ValueError where the rule does not apply to a codebook.
    """

    name: str
    summary: str
    draws: Callable[[Array, Codebook, str], list[Draw]]
    jacobian: Callable[[Array, Codebook, str], Jacobian]
    promise: Callable[[Codebook], Promise]
    check: Callable[[Codebook], None]
    is_drawn: bool = False
    # Blocks share nothing but, for two-level scales, one factor over the whole tensor.
    couples_blocks: bool = False
    # Largest stored scale, for rules that have one: promises hold for magnitudes up to ``high * largest_scale``.
    largest_scale: Fraction | None = None


def absmax(x: Array) -> Array:
    """Largest magnitude of each block, shape (blocks, 1)."""
    return block_max(abs(x))


def _sum(x: Array) -> Array:
    return x.sum(axis=1, keepdims=True)


def _absmax_rate(x: Array) -> Array:
    """Derivative of :func:`absmax`: the sign at the largest magnitude, shared among ties."""
    hit = (abs(x) == absmax(x)) & (x != 0)
    weight = _sign(x) * hit
    count = _sum(abs(weight))
    return weight / (count + (count == 0))


def _sign(x: Array) -> Array:
    # Built from x itself: integer arrays would widen float32 to float64 in numpy, and only there.
    one, where = 0 * x + 1, namespace(x).where
    return where(x > 0, one, where(x < 0, -one, 0 * x))


def _extent_rate(x: Array, value: Array) -> Array:
    """Derivative of a block's maximum (or minimum) ``value``, shared among ties."""
    hit = (0 * x + 1) * (x == value)
    return hit / _sum(hit)


def _no_check(book: Codebook) -> None:
    if book.unsigned or book.is_complex:
        kind = "unsigned" if book.unsigned else "complex"
        other = "zp-real or zp-int" if book.unsigned else "l1 or modulus"
        raise ValueError(f"codebook {book.name} is {kind} and needs scale {other}")


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# --- real scales -----------------------------------------------------------------------------------------------------


def _absmax_rule() -> ScaleRule:
    def lattice(x: Array, book: Codebook, kind: str) -> Lattice:
        return SpanLattice(book, kind, absmax(x))

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        return Jacobian(_absmax_rate(x))

    def promise(book: Codebook) -> Promise:
        covers = -book.low >= book.high
        return Promise(covers, True, covers)

    return ScaleRule(
        "absmax", "top level at the largest magnitude", lambda *a: [Draw(lattice(*a))], jacobian, promise, _no_check
    )


def _gauge_sides(x: Array, book: Codebook, kind: str) -> tuple[Array, Array, Array]:
    """``(top, bottom, top side attained)``: the smallest multiple of [low, high] that holds the block.

    In floating point the two sides are tied by ``bottom = -fl(top * r)``. Where the negative side is attained, ``top``
    is the largest float tied to a smaller ``|bottom|``; a second pass then finds the same pair again.
    """
    xp = namespace(x)
    zero = 0 * x[:, :1]
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
        top = replace_value(negative / ratio, xp.where(bound > 0, value, 0 * value))
    return xp.where(on_top, positive, top), -xp.where(on_top, tied(positive), negative), on_top


def _gauge_rule() -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        if book.balanced:
            return [Draw(SpanLattice(book, kind, absmax(x)))]
        top, bottom, _ = _gauge_sides(x, book, kind)
        return [Draw(SpanLattice(book, kind, top, bottom))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        if book.balanced:
            return Jacobian(_absmax_rate(x))
        xp = namespace(x)
        _, _, on_top = _gauge_sides(x, book, kind)
        ratio = number(book.low / book.high, x)
        high, low = _extent(x)
        rise, fall = _extent_rate(x, high) * (high > 0), _extent_rate(x, low) * (low < 0)
        return Jacobian(xp.where(on_top, rise, fall / ratio), xp.where(on_top, rise * ratio, fall))

    return ScaleRule(
        "gauge", "smallest scale at which [low, high] holds the block", draws, jacobian,
        lambda book: Promise(True, True, True), _no_check,
    )  # fmt: skip


def _divided_rule(name: str, divisor: Callable[[Codebook], Fraction], summary: str) -> ScaleRule:
    """Scale ``absmax / divisor``: above the top level's divisor it clips, below it leaves slack."""

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(ScaledLattice(book, kind, absmax(x) / number(divisor(book), x)))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        return Jacobian(_absmax_rate(x) / number(divisor(book), x))

    def promise(book: Codebook) -> Promise:
        d, reach = divisor(book), min(book.high, -book.low)
        return Promise(d <= reach, True, d == reach)

    return ScaleRule(name, summary, draws, jacobian, promise, _no_check)


def _signed_rule(name: str, scale_format: ScaleFormat | None, summary: str) -> ScaleRule:
    """Scale = (entry of largest magnitude, with its sign) / low: that entry lands on the lowest level (GGUF Q4_0).

    ``low`` is a power of two, so the unrounded scale is exact unless it is subnormal; promises are for normal numbers.
    """

    def leader(x: Array) -> Array:
        high, low = _extent(x)
        # ggml keeps the first entry that attains the maximum; here a tie of signs goes to the positive entry.
        return namespace(x).where(detach(high) >= -detach(low), high, low)

    def scale(x: Array, book: Codebook) -> Array:
        exact = leader(x) / number(book.low, x)
        if scale_format is None:
            return exact
        plain = detach(exact)
        return _sign(plain) * scale_format.nearest(abs(plain))

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(MirroredLattice(book, kind, scale(x, book)))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        return Jacobian(_extent_rate(x, leader(x)) / number(book.low, x)) if scale_format is None else Jacobian()

    def promise(book: Codebook) -> Promise:
        # A scale rounded up puts the leader between the two lowest levels: it may come out smaller, with another scale.
        return Promise(False, False, scale_format is None)

    def check(book: Codebook) -> None:
        _no_check(book)
        _need(-book.low > book.high, f"scale {name} needs a codebook that reaches further down than up, like int4full")

    return ScaleRule(name, summary, draws, jacobian, promise, check)


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
        _no_check,
    )


def _absmean(x: Array) -> Array:
    # Divided by a power of two above n where the sum could overflow; that changes no bit elsewhere.
    one = 0 * absmax(x) + 1
    factor = namespace(x).where(absmax(x) > 1, one * 2 ** x.shape[1].bit_length(), one)
    return _sum(abs(x) / factor) / number(x.shape[1], x) * factor


def _l2l1(x: Array) -> Array:
    # Normalised by the largest magnitude: the squares would overflow or vanish for huge or tiny blocks.
    big = absmax(x)
    big = big + (big == 0)
    y = x / big
    total = _sum(abs(y))
    # The quotient first: for a ternary point it is exactly 1, and the largest magnitude is then found again.
    return big * (_sum(y * y) / (total + (total == 0)))


def _l2l1_rate(x: Array) -> Array:
    total = _sum(abs(x))
    total = total + (total == 0)
    return 2 * x / total - _l2l1(x) / total * _sign(x)


# --- zero points -----------------------------------------------------------------------------------------------------


def _extent(x: Array) -> tuple[Array, Array]:
    return block_max(x), -block_max(-x)


def _need_unsigned(name: str) -> Callable[[Codebook], None]:
    return lambda book: _need(
        book.unsigned, f"scale {name} needs an unsigned codebook (uint2 ... uint8), not {book.name}"
    )


def _zero_point_real() -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(AffineLattice(book, kind, *_extent(x)))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        high, low = _extent(x)
        return Jacobian(_extent_rate(x, high), _extent_rate(x, low))

    return ScaleRule(
        "zp-real", "levels from the block's minimum to its maximum, both exact", draws, jacobian,
        lambda book: Promise(True, True, True), _need_unsigned("zp-real"),
    )  # fmt: skip


def _zero_point_int() -> ScaleRule:
    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        xp = namespace(x)
        high, low = (0 * x[:, :1] + e for e in _extent(x))
        high, low = xp.maximum(high, 0 * high), xp.minimum(low, 0 * low)
        # Halved where the difference could overflow, which changes no bit elsewhere.
        one = 0 * high + 1
        factor = xp.where(detach(xp.maximum(high, -low)) > 1, 2 * one, one)
        scale = (high / factor - low / factor) / number(book.high, x) * factor
        ratio = -detach(low) / (detach(scale) + (detach(scale) == 0))
        return [Draw(ScaledLattice(book, kind, scale, xp.clip(_round_half_even(ratio), 0, number(book.high, x))))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        high, low = _extent(x)
        rate = _extent_rate(x, high) * (high > 0) - _extent_rate(x, low) * (low < 0)
        return Jacobian(rate / number(book.high, x))

    return ScaleRule(
        "zp-int", "(max - min) / levels, zero point rounded to an integer", draws, jacobian,
        lambda book: Promise(False, False, False), _need_unsigned("zp-int"),
    )  # fmt: skip


def _round_half_even(x: Array) -> Array:
    xp = namespace(x)
    down = x // 1
    rest = x - down
    up = (rest * 2 > 1) | ((rest * 2 == 1) & (down % 2 == 1))
    return xp.where(up, down + 1, down)


# --- scales stored in a small float format ---------------------------------------------------------------------------


def _rounded_rule(fmt: ScaleFormat, how: str, two_level: bool = False) -> ScaleRule:
    """Scale ``absmax / c_max`` rounded to a storage format; ``how`` is nearest, up, floor, ceil or even."""
    name = f"{fmt.name}-{how}" + ("-2level" if two_level else "")

    def coded(size: Array, book: Codebook, kind: str) -> Array:
        if how == "nearest":
            return fmt.nearest(size / number(book.high, size))
        if how in ("up", "ceil"):
            below, above = fmt.bracket(size, book.high, None if two_level else kind)
            attained = below * number(book.high, size)
            return namespace(size).where((attained if two_level else store_level(attained, kind)) == size, below, above)
        return _shared_exponent(size, book, fmt, round_up=how == "even")

    def split(x: Array, book: Codebook, kind: str) -> tuple[Array, Array]:
        """The stored scale of each block, and the factor common to the tensor (1 for one level)."""
        size = detach(absmax(x))
        if not two_level:
            return coded(size, book, kind), number(1, x)
        common = namespace(x).max(size) / number(book.high * fmt.largest, x)
        return coded(size / (common + (common == 0)), book, kind), common

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        stored, common = split(x, book, kind)
        if two_level:
            common = namespace(x).max(absmax(x)) / number(book.high * fmt.largest, x)
        return [Draw(ScaledLattice(book, kind, stored * common))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        if not two_level:
            return Jacobian()
        stored, _ = split(x, book, kind)
        hit = (abs(x) == abs(x).max()) & (x != 0)
        rate = _sign(x) * hit / (max(int(hit.sum()), 1) * number(book.high * fmt.largest, x))
        return Jacobian(shared=(stored, rate))

    def promise(book: Codebook) -> Promise:
        if fmt.mantissa_bits == 0:
            # A block on the coarser scale must be found again: its top level needs a twin on the scale it is given next.
            stranded = how == "even" and any(book.high < 2 * c < _switch(book) for c in book.levels)
            return Promise(how == "ceil", False, book.nested() and not stranded)
        return Promise(how == "up", False, False)

    def check(book: Codebook) -> None:
        _no_check(book)
        _need(book.balanced, f"scale {name} needs a codebook with low = -high, not {book.name}")
        if how == "even":
            _shared_mantissa_bits(book)

    level = "two-level: stored scale times one real factor per tensor" if two_level else "stored scale"
    return ScaleRule(
        name, f"{level}, {fmt.name} rounded {how}", draws, jacobian, promise, check, couples_blocks=two_level,
        largest_scale=None if two_level else fmt.largest,
    )  # fmt: skip


def _binade(book: Codebook) -> int:
    """The ``e`` with ``2**e <= c_max < 2**(e+1)``: "emax" of the OCP MX specification."""
    e = 0
    while Fraction(2) ** (e + 1) <= book.high:
        e += 1
    while Fraction(2) ** e > book.high:
        e -= 1
    return e


def _shared_mantissa_bits(book: Codebook) -> int:
    """Mantissa bits of the codebook in its top binade, as the ``even`` rule rounds to; ValueError if not a float-like."""
    base = Fraction(2) ** _binade(book)
    inside = [c for c in book.levels if c >= base]
    gaps = {b - a for a, b in zip(inside, inside[1:], strict=False)}
    _need(
        len(gaps) == 1 and inside[0] == base, f"scale e8m0-even needs evenly spaced levels at the top, not {book.name}"
    )
    ratio = base / gaps.pop()
    _need(
        ratio.denominator == 1 and ratio.numerator & (ratio.numerator - 1) == 0,
        f"scale e8m0-even does not fit {book.name}",
    )
    return ratio.numerator.bit_length() - 1


def _switch(book: Codebook) -> Fraction:
    """Magnitude, at unit scale, from which the ``even`` rule takes the next power of two."""
    return (2 - Fraction(1, 2 ** (_shared_mantissa_bits(book) + 1))) * Fraction(2) ** _binade(book)


def _shared_exponent(size: Array, book: Codebook, fmt: ScaleFormat, round_up: bool) -> Array:
    """``2**(floor(log2 absmax) - emax)`` (OCP MX 1.0, §6.3), with the mantissa first rounded to the codebook's if asked."""
    xp = namespace(size)
    e = exponent(size)
    if round_up:
        bits = _shared_mantissa_bits(book)
        threshold = number(2 - Fraction(1, 2 ** (bits + 1)), size)
        e = e + xp.where(size / power_of_two(e, size) >= threshold, 1, 0)
    scale = power_of_two(xp.clip(e - _binade(book), fmt.min_exponent, 127), size)
    return xp.where(size > 0, scale, 0 * scale)


def _drawn_rule(fmt: ScaleFormat) -> ScaleRule:
    """The SR-scale repair: draw one of the two neighbouring stored scales so that the result is unbiased and continuous.

    With ``s_lo``, ``s_hi`` the stored scales around ``absmax / c_max``, ``T = c_max s_lo`` and ``T⁺`` the next level of
    the coarse lattice above ``T`` (``c_max s_hi`` unless the scales are far apart, as powers of two are), the coarse
    lattice is drawn with probability ``p = min(1, (absmax - T) / (T⁺ - T))``. On the fine one magnitudes above ``T``
    become ``T``; on the coarse one they are rounded from their conditional mean. Codebooks whose signs differ (NF4) always
    use ``T⁺ = c_max s_hi``.
    """

    def parts(x: Array, book: Codebook, kind: str) -> tuple[Array, ...]:
        xp = namespace(x)
        size = absmax(x)
        plain = detach(size)
        top = number(book.high, x)
        limit, float_limit = book.high * fmt.largest, largest(kind)
        # The top level of the largest scale may round up in a 16-bit type.
        if (float_limit is None or limit < float_limit) and bool(
            (plain > store(0 * plain + number(limit, x), kind)).any()
        ):
            raise ValueError(
                f"a block's largest magnitude exceeds {float(limit):g}, the reach of {fmt.name} scales; use a two-level scale"
            )
        fine, coarse = fmt.bracket(plain, book.high, kind)
        threshold = store_level(fine * top, kind)
        reach = store_level(coarse * top, kind)
        if book.symmetric:
            # Otherwise the next level differs between the signs, and p would jump where the leader's sign changes.
            for level in reversed([c for c in book.levels if 0 < c < book.high]):
                candidate = store_level(coarse * number(level, x), kind)
                reach = xp.where(candidate > threshold, candidate, reach)
        width = reach - threshold
        p = (size - threshold) / (width + (width == 0))
        p = xp.where(plain >= reach, 0 * p + 1, p) * (plain > threshold)
        return fine, coarse, threshold, reach, p, size

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        fine, coarse, threshold, reach, p, _ = parts(x, book, kind)
        return [
            Draw(ScaledLattice(book, kind, fine), 1 - p, -1),
            Draw(ScaledLattice(book, kind, coarse), p, 1, (threshold, p, reach)),
        ]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        _, _, threshold, reach, p, _ = parts(x, book, kind)
        inside = (p > 0) & (p < 1)
        width = reach - threshold
        return Jacobian(p=_absmax_rate(x) * inside / (width + (width == 0)))

    def check(book: Codebook) -> None:
        _no_check(book)
        _need(book.balanced, f"scale {fmt.name}-sr needs a codebook with low = -high, not {book.name}")

    return ScaleRule(
        f"{fmt.name}-sr", f"stored scale, drawn between two neighbouring {fmt.name} values", draws, jacobian,
        lambda book: Promise(True, True, True), check, is_drawn=True, largest_scale=fmt.largest,
    )  # fmt: skip


# --- complex and frozen ----------------------------------------------------------------------------------------------


def _need_complex(name: str) -> Callable[[Codebook], None]:
    return lambda book: _need(book.is_complex, f"scale {name} needs the complex codebook fairy, not {book.name}")


def _l1_rule() -> ScaleRule:
    # In the rotated coordinates a = Re + Im, b = Re - Im: max(|a|, |b|) = |Re| + |Im|.
    return replace(
        _absmax_rule(), name="l1", summary="max(|Re| + |Im|), the gauge of {±1, ±i}", check=_need_complex("l1")
    )


def _modulus_rule() -> ScaleRule:
    def squares(x: Array) -> Array:
        y = x.reshape(x.shape[0], -1, 2)
        return (y * y).sum(axis=2) / 2

    def scale(x: Array) -> Array:
        # Normalised by the largest coordinate: squares would overflow or vanish for huge or tiny blocks.
        big = absmax(x)
        big = big + (big == 0)
        return big * square_root(block_max(squares(x / big)))

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        total = squares(x)
        hit = total == block_max(total)
        hit = (0 * total + 1) * hit
        hit = hit / _sum(hit)
        big = scale(x)
        return Jacobian(x * hit.repeat(2, axis=1) / (2 * (big + (big == 0))))

    return ScaleRule(
        "modulus", "largest complex modulus", lambda x, book, kind: [Draw(ScaledLattice(book, kind, scale(x)))], jacobian,
        lambda book: Promise(False, True, True), _need_complex("modulus"),
    )  # fmt: skip


def frozen_rule(lattices: Callable[[Array, Codebook, str], Lattice] | None = None) -> ScaleRule:
    """A lattice that does not move with the weights; ``lattices`` supplies it once it is known."""

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        if lattices is None:
            raise ValueError("a frozen scale is not set yet: use quantizer.freeze(w) or quantizer.with_scale(s)")
        return [Draw(lattices(x, book, kind))]

    return ScaleRule(
        "frozen", "a given lattice that does not follow the weights; clips outside", draws, lambda *_: Jacobian(),
        lambda book: Promise(False, True, True), lambda book: None,
    )  # fmt: skip


_FIXED_RULES = {
    rule.name: rule
    for rule in (
        _absmax_rule(),
        _gauge_rule(),
        _signed_rule("signed-absmax", None, "(signed entry of largest magnitude) / low"),
        _signed_rule(
            "q4_0", SCALE_FORMATS["fp16"], "(signed entry of largest magnitude) / low, stored as fp16 (GGUF Q4_0)"
        ),
        _statistic_rule(
            "absmean",
            _absmean,
            lambda x: _sign(x) / number(x.shape[1], x),
            lambda b: False,
            "mean magnitude (BitNet b1.58)",
        ),
        _statistic_rule("l2l1", _l2l1, _l2l1_rate, lambda b: b.levels == (-1, 0, 1), "‖w‖²₂ / ‖w‖₁"),
        *(_rounded_rule(SCALE_FORMATS["e8m0"], how) for how in ("floor", "ceil", "even")),
        *(_rounded_rule(SCALE_FORMATS[f], how) for f in ("e4m3", "ue5m3", "fp16") for how in ("nearest", "up")),
        *(_rounded_rule(SCALE_FORMATS["e4m3"], how, two_level=True) for how in ("nearest", "up")),
        *(_drawn_rule(f) for f in SCALE_FORMATS.values()),
        _zero_point_int(),
        _zero_point_real(),
        _l1_rule(),
        _modulus_rule(),
        frozen_rule(),
    )
}


def rule_names() -> tuple[str, ...]:
    """Every scale name, with the two parametric families written ``absmaxD`` and ``slackR``."""
    return (*_FIXED_RULES, "absmaxD", "slackR")


@cache
def scale_rule(name: str) -> ScaleRule:
    """The scale rule called ``name``. ``absmax7.5`` is absmax / 7.5; ``slack1.1`` is 1.1 absmax / top level.

    Raises ValueError, listing the names, for an unknown one.
    """
    if name in _FIXED_RULES:
        return _FIXED_RULES[name]
    if (match := re.fullmatch(r"(absmax|slack)(\d+(?:\.\d+)?)", name)) and Fraction(match[2]) > 0:
        value = Fraction(match[2])
        if match[1] == "absmax":
            return _divided_rule(name, lambda book: value, f"absmax / {match[2]}")
        if value >= 1:
            return _divided_rule(name, lambda book: book.high / value, f"{match[2]} absmax / top level")
    raise ValueError(
        f"unknown scale {name!r}; valid: {', '.join(_FIXED_RULES)}, absmaxD (divisor D > 0, as absmax7.5), slackR (R >= 1, as slack1.1)"
    )
