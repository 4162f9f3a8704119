"""Means, paired comparisons and proportions with their uncertainty, for few runs that share seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import special

from lotion_theory import Stream

MOST_ENUMERATED = 16
"""Pairs up to which all sign flips are enumerated."""
FLIPS = 100_000
"""Random sign flips for more pairs than that."""
_UNIT = 2.0**520


class Interval(NamedTuple):
    """An estimate from ``n`` values and the ends of its interval, both None where one value gives none."""

    value: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the width, None where there is no interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def through(self, function: np.ufunc) -> Interval:
        """The image under an increasing function, e.g. ``np.exp``."""
        with np.errstate(over="ignore"):
            low, high = (None if end is None else float(function(end)) for end in (self.low, self.high))
            return Interval(float(function(self.value)), low, high, self.n)

    def __str__(self) -> str:
        return format_interval(self)


class Paired(NamedTuple):
    """A comparison of ``a`` with ``b`` on the seeds that both have.

    ``difference``: mean of a - b. ``ratio_of_means``: mean(a) / mean(b), None where mean(b) is 0. ``geometric``:
    geometric mean of a / b, None unless all values are positive. ``p_value``: of the sign-flip test. ``wins``: seeds
    with a < b (losses are compared: lower is better).
    """

    n: int
    difference: Interval
    ratio_of_means: float | None
    geometric: Interval | None
    p_value: float
    wins: int
    ties: int
    losses: int


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Mean and Student's t interval, which covers with probability ``level`` for independent normal values.

    One value gives no interval. Raises ValueError for no values, for values that are not finite and for a ``level``
    outside (0, 1).
    """
    x = _finite("values", values)
    _check_level(level)
    x, unit = _scaled(x)
    n, middle = len(x), float(x.mean()) * unit
    if n == 1:
        return Interval(middle, None, None, 1)
    half = float(special.stdtrit(n - 1, (1 + level) / 2) * x.std(ddof=1) / math.sqrt(n)) * unit
    return Interval(middle, middle - half, middle + half, n)


def geometric_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Geometric mean of positive values with the t interval of their logarithms; errors as :func:`mean_interval`."""
    x = _finite("values", values)
    if x.min() <= 0:
        raise ValueError(f"values: the smallest is {x.min():g}; a geometric mean needs positive ones")
    return mean_interval(np.log(x), level).through(np.exp)


def paired(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95, seed: int = 0) -> Paired:
    """Compare two methods, each given as ``{seed: value}``, on their common seeds.

    The p-value is two-sided: the share of sign flips of the differences whose mean is at least as far from zero as the
    observed one (Fisher, *The Design of Experiments*, 1935, §21). Up to 16 pairs it is exact, so never below
    ``2 / 2**n``; beyond, 100,000 flips drawn with ``seed`` and ``(1 + hits) / (1 + flips)`` (Phipson and Smyth 2010),
    which keeps its level as well. Raises ValueError without a common seed and for values that are not finite.
    """
    x, y = _common(a, b)
    difference = x - y
    return Paired(
        len(x),
        mean_interval(difference, level),
        _ratio_of_means(x, y),
        _geometric_ratio(x, y, level) if bool((x > 0).all() and (y > 0).all()) else None,
        sign_flip_p(difference, seed),
        int((difference < 0).sum()),
        int((difference == 0).sum()),
        int((difference > 0).sum()),
    )


def _ratio_of_means(x: np.ndarray, y: np.ndarray) -> float | None:
    with np.errstate(over="ignore"):
        above, below = float(x.mean()), float(y.mean())
    if not math.isfinite(above) or not math.isfinite(below):
        above, below = average(x.tolist()), average(y.tolist())
    return None if below == 0 else above / below


def _geometric_ratio(x: np.ndarray, y: np.ndarray, level: float) -> Interval:
    with np.errstate(over="ignore", under="ignore"):
        ratios = x / y
    if np.isfinite(ratios).all() and ratios.min() > 0:
        return geometric_interval(ratios, level)
    # Of numbers so far apart only the logarithms can be told.
    return mean_interval(np.log(x) - np.log(y), level).through(np.exp)


def sign_flip_p(differences: Iterable[float], seed: int = 0) -> float:
    """Two-sided p-value of a zero mean for differences symmetric about it, as described under :func:`paired`."""
    d, _ = _scaled(_finite("differences", differences))
    # Sums that are equal in exact arithmetic differ by rounding: each of n additions errs by at most half an ulp of
    # the sum of magnitudes.
    reach = abs(float(d.sum())) - len(d) * np.finfo(float).eps * float(np.abs(d).sum())
    if len(d) <= MOST_ENUMERATED:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= reach).mean())
    generator = Stream(seed, "statistics/sign_flip").numpy_generator()
    hits, chunk = 0, 10_000
    for _ in range(FLIPS // chunk):
        signs = 2.0 * generator.integers(0, 2, (chunk, len(d))) - 1
        hits += int((np.abs(signs @ d) >= reach).sum())
    return (1 + hits) / (1 + FLIPS)


def comparison_intervals(values: Mapping[str, Mapping[int, float]], level: float = 0.95) -> dict[str, Interval]:
    """Geometric means of positive values ``{name: {seed: value}}``, with intervals made for comparing the names.

    Seeds are instances, some harder than others for every name. What they share, the mean logarithm over the names that
    have all seeds, is taken out of the spread (Cousineau, TQMP 1, 2005), and the spread of M such names is widened by
    √(M / (M - 1)), as their own mean is part of what was taken out (Morey, TQMP 4, 2008). With fewer than two such
    names these are the intervals of :func:`geometric_interval`. Errors as there.
    """
    everywhere = set().union(*values.values())
    complete = [by_seed for by_seed in values.values() if by_seed.keys() == everywhere]
    shared = dict.fromkeys(everywhere, 0.0)
    widen = 1.0
    if len(complete) > 1:
        shared = {seed: float(np.mean([math.log(by_seed[seed]) for by_seed in complete])) for seed in everywhere}
        widen = math.sqrt(len(complete) / (len(complete) - 1))
    out = {}
    for name, by_seed in values.items():
        plain = geometric_interval(by_seed.values(), level)
        middle = math.log(plain.value)
        half = mean_interval([math.log(v) - shared[seed] for seed, v in by_seed.items()], level).half
        if half is not None:
            plain = plain._replace(low=_exp(middle - widen * half), high=_exp(middle + widen * half))
        out[name] = plain
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given; comparing them with α keeps the family-wise error rate at α.

    Holm, Scandinavian Journal of Statistics 6 (1979). Raises ValueError for values outside [0, 1].
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if not 0 <= p_values[k] <= 1:
            raise ValueError(f"p_values: {p_values[k]!r} at {k}; valid: 0 to 1")
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[k]))
        adjusted[k] = running
    return adjusted


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Share of successes with Wilson's score interval (JASA 22, 1927), which stays inside [0, 1] also at 0 and n.

    Raises ValueError unless ``0 <= successes <= n`` and ``n >= 1``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes!r} of n={n!r}; valid: n at least 1, successes from 0 to n")
    _check_level(level)
    z = float(special.ndtri((1 + level) / 2))
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if successes == 0 else middle - half
    high = 1.0 if successes == n else middle + half
    return Interval(share, low, high, n)


# --- text ------------------------------------------------------------------------------------------------------------


def format_number(value: float | None, digits: int = 4) -> str:
    """``digits`` significant digits, trailing zeros kept; empty for None."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = _exponent(value, digits)
    if -4 < exponent < 6:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(power)}"


