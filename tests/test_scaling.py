"""Scale rules against their definitions in exact arithmetic, their promises, and their derivatives."""

from fractions import Fraction as F
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer, codebook
from lotion_theory.formats import scaling
from tests import properties, strategies
from tests.strategies import FORMATS, examples

# The big codebooks add time, not cases: their arithmetic is that of the small ones.
SMALL = [
    f for f in strategies.every_format() if len(codebook(f.split("/")[0]).levels) <= 16 and not f.startswith("fairy")
]


def exact(*rows):
    out = np.empty((len(rows), len(rows[0])), dtype=object)
    out[:] = [[F(v) for v in row] for row in rows]
    return out


def exact_supports(q, blocks):
    """Per block, a row of ``blocks``, and weight: its law, ``{value: probability}``."""
    branches = q.with_partition("row").branches(exact(*blocks))
    laws = [[{} for _ in block] for block in blocks]
    for branch in branches:
        target, lo, hi = branch.cell.target, branch.cell.lo, branch.cell.hi
        for i, block in enumerate(laws):
            prob = F(1) if branch.prob is None else branch.prob[i, 0]
            for j, law in enumerate(block):
                gap = hi[i, j] - lo[i, j]
                up = (target[i, j] - lo[i, j]) / gap if gap > 0 else F(0)
                for value, p in ((lo[i, j], prob * (1 - up)), (hi[i, j], prob * up)):
                    if p:
                        law[value] = law.get(value, F(0)) + p
    return laws


def exact_support(text, *weights):
    """Per weight of a single block: its law, ``{value: probability}``."""
    return exact_supports(Quantizer.parse(text), [weights])[0]


def transport(a, b):
    """Wasserstein-1 distance of two finite laws on the line."""
    points = sorted({*a, *b})
    total, carried = F(0), F(0)
    for x, y in pairwise(points):
        carried += a.get(x, F(0)) - b.get(x, F(0))
        total += abs(carried) * (y - x)
    return total


# --- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SMALL)
def test_laws_follow_the_slow_reference(text):
    """Lattices, probabilities, conditional means and cells, equal as rational numbers."""
    rng = np.random.default_rng(sum(map(ord, text)))
    q = Quantizer.parse(text + "/row")
    for denominator, rows in ((1, 2), (7, 1), (10007, 1)):
        w = exact(*rng.integers(-40, 41, (rows, 4)).tolist()) / denominator
        properties.scales_follow_reference(q, w)
        properties.moments_follow_reference(q, w)


@examples(150)
@given(st.sampled_from(FORMATS), strategies.exact_blocks())
def test_laws_follow_the_slow_reference_on_directed_blocks(text, w):
    q = Quantizer.parse(text + "/row")
    properties.scales_follow_reference(q, w)
    properties.moments_follow_reference(q, w)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "text",
    [f for f in FORMATS if any(k in f for k in ("e8m0", "e4m3-", "ue5m3", "fp16", "q4_0")) and "2level" not in f],
)
def test_stored_scales_in_floats_are_those_of_exact_arithmetic(text, dtype):
    """At every breakpoint and beside it. The quotient absmax / c_max, though rounded, never changes a decision: a
    breakpoint times c_max has at most 12 + 7 significant bits, so it is a float, and division is monotone."""
    q = Quantizer.parse(text + "/row")
    rng = np.random.default_rng(5)
    # The range in which the product of a scale and a level is not rounded, not even among subnormals.
    table = strategies.leads(text, dtype)
    table = table[(table >= 2.0**-100) & (table <= 2.0**100)]
    lead = strategies.shifted(rng.choice(table, 40), rng.integers(-1, 2, 40))[:, None]
    lead = lead[lead[:, 0] <= strategies.limit(text, dtype)]
    w = np.concatenate([lead, -lead[::-1]])
    ours, theirs = q.branches(w), q.branches(strategies.as_fractions(w))
    for a, b in zip(ours, theirs, strict=True):
        assert np.array_equal(strategies.as_fractions(a.draw.lattice.top), b.draw.lattice.top)


# --- promises --------------------------------------------------------------------------------------------------------


