"""Codebooks: the unit-scale levels of every number format, as frozen data.

A codebook knows nothing of blocks or scales. Levels are exact rationals, so the same codebook serves exact laws, proofs
and every float type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .._tables import Values
from .grammar import ALIASES, check_name


@cache
def common_gap(values: tuple[Fraction, ...]) -> Fraction | None:
    """The distance between any two neighbours of ``values``, None where it is not the same for all."""
    gaps = {b - a for a, b in pairwise(values)}
    return gaps.pop() if len(gaps) == 1 else None


@dataclass(frozen=True)
class Codebook:
    """Sorted unit-scale levels of a number format.

    ``levels``: distinct exact values, increasing. ``even``: per level, whether a tie between two neighbours goes to it
    ("ties to even": even integer, even mantissa, or even position where the format defines no code parity). Of two
    neighbours exactly one is even. ``bits``: storage per weight, scales not counted; fractional for ternary.
    ``unsigned``: codes are non-negative and need a zero-point scale rule. ``is_complex``: two real codes per weight.
    """

    name: str
    levels: tuple[Fraction, ...]
    even: tuple[bool, ...]
    bits: float
    summary: str
    unsigned: bool = False
    is_complex: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", Values(self.levels))
        if len(self.levels) < 2 or any(a >= b for a, b in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError(f"codebook {self.name}: needs at least two distinct levels in increasing order")
        if any(a == b for a, b in zip(self.even, self.even[1:], strict=False)):
            raise ValueError(f"codebook {self.name}: of two neighbouring levels exactly one must be even")

    def __hash__(self) -> int:
        return hash((self.name, len(self.levels)))

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """What pickle and copy keep: the name of a codebook that :func:`codebook` knows, the fields of any other."""
        if _OWN.get(self.name) is self or (self.name in names() and codebook(self.name) is self):
            return codebook, (self.name,)
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    @cached_property
    def parity(self) -> Values:
        """1 for even levels, 0 for odd ones."""
        return Values(Fraction(int(e)) for e in self.even)

    @cached_property
    def units(self) -> Values:
        """Levels over the highest one."""
        return Values(c / self.high for c in self.levels)

    @cached_property
    def sided_units(self) -> Values:
        """Levels over the highest one where non-negative, over minus the lowest one where negative: from -1 to 1."""
        return Values(c / self.high if c >= 0 else -c / self.low for c in self.levels)

    @cached_property
    def shares(self) -> Values:
        """Place of each level between the lowest (0) and the highest (1)."""
        return Values((c - self.low) / (self.high - self.low) for c in self.levels)

    @property
    def low(self) -> Fraction:
        """Lowest level."""
        return self.levels[0]

    @property
    def high(self) -> Fraction:
        """Highest level."""
        return self.levels[-1]

    @cached_property
    def values(self) -> np.ndarray:
        """The levels as float64, read-only."""
        out = np.array([float(v) for v in self.levels])
        out.flags.writeable = False
        return out

    @cached_property
    def symmetric(self) -> bool:
        """Whether ``-levels == levels``."""
        return all(a == -b for a, b in zip(self.levels, reversed(self.levels), strict=True))

    @cached_property
    def balanced(self) -> bool:
        """Whether the lowest level is minus the highest (NF4 is balanced without being symmetric)."""
        return self.low == -self.high

    @cached_property
    def is_top_heavy(self) -> bool:
        """Whether no level is further from 0 than the highest."""
        return self.low >= -self.high

    @cached_property
    def step(self) -> Fraction | None:
        """The common gap of a uniform codebook, else None."""
        return common_gap(self.levels)

    @cached_property
    def has_zero(self) -> bool:
        """Whether 0 is a level."""
        return Fraction(0) in self.levels

    def nested(self) -> bool:
        """Whether twice a level, where it is not beyond the top, is again a level (power-of-two scales then nest)."""
        inside = set(self.levels)
        return all(2 * v in inside for v in self.levels if self.low <= 2 * v <= self.high)


def _integers(name: str, low: int, high: int, bits: float, summary: str, unsigned: bool = False) -> Codebook:
    codes = range(low, high + 1)
    return Codebook(name, tuple(map(Fraction, codes)), tuple(c % 2 == 0 for c in codes), bits, summary, unsigned)


def _mirrored(name: str, magnitudes: list[Fraction], bits: float, summary: str) -> Codebook:
    """Sign-magnitude codebook; a level is even where its magnitude's code is."""
    zero = magnitudes[0] == 0
    tail = magnitudes[1:] if zero else magnitudes
    levels = [-m for m in reversed(tail)] + magnitudes
    if zero:
        parity = [i % 2 == 0 for i in range(len(magnitudes))]
        even = parity[:0:-1] + parity
    else:
        # Without a zero the two smallest levels are neighbours of equal code parity: count positions from +smallest.
        even = [(i - len(tail)) % 2 == 0 for i in range(len(levels))]
    return Codebook(name, tuple(levels), tuple(even), bits, summary)


def _minifloat(name: str, exponent_bits: int, mantissa_bits: int, top: Fraction, summary: str) -> Codebook:
    """All finite values up to ``top`` of an IEEE-like minifloat with subnormals and bias ``2**(e-1) - 1``."""
    bias = 2 ** (exponent_bits - 1) - 1
    magnitudes = []
    for code in range(2 ** (exponent_bits + mantissa_bits)):
        e, m = divmod(code, 2**mantissa_bits)
        fraction = Fraction(m, 2**mantissa_bits) + (e > 0)
        value = fraction * Fraction(2) ** (max(e, 1) - bias)
        if value <= top:
            magnitudes.append(value)
    return _mirrored(name, magnitudes, 1 + exponent_bits + mantissa_bits, summary)


