"""Minima and trajectories against independent computations and known answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import lotion_theory as lt
from lotion_theory import landscape as ls
from lotion_theory.landscape import codes
from lotion_theory.smoothing.exact import law
from tests.landscape_cases import Bumps, on_step, quadratic

EPS = np.finfo(float).eps

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
    for found in (stay, ls.local_minima_smoothed(loss, name, -box, box, starts=4)):
        assert found.strict.all() and found.quantized.all()
        distance = np.linalg.norm(found.points[:, None] - listed.points[None], axis=-1)
        # Values along a smooth valley tell the place of its bottom to the root of the precision.
        assert distance.min(axis=1).max() <= 1e-6


@pytest.mark.parametrize(("name", "seed"), [("int3", 2), ("int4full/gauge", 5)])
def test_no_minimum_on_a_moving_lattice_is_left_out(name, seed):
    # The best point on the ray of every code vector is listed, or something beside it is lower.
    loss, batch, generator = quadratic(2, seed), ls.Batch(name, (2,)), lt.Stream(0, "tests/beside").numpy_generator()
    c = codes.values(lt.Quantizer.parse(name), 2)
    points = codes.line_minima(loss, c)[0][:, None] * c
    points = points[points.any(axis=1)]
    moves = (np.array([1e-4, 1e-5])[:, None, None] * generator.normal(size=(2, 400, 2))).reshape(-1, 2)
    around = batch.smoothed(loss, (points[:, None] + moves).reshape(-1, 2)).reshape(len(points), -1)
    found = points[around.min(axis=1) > batch.smoothed(loss, points)]
    assert np.allclose(_sorted(found), _sorted(ls.local_minima_moving(loss, name).points), rtol=0, atol=1e-12)


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
    weights = lt.Stream(0, "tests/stored").numpy_generator().uniform(-0.9, 0.9, size=(60, 2))
    weights[::2] *= 2.0**-6  # E4M3 numbers below this are subnormal
    for w in weights:
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