def test_promises_are_those_of_the_theory():
    """Unbiased, continuous, support fixed."""
    yes, no = True, False
    table = {
        "int4/absmax": (yes, yes, yes), "e2m1/absmax": (yes, yes, yes), "nf4/absmax": (yes, yes, yes),
        "ternary/absmax": (yes, yes, yes), "binary/absmax": (yes, yes, yes), "pot3/absmax": (yes, yes, yes),
        "int4full/gauge": (yes, yes, yes), "dynamic8/gauge": (yes, yes, yes), "dynamic8/absmax": (no, yes, no),
        "int4full/absmax7.5": (no, yes, no), "int4full/absmax8": (no, yes, no), "int4full/signed-absmax": (no, no, yes),
        "int4full/q4_0": (no, no, no), "int4/slack1.1": (yes, yes, no), "uint4/zp-int": (no, no, no),
        "uint4/zp-real": (yes, yes, yes), "e2m1/e8m0-floor": (no, no, yes), "e2m1/e8m0-ceil": (yes, no, yes),
        "e2m1/e8m0-even": (no, no, yes), "e4m3/e8m0-even": (no, no, no), "e2m1/e8m0-sr": (yes, yes, yes),
        "e2m1/e4m3-nearest": (no, no, no), "e2m1/e4m3-up": (yes, no, no), "e2m1/e4m3-sr": (yes, yes, yes),
        "ternary/absmean": (no, yes, no), "ternary/l2l1": (no, yes, yes), "fairy/l1": (yes, yes, yes),
        "fairy/modulus": (no, yes, yes), "nf4/e8m0-floor": (no, no, no),
    }  # fmt: skip
    for text, expected in table.items():
        q = Quantizer.parse(text)
        assert tuple(q.scale.promise(q.codebook)) == expected, text


CONTINUOUS = strategies.promising("continuous", tuple(SMALL))


@pytest.mark.parametrize("text", CONTINUOUS)
def test_continuous_laws_do_not_jump(text):
    """Across each kind of breakpoint of the leader, and across sign ties and zeros, every weight's law moves by a small
    multiple of the step (measured by transport cost), with the scale following."""
    q = Quantizer.parse(text)
    step = F(1, 10**24)
    leads = [6, 7, F(15, 2), 8, F(51, 8), 448, 2688, 1, F(1, 512), F(2**13)]
    if q.scale.is_drawn:
        leads = [v for v in leads if v < strategies.limit(text, "float64")]
    groups = []  # a block, and the same with each of its weights a step further
    for lead in map(F, leads):
        for rest in ((lead / 3, -lead / 7), (-lead, lead / 2), (F(0), -lead + step)):
            here = [lead, *rest]
            groups.append([[v + step * (i == moved) for i, v in enumerate(here)] for moved in (None, 0, 1, 2)])
    laws = iter(exact_supports(q, [block for group in groups for block in group]))
    for _ in groups:
        here, *others = [next(laws) for _ in range(4)]
        for there in others:
            for a, b in zip(here, there, strict=True):
                assert transport(a, b) <= 10**6 * step


def test_half_offset_scale_is_biased_and_drifts():
    (law,) = exact_support("int4full/absmax7.5", "7.5")
    assert law == {7: 1}
    first, _ = exact_support("int4full/absmax7.5", "-7.5", 1)
    assert first == {F(-8): F(1, 2), F(-7): F(1, 2)}
    assert exact_support("int4full/absmax7.5", -8, 1)[1] == {0: F(1, 16), F(16, 15): F(15, 16)}


def test_signed_absmax_jumps_with_the_leaders_sign():
    tiny = F(1, 10**9)
    near_eight = exact_support("int4full/signed-absmax", 8, tiny - 8)
    assert near_eight == [{8: 1}, {-7: 1}]
    assert exact_support("int4full/signed-absmax", 8 - tiny, -8) == [{7: 1}, {-8: 1}]
    # The tie itself goes to the positive entry.
    assert exact_support("int4full/signed-absmax", -8, 8) == [{-7: 1}, {8: 1}]


def test_integer_zero_point_flips():
    tiny = F(1, 10**9)
    lattice = [
        Quantizer.parse("uint2/zp-int").branches(exact([low, F(5, 2)]))[0].draw.lattice
        for low in (F(-1, 2) + tiny, F(-1, 2) - tiny)
    ]
    assert [point.bottom[0, 0] for point in lattice] == [0, 1]


def test_mx_floor_clips_and_jumps():
    assert exact_support("e2m1/e8m0-floor", 7) == [{6: 1}]
    assert exact_support("e2m1/e8m0-floor", 8 - F(1, 10**9)) == [{6: 1}]
    assert exact_support("e2m1/e8m0-floor", 8) == [{8: 1}]


def test_mx_ceil_jumps_in_the_other_weights():
    assert exact_support("e2m1/e8m0-ceil", 6, "0.5")[1] == {F(1, 2): 1}
    assert exact_support("e2m1/e8m0-ceil", 6 + F(1, 10**9), "0.5")[1] == {0: F(1, 2), 1: F(1, 2)}


