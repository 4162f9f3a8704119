"""Small unsigned float formats in which block scales are stored."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .. import kernels
from .._arrays import Array, largest, namespace, precision, store
from .._tables import exponent, power_of_two
from ..functions import number


@dataclass(frozen=True)
class ScaleFormat:
    """Non-negative values ``n 2^(e - mantissa_bits)``, ``e >= min_exponent``, up to ``largest``, with subnormals and 0.

    E8M0 (OCP MX) has no code for 0: an all-zero block is then written with zero codes, and 0 here stands for that.
    ``is_signed``: whether its codes have a sign, which some rules use. ``two_level``: whether there are rules with
    one more factor for the whole tensor. The rules themselves follow: see :mod:`.scaling_stored`.
    """

    name: str
    mantissa_bits: int
    min_exponent: int
    largest: Fraction
    is_signed: bool = False
    two_level: bool = False

    @property
    def has_zero(self) -> bool:
        """Whether there is a code for 0."""
        return self.mantissa_bits > 0

    def _gap(self, s: Array) -> Array:
        """Distance from ``s`` to its successor."""
        xp = namespace(s)
        e = xp.where(s > 0, exponent(s), self.min_exponent)
        return power_of_two(xp.clip(e, self.min_exponent, None) - self.mantissa_bits, s)

    def _successor(self, s: Array) -> Array:
        xp = namespace(s)
        return xp.minimum(s + self._gap(s), number(self.largest, s) + 0 * s)

    def _predecessor(self, s: Array) -> Array:
        xp = namespace(s)
        gap = self._gap(s)
        below = s - gap / 2
        # At a power of two above the subnormals the gap below is half the gap above.
        halved = (s > 0) & (below + self._gap(below) == s) & (s - gap + self._gap(s - gap) != s)
        return xp.maximum(xp.where(halved, below, s - gap), 0 * s)

    def bracket(self, size: Array, top: Fraction | int = 1, kind: str | None = None) -> tuple[Array, Array]:
        """``(s_lo, s_hi)``: the largest value with ``top * s_lo <= size`` and its successor; both at the largest value
        where the format ends. ``size >= 0``.

        With ``kind``, ``top * s`` is compared as rounded to that storage type; of several scales with the same rounded
        reach, ``s_lo`` and ``s_hi`` are the largest, so that a block on either lattice finds its scale again.
        """
        xp = namespace(size)
        top = number(top, size)
        ideal = size / top
        gap = self._gap(ideal)
        s = (ideal // gap) * gap
        s = xp.minimum(s, number(self.largest, size) + 0 * size)
        storage = None if kind == "object" else kind
        sharing = 1 if storage is None else 2 ** max(0, self.mantissa_bits + 2 - precision(storage))

        def reach(v: Array) -> Array:
            # Not clipped to the float range: beyond it every scale would seem to reach equally far.
            return v * top if storage is None else store(v * top, storage)

        s = xp.where(reach(s) > size, self._predecessor(s), s)
        for _ in range(1 + (sharing > 1) * sharing):
            after = self._successor(s)
            s = xp.where(reach(after) <= size, after, s)
        above = self._successor(s)
        end = None if storage is None else largest(storage)
        for _ in range(sharing if sharing > 1 else 0):
            after = self._successor(above)
            # Beyond the float range all reaches are infinite: that is no sharing.
            above = xp.where((reach(after) == reach(above)) & (reach(above) <= end), after, above)
        return s, above

    def nearest(self, x: Array) -> Array:
        """``x >= 0`` rounded to the nearest value, ties to an even mantissa, saturating at the largest."""
        lo, hi = self.bracket(x)
        nearer, tie = kernels.compare_distances(x, lo, hi)
        odd = (lo / self._gap(lo)) % 2 == 1
        return namespace(x).where(nearer | (tie & odd), hi, lo)


SCALE_FORMATS = {
    f.name: f
    for f in (
        ScaleFormat("e8m0", 0, -127, Fraction(2) ** 127),
        ScaleFormat("e4m3", 3, -6, Fraction(448), two_level=True),
        # Unsigned E5M3, bias 15; the all-ones code is taken to be NaN, as in E4M3.
        ScaleFormat("ue5m3", 3, -14, Fraction(7, 4) * 2**16),
        ScaleFormat("fp16", 10, -14, Fraction(65504), is_signed=True),
    )
}
