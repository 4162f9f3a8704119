"""Linear regression: every structured form against its dense one, batches against their known moments."""

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import block_diag

from lotion_theory import Quantizer, smoothed_gradient, smoothed_loss
from lotion_theory.smoothing import Quadratic
from testbeds.problems.base import Part, Problem, TrainingProblem
from testbeds.problems.linear_regression import ROTATIONS, LinearRegression, SampledRegression, linear_regression
from tests.tolerances import standard_error_bound

D = 24
CASES = {
    "none": {},
    "hadamard": {"rotation": "hadamard", "block": 8, "noise": 0.5},
    "mixing": {"rotation": "mixing", "exponent": 0.5},
    "dense": {"rotation": "dense", "noise": 0.3, "tail": 3.0},
    "blocks": {"rotation": "blocks", "block": 6},
    "more samples": {"rotation": "mixing", "samples": 40, "noise": 0.3},
    "fewer samples": {"samples": 10, "noise": 0.3},
    "exact samples": {"rotation": "dense", "samples": 40},
}
every = pytest.mark.parametrize("name", CASES)


def _problem(name, **options):
    return linear_regression(D, 5, **{**CASES[name], **options})


def _points(n=4):
    return np.random.default_rng(8).normal(size=(n, D))


def _hessian(problem):
    """H by its definition."""
    if isinstance(problem, SampledRegression):
        return problem.inputs.T @ problem.inputs / len(problem.inputs)
    rotation = problem.rotation.apply(np.eye(D)).T
    return (rotation * problem.spectrum) @ rotation.T


def _plain(problem):
    hessian = _hessian(problem)
    return Quadratic((hessian + hessian.T) / 2, problem.optimum, problem.floor)


def _close(a, b, scale=1.0):
    # Sums of at most a few thousand products of float64 numbers whose total size is ``scale``.
    return np.allclose(a, b, rtol=1e-12, atol=1e-13 * scale)


@every
def test_is_a_training_problem(name):
    problem = _problem(name)
    assert isinstance(problem, Problem)
    assert isinstance(problem, TrainingProblem)
    assert problem.parts == (Part("w", (D,)),)
    assert problem.shape == problem.start.shape == problem.optimum.shape == problem.curvature.shape == (D,)
    assert type(problem.population) is LinearRegression
    assert problem.population.population is problem.population


@every
def test_loss_is_its_definition(name):
    problem, points = _problem(name), _points()
    if isinstance(problem, SampledRegression):
        expected = ((points @ problem.inputs.T - problem.targets) ** 2).mean(axis=1) / 2
    else:
        error = points - problem.optimum
        expected = ((error @ _hessian(problem)) * error).sum(axis=1) / 2 + problem.noise**2 / 2
    assert _close(problem(points), expected, expected.max())
    assert problem(problem.optimum[None])[0] == pytest.approx(problem.floor, rel=1e-12, abs=1e-25)


@every
def test_gradient_is_the_slope_of_the_loss(name):
    problem, w = _problem(name), _points(1)
    steps = np.eye(D)
    # Central differences of a quadratic are exact for every step; ½ cancels in losses of the size of their sum.
    slopes = (problem(w + steps) - problem(w - steps)) / 2
    assert _close(problem.gradient(w)[0], slopes, 10 * problem(w + steps).max())
    assert (problem.batch_gradient(w[0], 3) == problem.gradient(w)[0]).all()


@every
def test_structured_hessian_equals_the_dense_one(name):
    problem, points = _problem(name), _points()
    plain = _plain(problem)
    assert (problem.hessian == problem.hessian.T).all()
    assert _close(problem.hessian, plain.hessian, np.trace(plain.hessian))
    assert _close(problem.product(points), plain.product(points), 10 * np.trace(plain.hessian))
    assert _close(problem.curvature, plain.curvature, np.trace(plain.hessian))
    assert (problem.curvature_at(points[0]) == problem.curvature).all()
    for count in (1, 2, 3, 8, 24):
        blocks = points[0].reshape(count, -1)
        assert _close(problem.block_products(blocks), plain.block_products(blocks), 10 * np.trace(plain.hessian))


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotations_share_spectrum_optimum_and_start(rotation):
    plain = linear_regression(D, 1, tail=4)
    problem = linear_regression(D, 1, tail=4, rotation=rotation, block=4)
    eigenvalues = np.linalg.eigvalsh(problem.hessian)[::-1]
    assert _close(eigenvalues, np.arange(1, D + 1) ** -1.1, 10)
    assert (problem.optimum == plain.optimum).all()
    assert (problem.start == plain.start).all()