def test_nvfp4_is_biased_and_jumps():
    assert exact_support("e2m1/e4m3-nearest", "6.3") == [{6: 1}]
    tops = [
        Quantizer.parse("e2m1/e4m3-nearest").branches(exact([v]))[0].draw.lattice.top[0, 0]
        for v in ("6.375", F(6375001, 1000000))
    ]
    assert tops == [1, F(9, 8)]
    up = [exact_support("e2m1/e4m3-up", v, 1)[1] for v in (6, 6 + F(1, 10**9))]
    assert up[0] == {1: 1} and set(up[1]) == {F(9, 16), F(9, 8)}


def test_slack_and_means_drift():
    w = exact([1, "0.3"])
    q = Quantizer.parse("int4/slack1.1")
    assert q.cast(w)[0, 0] != 1
    q = Quantizer.parse("ternary/absmean")
    point = q.cast(exact([2, 1, 0, 1]))
    assert point.tolist() == [[1, 1, 0, 1]]
    assert q.cast(point).tolist() == [[F(3, 4), F(3, 4), 0, F(3, 4)]]


def test_modulus_shrinks_and_l1_does_not():
    w = exact([3, 4])
    assert Quantizer.parse("fairy/modulus").mean(w).tolist() == [[2, 3]]
    assert Quantizer.parse("fairy/l1").mean(w).tolist() == [[3, 4]]


def test_e4m3_even_is_not_fixed_because_its_top_code_is_nan():
    assert set(exact_support("e4m3/e8m0-even", 500)[0]) == {480, 512}
    assert exact_support("e4m3/e8m0-even", 480) == [{448: 1}]


def test_drawn_scale_on_its_worked_example():
    """Leader 7: T = 6, T+ = 8, p = 1/2; 6.5 becomes 6 or, from its conditional mean 7, 6 or 8; 1 is on both grids."""
    first, second, third = exact_support("e2m1/e8m0-sr", 7, "6.5", 1)
    assert first == {6: F(1, 2), 8: F(1, 2)}
    assert second == {6: F(3, 4), 8: F(1, 4)}
    assert third == {1: 1}


@pytest.mark.parametrize("text", ["e2m1/e8m0-sr", "e2m1/e4m3-sr", "e2m1/ue5m3-sr"])
def test_drawn_scale_refuses_blocks_beyond_its_format(text):
    q = Quantizer.parse(text)
    top = strategies.limit(text, "float64")
    assert q.mean(np.array([top]))[0] == top
    with pytest.raises(ValueError, match="exceeds"):
        q.cast(np.array([np.nextafter(top, np.inf)]))


# --- derivatives -----------------------------------------------------------------------------------------------------


def generic(seed, rows=3, size=4):
    """Weights on no level and without ties, of both signs."""
    rng = np.random.default_rng(seed)
    values = rng.permutation(np.arange(1, 10**6, 97))[: rows * size].reshape(rows, size)
    signs = rng.choice([-1, 1], (rows, size))
    signs[:, 0] = 1
    return exact(*(values * signs).tolist()) / 100003


LINEAR = [
    f for f in FORMATS if f.split("/")[1] in (
        "absmax", "gauge", "absmax7.5", "absmax8", "slack1.1", "absmean", "l2l1", "zp-int", "zp-real", "signed-absmax",
    )
]  # fmt: skip


@pytest.mark.parametrize("text", LINEAR)
def test_gradient_through_the_scale_is_exact(text):
    for seed in (1, 2):
        w = generic(seed)
        g = exact(*np.random.default_rng(seed).integers(1, 9, w.shape).tolist())
        properties.gradient_is_total(Quantizer.parse(text + "/row"), w, g)


@pytest.mark.parametrize("text", [f for f in FORMATS if "2level" not in f])
def test_torch_differentiates_the_variance_through_the_scale(text):
    """Against central differences in exact arithmetic, 40 digits deep; float64 roundings only remain."""
    w = generic(3, rows=2)
    q = Quantizer.parse(text + "/row")
    t = torch.tensor(w.astype(np.float64), requires_grad=True)
    q.variance(t).sum().backward()
    step = F(1, 10**40)
    start = strategies.as_fractions(w.astype(np.float64))
    for j in range(w.shape[1]):
        ahead, behind = start.copy(), start.copy()
        ahead[:, j] += step
        behind[:, j] -= step
        slope = (q.variance(ahead).sum(axis=1) - q.variance(behind).sum(axis=1)) / (2 * step)
        scale = float(max(abs(v) for v in start.ravel()))
        np.testing.assert_allclose(t.grad[:, j].numpy(), slope.astype(np.float64), rtol=0, atol=1e-9 * scale)


