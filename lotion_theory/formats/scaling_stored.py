"""Scale rules whose scale is stored in a small float format: rounded to it, or drawn between two of its values.

Statistics of a block and shared exponents are those of :mod:`lotion_theory.formats.scaling`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

from .._arrays import Array, detach, is_unread, largest, namespace, quotient, store, store_level
from ..functions import number
from . import scaling
from .codebooks import Codebook
from .lattice import OffsetLattice, ScaledLattice
from .scale_formats import SCALE_FORMATS, ScaleFormat
from .scale_protocol import Draw, Jacobian, Promise, ScaleRule, need, need_signed_real


def rounded_rule(fmt: ScaleFormat, how: str, two_level: bool = False) -> ScaleRule:
    """Scale ``absmax / c_max`` rounded to a storage format; ``how`` is nearest, up, floor, ceil or even."""
    name = f"{fmt.name}-{how}" + ("-2level" if two_level else "")

    def coded(size: Array, book: Codebook, kind: str) -> Array:
        if how == "nearest":
            return fmt.nearest(size / number(book.high, size))
        if how in ("up", "ceil"):
            below, above = fmt.bracket(size, book.high, None if two_level else kind)
            attained = below * number(book.high, size)
            return namespace(size).where((attained if two_level else store_level(attained, kind)) == size, below, above)
        return scaling.shared_exponent(size, _binade(book), fmt.min_exponent, _carry(book) if how == "even" else None)

    def split(x: Array, book: Codebook, kind: str) -> tuple[Array, Array]:
        """The stored scale of each block, and the factor common to the tensor (1 for one level)."""
        size = detach(scaling.absmax(x))
        if not two_level:
            return coded(size, book, kind), number(1, x)
        common = namespace(x).max(size) / number(book.high * fmt.largest, x)
        return coded(size / (common + (common == 0)), book, kind), common

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        stored, common = split(x, book, kind)
        if two_level:
            common = namespace(x).max(scaling.absmax(x)) / number(book.high * fmt.largest, x)
        return [Draw(ScaledLattice(book, kind, stored * common))]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        if not two_level:
            return Jacobian()
        stored, _ = split(x, book, kind)
        hit = (abs(x) == abs(x).max()) & (x != 0)
        count = hit.to(x.dtype).sum().clamp(min=1) if is_unread(x) else max(int(hit.sum()), 1)
        rate = scaling.sign(x) * hit / (count * number(book.high * fmt.largest, x))
        return Jacobian(shared=(stored, rate))

    def promise(book: Codebook) -> Promise:
        if fmt.mantissa_bits == 0:
            # A block on the coarser scale must be found again: its top level needs a twin on the scale it is given
            # next, whose turn comes at this magnitude (at unit scale).
            stranded = False
            if how == "even":
                switch = _carry(book) * Fraction(2) ** _binade(book)
                stranded = any(book.high < 2 * c < switch for c in book.levels)
            return Promise(how == "ceil", False, book.nested() and not stranded)
        # Of levels of one magnitude (and 0) the largest of a block is the scale itself, which is stored exactly.
        alone = not two_level and all(abs(c) in (0, book.high) for c in book.levels)
        return Promise(how == "up", False, alone)

    def check(book: Codebook) -> None:
        need_signed_real(book)
        need(book.balanced, f"scale {name} needs a codebook with low = -high, not {book.name}")
        if how == "even":
            _shared_mantissa_bits(book)

    level = "two-level: stored scale times one real factor per tensor" if two_level else "stored scale"
    return ScaleRule(
        name, f"{level}, {fmt.name} rounded {how}", draws, jacobian, promise, check, couples_blocks=two_level,
        largest_scale=None if two_level else fmt.largest, storage=fmt,
        one_level=rounded_rule(fmt, how) if two_level else None,
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
    """Mantissa bits of the codebook in its top binade, as the ``even`` rule rounds to; ValueError if not float-like."""
    base = Fraction(2) ** _binade(book)
    inside = [c for c in book.levels if c >= base]
    gaps = {b - a for a, b in pairwise(inside)}
    need(
        len(gaps) == 1 and inside[0] == base, f"scale e8m0-even needs evenly spaced levels at the top, not {book.name}"
    )
    ratio = base / gaps.pop()
    need(
        ratio.denominator == 1 and ratio.numerator & (ratio.numerator - 1) == 0,
        f"scale e8m0-even does not fit {book.name}",
    )
    return ratio.numerator.bit_length() - 1


def _carry(book: Codebook) -> Fraction:
    """Mantissa from which the ``even`` rule takes the next power of two."""
    return 2 - Fraction(1, 2 ** (_shared_mantissa_bits(book) + 1))


def _drawn_parts(fmt: ScaleFormat, x: Array, book: Codebook, kind: str) -> tuple[Array, ...]:
    """``(s_lo, s_hi, T, T⁺, p)`` of :func:`drawn_rule`, per block."""
    xp = namespace(x)
    size = scaling.absmax(x)
    plain = detach(size)
    top = number(book.high, x)
    limit, float_limit = book.high * fmt.largest, largest(kind)
    # The top level of the largest scale may round up in a 16-bit type.
    if float_limit is None or limit < float_limit:
        beyond = plain > store(0 * plain + number(limit, x), kind)
        if is_unread(beyond):
            plain = xp.where(beyond, math.nan, plain)
        elif bool(beyond.any()):
            raise ValueError(
                f"a block's largest magnitude exceeds {float(limit):g}, the reach of {fmt.name} scales; "
                "use a two-level scale"
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
    p = xp.where(plain >= reach, 0 * detach(p) + 1, xp.where(plain > threshold, p, 0 * detach(p)))
    return fine, coarse, threshold, reach, p


def drawn_rule(fmt: ScaleFormat) -> ScaleRule:
    """The SR-scale repair: draw one of the two neighbouring stored scales, to be unbiased and continuous.

    With ``s_lo``, ``s_hi`` the stored scales around ``absmax / c_max``, ``T = c_max s_lo`` and ``T⁺`` the next level of
    the coarse lattice above ``T`` (``c_max s_hi`` unless the scales are far apart, as powers of two are), the coarse
    lattice is drawn with probability ``p = min(1, (absmax - T) / (T⁺ - T))``. On the fine one magnitudes above ``T``
    become ``T``; on the coarse one they are rounded from their conditional mean. Codebooks whose signs differ (NF4)
    always use ``T⁺ = c_max s_hi``.
    """

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        fine, coarse, threshold, reach, p = _drawn_parts(fmt, x, book, kind)
        return [
            Draw(ScaledLattice(book, kind, fine), 1 - p, -1),
            Draw(ScaledLattice(book, kind, coarse), p, 1, (threshold, p, reach)),
        ]

    def jacobian(x: Array, book: Codebook, kind: str) -> Jacobian:
        *_, threshold, reach, p = _drawn_parts(fmt, x, book, kind)
        inside = (p > 0) & (p < 1)
        width = reach - threshold
        # The reciprocal of a subnormal width overflows.
        return Jacobian(p=quotient(scaling.absmax_rate(x) * inside, width + (width == 0)))

    def check(book: Codebook) -> None:
        need_signed_real(book)
        need(book.balanced, f"scale {fmt.name}-sr needs a codebook with low = -high, not {book.name}")

    return ScaleRule(
        f"{fmt.name}-sr", f"stored scale, drawn between two neighbouring {fmt.name} values", draws, jacobian,
        lambda book: Promise(True, True, True), check, is_drawn=True, largest_scale=fmt.largest,
        storage=fmt,
    )  # fmt: skip


def offset_rule(fmt: ScaleFormat) -> ScaleRule:
    """Scale ``(max - min) / levels`` and offset ``min``, each rounded to nearest in a storage format that has signs."""

    def rounded(x: Array) -> Array:
        return scaling.sign(x) * fmt.nearest(abs(x))

    def draws(x: Array, book: Codebook, kind: str) -> list[Draw]:
        high, low = (detach(extent) for extent in scaling.extent(x))
        # Halves: the difference may overflow.
        scale = (high / 2 - low / 2) / number(book.high, x) * 2
        return [Draw(OffsetLattice(book, kind, fmt.nearest(scale), rounded(low)))]

    return ScaleRule(
        f"zp-{fmt.name}", f"(max - min) / levels and the minimum, both stored as {fmt.name}", draws,
        lambda x, book, kind: Jacobian(), lambda book: Promise(False, False, False),
        lambda book: need(book.unsigned, f"scale zp-{fmt.name} needs an unsigned codebook, not {book.name}"),
        largest_scale=fmt.largest, zero_point="stored", storage=fmt,
    )  # fmt: skip


def rules_of(fmt: ScaleFormat) -> tuple[ScaleRule, ...]:
    """Every rule whose scale is stored in ``fmt``: powers of two are rounded by their exponents."""
    ways = ("nearest", "up") if fmt.mantissa_bits else ("floor", "ceil", "even")
    two_levels = (rounded_rule(fmt, how, two_level=True) for how in ways if fmt.two_level)
    offset = (offset_rule(fmt),) if fmt.is_signed else ()
    return (*(rounded_rule(fmt, how) for how in ways), *two_levels, drawn_rule(fmt), *offset)


RULES = tuple(rule for fmt in SCALE_FORMATS.values() for rule in rules_of(fmt))
"""The rules of all formats."""
