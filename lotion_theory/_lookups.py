"""Tables of numbers without a search: entries on a line are computed, others found by leading bits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=256)
def bins(data: bytes, dtype: str) -> tuple[int, int, int, bytes] | None:
    """``(shift, least, count, places)``: with ``k`` the bits of a magnitude shifted by ``shift``, less ``least`` and
    kept within ``count``, entry ``places[k]`` is beside every number of that bin, and ``places[count + k]`` beside
    every one of the bin mirrored. None where that would take many bins."""
    table = np.frombuffer(data, dtype)
    integer = "int32" if dtype == "float32" else "int64"
    mantissa = np.finfo(dtype).nmant
    last, middles = len(table) - 1, (table[1:] / 2 + table[:-1] / 2)
    huge = float(np.finfo(dtype).max) / 4
    sizes = np.abs(middles[middles != 0])
    for bits in range(10):
        shift = mantissa - bits
        low, high = (int(v.view(integer)) >> shift for v in (sizes.min(), np.abs(table).max()))
        # The first bin begins at 0, and the last one never ends.
        edges = (np.arange(low, high + 1, dtype=integer) << shift).view(dtype)
        lower, upper = edges.copy(), np.append(edges[1:], huge / 2).astype(dtype)
        lower[0] = 0
        found = []
        for a, b in ((lower, upper), (-upper, -lower)):
            place = np.searchsorted(middles, a / 2 + b / 2, side="right")
            below = np.where(place > 0, table[np.maximum(place - 1, 0)], -huge)
            above = np.where(place < last, table[np.minimum(place + 1, last)], huge)
            # Room for a place that is a few roundings off.
            slack = 8 * np.finfo(dtype).eps
            found.append((place, (below + slack * np.abs(below) <= a) & (b <= above - slack * np.abs(above))))
        if all(fits.all() for _, fits in found):
            places = np.concatenate([place for place, _ in found]).astype(np.int32)
            return shift, low, high + 1 - low, places.tobytes()
    return None


@lru_cache(maxsize=256)
def on_line(data: bytes, dtype: str) -> tuple[int, float, float] | None:
    """``(first, high, low)`` such that entry ``i`` is ``(i + first) high + (i + first) low`` as computed, the first
    product exactly; None where there is no such triple."""
    table = np.frombuffer(data, dtype)
    count = len(table)
    gap = float(table[-1] - table[0]) / (count - 1)
    if gap <= 0:
        return None
    first = round(float(table[0]) / gap)
    codes = (np.arange(count) + first).astype(dtype)
    kind = np.dtype(dtype).type
    exact = gap if first == 0 else float(table[0]) / first if first else gap
    # The high part has so few bits that its products with codes are exact; the sum is then rounded once.
    spare = int(max(abs(codes[0]), abs(codes[-1]))).bit_length()
    bits = np.finfo(dtype).nmant + 1 - spare
    mantissa, exponent = np.frexp(exact)
    high = kind(np.ldexp(np.floor(np.ldexp(mantissa, bits)), exponent - bits))
    for low in (kind(0), *_lows(table, codes, high)):
        if np.array_equal(codes * high + codes * low, table) and np.array_equal(
            np.signbit(codes * high + codes * low), np.signbit(table)
        ):
            return first, float(high), float(low)
    return None


def _lows(table: np.ndarray, codes: np.ndarray, high: Any) -> list[Any]:
    top = int(np.argmax(np.abs(codes)))
    rest = (np.longdouble(table[top]) - np.longdouble(codes[top]) * np.longdouble(high)) / np.longdouble(codes[top])
    near = table.dtype.type(rest)
    return [near, np.nextafter(near, near * 2), np.nextafter(near, near * 0)]