@pytest.mark.parametrize("text", [f for f in FORMATS if f.endswith("-sr")])
def test_derivative_of_the_drawn_probability(text):
    w = generic(4)
    q = Quantizer.parse(text + "/row")
    rate = q.scale.jacobian(w, q.codebook, "object").p
    step = F(1, 10**12)
    for j in range(w.shape[1]):
        ahead, behind = w.copy(), w.copy()
        ahead[:, j] += step
        behind[:, j] -= step
        slope = (q.branches(ahead)[1].prob - q.branches(behind)[1].prob)[:, 0] / (2 * step)
        assert (slope == rate[:, j]).all()


def test_derivative_of_the_common_factor():
    w = generic(5)
    q = Quantizer.parse("e2m1/e4m3-nearest-2level/row")
    stored, rate = q.scale.jacobian(w, q.codebook, "object").shared
    step = F(1, 10**12)
    row, column = np.unravel_index(np.argmax(abs(w)), w.shape)
    ahead = w.copy()
    ahead[row, column] *= 1 + step
    moved = q.branches(ahead)[0].draw.lattice.top - q.branches(w)[0].draw.lattice.top
    assert (moved == stored * rate[row, column] * (ahead - w)[row, column]).all()
    assert (rate != 0).sum() == 1


@pytest.mark.parametrize("text", ["fairy/l1", "fairy/modulus"])
def test_complex_variance_has_the_right_gradient(text):
    """Central differences in float64: error h² from the third derivative and eps / h from rounding, 1e-9 in all."""
    w = np.random.default_rng(6).standard_normal((1, 4, 2))
    q = Quantizer.parse(text)
    parts = torch.tensor(w, requires_grad=True)
    q.variance(torch.view_as_complex(parts)).sum().backward()
    h = 1e-5
    for j in np.ndindex(w.shape):
        ahead, behind = w.copy(), w.copy()
        ahead[j] += h
        behind[j] -= h
        slope = [q.variance(v[..., 0] + 1j * v[..., 1]).sum() for v in (ahead, behind)]
        assert abs((slope[0] - slope[1]) / (2 * h) - parts.grad[j].item()) < 1e-7
    # The rule's own Jacobian, in the rotated coordinates.
    x = np.stack((w[..., 0] + w[..., 1], w[..., 0] - w[..., 1]), axis=-1).reshape(1, -1)
    rate = q.scale.jacobian(x, q.codebook, "float64").top
    for j in range(x.shape[1]):
        step = np.zeros_like(x)
        step[0, j] = h
        tops = [q.scale.draws(x + sign * step, q.codebook, "float64")[0].lattice.top.item() for sign in (1, -1)]
        assert abs((tops[0] - tops[1]) / (2 * h) - rate[0, j]) < 1e-7


def test_ties_share_the_derivative():
    """Equal magnitudes: the mean of the one-sided gradients."""
    w = exact([3, -3, 1])
    rate = Quantizer.parse("int4").scale.jacobian(w, codebook("int4"), "object").top
    assert rate.tolist() == [[F(1, 2), F(-1, 2), 0]]
    zero = Quantizer.parse("int4").scale.jacobian(exact([0, 0]), codebook("int4"), "object").top
    assert zero.tolist() == [[0, 0]]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["absmax0", "slack0.9", "absmax-1", "absmax1e3", "", "e9m9-sr", "absmaxx", "slack", "e8m0-nearest"]
)
def test_unknown_scales_list_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown scale") as caught:
        scaling.scale_rule(name)
    known = [n.replace("D", "").replace("R", "") for n in scaling.rule_names()]
    assert all(n in str(caught.value) for n in known)


@pytest.mark.parametrize(
    ("book", "rule", "message"),
    [
        ("uint4", "absmax", "zp-real or zp-int"), ("uint4", "e8m0-sr", "zp-real or zp-int"),
        ("int4", "zp-int", "unsigned"), ("int4", "zp-real", "unsigned"), ("fairy", "absmax", "l1 or modulus"),
        ("int4", "l1", "fairy"), ("e2m1", "modulus", "fairy"),
        ("int4full", "e8m0-floor", "low = -high"), ("int4full", "fp16-sr", "low = -high"), ("int4", "q4_0", "int4full"),
        ("e2m1", "signed-absmax", "further down"), ("nf4", "e8m0-even", "e8m0-even"),
        ("dynamic8", "e4m3-up", "low = -high"),
    ],
)  # fmt: skip
def test_rules_refuse_codebooks_they_do_not_fit(book, rule, message):
    with pytest.raises(ValueError, match=message):
        scaling.scale_rule(rule).check(codebook(book))
    with pytest.raises(ValueError, match=message):
        Quantizer.parse(f"{book}/{rule}")
