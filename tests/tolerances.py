"""Tolerances from first principles: units in the last place for rounding, probability bounds for sampling.

Every bound on a sample mean takes the probability with which a correct program may fail the test (``false_alarm``, for
the whole test) and the number of ``comparisons`` it makes; the union bound (Bonferroni) shares the former among the
latter, independent or not. The seed being fixed, a passing test then never flickers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

# Significand bits (hidden bit included) and exponent of the smallest normal number.
_FORMATS = {"float64": (53, -1022), "float32": (24, -126), "float16": (11, -14), "bfloat16": (8, -126)}


def ulp(x: ArrayLike, dtype: object = "float64") -> NDArray[np.float64]:
    """Unit in the last place of ``dtype`` at each finite ``|x|``: the gap to the next larger number of that type.

    At a power of two this is the larger of the two gaps; below the smallest normal number it is the subnormal gap.
    ``dtype``: "float64", "float32", "float16" or "bfloat16", as a name or a numpy or torch type. A correctly rounded
    operation is off by at most half of it. NaN and infinities give NaN. Raises ``ValueError`` for other types.
    """
    name = np.dtype(dtype).name if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
    if name not in _FORMATS:
        raise ValueError(f"unknown float type {name!r}; known: {', '.join(_FORMATS)}")
    precision, smallest = _FORMATS[name]
    x = np.asarray(x, dtype=np.float64)
    # frexp is exact where floor(log2) is off by one just below powers of two; its mantissa is in [.5, 1).
    exponent = np.maximum(np.frexp(x)[1] - 1, smallest)
    exponent = np.where(x == 0, smallest, exponent)
    return np.where(np.isfinite(x), np.ldexp(1.0, exponent - (precision - 1)), np.nan)


def within_ulps(a: ArrayLike, b: ArrayLike, n: float, dtype: object = "float64") -> bool:
    """Whether ``|a - b| <= n`` ulp everywhere, the ulp taken at the larger magnitude of the two (so it is symmetric).

    Shapes broadcast. ``n = 0`` asks for equal values, with 0 == -0. Equal infinities agree, a NaN agrees with nothing.
    """
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    finite = np.isfinite(a) & np.isfinite(b)
    safe_a, safe_b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    with np.errstate(over="ignore"):  # opposite signs near the float64 maximum: the gap is inf, rightly too large
        close = np.abs(safe_a - safe_b) <= n * ulp(np.maximum(np.abs(safe_a), np.abs(safe_b)), dtype)
    return bool(np.all(np.where(finite, close, a == b)))


def _log_odds(n: int, false_alarm: float, comparisons: int) -> float:
    """``log(2 comparisons / false_alarm)``, arguments checked."""
    if n < 1 or comparisons < 1 or not 0 < false_alarm < 1:
        raise ValueError("need n >= 1, comparisons >= 1 and 0 < false_alarm < 1")
    return float(np.log(2 * comparisons / false_alarm))


def standard_error_bound(variance: ArrayLike, n: int, false_alarm: float, comparisons: int = 1) -> NDArray[np.float64]:
    """``z sqrt(variance / n)``, z the two-sided normal quantile at ``false_alarm / comparisons``.

    ``variance``: the *known* variance of one draw, elementwise. Rests on the central limit theorem: use it where each
    mean adds up many draws of comparable size. A rare two-point draw (probability p of one end with n p small) has
    heavier tails than the normal law; take ``bernstein_bound`` there.
    """
    _log_odds(n, false_alarm, comparisons)
    return norm.isf(false_alarm / (2 * comparisons)) * np.sqrt(np.asarray(variance, dtype=np.float64) / n)


def hoeffding_bound(spread: ArrayLike, n: int, false_alarm: float, comparisons: int = 1) -> NDArray[np.float64]:
    """``spread sqrt(log(2 comparisons / false_alarm) / (2 n))``: Hoeffding's inequality, for every n.

    ``spread``: maximum minus minimum of one draw, elementwise; draws are independent. Needs no variance.
    """
    return np.asarray(spread, dtype=np.float64) * np.sqrt(_log_odds(n, false_alarm, comparisons) / (2 * n))


def bernstein_bound(
    variance: ArrayLike, deviation: ArrayLike, n: int, false_alarm: float, comparisons: int = 1
) -> NDArray[np.float64]:
    """The t at which Bernstein's ``2 exp(-n t^2 / (2 variance + 2 deviation t / 3))`` equals the false-alarm share.

    ``deviation``: largest ``|draw - mean|``, elementwise. Holds for every n, like Hoeffding's bound, and is close to
    ``standard_error_bound`` for large n: the choice for randomized rounding, whose variance is known exactly.
    """
    odds = _log_odds(n, false_alarm, comparisons) / n
    shift = np.asarray(deviation, dtype=np.float64) * odds / 3
    return shift + np.sqrt(shift**2 + 2 * np.asarray(variance, dtype=np.float64) * odds)
