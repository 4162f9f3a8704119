"""Exact optima of rounding: enumeration, search and the best scale against brute force, bounds and each other."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from lotion_theory import Quantizer
from lotion_theory.rounders.base import Case
from lotion_theory.smoothing import Quadratic, law, smoothed_loss
from testbeds.oracles import best_scale as scales
from testbeds.oracles import closest_vector as search
from testbeds.oracles import enumeration
from testbeds.oracles.best_scale import best_scale, best_scales
from testbeds.oracles.closest_vector import closest_vector
from testbeds.oracles.enumeration import best_in_cell, best_of, best_on_grid, cell_levels

FORMATS = ("int2", "int3", "int4", "nf4", "e2m1", "ternary", "int4/absmax/row", "e2m1/absmax/block=2")


def rotated(n, rng, exponent=1.1):
    """A Hessian with eigenvalues i^-exponent in a random basis."""
    basis, triangle = np.linalg.qr(rng.normal(size=(n, n)))
    basis *= np.sign(np.diagonal(triangle))
    h = (basis * np.arange(1.0, n + 1) ** -exponent) @ basis.T
    return (h + h.T) / 2


def cases(count, most, seed, points=None):
    """Random cases of 1 to 3 rows and up to ``most`` weights; a fifth with a range that clips, some near the lattice."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        q = Quantizer.parse(FORMATS[i % len(FORMATS)])
        n = int(rng.integers(1, most + 1))
        n -= n % 2 if q.partition.size == 2 and n > 1 else 0
        if points is not None:
            n = min(n, int(np.log(points) / np.log(len(q.codebook.levels))))
        n += n % 2 if q.partition.size == 2 else 0
        case = Case.make(rotated(n, rng, rng.uniform(0, 2.5)), rng.normal(size=(int(rng.integers(1, 4)), n)), q)
        if i % 5 == 1:
            case = Case(case.hessian, case.weights, replace(case.grid, step=case.grid.step * 0.6))
        if i % 5 == 2:
            case = Case(case.hessian, case.grid.nearest(case.weights) + 1e-3 * case.weights, case.grid)
        yield case


def same_loss(case, found, expected):
    """Both losses are ``case.loss`` of points; the search may stop within its slack, at most 1e-6 and here about 1e-11."""
    rounding = 1e-14 * np.trace(case.hessian) * (case.grid.step**2).max()
    return abs(found.loss - expected.loss) <= 1e-9 * expected.loss + rounding


def on_levels(point, levels):
    return (point[..., None] == levels).any(axis=-1).all()


# --- enumeration -----------------------------------------------------------------------------------------------------


def test_enumeration_agrees_with_a_loop_over_all_points():
    for case in cases(40, most=4, seed=1, points=300):
        found = best_on_grid(case)
        losses = []
        for r, w in enumerate(case.weights):
            points = np.array(list(itertools.product(*case.grid.levels[r])))
            losses.append(min((p - w) @ case.hessian @ (p - w) / 2 for p in points))
        assert found.loss == pytest.approx(sum(losses), rel=1e-12, abs=1e-15)
        assert found.nodes == len(case.weights) * len(case.grid.units) ** case.weights.shape[1] and found.proven
        assert on_levels(found.point, case.grid.levels)


def test_the_cell_is_the_support_of_randomized_rounding():
    rng = np.random.default_rng(2)
    for name in ("int4", "nf4", "e2m1/absmax/block=4"):
        h, w = rotated(8, rng), rng.normal(size=8)
        case, loss = Case.make(h, w, name), Quadratic(h, w)
        found, support = best_in_cell(case), law(w, name).points
        assert found.loss == pytest.approx(loss(support).min(), rel=1e-12)
        assert found.nodes == len(support)
        # The least vertex lies below the mean over the vertices, and above the least point of the whole lattice.
        assert closest_vector(case).loss <= found.loss * (1 + 1e-9) <= smoothed_loss(loss, w, name).value


def test_the_weights_themselves_win_where_they_are_on_the_lattice():
    case = next(cases(1, most=8, seed=3))
    case = Case(case.hessian, case.grid.nearest(case.weights), case.grid)
    for found in (best_in_cell(case), closest_vector(case)):
        np.testing.assert_array_equal(found.point, case.weights)
        assert found.loss == 0 and found.proven


def test_points_are_levels_also_far_from_the_weights():
    """There a level minus a weight is rounded, so that the weight plus that difference is no level."""
    rng = np.random.default_rng(13)
    case = Case.make(rotated(4, rng), rng.normal(size=(2, 4)), "nf4")
    case = Case(case.hessian, 1e9 * case.weights, case.grid)
    for found in (best_on_grid(case), closest_vector(case)):
        assert on_levels(found.point, case.grid.levels)


