"""Do the tests bite? Each deliberate error below must be caught by the property that is meant to catch it.

``BATTERY`` holds the property functions of the other tests on small fixed inputs. Unbroken, all pass. Each mutant
replaces one function of the core; the battery must then fail, and first with one of the checks named beside it.
"""

from fractions import Fraction as F

import numpy as np
import pytest

from lotion_theory import Partition, Quantizer, codebook, kernels
from lotion_theory.formats import fast, lattice, law, scaling
from lotion_theory.formats.scale_formats import ScaleFormat
from tests import properties, reference, strategies


def q(text):
    return Quantizer.parse(text + "/row")


def exact(*rows):
    out = np.empty((len(rows), len(rows[0])), dtype=object)
    out[:] = [[F(v) for v in row] for row in rows]
    return out


def probes(text, dtype, rows=60, size=8):
    return strategies.probes(text, dtype, rows, size, seed=41)


# --- the battery -----------------------------------------------------------------------------------------------------


def check_kernels():
    lo, hi, w = F(1, 3), F(5, 3), F(1, 2)
    p = kernels.prob_up(w, lo, hi)
    assert (1 - p) * lo + p * hi == w
    assert (1 - p) * lo**2 + p * hi**2 - w**2 == kernels.variance(w, lo, hi)
    assert kernels.select(lo, hi, True) == hi and kernels.select(lo, hi, False) == lo


def check_cells():
    for text in (
        "int4/absmax",
        "int4full/gauge",
        "e2m1/absmax",
        "uint4/zp-int",
        "uint4/zp-real",
        "e2m1/e8m0-floor",
        "nf4/absmax",
    ):
        for dtype in ("float32", "bfloat16"):
            properties.cells_are_tight(q(text), probes(text, dtype))


def check_definitions():
    w = exact((5, "-1.3", "0.25", 0), (-6, 2, "3.5", 1), ("6.5", 7, "-0.1", "6.9"))
    for text in (
        "int4/absmax",
        "int4full/gauge",
        "uint4/zp-int",
        "uint4/zp-real",
        "e2m1/e8m0-sr",
        "e2m1/e4m3-sr",
        "ternary/absmean",
    ):
        properties.scales_follow_reference(q(text), w)
        properties.moments_follow_reference(q(text), w)


def check_stored_scales():
    for fmt in ("e4m3", "e8m0"):
        table = np.array([float(v) for v in reference.stored_values(fmt)])
        middle = (table[1:] + table[:-1]) / 2
        x = np.concatenate([table, middle, middle * 1.01]).astype(np.float32)
        place = np.searchsorted(table, x, side="right") - 1
        with np.errstate(over="ignore"):
            lo, hi = scaling.SCALE_FORMATS[fmt].bracket(x)
        assert np.array_equal(lo, table[place]) and np.array_equal(hi, table[np.minimum(place + 1, table.size - 1)])
        if fmt == "e4m3":
            expected = [float(reference._stored_nearest(fmt, F(float(v)))) for v in x]
            assert scaling.SCALE_FORMATS[fmt].nearest(x).tolist() == expected


def check_shared_exponent():
    edge = 2.0 ** np.arange(-30, 30).astype(np.float32)
    w = np.concatenate([edge, np.nextafter(edge, np.float32(0))])[:, None]
    top = q("e2m1/e8m0-floor").branches(w)[0].draw.lattice.top
    assert np.array_equal(top[:, 0], np.ldexp(1.0, np.frexp(w[:, 0])[1] - 3))


def check_nearest():
    for text in ("int4/absmax", "binary/absmax", "pot3/absmax", "uint4/zp-int", "int4full/q4_0", "e2m1/e4m3-nearest"):
        properties.cast_is_nearest(q(text), probes(text, "float32", rows=40))
    middles = exact(*[[7, F(k) + F(1, 2)] for k in range(-7, 7)])
    properties.cast_is_nearest(q("int4/absmax"), middles)


def check_probability():
    for text in ("int4/absmax", "e2m1/e8m0-sr", "nf4/absmax"):
        properties.rounding_follows_probability(q(text), probes(text, "float32"))


def check_unbiased():
    for text in ("int4/absmax", "int4full/gauge", "e2m1/e4m3-sr", "e2m1/e8m0-sr", "e2m1/e8m0-ceil"):
        for dtype in ("float32", "float16"):
            properties.law_is_unbiased(q(text), probes(text, dtype, rows=20))


def check_variance():
    for text in ("int4/absmax", "e2m1/e8m0-sr"):
        w = np.random.default_rng(42).standard_normal((20, 8)).astype(np.float32)
        properties.variance_is_second_moment(q(text), w)