def test_blocks_are_dense_and_share_the_spectrum_evenly():
    problem = linear_regression(D, 2, rotation="blocks", block=6)
    inside = block_diag(*np.ones((4, 6, 6))).astype(bool)
    assert (problem.hessian[~inside] == 0).all()
    assert (problem.hessian[inside] != 0).all()
    ranks = np.sort(np.round(problem.spectrum ** (-1 / 1.1)).astype(int).reshape(4, 6), axis=1)
    assert (np.sort(ranks, axis=0) == np.arange(1, D + 1).reshape(6, 4).T).all()
    sampled = linear_regression(D, 2, rotation="blocks", block=6, samples=3)
    assert (sampled.population.spectrum == problem.spectrum).all()


@every
@pytest.mark.parametrize("text", ["int4/absmax/block=8", "nf4/absmax/tensor", "int2/absmax/block=4", "ternary/absmean"])
def test_expected_loss_is_the_smoothed_loss(name, text):
    problem, w, q = _problem(name), _points(1)[0], Quantizer.parse(text)
    smoothed = smoothed_loss(problem, w, q, "closed_form").value
    # For a scale that clips the mean of the rounding is not w.
    assert problem.expected_loss(q.mean(w), q.variance(w)) == pytest.approx(smoothed, rel=1e-12)
    assert smoothed == pytest.approx(smoothed_loss(_plain(problem), w, q, "closed_form").value, rel=1e-12)


@every
def test_closed_forms_of_drawn_scales_use_the_diagonal_blocks(name):
    problem, w, q = _problem(name), _points(1)[0], "e2m1/e4m3-sr/block=8"
    plain = _plain(problem)
    value = smoothed_loss(plain, w, q, "closed_form").value
    assert smoothed_loss(problem, w, q, "closed_form").value == pytest.approx(value, rel=1e-12)
    expected = smoothed_gradient(plain, w, q, "closed_form").value
    assert _close(smoothed_gradient(problem, w, q, "closed_form").value, expected, 100 * value)


@every
def test_expected_parts_are_the_derivatives_of_the_expected_loss(name):
    problem, w = _problem(name), _points(1)[0]
    variance = np.random.default_rng(9).exponential(size=D)
    by_w, by_variance = problem.expected_parts(w, variance)
    # Quadratic in w and linear in the variances: differences over unit steps are exact.
    ups = [problem.expected_loss(w + e, variance) for e in np.eye(D)]
    downs = [problem.expected_loss(w - e, variance) for e in np.eye(D)]
    assert _close(by_w, np.subtract(ups, downs) / 2, 10 * max(ups))
    moved = [problem.expected_loss(w, variance + e) for e in np.eye(D)]
    assert _close(by_variance, 2 * np.subtract(moved, problem.expected_loss(w, variance)), 10 * max(moved))


@pytest.mark.parametrize("name", ["none", "hadamard", "mixing", "dense", "blocks"])
def test_batch_gradients_of_the_population_are_those_of_its_samples(name):
    problem, w = _problem(name, batch=7), _points(1)[0]
    for step in (0, 5, 2**40):
        inputs, targets = problem.inputs_and_targets(7, problem.batches.numpy_generator(step))
        expected = (inputs @ w - targets) @ inputs / 7
        assert _close(problem.batch_gradient(w, step), expected, 100 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["none", "hadamard", "mixing", "dense", "blocks"])
def test_population_batches_are_unbiased(name):
    batch, steps = 64, 400
    problem, w = _problem(name, batch=batch, noise=0.4), _points(1)[0]
    # With v ~ N(0, H), e = w - w*: Var (v vᵀe - noise ε v)_i = H_ii (eᵀHe + noise²) + (He)_i² (Isserlis).
    power = 2 * (problem(w[None])[0] - problem.floor)
    variance = problem.curvature * (power + 0.4**2) + problem.gradient(w[None])[0] ** 2
    drawn = np.array([problem.batch_gradient(w, step) for step in range(steps)])
    bias = drawn.mean(axis=0) - problem.gradient(w[None])[0]
    assert (np.abs(bias) <= standard_error_bound(variance / batch, steps, 1e-6, D)).all()
    # The variance of steps gives itself: a sample variance of near-normal means has relative error √(2 / steps) each.
    ratio = drawn.var(axis=0, ddof=1) / (variance / batch)
    assert np.abs(ratio - 1).max() < 6 * np.sqrt(2 / steps)