def format_interval(interval: Interval | None) -> str:
    """``0.0430 ± 0.0012``: the half-width to two digits and the estimate to the same place; empty for None.

    One place more where the estimate would have fewer than three digits: paired comparisons tell such apart.
    """
    if interval is None:
        return ""
    half = interval.half
    if half is not None and not math.isfinite(half):
        return f"{format_number(interval.value)} ± {half:g}"
    # Equal values have a mean that differs from them by rounding, and so a half-width of some ulp.
    if half is None or half <= 1e-12 * abs(interval.value):
        return format_number(interval.value) + ("" if half is None else " ± 0")
    largest = max(abs(interval.value), half)
    power = _exponent(largest, 2)
    shift = 0 if -4 < power < 6 else power
    places = 1 - _exponent(half, 2) + shift
    if interval.value and places < 2 - _exponent(interval.value, 3) + shift:
        places += 1
    places = max(0, places)
    scale = 10.0**shift
    text = f"{interval.value / scale:.{places}f} ± {half / scale:.{places}f}"
    return text if shift == 0 else f"({text})e{shift}"


def format_signed(found: Interval) -> str:
    """A difference with the ends of its interval, to three places."""
    ends = "" if found.low is None or found.high is None else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{ends}".replace("-", "−")


def format_ends(interval: Interval | None) -> str:
    """``0.574 [0.52, 0.63]`` for an interval that is not symmetric, such as a ratio's; empty for None."""
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return format_number(interval.value, 3)
    low, high = (format_number(end, 3) for end in (interval.low, interval.high))
    return f"{format_number(interval.value, 3)} [{low}, {high}]"


def format_p(p: float | None) -> str:
    """A p-value to two digits, ``<0.0001`` below that; empty for None."""
    return "" if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _exponent(value: float, digits: int) -> int:
    """Decimal exponent after rounding to ``digits`` digits: 9.99 is 10 to two of them."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def average(values: Iterable[float]) -> float:
    """Arithmetic mean, rounded once; also of numbers whose sum is no float. Raises ValueError for none."""
    found = list(values)
    try:
        return fmean(found)
    except OverflowError:
        return fmean(v / _UNIT for v in found) * _UNIT


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _scaled(x: np.ndarray) -> tuple[np.ndarray, float]:
    """``(x / unit, unit)``: numbers with squares and sums that are floats; ``unit`` is a power of two."""
    unit = _UNIT if np.abs(x).max() > _UNIT / 2**20 else 1.0
    return x / unit, unit


def _finite(name: str, values: Iterable[float]) -> np.ndarray:
    x = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name}: shape {x.shape}; valid: at least one value, in one dimension")
    if not np.isfinite(x).all():
        raise ValueError(f"{name}: {int((~np.isfinite(x)).sum())} of {len(x)} are not finite")
    return x


def _common(a: Mapping[int, float], b: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise ValueError(f"a has seeds {sorted(a)}, b has {sorted(b)}; valid: at least one in common")
    return _finite("a", [a[s] for s in seeds]), _finite("b", [b[s] for s in seeds])


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}; valid: between 0 and 1")
