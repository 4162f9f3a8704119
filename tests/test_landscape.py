"""Slices, fields, minima and trajectories against independent computations and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import landscape as ls
from lotion_theory.landscape import codes
from lotion_theory.smoothing.exact import law

EPS = np.finfo(float).eps

# One of every kind of scale rule; the shape (2, 2) holds one or two blocks of each.
FORMATS = (
    "int4", "int3/row", "int4full/gauge/block=2", "int4full/q4_0", "uint4", "uint4/zp-int", "ternary/absmean",
    "ternary/l2l1", "nf4", "pot4", "e2m1/e8m0-floor/row", "e2m1/e8m0-sr/row", "e2m1/e4m3-nearest", "e2m1/e4m3-sr/row",
    "e2m1/e4m3-nearest-2level/row", "e2m1/e4m3-up-2level/row",
)  # fmt: skip


def quadratic(d: int, seed: int, condition: float = 20.0) -> lt.Quadratic:
    """A rotated quadratic with curvatures from 1 to ``condition`` and a normal optimum."""
    generator = lt.Stream(seed, f"tests/landscape/{d}").numpy_generator()
    turn = np.linalg.qr(generator.normal(size=(d, d)))[0]
    hessian = turn @ np.diag(np.geomspace(1, condition, d)) @ turn.T
    return lt.Quadratic((hessian + hessian.T) / 2, generator.normal(size=d))


class Bumps:
    """A smooth loss that is not quadratic: ``Σ a_k cos(⟨b_k, w⟩ + c_k)``."""

    def __init__(self, d: int, seed: int) -> None:
        generator = lt.Stream(seed, "tests/bumps").numpy_generator()
        self.a, self.b, self.c = (
            generator.normal(size=5),
            generator.normal(size=(5, d)),
            generator.uniform(0, 6, size=5),
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return np.cos(points.reshape(len(points), -1) @ self.b.T + self.c) @ self.a

    def gradient(self, points: np.ndarray) -> np.ndarray:
        flat = points.reshape(len(points), -1)
        return (-(np.sin(flat @ self.b.T + self.c) * self.a) @ self.b).reshape(points.shape)


def on_step(step: float, book: str = "int4") -> lt.Quantizer:
    return lt.Quantizer.parse(book).with_scale(step)


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
        assert s.loss[i, j] == loss(at[None])[0]
        assert s.quantized[i, j] == loss(lt.Quantizer.parse("int3").cast(at)[None])[0]
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


# --- claims C10 and C11: cells of a fixed lattice --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_smoothed_loss_interpolates_the_vertices_of_a_cell(seed):
    # Claim C10, for a loss that is not quadratic: the multilinear interpolation, written as three nested linear ones.
    loss, q = Bumps(3, seed), on_step(0.5)
    generator = lt.Stream(seed, "tests/cell").numpy_generator()
    low = 0.5 * generator.integers(-6, 6, size=3)
    p = generator.uniform(size=(50, 3))
    corner = {k: loss((low + 0.5 * np.array(k))[None])[0] for k in itertools.product((0, 1), repeat=3)}
    x, y, z = p.T
    edges = {(b, c): (1 - x) * corner[0, b, c] + x * corner[1, b, c] for b, c in itertools.product((0, 1), repeat=2)}
    sides = {c: (1 - y) * edges[0, c] + y * edges[1, c] for c in (0, 1)}
    expected = (1 - z) * sides[0] + z * sides[1]
    assert np.abs(ls.Batch(q, (3,)).smoothed(loss, low + 0.5 * p) - expected).max() <= 64 * EPS * np.abs(loss.a).sum()


@pytest.mark.parametrize(("d", "book", "seed"), [(1, "int4", 0), (2, "int3", 1), (2, "pot3", 2), (3, "ternary", 4)])
def test_local_minima_of_the_smoothed_loss_are_those_of_the_lattice(d, book, seed):
    # Claim C11, both ways: what a search of the smoothed loss finds, and the enumeration of single steps.
    q, loss = on_step(0.5, book), Bumps(d, seed)
    levels = ls.lattice_levels(q, np.zeros(d))
    lattice = ls.local_minima_quantized(loss, levels)
    ends = np.array([v[[0, -1]] for v in levels]).T
    found = ls.local_minima_smoothed(loss, q, *ends, starts=256 if book == "pot3" else 64, seed=seed)
    assert lattice.strict.all() and found.strict.all() and found.quantized.all()
    assert np.array_equal(_sorted(found.points), _sorted(lattice.points))
    assert np.abs(found.values - lattice.values).max() <= 16 * EPS * np.abs(loss.a).sum()


def _sorted(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.round(points, 6).T)]


@pytest.mark.parametrize("seed", range(5))
def test_lattice_minima_against_a_plain_loop(seed):
    levels = [np.array([-1.0, 0.0, 2.0]), np.array([0.5, 1.0, 1.5, 4.0]), np.array([3.0])]
    table = lt.Stream(seed, "tests/table").numpy_generator().integers(0, 6, size=(3, 4, 1)).astype(float)

    def loss(points):
        index = tuple(np.searchsorted(v, points[:, k]) for k, v in enumerate(levels))
        return table[index]

    strict, weak = set(), set()
    for index in np.ndindex(3, 4, 1):
        near = [tuple(np.add(index, s)) for s in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0))]
        rises = [table[k] - table[index] for k in near if 0 <= k[0] < 3 and 0 <= k[1] < 4]
        point = tuple(float(v[i]) for v, i in zip(levels, index, strict=True))
        if min(rises) > 0:
            strict.add(point)
        elif min(rises) == 0:
            weak.add(point)
    found = ls.local_minima_quantized(loss, levels)
    assert {tuple(p) for p in found.points[found.strict]} == strict
    assert {tuple(p) for p in found.points[~found.strict]} == weak
    assert (np.diff(found.values) >= 0).all()


def test_plateaus_are_marked():
    found = ls.local_minima_quantized(lambda x: np.zeros(len(x)), [np.arange(3.0)] * 2)
    assert len(found) == 9 and not found.strict.any()


# --- moving lattices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "name"), [(2, "int3"), (2, "int4full/gauge"), (3, "int2"), (2, "binary")])
def test_minima_on_a_moving_lattice(d, name):
    loss = quadratic(d, 11)
    listed = ls.local_minima_moving(loss, name)
    assert len(listed) > 1 and listed.strict.all()
    # Each listed minimum is one: nothing close to it is lower, in 800 directions and at two distances.
    batch, generator = ls.Batch(name, (d,)), lt.Stream(0, "tests/around").numpy_generator()
    for point, value in zip(listed.points, listed.values, strict=True):
        radii = np.linalg.norm(point) * np.array([1e-4, 1e-5])
        around = point + (radii[:, None, None] * generator.normal(size=(2, 800, d))).reshape(-1, d)
        assert batch.smoothed(loss, around).min() > value
    # A search that knows nothing of code vectors stays at each of them, and from anywhere arrives at some of them.
    box = 3 * np.abs(listed.points).max() * np.ones(d)
    stay = ls.local_minima_smoothed(loss, name, -box, box, starts=listed.points * (1 + 1e-5), step=1e-6)
    assert len(stay) == len(listed)
    for found in (stay, ls.local_minima_smoothed(loss, name, -box, box, starts=8)):
        assert found.strict.all() and found.quantized.all()
        distance = np.linalg.norm(found.points[:, None] - listed.points[None], axis=-1)
        # Values along a smooth valley tell the place of its bottom to the root of the precision.
        assert distance.min(axis=1).max() <= 1e-6


# Unbiased formats whose support points are fixed, one block each, in a dimension with something to round.
HONEST = (
    ("int2", 2), ("int3", 3), ("int4full/gauge", 2), ("ternary", 3), ("binary", 2), ("nf4", 2), ("pot3", 2),
    ("e2m1", 2), ("uint2", 3), ("uint3", 3), ("e2m1/e4m3-sr", 2), ("int3/e8m0-sr", 2), ("e2m1/e8m0-sr", 2),
)  # fmt: skip


@pytest.mark.parametrize(("name", "d"), HONEST)
def test_smoothing_keeps_the_global_minimum(name, d):
    # Claim C7: the least smoothed value is the least quantized one, attained at the same point.
    loss = quadratic(d, 21)
    best = ls.global_minimum_quantized(loss, name, (d,))
    q, batch = lt.Quantizer.parse(name), ls.Batch(name, (d,))
    slack = 64 * EPS * loss(np.zeros((1, d)))[0]
    assert abs(batch.smoothed(loss, best.point[None])[0] - best.value) <= slack
    assert np.abs(q.cast(best.point) - best.point).max() <= 4 * EPS * np.abs(best.point).max()
    generator = lt.Stream(3, "tests/global").numpy_generator()
    everywhere = 2 * generator.normal(size=(1500, d))
    near = best.point + np.geomspace(1e-6, 0.5, 1500)[:, None] * generator.normal(size=(1500, d))
    for points in (everywhere, near):
        assert batch.smoothed(loss, points).min() >= best.value - slack
        assert loss(batch.cast(points)).min() >= best.value - slack


@pytest.mark.parametrize(
    ("name", "d"), [("int2", 2), ("e2m1", 2), pytest.param("int3/e8m0-sr", 2, marks=pytest.mark.slow)]
)
def test_a_search_of_the_smoothed_loss_finds_the_global_minimum(name, d):
    loss = quadratic(d, 21)
    best, box = ls.global_minimum_quantized(loss, name, (d,)), 4.0 * np.ones(d)
    found = ls.local_minima_smoothed(loss, name, -box, box, starts=8, step=1 / 16)
    assert abs(found.values[0] - best.value) <= 1e-12 * (1 + best.value)
    # Values within 1e-12 of a minimum of curvature >= 1 are within sqrt(2e-12) of its place.
    assert np.abs(found.points[0] - best.point).max() <= 2e-6


def test_global_minimum_over_two_blocks_against_a_scan():
    loss = quadratic(4, 5)
    best = ls.global_minimum_quantized(loss, "int2/block=2", (4,))
    c = np.array([v for v in itertools.product((-1.0, 0.0, 1.0), repeat=2) if any(v)])
    scales = np.linspace(0, 4, 161)
    rays = (scales[:, None, None] * c).reshape(-1, 2)
    scanned = min(loss(np.hstack([np.repeat(a[None], len(rays), axis=0), rays])).min() for a in rays)
    # The nearest pair of scan points is off by at most half a step in each of the two scales.
    step = scales[1] / 2
    assert best.value <= scanned <= best.value + 20 / 2 * (2 * step) ** 2 * 2
    assert abs(ls.Batch("int2/block=2", (4,)).smoothed(loss, best.point[None])[0] - best.value) <= 1e-14


def test_scanned_and_closed_form_global_minima_agree():
    loss = quadratic(2, 9)
    exact = ls.global_minimum_quantized(loss, "int3", (2,))
    scanned = ls.global_minimum_quantized(lambda x: loss(x), "int3", (2,), reach=3.0)
    assert abs(exact.value - scanned.value) <= 1e-12 and np.abs(exact.point - scanned.point).max() <= 1e-6


def test_frozen_global_minimum_is_the_lowest_lattice_point():
    loss, q = quadratic(2, 9), on_step(0.3, "int3")
    best = ls.global_minimum_quantized(loss, q, (2,))
    assert best.count == 49
    assert best.value == ls.local_minima_quantized(loss, ls.lattice_levels(q, np.zeros(2))).values[0]


@pytest.mark.parametrize("name", ["int3", "int3full/gauge", "uint3/zp-real", "nf4"])
def test_code_vectors_are_the_quantized_points(name):
    # Every cast point is a multiple of one code vector (plus an offset where there is a zero point), and of one only.
    q, d = lt.Quantizer.parse(name), 3
    c = codes.values(q, d)
    if name.startswith("uint"):
        normal = (c - c.min(axis=1, keepdims=True)) / np.ptp(c, axis=1)[:, None]
    else:
        normal = c / np.abs(c).max(axis=1, keepdims=True)
    assert len(np.unique(np.round(normal, 9), axis=0)) == len(c)
    points = ls.Batch(q, (d,)).cast(lt.Stream(0, "tests/codes").numpy_generator().normal(size=(300, d)))
    if name.startswith("uint"):
        points = (points - points.min(axis=1, keepdims=True)) / np.ptp(points, axis=1)[:, None]
    else:
        points = points / np.abs(points).max(axis=1, keepdims=True)
    assert np.abs(points[:, None] - normal[None]).max(axis=2).min(axis=1).max() <= 8 * EPS


def test_stored_scale_points_are_the_support_of_rounding():
    # Every point that rounding can give, up to the reach, is enumerated, and nothing that rounding would move.
    q = lt.Quantizer.parse("int2/e4m3-sr")
    points = codes.stored_scale_points(ls.Batch(q, (2,)), 1.0, 2**20)
    listed = {tuple(p) for p in points.tolist()}
    for w in lt.Stream(0, "tests/stored").numpy_generator().uniform(-0.9, 0.9, size=(60, 2)):
        assert {tuple(p) for p in law(w, q).points.tolist() if np.abs(p).max() <= 1} <= listed
    assert not ls.Batch(q, (2,)).variance(points).any()


# --- trajectories ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "limit"), [("cage", 0.766), ("cage_at_weights", 0.76 + 1 / 300)])
def test_cage_stops_off_the_lattice(method, limit):
    # h = 2, w* = .83, step .25, λ = 10, so q = .75: the limits are q + h (w* - q) / λ with the gradient at cast(w), and
    # (h w* + λ q) / (h + λ) with the gradient at w. Each step contracts by at least 0.8: 300 of them leave 1e-29.
    loss, q = lt.Quadratic(np.array([2.0]), np.array([0.83])), on_step(0.25)
    run = ls.trajectory(loss, np.array([0.83]), q, method, steps=300, learning_rate=0.02, strength=10.0)
    assert abs(run.positions[-1, 0] - limit) <= 16 * EPS
    assert run.quantized[-1] == loss(np.array([[0.75]]))[0]


def test_straight_through_chatters_at_the_threshold():
    # Claim C18: without CAGE's pull the weight crosses .875 for ever, in steps of at most lr · h · .17.
    loss, q = lt.Quadratic(np.array([2.0]), np.array([0.83])), on_step(0.25)
    for method in ("rtn_straight_through", "cage"):
        run = ls.trajectory(loss, np.array([0.83]), q, method, steps=400, learning_rate=0.02, strength=0.0)
        late = run.positions[-100:, 0]
        assert np.abs(late - 0.875).max() <= 0.02 * 2 * 0.17 + 4 * EPS
        assert (late < 0.875).any() and (late > 0.875).any() and len(np.unique(run.quantized[-100:])) == 2


def test_lotion_settles_on_the_lattice():
    # Claim C18: a decaying step converges. Within the last step's length of .75, slopes being at most 2 (.08 + .125).
    loss, q, steps = lt.Quadratic(np.array([2.0]), np.array([0.83])), on_step(0.25), 400
    run = ls.trajectory(
        loss, np.array([0.83]), q, "lotion", steps, ls.linear_decay(0.05, steps), ramp=ls.linear_ramp(steps, over=0.5)
    )
    assert abs(run.positions[-1, 0] - 0.75) <= 2 * 0.05 / steps * 2 * 0.205
    assert run.quantized[-1] == loss(np.array([[0.75]]))[0]


def test_trajectories_repeat_under_a_seed_and_differ_without():
    loss, w = quadratic(2, 0), np.array([0.9, 0.4])
    for name in ("int3", "e2m1/e4m3-sr"):
        runs = [ls.trajectory(loss, w, name, "straight_through", 12, 0.02, seed=s).positions for s in (5, 5, 6)]
        assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
        fixed = [ls.trajectory(loss, w, name, "lotion", 12, 0.02, seed=s).positions for s in (5, 6)]
        assert np.array_equal(*fixed)


def test_every_step_of_a_trajectory_draws_afresh():
    # With a vanishing step the weights stay, so that equal draws would repeat the first move.
    run = ls.trajectory(quadratic(2, 0), np.array([0.9, 0.35]), "int3", "straight_through", 20, 2.0**-40)
    moves = np.diff(run.positions, axis=0)
    assert np.abs(moves - moves[0]).max() > 0.1 * np.abs(moves).max()


def test_trajectory_records_the_losses_and_follows_the_field():
    loss, w = quadratic(2, 0), np.array([0.9, 0.4])
    run = ls.trajectory(loss, w, "int3", "lotion", 5, 0.01, ramp=0.25)
    slope = (
        0.75 * ls.gradient_field("float", loss, w[None], "int3")[0]
        + 0.25 * ls.gradient_field("lotion", loss, w[None], "int3")[0]
    )
    assert np.abs(run.positions[1] - (w - 0.01 * slope)).max() <= 4 * EPS
    assert run.positions.shape == (6, 2) and run.loss.shape == run.quantized.shape == run.smoothed.shape == (6,)
    assert run.smoothed[3] == pytest.approx(lt.smoothed_loss(loss, run.positions[3], "int3").value, rel=1e-13)


def test_divergence_is_reported():
    run = ls.trajectory(quadratic(2, 0), np.array([0.9, 0.4]), "int3", "float", 100, 1.0, bound=100.0)
    assert run.diverged and len(run.positions) < 100 and np.isfinite(run.loss).all()


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