def test_enumeration_refuses_what_is_too_large(monkeypatch):
    rng = np.random.default_rng(4)
    case = Case.make(rotated(6, rng), rng.normal(size=6), "int4")
    monkeypatch.setattr(enumeration, "LIMIT", 15**6 - 1)
    with pytest.raises(ValueError, match="more than the limit of 11390624"):
        best_on_grid(case)


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 6, 3), (1, 6), (1, 6, 0)])
def test_levels_of_another_shape_are_refused(shape):
    case = Case.make(np.eye(6), np.arange(6.0), "int4")
    for oracle in (best_of, closest_vector):
        with pytest.raises(ValueError, match=r"levels has shape .*, expected \(1, 6, number of levels\)"):
            oracle(case, np.zeros(shape))


# --- search ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "points"), [(240, 5e4), pytest.param(1000, 2e6, marks=pytest.mark.slow)])
def test_search_agrees_with_enumeration_of_the_grid(count, points):
    for case in cases(count, most=10, seed=5, points=points):
        found, expected = closest_vector(case), best_on_grid(case)
        assert found.proven and same_loss(case, found, expected)
        assert on_levels(found.point, case.grid.levels)


@pytest.mark.parametrize("order", search.ORDERS)
def test_search_agrees_with_enumeration_of_the_cell(order):
    for case in cases(250, most=10, seed=6):
        levels = cell_levels(case)
        found, expected = closest_vector(case, levels, order=order), best_in_cell(case)
        assert found.proven and same_loss(case, found, expected)
        assert on_levels(found.point, levels)


def agreement(seed, count=60):
    """How many of the cases the search gets right."""
    return sum(same_loss(case, closest_vector(case), best_on_grid(case)) for case in cases(count, 10, seed, points=5e4))


def test_search_in_slices_and_with_bounds_agrees_with_enumeration(monkeypatch):
    # Small slices bring the bounds in at once; large searches go on with them after the first.
    monkeypatch.setattr(search, "SLICE", 3)
    assert agreement(7) == 60


@pytest.mark.parametrize("factor", [1.5, 4.0])
def test_bounds_that_are_too_high_are_noticed(monkeypatch, factor):
    right = search._diagonal_bounds
    monkeypatch.setattr(search, "SLICE", 3)
    monkeypatch.setattr(search, "_diagonal_bounds", lambda *arguments: factor * right(*arguments))
    assert agreement(7) < 60


def test_all_trees_give_one_optimum_at_forty_weights(monkeypatch):
    monkeypatch.setattr(search, "SLICE", 5000)
    rng = np.random.default_rng(8)
    case = Case.make(rotated(40, rng), rng.normal(size=40), "int4")
    found = [closest_vector(case, order=o, bounds=b) for o in search.ORDERS for b in (True, False)]
    assert all(f.proven and same_loss(case, f, found[0]) for f in found)
    with_bounds, without = sum(f.nodes for f in found[::2]), sum(f.nodes for f in found[1::2])
    assert with_bounds < without / 2


def test_shuffled_independent_blocks_are_solved_as_a_whole():
    # Beyond enumeration, but the optimum is known: it is that of the blocks, each enumerated.
    rng = np.random.default_rng(9)
    h, w, size = np.zeros((24, 24)), rng.normal(size=(1, 24)), 4
    for b in range(0, 24, size):
        h[b : b + size, b : b + size] = rotated(size, rng)
    whole = Case.make(h, w, "int4")
    expected = 0.0
    for b in range(0, 24, size):
        part = slice(b, b + size)
        expected += best_on_grid(Case(h[part, part], w[:, part], whole.grid.columns(part))).loss
    mixed = rng.permutation(24)
    found = closest_vector(Case(h[np.ix_(mixed, mixed)], w[:, mixed], whole.grid))
    assert found.proven and found.loss == pytest.approx(expected, rel=1e-9)


def test_an_interrupted_search_says_so():
    rng = np.random.default_rng(10)
    case = Case.make(rotated(30, rng), rng.normal(size=(2, 30)), "int4")
    best = closest_vector(case)
    some = [closest_vector(case, max_nodes=k) for k in (0, 200, 2000)]
    for found, most in zip(some, (0, 200, 2000), strict=True):
        assert not found.proven and found.nodes <= most
        assert on_levels(found.point, case.grid.levels)
        assert found.loss == case.loss(found.point[None])[0] >= best.loss * (1 - 1e-9)
    assert some[0].loss >= some[1].loss >= some[2].loss
    assert best.proven and not closest_vector(case, seconds=0.0, max_nodes=300).proven
    # The same search over all in pieces, hence the same nodes.
    assert closest_vector(case, max_nodes=10**9)[:4][1:] == best[:4][1:]


