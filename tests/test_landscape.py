"""Slices and gradient fields against independent computations and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import landscape as ls
from tests.landscape_cases import Bumps, on_step, quadratic

EPS = np.finfo(float).eps

# One of every kind of scale rule; the shape (2, 2) holds one or two blocks of each.
FORMATS = (
    "int4", "int3/row", "int4full/gauge/block=2", "int4full/q4_0", "uint4", "uint4/zp-int", "ternary/absmean",
    "ternary/l2l1", "nf4", "pot4", "e2m1/e8m0-floor/row", "e2m1/e8m0-sr/row", "e2m1/e4m3-nearest", "e2m1/e4m3-sr/row",
    "e2m1/e4m3-nearest-2level/row", "e2m1/e4m3-up-2level/row",
)  # fmt: skip


# --- the batch against single evaluations ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("frozen", [False, True])
def test_batch_agrees_with_one_point_at_a_time(name, frozen):
    points = lt.Stream(1, "tests/batch").numpy_generator().normal(size=(9, 2, 2))
    q = lt.Quantizer.parse(name)
    q = q.freeze(points[0]) if frozen else q
    loss, batch = Bumps(4, 3), ls.Batch(q, (2, 2))
    assert np.array_equal(batch.cast(points), [q.cast(w) for w in points])
    # The same additions in another order, over at most 2^6 outcomes of a loss below 5 Σ|a|.
    slack = 2**6 * EPS * np.abs(loss.a).sum()
    assert np.abs(batch.smoothed(loss, points) - [lt.smoothed_loss(loss, w, q).value for w in points]).max() <= slack
    assert np.abs(batch.mean(points) - [q.mean(w) for w in points]).max() <= 8 * EPS * np.abs(points).max()
    assert np.abs(batch.variance(points) - [q.variance(w) for w in points]).max() <= 8 * EPS * np.abs(points).max() ** 2


def test_large_quadratics_use_the_closed_form():
    loss = quadratic(24, 0)
    points = lt.Stream(2, "tests/batch").numpy_generator().normal(size=(3, 24))
    found = ls.Batch("int4", (24,)).smoothed(loss, points)
    assert np.array_equal(found, [lt.smoothed_loss(loss, w, "int4", "closed_form").value for w in points])
    with pytest.raises(ValueError, match="14 weights"):
        ls.Batch("int4", (24,)).smoothed(Bumps(24, 0), points)


# --- fields ----------------------------------------------------------------------------------------------------------


def test_check_table_of_the_theory():
    # h = 2, w* = .3, step 1: at .10 the smoothed loss rises where RR-STE descends; at .80 the slopes are .4 and 1.
    loss, q, at = lt.Quadratic(np.array([2.0]), np.array([0.3])), on_step(1.0), np.array([[0.1], [0.8]])
    for name, expected in {
        "float": (-0.4, 1.0), "straight_through": (-0.4, 1.0), "detached_noise": (-0.4, 1.0), "lotion": (0.4, 0.4),
        "lotion_detached": (0.4, 0.4), "rtn_straight_through": (-0.6, 1.4), "cage": (0.4, -0.6),
        "cage_at_weights": (0.6, -1.0),
    }.items():  # fmt: skip
        found = ls.gradient_field(name, loss, at, q, strength=10.0).ravel()
        assert np.abs(found - expected).max() <= 16 * EPS, name


@pytest.mark.parametrize("name", FORMATS)
def test_lotion_fields_are_the_exact_gradients(name):
    points = lt.Stream(5, "tests/fields").numpy_generator().normal(size=(4, 2, 2))
    for loss in (lt.Quadratic(quadratic(4, 1).hessian, np.ones((2, 2))), Bumps(4, 1)):
        for field, lattice in (("lotion", "moving"), ("lotion_detached", "detached")):
            found = ls.gradient_field(field, loss, points, name)
            expected = [lt.smoothed_gradient(loss, w, name, "exact", lattice).value for w in points]
            assert np.abs(found - expected).max() <= 1e-11 * (1 + np.abs(expected).max())


@pytest.mark.parametrize("name", ["int4", "int4full/gauge", "e2m1/e4m3-sr", "uint4", "nf4"])
def test_straight_through_on_random_rounding_has_no_smoothing_signal(name):
    # Claim C14: on a quadratic its expectation is the float gradient, for every unbiased format.
    loss = quadratic(4, 7)
    points = lt.Stream(7, "tests/fields").numpy_generator().normal(size=(20, 4))
    plain = ls.gradient_field("float", loss, points, name)
    for field in ("straight_through", "detached_noise"):
        assert np.abs(ls.gradient_field(field, loss, points, name) - plain).max() <= 1e-12 * np.abs(plain).max()
    assert np.abs(ls.gradient_field("lotion", loss, points, name) - plain).max() > 1e-3


@pytest.mark.parametrize("name", ["int3", "e2m1/e4m3-sr", "int4full/gauge", "e2m1/e8m0-sr"])
def test_lotion_field_is_the_slope_of_the_smoothed_slice(name):
    loss, w, direction = quadratic(2, 3), np.array([0.9, 0.4]), np.array([0.3, -1.0])
    s = ls.slice_1d(loss, w, direction, name, 1.0, points=51, scan=257)
    t = (s.t[:-1] + s.t[1:]) / 2
    # Central differences of a piecewise quadratic are exact between kinks, up to rounding of values below `top` over
    # spans of `h`; mid points of wide intervals only.
    wide = np.flatnonzero(np.diff(s.t) > 1e-3)
    h, top = 4e-4, np.abs(s.smoothed).max()
    at = t[wide]
    batch = ls.Batch(name, (2,))
    ends = [batch.smoothed(loss, w + (at + sign * h)[:, None] * direction) for sign in (1, -1)]
    slope = ls.gradient_field("lotion", loss, w + at[:, None] * direction, name) @ direction
    # SR scales make the smoothed loss a rational function in a cell: there the error is O(h²).
    slack = 64 * EPS * top / h + (0 if name in ("int3", "int4full/gauge") else 100 * top * h * h)
    assert np.abs((ends[0] - ends[1]) / (2 * h) - slope).max() <= slack


def test_moving_and_detached_fields_differ():
    # Claim C15: the leading weight also gets ½ g [c_hi (w - lo) - c_lo (hi - w)] ds/dw, here with g of the other
    # weight, levels .3 and .6 around .5, and ds/dw = 1/3; the other weight gets nothing.
    loss, w = quadratic(2, 3), np.array([[0.9, 0.5]])
    gap = ls.gradient_field("lotion", loss, w, "int3") - ls.gradient_field("lotion_detached", loss, w, "int3")
    assert gap[0, 0] == pytest.approx(loss.hessian[1, 1] / 2 * (2 * 0.2 - 1 * 0.1) / 3, abs=1e-13)
    assert gap[0, 1] == 0


@pytest.mark.parametrize("text", ["int3/row", "int4full/gauge/block=2", "e2m1/e8m0-sr/block=2", "nf4/e4m3-sr/row"])
def test_a_batch_casts_and_averages_as_its_quantizer_does(text):
    q, points = lt.Quantizer.parse(text), np.random.default_rng(5).standard_normal((64, 2, 4))
    batch = ls.Batch(q, (2, 4))
    for ours, theirs in ((batch.cast, q.cast), (batch.mean, q.mean), (batch.variance, q.variance)):
        assert np.array_equal(ours(points), np.stack([theirs(w) for w in points]))


# --- one-dimensional slices ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 2**12 - 1), min_size=0, max_size=12, unique=True))
def test_changes_of_a_staircase_are_found(places):
    # Steps at odd multiples of 1/8 of the scan's spacing, so that two never fall between the same scan points.
    edges = np.sort((np.array(places, dtype=float) + 0.125) / 2**12)
    found = ls.find_changes(
        lambda t: (t[:, None] >= edges).astype(int) if len(edges) else np.zeros((len(t), 1)), 0.0, 1.0, 2**12 + 1
    )
    assert len(found) == len(edges)
    assert np.abs(found - edges).max(initial=0) <= EPS


def test_fixed_lattice_has_kinks_on_levels_and_jumps_half_way():
    q, loss = on_step(0.25), lt.Quadratic(np.array([2.0]), np.array([0.3]))
    s = ls.slice_1d(loss, np.array([0.1]), np.array([1.0]), q, (-0.9, 0.8), points=300)
    positions = s.t + 0.1
    assert np.allclose(s.kinks + 0.1, np.arange(-3, 4) * 0.25, rtol=0, atol=4 * EPS)
    assert np.allclose(s.jumps + 0.1, np.arange(-3, 4) * 0.25 - 0.125 + 0.25, rtol=0, atol=4 * EPS)
    for low, high in itertools.pairwise([s.t[0] - 1, *s.jumps, s.t[-1] + 1]):
        piece = s.quantized[(s.t > low) & (s.t < high)]
        assert len(np.unique(piece)) == 1  # constant to the last bit
    assert len(np.unique(s.quantized)) == len(s.jumps) + 1
    # On the quadratic the smoothed loss is the chord over each cell (C10), and equals its second-order form (C8).
    lo, hi = q.bracket(positions[:, None])
    weight = (positions - lo[:, 0]) / np.where(hi > lo, hi - lo, 1)[:, 0]
    assert np.abs(s.smoothed - ((1 - weight) * loss(lo) + weight * loss(hi))).max() <= 16 * EPS
    assert np.abs(s.smoothed - s.second_order).max() <= 16 * EPS


def test_kinks_of_a_moving_lattice_solve_their_equations():
    # On int3 the second weight enters a cell where 3 w_2 = k |w_1|, and the leader changes where |w_1| = |w_2|.
    w, direction = np.array([0.9, 0.4]), np.array([0.35, -1.0])
    s = ls.slice_1d(quadratic(2, 0), w, direction, "int3", 2.0)
    expected = []
    for i, j in ((0, 1), (1, 0)):
        for k, sign in itertools.product(range(-3, 4), (1, -1)):
            t = (k / 3 * sign * w[j] - w[i]) / (direction[i] - k / 3 * sign * direction[j])
            at = w + t * direction
            if abs(t) < 2 and sign * at[j] >= 0 and abs(at[i]) <= abs(at[j]) * (1 + 1e-12):
                expected.append(t)
    expected = np.unique(np.round(expected, 12))
    assert len(s.kinks) == len(expected)
    assert np.abs(s.kinks - expected).max() <= 1e-11


@pytest.mark.parametrize("name", [f for f in FORMATS if f != "int4full/q4_0"])
def test_smoothed_slices_are_continuous_where_promised_and_only_there(name):
    q = lt.Quantizer.parse(name)
    loss = lt.Quadratic(quadratic(4, 2).hessian, np.full((2, 2), 0.3))
    w, direction = np.array([[0.9, 0.4], [-0.63, 0.2]]), np.array([[0.35, -1.0], [0.2, 0.7]])
    s = ls.slice_1d(loss, w, direction, q, 1.0, points=101, scan=257)
    steps = np.diff(s.t)
    close = steps < 1e-7  # the two sides of a kink or jump
    assert close.sum() >= 3
    # A Lipschitz constant of the smoothed loss between kinks, from its steepest chord; 3 allows for steeper stretches
    # than the grid has seen. A jump would exceed it by many orders over a distance of 1e-8.
    steepest = np.abs(np.diff(s.smoothed) / steps)[~close].max()
    rise = np.abs(np.diff(s.smoothed))[close]
    allowed = 3 * steepest * steps[close] + 1e-12
    if q.scale.promise(q.codebook).continuous:
        assert (rise <= allowed).all()
    else:
        assert rise.max() > 1e3 * allowed.max()
    assert np.abs(np.diff(s.quantized))[close].max() > 1e3 * allowed.max()  # the raw loss jumps on every format


def test_a_single_weight_is_always_on_its_own_lattice():
    s = ls.slice_1d(quadratic(1, 0), np.array([0.3]), np.array([1.0]), "int4", 0.2)
    assert np.array_equal(s.quantized, s.loss) and np.array_equal(s.smoothed, s.loss) and not len(s.kinks)


def test_the_ray_through_a_quantized_point_has_no_spurious_kinks():
    # Along it every weight stays on its level; rounding errors of w_2 / w_1 must not look like changes of cell.
    w = 0.3 * np.arange(1, 8) / 7
    s = ls.slice_1d(quadratic(7, 1), w, w, "int4", 0.5, 51, scan=257)
    assert len(s.kinks) == len(s.jumps) == 0
    assert np.abs(s.smoothed - s.loss).max() <= 64 * EPS * np.abs(s.loss).max()


def test_blends_run_from_float_to_smoothed_or_penalised():
    loss, w, direction = Bumps(2, 1), np.array([0.9, 0.4]), np.array([0.0, 1.0])
    curvature = np.array([1.5, 0.5])
    s = ls.slice_1d(loss, w, direction, "int3", 1.0, 51, curvature, lambdas=(0, 0.5, 1))
    assert np.array_equal(s.blends[0], s.loss)
    assert np.abs(s.blends[2] - s.smoothed).max() <= 8 * EPS * np.abs(s.loss).max()
    assert np.abs(s.blends[1] - (s.loss + s.smoothed) / 2).max() <= 8 * EPS * np.abs(s.loss).max()
    p = ls.slice_1d(loss, w, direction, "int3", 1.0, 51, curvature, lambdas=(0, 1), blend="penalty")
    expected = [
        lt.smoothed_loss(loss, w + t * direction, "int3", "second_order", curvature=curvature).value for t in p.t
    ]
    assert np.abs(p.second_order - expected).max() <= 8 * EPS * np.abs(s.loss).max()
    assert np.abs(p.blends[1] - expected).max() <= 8 * EPS * np.abs(s.loss).max()


def test_curvature_may_depend_on_the_point():
    loss, w, direction = Bumps(2, 1), np.array([0.9, 0.4]), np.array([0.0, 1.0])
    constant = ls.slice_1d(loss, w, direction, "int3", 1.0, 21, curvature=np.array([1.5, 0.5]))
    varying = ls.slice_1d(loss, w, direction, "int3", 1.0, 21, curvature=lambda x: 0 * x + [1.5, 0.5])
    assert np.array_equal(constant.second_order, varying.second_order)


# --- two-dimensional slices ------------------------------------------------------------------------------------------


def test_planes_agree_with_points():
    loss, w = quadratic(3, 4), np.array([0.5, -0.2, 0.9])
    directions = (np.array([1.0, 0.0, 0.5]), np.array([0.0, 2.0, -0.5]))
    s = ls.slice_2d(loss, w, directions, "int3", ((-1, 0.5), (-0.4, 0.6)), 7, fields=ls.FIELDS, field_points=3)
    for (i, t), (j, u) in itertools.product(enumerate(s.t), enumerate(s.s)):
        at = w + u * directions[0] + t * directions[1]
        # A sum of products may run in another order for many points at once: 9 products, each within one rounding.
        near = 10 * EPS * np.abs(s.loss).max()
        assert abs(s.loss[i, j] - loss(at[None])[0]) <= near
        assert abs(s.quantized[i, j] - loss(lt.Quantizer.parse("int3").cast(at)[None])[0]) <= near
        assert abs(s.smoothed[i, j] - lt.smoothed_loss(loss, at, "int3").value) <= 32 * EPS * np.abs(s.loss).max()
    assert np.abs(s.smoothed - s.second_order).max() <= 64 * EPS * np.abs(s.loss).max()
    at = w + s.field_s[2] * directions[0] + s.field_t[1] * directions[1]
    for name, field in s.fields.items():
        slope = ls.gradient_field(name, loss, at[None], "int3")[0]
        assert np.abs(field[1, 2] - [slope @ directions[0], slope @ directions[1]]).max() <= 1e-12
    assert s.field_s[0] == -0.75 and s.field_t[-1] == pytest.approx(0.6 - 1 / 6)


def test_fixed_and_moving_slices_differ():
    loss, w = quadratic(2, 0), np.array([0.8, 0.5])
    moving, fixed = (ls.slice_2d(loss, w, tuple(np.eye(2)), "int3", 0.5, 21, lattice=k) for k in ("moving", "fixed"))
    assert len(np.unique(fixed.quantized)) <= 49 < len(np.unique(moving.quantized))
    assert np.array_equal(fixed.loss, moving.loss)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_name_the_argument_and_the_valid_values():
    loss, w, e = quadratic(2, 0), np.array([0.9, 0.4]), np.array([1.0, 0.0])
    plain = lt.pointwise(lambda x: float((x * x).sum()))
    for match, call in {
        "complex": lambda: ls.slice_1d(loss, w, e, "fairy"),
        "unknown field.*lotion": lambda: ls.gradient_field("lotions", loss, w[None], "int3"),
        "unknown method.*lotion": lambda: ls.trajectory(loss, w, "int3", "sgd"),
        "unknown lattice.*moving, fixed": lambda: ls.slice_1d(loss, w, e, "int3", lattice="frozen"),
        "leads nowhere": lambda: ls.slice_1d(loss, w, 0 * e, "int3"),
        "direction has shape": lambda: ls.slice_1d(loss, w, e[:1], "int3"),
        "span=": lambda: ls.slice_1d(loss, w, e, "int3", (1.0, -1.0)),
        "points=1": lambda: ls.slice_1d(loss, w, e, "int3", points=1),
        "unknown blend": lambda: ls.slice_1d(loss, w, e, "int3", blend="linear"),
        "needs curvature": lambda: ls.slice_1d(plain, w, e, "int3", blend="penalty"),
        "curvature has shape": lambda: ls.slice_1d(loss, w, e, "int3", curvature=np.ones(3)),
        "parallel": lambda: ls.slice_2d(loss, w, (e, 2 * e), "int3"),
        "block=16 does not divide": lambda: ls.slice_1d(loss, w, e, "int3/block=16"),
        "differentiates the loss": lambda: ls.slice_1d(plain, w, e, "int3", fields=["float"]),
        "draws its lattice": lambda: ls.lattice_levels("e2m1/e4m3-sr", w),
        "increasing": lambda: ls.local_minima_quantized(loss, [np.array([1.0, 0.0])] * 2),
        "exceed the limit": lambda: ls.local_minima_quantized(loss, [np.arange(3000.0)] * 2),
        "low < high": lambda: ls.local_minima_smoothed(loss, "int3", w, w),
        "not defined": lambda: ls.global_minimum_quantized(loss, "nvfp4/tensor", (2,)),
        "reach=": lambda: ls.global_minimum_quantized(plain, "int3", (2,)),
        "one block": lambda: ls.local_minima_moving(loss, "int3/block=1"),
        "Quadratic": lambda: ls.local_minima_moving(plain, "int3"),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
