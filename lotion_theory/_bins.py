"""Finding numbers in a table by the leading bits of what is looked for."""

from __future__ import annotations

from functools import lru_cache

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