# The 16 float32 values of NF4 (QLoRA, arXiv 2305.14314, appendix E), kept as the exact values of those floats.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def _nf4() -> Codebook:
    levels = tuple(Fraction(float(np.float32(v))) for v in _NF4)
    return Codebook("nf4", levels, tuple(i % 2 == 1 for i in range(16)), 4, "NormalFloat-4: quantiles of a normal law")


# The levels of GGUF's IQ4_NL, denser towards 0.
_IQ4NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _dynamic8() -> Codebook:
    """Signed 8-bit dynamic tree map (Dettmers, arXiv 1511.04561): 7 decades, midpoints of 2^i parts of [0.1, 1]."""
    magnitudes = []
    for i in range(7):
        width = Fraction(9, 10) / 2**i
        magnitudes += [(Fraction(1, 10) + width * (2 * j + 1) / 2) * Fraction(10) ** (i - 6) for j in range(2**i)]
    levels = sorted([-m for m in magnitudes] + [Fraction(0)] + magnitudes + [Fraction(1)])
    zero = levels.index(Fraction(0))
    even = tuple((i - zero) % 2 == 0 for i in range(len(levels)))
    return Codebook("dynamic8", tuple(levels), even, 8, "8-bit dynamic tree map: decades, then linear; -0.993 to 1")


_MINIFLOATS = {
    "e2m1": (2, 1, Fraction(6), "FP4 (OCP): 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives"),
    "e2m3": (2, 3, Fraction(15, 2), "FP6 E2M3 (OCP), up to 7.5"),
    "e3m2": (3, 2, Fraction(28), "FP6 E3M2 (OCP), up to 28"),
    "e4m3": (4, 3, Fraction(448), "FP8 E4M3 (OCP, no infinity), up to 448"),
    "e5m2": (5, 2, Fraction(57344), "FP8 E5M2, up to 57344"),
}
_ALIASES = {"fp4": "e2m1", "fp6": "e2m3", "fp8": "e4m3"}


def names() -> tuple[str, ...]:
    """Every codebook of this package, in the order tables list them."""
    widths = range(2, 9)
    return (
        *(f"int{b}" for b in widths), *(f"int{b}full" for b in widths), *(f"uint{b}" for b in widths),
        "ternary", "binary", *_MINIFLOATS, "nf4", "iq4nl", "pot2", "pot3", "pot4", "dynamic8", "fairy",
    )  # fmt: skip


_OWN: dict[str, Codebook] = {}


def register_codebook(book: Codebook) -> Codebook:
    """Make ``book`` known by its name, in format strings and pickles of this process; returns it.

    Raises ValueError for a name that is taken or that cannot be part of a format string. Pickles hold the name only:
    a process that reads them must have registered the codebook too, or gets a ValueError.
    """
    check_name("codebook", book.name)
    if book.name in (*names(), *_ALIASES, *ALIASES) or _OWN.get(book.name, book) != book:
        raise ValueError(f"codebook {book.name!r} is taken; give the codebook another name")
    return _OWN.setdefault(book.name, book)


def registered(book: Codebook) -> bool:
    """Whether :func:`register_codebook` gave this very codebook its name."""
    return _OWN.get(book.name) == book


def codebook(name: str) -> Codebook:
    """The codebook called ``name`` (``fp4``, ``fp6``, ``fp8`` are aliases of ``e2m1``, ``e2m3``, ``e4m3``).

    Raises ValueError, listing the names, for an unknown one.
    """
    name = _ALIASES.get(name, name)
    if name in _OWN:
        return _OWN[name]
    if name not in names():
        raise ValueError(
            f"unknown codebook {name!r}; valid: {', '.join((*names(), *_OWN))} and the aliases {', '.join(_ALIASES)}; "
            "a codebook of your own is known in the processes that called register_codebook(book)"
        )
    return _built_in(name)


@cache
def _built_in(name: str) -> Codebook:
    if match := re.fullmatch(r"(u?)int(\d)(full)?", name):
        bits = int(match[2])
        half = 2 ** (bits - 1)
        if match[1]:
            return _integers(
                name, 0, 2 * half - 1, bits, f"{2 * half} integers from 0, with a zero point", unsigned=True
            )
        if match[3]:
            return _integers(name, -half, half - 1, bits, f"two's complement [-{half}, {half - 1}]")
        return _integers(name, 1 - half, half - 1, bits, f"{2 * half - 1} symmetric integers")
    if name == "ternary":
        return _integers(name, -1, 1, float(np.log2(3)), "-1, 0, 1")
    if name == "binary":
        return _mirrored(name, [Fraction(1)], 1, "-1, 1")
    if name == "fairy":
        base = _mirrored(name, [Fraction(1)], 2, "")
        return Codebook(
            name, base.levels, base.even, 2, "complex {1, i, -1, -i}: signs of Re+Im and Re-Im", is_complex=True
        )
    if name.startswith("pot"):
        bits = int(name[3:])
        count = 2 ** (bits - 1)
        return _mirrored(name, [Fraction(2) ** i for i in range(count)], bits, f"±2^0 ... ±2^{count - 1}, no zero")
    if name == "nf4":
        return _nf4()
    if name == "iq4nl":
        summary = "16 uneven integers from -127 to 113, without 0 (GGUF IQ4_NL)"
        return Codebook(name, tuple(map(Fraction, _IQ4NL)), (True, False) * 8, 4, summary)
    if name == "dynamic8":
        return _dynamic8()
    return _minifloat(name, *_MINIFLOATS[name])