def test_plain_python_searches_as_numba_does(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(search, "SLICE", 50)
    some = list(cases(16, most=10, seed=11))
    compiled = [closest_vector(case) for case in some]
    monkeypatch.setattr(search, "_compiled", lambda: search._search)
    for case, expected in zip(some, compiled, strict=True):
        found = closest_vector(case)
        # Compiled sums may be fused and so round differently; a comparison within rounding is not expected here.
        np.testing.assert_array_equal(found.point, expected.point)
        assert found.nodes == expected.nodes and found.proven


def test_bounds_are_feasible_and_nearly_the_best():
    rng = np.random.default_rng(12)
    h, value = rotated(12, rng), rng.uniform(0.5, 2, 12)
    found = search._diagonal_bounds(h, value)
    for k in range(1, 12):
        d = found[k, :k]
        assert (d >= 0).all() and np.linalg.eigvalsh(h[:k, :k] - np.diag(d))[0] >= 0
        # Trace duality: Σ v D <= <Z, H> for every positive semidefinite Z whose diagonal is at least v.
        z = np.linalg.inv(h[:k, :k] - np.diag(d))
        root = np.sqrt(value[:k] / np.diagonal(z))
        most = (z * np.outer(root, root) * h[:k, :k]).sum()
        assert 0.9 * most <= value[:k] @ d <= most * (1 + 1e-9)
    # Two weights with correlation r: D = 1 - r each.
    pair = np.pad([[1.0, 0.6], [0.6, 1.0]], (0, 1)) + np.diag([0.0, 0.0, 1.0])
    np.testing.assert_allclose(search._diagonal_bounds(pair, np.ones(3))[2, :2], 0.4, rtol=0.03)


@pytest.mark.parametrize("hessian", [np.ones((3, 3)), np.diag([1.0, 1.0, 0.0]), np.diag([1.0, -1.0, 1.0])])
def test_singular_hessians_are_refused(hessian):
    with pytest.raises(ValueError, match="the Hessian is singular or nearly so"):
        closest_vector(Case.make(hessian, np.arange(3.0), "int4"))


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="unknown order 'best'; valid: natural, diagonal, sorted, vblast"):
        closest_vector(Case.make(np.eye(2), np.ones(2), "int4"), order="best")


# --- the best scale --------------------------------------------------------------------------------------------------

BOOKS = [Quantizer.parse(name).codebook.values for name in ("int4", "int3", "nf4", "e2m1", "ternary", "binary")]
ONE_SIDED = [np.arange(-8.0, 8.0), np.arange(0.0, 4.0), np.array([-3.0, -1.0, 2.0]), np.array([0.5])]


def weighted(n, rng):
    return rng.normal(size=n), rng.uniform(0, 1, n) ** 3


@pytest.mark.parametrize("levels", BOOKS + ONE_SIDED, ids=lambda v: f"{len(v)} levels from {v[0]:g}")
def test_best_scale_is_the_least_over_all_assignments(levels):
    rng = np.random.default_rng(13)
    for n in (1, 2, 3, 4):
        if len(levels) ** n > 1e5:
            continue
        c = np.array(list(itertools.product(levels, repeat=n)))
        for _ in range(10):
            w, h = weighted(n, rng)
            slope, bend = c @ (h * w), c**2 @ h
            drop = np.where(slope > 0, slope**2 / np.where(bend > 0, bend, np.inf), 0.0)
            found = best_scale(w, h, levels)
            least = ((h * w**2).sum() - drop.max()) / 2
            if drop.max() > 0:
                # Cancellation in the formula: 1e-15 of the terms, several times.
                assert found.loss == pytest.approx(least, rel=1e-12, abs=1e-14 * (h * w**2).sum())
            assert found.loss == pytest.approx((h * (found.scale * found.codes - w) ** 2).sum() / 2, rel=1e-12)


@pytest.mark.parametrize("levels", BOOKS + ONE_SIDED[:3], ids=lambda v: f"{len(v)} levels from {v[0]:g}")
def test_best_scale_against_a_scan_and_its_own_conditions(levels):
    rng = np.random.default_rng(14)
    w, h = weighted(500, rng)
    found = best_scale(w, h, levels)
    middles = (levels[1:] + levels[:-1]) / 2
    # Its codes are the nearest ones at its scale, and its scale the least-squares one of its codes.
    np.testing.assert_array_equal(found.codes, levels[np.searchsorted(middles, w / found.scale)])
    bend = (h * found.codes**2).sum()
    assert found.scale == pytest.approx((h * w * found.codes).sum() / bend, rel=1e-12)
    scan = np.linspace(0.0, 2 * np.abs(w).max() / np.abs(levels).max(), 4001)[1:]
    assert scan[0] < found.scale < 8 * scan[-1]
    scan = np.concatenate([scan, found.scale + (scan - scan.mean()) * 1e-3])
    scan = np.sort(scan[scan > 0])
    codes = levels[np.searchsorted(middles, w / scan[:, None])]
    least = ((codes * scan[:, None] - w) ** 2 @ h).min() / 2
    # A scale off by δ costs at most ½ A δ², as keeping the codes does.
    gap = np.abs(scan - found.scale).min()
    assert found.loss * (1 - 1e-12) <= least <= (found.loss + bend * gap**2 / 2) * (1 + 1e-12)