@pytest.mark.parametrize("name", ["more samples", "fewer samples"])
def test_batches_of_fixed_samples_are_unbiased(name):
    batch, steps = 4, 2000
    problem, w = _problem(name, batch=batch), _points(1)[0]
    each = (problem.inputs @ w - problem.targets)[:, None] * problem.inputs
    # Drawn without replacement: the variance of a mean is S² / batch (1 - batch / N), S² the one with N - 1.
    variance = each.var(axis=0, ddof=1) / batch * (1 - batch / len(each))
    drawn = np.array([problem.batch_gradient(w, step) for step in range(steps)])
    bias = drawn.mean(axis=0) - problem.gradient(w[None])[0]
    assert (np.abs(bias) <= standard_error_bound(variance, steps, 1e-6, D)).all()
    whole = _problem(name, batch=len(each))
    assert _close(whole.batch_gradient(w, 0), problem.gradient(w[None])[0], 10 * np.abs(each).max())


@every
def test_batches_depend_on_seed_and_step_only(name):
    problem, again, other = _problem(name, batch=3), _problem(name, batch=3), _problem(name)
    w = _points(1)[0]
    later = problem.batch_gradient(w, 1)
    assert (again.batch_gradient(w, 0) != later).any()
    assert (again.batch_gradient(w, 1) == later).all()
    assert (other.start == problem.start).all()


@every
def test_the_seed_makes_the_instance(name):
    problem, again, other = _problem(name), _problem(name), linear_regression(D, 6, **CASES[name])
    w = _points()
    assert problem.name == again.name != other.name
    assert (problem(w) == again(w)).all()
    assert (problem.start == again.start).all()
    assert (problem(w) != other(w)).all()
    assert (problem.start != other.start).all()


@pytest.mark.parametrize("samples", [1, 10, 24, 25, 200])
@pytest.mark.parametrize("rotation", ["none", "mixing"])
def test_optimum_of_samples_is_the_least_squares_solution(samples, rotation):
    problem = linear_regression(D, 3, samples=samples, rotation=rotation, noise=0.7)
    x, y = problem.inputs, problem.targets
    assert x.shape == (samples, D)
    # Relative error of a solution by QR: 2^-53 times the condition number and a modest power of the sizes.
    tolerance = 1e-13 * np.linalg.cond(x)
    assert np.allclose(problem.optimum, np.linalg.pinv(x) @ y, rtol=0, atol=tolerance * np.linalg.norm(y))
    assert np.abs(x.T @ (x @ problem.optimum - y)).max() < 1e-11 * np.abs(x).sum()
    assert problem.floor < problem.population(problem.optimum[None])[0]
    assert problem.floor < 1e-20 if samples <= D else problem.floor > 0
    exact = linear_regression(D, 3, samples=samples, rotation=rotation)
    if samples >= D:
        assert (exact.optimum == exact.population.optimum).all()
        assert exact.floor == 0


@pytest.mark.parametrize("rotation", ["none", "hadamard", "blocks", "mixing"])
def test_samples_follow_the_population(rotation):
    n, d, noise = 4000, 12, 0.3
    problem = linear_regression(d, 4, rotation=rotation, block=4, samples=n, noise=noise)
    h = problem.population.hessian
    # Var x_i x_j = H_ii H_jj + H_ij² for Gaussian inputs; the residuals at w* have fourth moment 3 noise⁴.
    spread = np.outer(np.diagonal(h), np.diagonal(h)) + h**2
    assert (np.abs(problem.hessian - h) <= standard_error_bound(spread, n, 1e-6, d**2)).all()
    residuals = problem.inputs @ problem.population.optimum - problem.targets
    assert abs((residuals**2).mean() - noise**2) <= standard_error_bound(2 * noise**4, n, 1e-6)


