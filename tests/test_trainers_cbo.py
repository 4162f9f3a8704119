"""Consensus-based optimization against its known limits, and as a run of a sweep."""

import itertools

import numpy as np
import pytest

from lotion_theory.methods import Rule
from testbeds.descent import cbo, plain, prepare
from testbeds.problems import linear_regression
from tests.tolerances import standard_error_bound


def test_consensus_point_limits():
    rng = np.random.default_rng(0)
    particles, energies = rng.standard_normal((50, 3)), rng.random(50)
    np.testing.assert_allclose(cbo.consensus_point(particles, energies, 0.0), particles.mean(axis=0), atol=1e-14)
    np.testing.assert_array_equal(cbo.consensus_point(particles, energies, 1e9), particles[np.argmin(energies)])


@pytest.mark.parametrize("noise", ["anisotropic", "isotropic"])
def test_equal_particles_stay(noise):
    particles = np.repeat(np.random.default_rng(1).standard_normal((1, 4)), 30, axis=0)
    center = cbo.consensus_point(particles, np.ones(30), 5.0)
    moved = cbo.move(particles, center, np.ones((30, 4)), {"dt": 0.1, "drift": 1.0, "sigma": 2.0, "noise": noise})
    np.testing.assert_array_equal(moved, particles)


def test_hopping_is_a_proximal_step():
    """``m⁺ = (I + α σ² H)⁻¹ (m + α σ² H w*)`` for many particles around m on the unquantized quadratic."""
    problem, alpha, width = linear_regression(2, seed=3, rotation="dense"), 3.0, 0.7
    centers = [problem.start]
    spread = width / float(np.sqrt(np.mean(problem.start**2)))
    n, others = 200_000, np.random.default_rng(7).standard_normal((10_000, 2))
    settings = {
        "particles": n, "steps": 1, "kind": "hopping", "spread": spread, "alpha": alpha, "normalized": False,
    }  # fmt: skip
    cbo.consensus(problem, None, 0, settings, watch=lambda step, center, best: centers.append(center))
    h = problem.hessian
    for m, new in itertools.pairwise(centers):
        pull = alpha * width**2 * h
        covariance = width**2 * np.linalg.inv(np.eye(2) + pull)
        exact = np.linalg.solve(np.eye(2) + pull, m + pull @ problem.optimum)
        # Importance sampling of N(exact, covariance) from N(m, width²): with weights e^{-αL} over their mean, which are
        # at most 1 over it, the variance of a mean is at most that much times the covariance / n.
        largest = 1 / np.exp(-alpha * problem(m + width * others)).mean()
        bound = standard_error_bound(largest * np.diag(covariance), n, false_alarm=1e-6, comparisons=4)
        assert (np.abs(new - exact) < bound).all()


def test_cbo_finds_the_best_rounding_of_few_weights():
    """From w*, the search is at least as good as all 2^8 roundings of w* on its grid, which may also move here."""
    reached = 0
    for seed in range(5):
        problem = linear_regression(8, seed=seed, rotation="dense", start="optimum")
        p = plain.place(prepare(problem, Rule(), "int4"), np.zeros(8))
        best = problem(np.array(list(itertools.product(*zip(p.lo, p.hi, strict=True))))).min()
        found = cbo.consensus(problem, "int4", seed, {"steps": 100, "particles": 100, "spread": 0.15})
        cast = cbo.cast_rows(problem, "int4")(found.weights[None])
        # One point and many at once are summed in different orders.
        best_seen = min(found.history["best"][-1], found.history["consensus"][-1])
        assert problem(cast)[0] == pytest.approx(best_seen, rel=1e-12)
        assert found.history["evaluations"][-1] == 101 * 100
        reached += problem(cast)[0] <= best
    assert reached >= 4


def test_cast_rows_is_the_grid_of_training():
    problem = linear_regression(64, seed=0)
    points = np.random.default_rng(0).standard_normal((3, 64))
    for q in ("int4", "int4/absmax/block=16", "nf4/absmax/row"):
        cast = cbo.cast_rows(problem, q)(points)
        for row, point in zip(cast, points, strict=True):
            state = prepare(problem, Rule(), q, start=point)
            np.testing.assert_array_equal(row, plain.place(state, np.zeros(64)).near)


def test_run_cbo_is_a_run():
    problem = linear_regression(16, seed=0, rotation="dense", start="optimum")
    first, again = (cbo.run_cbo(problem, "int4", 3, {"steps": 30, "particles": 40, "spread": 0.1}) for _ in range(2))
    np.testing.assert_array_equal(first.state.w, again.state.w)
    assert (first.steps, first.diverged) == (30, False)
    assert first.curve["step"][0] == 0
    assert first.curve["step"][-1] == 30
    assert {len(values) for values in first.curve.values()} == {len(first.curve["step"])}
    assert first.losses.rtn <= min(first.curve["rtn"])
    assert first.seconds > 0


def test_cbo_reports_divergence_and_bad_settings():
    problem = linear_regression(4, seed=0)
    blown = cbo.run_cbo(problem, "int4", 0, {"steps": 200, "particles": 5, "dt": 1e4, "sigma": 1e3, "spread": 1.0})
    assert blown.diverged
    assert blown.steps < 200
    assert np.isfinite(blown.state.w).all()
    for bad in ({"kind": "x"}, {"noise": "x"}, {"particles": 0}, {"steps": 1.5}, {"sigma": -1.0}):
        with pytest.raises(ValueError, match=rf"^{next(iter(bad))} = "):
            cbo.run_cbo(problem, "int4", 0, bad)
    with pytest.raises(ValueError, match="cbo has no setting 'bogus'"):
        cbo.consensus(problem, "int4", 0, {"bogus": 1})