def test_the_best_ternary_scale_has_a_closed_form():
    # Of the k largest magnitudes to be kept: the mean of them, k with the largest (Σ |w|)² / k (Li et al., 1605.04711).
    w = np.random.default_rng(15).normal(size=1000)
    sums, k = np.cumsum(np.sort(np.abs(w))[::-1]), np.arange(1, 1001)
    best = int((sums**2 / k).argmax())
    found = best_scale(w, np.ones(1000), np.array([-1.0, 0.0, 1.0]))
    assert found.scale == pytest.approx(sums[best] / k[best], rel=1e-12)
    assert np.count_nonzero(found.codes) == k[best]


def test_three_levels_of_a_normal_density():
    # Max, IRE Trans. Inf. Theory 6 (1960), table I: outputs at 1.224, mean squared error .1902.
    from scipy.stats import norm

    w = norm.ppf((np.arange(20000) + 0.5) / 20000)
    found = best_scale(w, np.full(20000, 2 / 20000), np.array([-1.0, 0.0, 1.0]))
    assert found.scale == pytest.approx(1.224, abs=1e-3)
    assert found.loss == pytest.approx(0.1902, abs=1e-4)


def test_best_scale_scales_and_ignores_signs():
    w, h = weighted(300, np.random.default_rng(16))
    levels = BOOKS[3]
    found, twice, flipped = (best_scale(x, h, levels) for x in (w, 2 * w, np.where(h > 0.1, -w, w)))
    assert (twice.scale, twice.loss) == (2 * found.scale, 4 * found.loss)
    assert flipped.loss == pytest.approx(found.loss, rel=1e-12)


@pytest.mark.parametrize("name", ["int4/absmax/block=8", "nf4/absmax/row", "ternary"])
def test_best_scales_treat_each_block_alone(name):
    rng = np.random.default_rng(17)
    q, w, h = Quantizer.parse(name), rng.normal(size=(3, 16)), rng.uniform(0, 1, (3, 16))
    w[0] = 0
    found = best_scales(w, h, q)
    blocks = zip(q.partition.to_blocks(w), q.partition.to_blocks(h), strict=True)
    assert found.loss == pytest.approx(sum(best_scale(a, b, q.codebook.values).loss for a, b in blocks), rel=1e-12)
    np.testing.assert_array_equal(found.grid.nearest(found.point), found.point)
    assert 0 < found.loss < (h * (q.cast(w) - w) ** 2).sum() / 2


def test_a_block_of_zeros_stays():
    found = best_scale(np.zeros(4), np.ones(4), BOOKS[0])
    assert (found.scale, found.loss) == (1.0, 0.0)
    # No level has the sign of the weights: zero is the best there is.
    assert best_scale(-np.ones(4), np.ones(4), np.arange(4.0)).loss == 2.0


@pytest.mark.parametrize(
    ("weights", "curvature", "levels", "message"),
    [
        (np.ones(3), np.ones(2), [0.0, 1.0], "weights and curvature have shapes"),
        (np.ones((3, 1)), np.ones((3, 1)), [0.0, 1.0], "weights and curvature have shapes"),
        (np.ones(3), np.ones(3), [1.0, 0.0], "levels must be a non-empty increasing 1-D array"),
        (np.ones(3), np.ones(3), [], "levels must be a non-empty increasing 1-D array"),
        (np.ones(3), -np.ones(3), [0.0, 1.0], "curvature must not be negative"),
        (np.full(3, np.nan), np.ones(3), [0.0, 1.0], "must be finite"),
    ],
)
def test_best_scale_refuses_bad_arguments(weights, curvature, levels, message):
    with pytest.raises(ValueError, match=message):
        scales.best_scale(weights, curvature, np.array(levels))


def test_best_scales_refuses_lopsided_codebooks():
    with pytest.raises(ValueError, match="needs a codebook from -c to c"):
        best_scales(np.ones(4), np.ones(4), "int4full/gauge")


def test_best_scales_take_weights_of_one_axis():
    w = np.random.default_rng(5).standard_normal(40)
    one, row = best_scales(w, np.ones(40), "int4"), best_scales(w[None], np.ones((1, 40)), "int4")
    assert one.point.shape == (40,) and (one.point == row.point[0]).all() and one.loss == row.loss