@pytest.mark.parametrize("samples", [None, 9])
def test_starts(samples):
    made = {s: linear_regression(D, 3, start=s, samples=samples, noise=0.1) for s in ("normal", "zero", "optimum")}
    assert (made["zero"].start == 0).all()
    optimum = made["optimum"]
    assert (optimum.start == optimum.optimum).all()
    assert optimum.start is not optimum.optimum
    assert not np.allclose(made["normal"].start, made["normal"].population.optimum)
    many = linear_regression(20000, 3)
    # Dvoretzky-Kiefer-Wolfowitz: the empirical law is within √(ln(2 / 1e-6) / 2n) of the true one.
    limit = np.sqrt(np.log(2e6) / 40000)
    assert stats.kstest(many.start, "norm").statistic < limit
    correlation = (many.start * many.optimum).mean()
    assert abs(correlation) <= standard_error_bound(1.0, 20000, 1e-6)


@pytest.mark.parametrize(
    ("tail", "law"),
    [(None, stats.norm()), (5.0, stats.t(5, scale=np.sqrt(3 / 5))), (2.0, stats.t(2)), (1.0, stats.cauchy())],
)
def test_optimum_has_the_tails_asked_for(tail, law):
    n = 20000
    found = stats.kstest(linear_regression(n, 7, tail=tail).optimum, law.cdf).statistic
    assert found < np.sqrt(np.log(2e6) / (2 * n))
    if tail is not None and tail > 2:
        assert law.var() == pytest.approx(1)


def test_large_structured_problems():
    problem = linear_regression(20011, 0, rotation="mixing", noise=0.2, batch=2)
    w = problem.start
    gradient = problem.gradient(w[None])[0]
    # ½ (w - w*)ᵀ ∇L is the loss above the floor, and a sum over eigendirections.
    assert gradient @ (w - problem.optimum) / 2 + problem.floor == pytest.approx(problem(w[None])[0], rel=1e-12)
    assert problem.batch_gradient(w, 0).shape == w.shape
    with pytest.raises(ValueError, match="d = 20011 is too large for a Hessian"):
        _ = problem.hessian
    diagonal = linear_regression(300000, 0)
    assert (diagonal.gradient(w0 := diagonal.start[None]) == diagonal.spectrum * (w0 - diagonal.optimum)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 0}, "d = 0; valid: at least 1"),
        ({"rotation": "haar"}, "rotation = 'haar'; valid: none, hadamard, mixing, dense, blocks"),
        ({"rotation": "dense", "d": 2049}, "d = 2049; valid for rotation 'dense': at most 2048; beyond, use 'mixing'"),
        ({"rotation": "hadamard", "d": 12000}, "block = 128; valid for 12000 coordinates, .*16, 32$"),
        (
            {"rotation": "blocks", "d": 12000},
            "block = 128; valid: divisors of d = 12000 .*nearest: 100, 120, 125, 150$",
        ),
        ({"rotation": "blocks", "d": 8192, "block": 4096}, "block = 4096; valid: divisors"),
        ({"start": "random"}, "start = 'random'; valid: normal, zero, optimum"),
        ({"exponent": -1.0}, "exponent = -1.0; valid: finite and at least 0"),
        ({"exponent": float("nan")}, "exponent = nan"),
        ({"noise": -0.1}, "noise = -0.1; valid"),
        ({"tail": 0.0}, "tail = 0.0; valid: positive"),
        ({"batch": 0}, "batch = 0; valid: at least 1, or None"),
        ({"samples": 0}, "samples = 0; valid: at least 1, or None"),
        ({"samples": 4, "batch": 5}, "batch = 5; valid: at most the 4 samples"),
        ({"d": 12000, "samples": 2501}, "samples = 2501; valid for d = 12000: at most 2500"),
        ({"d": 40, "exponent": 500.0, "samples": 40}, "full rank"),
        ({"seed": -1}, "seed = -1; valid"),
    ],
)
def test_errors_name_the_argument_and_the_valid_values(options, message):
    with pytest.raises(ValueError, match=message):
        linear_regression(**{"d": 8, "seed": 0, **options})


def test_points_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="expected"):
        linear_regression(D, 0, rotation="mixing")(np.ones((2, D + 1)))