def check_fixed():
    for text in (
        "int4/absmax",
        "int4full/gauge",
        "e2m1/absmax",
        "uint4/zp-real",
        "e2m1/e8m0-floor",
        "e2m1/e8m0-sr",
        "e2m1/e4m3-sr",
    ):
        for dtype in ("float32", "bfloat16"):
            properties.support_is_fixed(q(text), probes(text, dtype, rows=300, size=16), seed=43)
            if not text.endswith("zp-real"):
                lead = np.random.default_rng(43).standard_normal(500).astype(strategies.numpy_type(dtype))
                properties.reachable_points_are_fixed(q(text), lead)


def check_gradient():
    w = exact((5, "-1.3", "0.257", "1.1"), (-6, 2, "3.51", 1)) + F(1, 1009)
    for text in ("int4/absmax", "int4full/gauge", "uint4/zp-real"):
        properties.gradient_is_total(q(text), w, exact((1, 2, 3, 4), (4, 1, 2, 2)))


def check_blocks():
    w = np.random.default_rng(44).standard_normal((3, 8))
    whole = Quantizer.parse("int4/absmax/block=4").cast(w)
    for i in range(3):
        for part in (slice(0, 4), slice(4, 8)):
            assert np.array_equal(whole[i, part], Quantizer.parse("int4/absmax/tensor").cast(w[i, part]))


def check_torch():
    for text in ("int4full/gauge", "e2m1/e4m3-sr", "uint4/zp-int"):
        properties.torch_agrees(q(text), np.random.default_rng(45).standard_normal((20, 8)).astype(np.float32), seed=46)


BATTERY = {
    "kernels": check_kernels, "definitions": check_definitions, "stored scales": check_stored_scales,
    "shared exponent": check_shared_exponent, "cells": check_cells, "nearest": check_nearest,
    "probability": check_probability, "unbiased": check_unbiased, "variance": check_variance,
    "gradient": check_gradient, "blocks": check_blocks, "fixed": check_fixed, "torch": check_torch,
}  # fmt: skip


def first_failure():
    """Name of the first check that fails; None if all pass. Errors other than AssertionError come through."""
    for name, check in BATTERY.items():
        try:
            check()
        except AssertionError:
            return name
    return None


# --- the mutants -----------------------------------------------------------------------------------------------------


def biased_goes_up(w, lo, hi, u):
    return (u - 0.05) * (hi - lo) < (w - lo) * (hi > lo)


def swapped_select(lo, hi, up):
    return hi * (up == 0) + lo * up


def ties_up(cell):
    nearer, tie = kernels.compare_distances(cell.target, cell.lo, cell.hi)
    return lattice.namespace(cell.target).where(nearer | tie, cell.hi, cell.lo)


def rounded_distances(w, lo, hi):
    return (w - lo) > (hi - w), (w - lo) == (hi - w)


def always_down(cell):
    return cell.lo


_bracket, _nearest, _locate, _even = (
    ScaleFormat.bracket,
    ScaleFormat.nearest,
    lattice.Lattice.locate,
    lattice.Lattice.even,
)
_successor = ScaleFormat._successor
_gauge_sides, _to_blocks = scaling._gauge_sides, Partition.to_blocks


def bracket_above(self, size, top=1, kind=None):
    _, above = _bracket(self, size, top, kind)
    return above, self._successor(above)


def half_up(self, x):
    lo, hi = self.bracket(x)
    return np.where(hi - x <= x - lo, hi, lo)


def skip_a_scale(self, s):
    return _successor(self, _successor(self, s))


def trust_the_quotient(self, x):
    index = np.minimum(self.guess(x), len(self.units) - 2)
    lo, hi = self.level(index), self.level(index + 1)
    return lattice.Cell(x, lo, hi, lambda: (index, index + 1), self.even, self._huge())


def locate_without_clip(self, x):
    cell = _locate(self, x)
    cell.target = x
    return cell


def odd_levels(self, index):
    return ~_even(self, index)


def scale_times_code(book, kind, top, bottom=None):
    """Levels ``(amax / c_max) * c`` in place of ``amax * (c / c_max)``."""
    return lattice.ScaledLattice(book, kind, top / (book.high if top.dtype == object else top.dtype.type(book.high)))


def gauge_by_magnitude(x, book, kind):
    top, _, on_top = _gauge_sides(abs(x), book, kind)
    return top, -top * scaling.number(-book.low / book.high, x), on_top


def exponent_by_logarithm(x):
    with np.errstate(divide="ignore"):
        found = np.floor(np.log2(x.astype(np.float32)))
    return np.where(np.isfinite(found), found, 0).astype(np.int64)


def unsigned_maximum(x):
    return scaling.block_max(x)


def columns_as_blocks(self, x, reals_per_weight=1):
    return x.reshape(self.size, -1).T if self.kind == "block" else _to_blocks(self, x, reals_per_weight)


MUTANTS = {
    "probability of going up too large by .05": (kernels, "goes_up", biased_goes_up, {"probability"}),
    "prob_up over twice the gap": (kernels, "prob_up", lambda w, lo, hi: (w - lo) / (2 * (hi - lo)), {"kernels"}),
    "swapped ends in select": (kernels, "select", swapped_select, {"kernels"}),
    "variance of uniform noise": (kernels, "variance", lambda w, lo, hi: (hi - lo) * (hi - lo) / 12, {"kernels"}),
    "variance without the lower half": (kernels, "variance", lambda w, lo, hi: (hi - w) * (hi - w), {"kernels"}),
    "detached scale": (kernels, "variance_danchor", lambda w, lo, hi, a, b: 0 * w, {"gradient"}),
    "slope in w of the wrong sign": (kernels, "variance_dw", lambda w, lo, hi: (w - lo) - (hi - w), {"gradient"}),
    "mixture keeps the magnitude": (kernels, "mixture_target", lambda m, t, p: m, {"definitions"}),
    "mixture forgets the fine share": (kernels, "mixture_target", lambda m, t, p: m / p, {"definitions"}),
    "ties go up": (law, "move_to_nearest", ties_up, {"nearest"}),
    "ties to odd levels": (lattice.Lattice, "even", odd_levels, {"nearest"}),
    "distances compared after rounding": (kernels, "compare_distances", rounded_distances, {"nearest"}),
    "truncation for nearest": (law, "move_to_nearest", always_down, {"nearest"}),
    "next scale up in the bracket": (ScaleFormat, "bracket", bracket_above, {"definitions", "stored scales"}),
    "stored scale rounds half up": (ScaleFormat, "nearest", half_up, {"stored scales"}),
    "a stored scale skipped": (ScaleFormat, "_successor", skip_a_scale, {"definitions", "stored scales"}),
    "cell from the quotient alone": (lattice.Lattice, "locate", trust_the_quotient, {"definitions", "cells"}),
    "no clipping": (lattice.Lattice, "locate", locate_without_clip, {"definitions", "cells"}),
    "scale times code for anchor times ratio": (scaling, "SpanLattice", scale_times_code, {"unbiased", "fixed"}),
    "gauge by magnitude": (scaling, "_gauge_sides", gauge_by_magnitude, {"definitions"}),
    "logarithm for the exponent": (scaling, "exponent", exponent_by_logarithm, {"shared exponent"}),
    "largest entry for largest magnitude": (scaling, "absmax", unsigned_maximum, {"definitions"}),
    "zero point not rounded": (scaling, "_round_half_even", lambda x: x, {"definitions"}),
    "levels not rounded to the storage type": (lattice, "store_level", lambda x, kind: x, {"cells", "fixed"}),
    "gauge anchors not tied in floats": (scaling, "nudge", lambda x, kind, ulps: x, {"fixed"}),
    "slope of absmax without its sign": (scaling, "sign", lambda x: 0 * x + 1, {"gradient", "definitions"}),
    "blocks down the columns": (Partition, "to_blocks", columns_as_blocks, {"blocks"}),
}  # fmt: skip


def test_the_battery_passes_unbroken():
    assert first_failure() is None


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    where, what, replacement, expected = MUTANTS[name]
    # What was compiled before holds the formulas as they are.
    monkeypatch.setattr(fast, "compute", lambda *_, **__: None)
    monkeypatch.setattr(where, what, replacement)
    caught = first_failure()
    assert caught is not None, f"{name}: no check noticed"
    assert caught in expected, f"{name}: caught by {caught!r}, meant for {sorted(expected)}"


def pretend(**methods):
    """INT4 with some of its methods replaced."""
    real = q("int4/absmax")
    own = {"branches": lambda self, w: real.branches(w), "partition": real.partition, "codebook": real.codebook}
    return type("Pretend", (), own | methods)()


@pytest.mark.parametrize("name", ["support_is_fixed", "law_is_unbiased", "cells_are_tight", "cast_is_nearest"])
def test_checks_reject_formats_that_lack_the_property(name):
    """A check that could not fail would prove nothing: shown on formats, or questions, where the answer is no."""
    w = np.random.default_rng(47).standard_normal((200, 16)).astype(np.float32)
    with pytest.raises(AssertionError):
        if name == "support_is_fixed":
            properties.support_is_fixed(q("int4/slack1.1"), w, seed=1)
        elif name == "law_is_unbiased":
            promised = q("int4full/absmax8")
            rule = strategies.scaling.replace(promised.scale, promise=lambda book: scaling.Promise(True, True, True))
            properties.law_is_unbiased(strategies.scaling.replace(promised, scale=rule), w[:20])
        elif name == "cells_are_tight":
            (branch,) = q("int4/absmax").branches(w)
            assert branch.cell.lo.size == w.size  # found on the levels of int4
            branch.draw.lattice.book = codebook("int3")
            properties.cells_are_tight(pretend(branches=lambda self, w: [branch]), w)
        else:
            properties.cast_is_nearest(pretend(cast=lambda self, w: q("int4/absmax").bracket(w)[0]), w[:5])
