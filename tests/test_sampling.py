"""Sampled estimates of the smoothed loss: within bounds from the known variance, and honest about their error."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import Quadratic, Quantizer
from lotion_theory.smoothing import sampling
from tests import smoothing_cases, strategies, tolerances
from tests.smoothing_cases import local, quadratic, weights

FALSE_ALARM = 1e-6
"""Probability that a correct program fails one sampled test; the seeds are fixed."""

CASES = ("int4/absmax", "e2m1/e8m0-sr", "int4full/absmax7.5", "nf4/e4m3-sr", "ternary/absmean")


def float_case(text, d=5, seed=5):
    q = local(text)
    w = weights(q, d, seed).astype(float)
    return q, w, smoothing_cases.as_float(quadratic(d, seed))


def moments(probs, values):
    """Mean, variance and fourth central moment of a finite law."""
    mean = probs @ values
    return mean, probs @ (values - mean) ** 2, probs @ (values - mean) ** 4


def pair_law(q, w, loss):
    """The law of one antithetic pair's mean: each weight draws (up(u), up(1 - u)), of which both are up with probability
    max(0, 2p - 1); so does each block's lattice."""
    (first, *other) = q.branches(w)
    states = [[(1.0, 0, 0)]] if not other else [coupled(float(other[0].prob[0, 0]))]
    probs, values = [], []
    for chance, k, n in states[0]:
        cells = [(first, *other)[i].cell for i in (k, n)]
        # One uniform per weight serves both lattices, so the pair's probabilities may differ.
        columns = []
        for j in range(w.size):
            p, r = (
                (c.target[0, j] - c.lo[0, j]) / (c.hi[0, j] - c.lo[0, j]) if c.hi[0, j] > c.lo[0, j] else 0.0
                for c in cells
            )
            columns.append([(m, c0, c1) for m, c0, c1 in coupled(p, r) if m > 0])
        for combination in itertools.product(*columns):
            points = []
            for side in (0, 1):
                cell = cells[side]
                ups = np.array([c[1 + side] for c in combination], dtype=bool)
                points.append(np.where(ups, cell.hi[0], cell.lo[0]))
            probs.append(chance * np.prod([c[0] for c in combination]))
            values.append(loss(np.array(points).reshape(2, *w.shape)).mean())
    return np.array(probs), np.array(values)


def coupled(p, r=None):
    """The joint law of (u < p, 1 - u < r)."""
    r = p if r is None else r
    both = max(0.0, p + r - 1)
    return [(both, 1, 1), (p - both, 1, 0), (r - both, 0, 1), (1 - p - r + both, 0, 0)]


@pytest.mark.parametrize("text", CASES)
def test_monte_carlo_is_unbiased_and_its_error_honest(text):
    """N = 16384 draws. The mean: Bernstein's bound from the exact variance. The reported error: s² is a mean of squares
    with variance (μ₄ - σ⁴)/N, normal at this N, so s² / σ² stays within z sqrt((μ₄/σ⁴ - 1)/N)."""
    q, w, loss = float_case(text)
    law = lt.law(w, q)
    values = loss(law.points)
    mean, variance, fourth = moments(law.probs, values)
    n = 2**14
    found = lt.smoothed_loss(loss, w, q, "monte_carlo", samples=n, seed=1)
    assert found.evaluations == n
    assert abs(found.value - mean) <= tolerances.bernstein_bound(variance, np.abs(values - mean).max(), n, FALSE_ALARM)
    ratio = found.standard_error**2 * n / variance
    assert abs(ratio - 1) <= tolerances.standard_error_bound(fourth / variance**2 - 1, n, FALSE_ALARM) + 2 / n


@pytest.mark.parametrize("text", CASES)
def test_antithetic_pairs_are_mirrored(text):
    """As above, with the exact law of a pair; a second, independent draw in place of the mirrored one would have half the
    variance of a single draw, which these bounds exclude."""
    q, w, loss = float_case(text, d=4, seed=7)
    probs, values = pair_law(q, w, loss)
    assert abs(probs.sum() - 1) < 1e-12
    mean, variance, fourth = moments(probs, values)
    law = lt.law(w, q)
    single = moments(law.probs, loss(law.points))
    assert abs(mean - single[0]) <= 1e-9 * (1 + abs(mean))
    pairs = 2**13
    found = lt.smoothed_loss(loss, w, q, "antithetic", samples=2 * pairs, seed=2)
    assert abs(found.value - mean) <= tolerances.bernstein_bound(
        variance, np.abs(values - mean).max(), pairs, FALSE_ALARM
    )
    ratio = found.standard_error**2 * pairs / variance
    within = tolerances.standard_error_bound(fourth / variance**2 - 1, pairs, FALSE_ALARM) + 2 / pairs
    assert abs(ratio - 1) <= within
    assert abs(single[1] / 2 / variance - 1) > within, "this case cannot tell mirrored draws from independent ones"


def smooth_case(d=6):
    """A loss that is nearly linear over the cells of a fine lattice: where variance reduction should show."""
    w = np.linspace(-0.83, 0.9, d)
    loss = Quadratic(0.02 * np.ones((d, d)) + 0.02 * np.eye(d), np.full(d, -40.0))
    return Quantizer.parse("int4").with_scale(0.25), w, loss


def test_antithetic_beats_monte_carlo_where_the_loss_is_smooth():
    """By exact variance, at equal loss evaluations."""
    q, w, loss = smooth_case()
    law = lt.law(w, q)
    single = moments(law.probs, loss(law.points))[1]
    pair = moments(*pair_law(q, w, loss))[1]
    assert pair < 0.5 * single / 2


def test_quasi_monte_carlo_beats_monte_carlo_where_the_loss_is_smooth():
    """Root mean square error over 40 fixed seeds of 512 points each, against the exact one of Monte Carlo; and the reported
    error: with 7 degrees of freedom a seed, the ratio of the summed squares is within a factor 2 of 1 (F(40, 280): 1e-4)."""
    q, w, loss = smooth_case()
    law = lt.law(w, q)
    mean, variance, _ = moments(law.probs, loss(law.points))
    found = [lt.smoothed_loss(loss, w, q, "quasi_monte_carlo", samples=512, seed=s) for s in range(40)]
    error = np.mean([(f.value - mean) ** 2 for f in found])
    assert {f.evaluations for f in found} == {512}
    assert error < 0.25**2 * variance / 512
    reported = np.mean([f.standard_error**2 for f in found])
    assert 0.5 < error / reported < 2


@pytest.mark.parametrize("text", CASES)
def test_quasi_monte_carlo_is_unbiased(text):
    """Scramblings are independent and each mean is unbiased: 64 of them, Student's bound at the false-alarm rate."""
    from scipy.stats import t

    q, w, loss = float_case(text)
    mean = lt.smoothed_loss(loss, w, q).value
    found = lt.smoothed_loss(loss, w, q, "quasi_monte_carlo", samples=64 * 64, randomizations=64, seed=3)
    assert abs(found.value - mean) <= t.isf(FALSE_ALARM / 2, 63) * found.standard_error
    assert lt.smoothed_loss(loss, w, q, "quasi_monte_carlo", samples=1000).evaluations == 512


def shifted_lattice(d, power, seed):
    """A Korobov lattice of generator 1 571, shifted at random."""
    n = 2**power
    generator = np.array([pow(1571, j, n) for j in range(d)], dtype=np.float64)
    shift = lt.Stream(seed % 2**32, "test").numpy_generator().random(d)
    return (np.arange(n)[:, None] * generator / n + shift) % 1


def test_any_randomized_points_serve():
    """A shifted lattice: as unbiased as Sobol' points, by Student's bound, and better than Monte Carlo on smooth losses."""
    from scipy.stats import t

    q, w, loss = smooth_case()
    law = lt.law(w, q)
    mean, variance, _ = moments(law.probs, loss(law.points))
    found = lt.smoothed_loss(
        loss, w, q, "quasi_monte_carlo", samples=64 * 64, randomizations=64, seed=3, points=shifted_lattice
    )
    assert abs(found.value - mean) <= t.isf(FALSE_ALARM / 2, 63) * found.standard_error
    assert found.standard_error**2 < 0.5 * variance / 4096
    for bad in (lambda d, power, seed: np.zeros((2, d)), lambda d, power, seed: np.full((2**power, d), 1.5)):
        with pytest.raises(ValueError, match="points gave shape"):
            lt.smoothed_loss(loss, w, q, "quasi_monte_carlo", points=bad)


@pytest.mark.parametrize("method", ["monte_carlo", "antithetic", "quasi_monte_carlo"])
def test_a_seed_is_a_value_and_chunks_do_not_show(method, monkeypatch):
    q, w, loss = float_case("e2m1/e8m0-sr")
    found = lt.smoothed_loss(loss, w, q, method, samples=256, seed=7)
    assert found == lt.smoothed_loss(loss, w, q, method, samples=256, seed=7)
    assert found.value != lt.smoothed_loss(loss, w, q, method, samples=256, seed=8).value
    for chunk in (1, 20, 777):
        monkeypatch.setattr(sampling, "_CHUNK", chunk)
        again = lt.smoothed_loss(loss, w, q, method, samples=256, seed=7)
        assert again.evaluations == found.evaluations
        # A batch of another length may sum in another order inside the loss (BLAS): a few ulp of a value, not the draws.
        assert tolerances.within_ulps(again.value, found.value, 64)
        assert tolerances.within_ulps(again.standard_error, found.standard_error, 2**12)


@given(st.sampled_from([*CASES, "uint4/zp-real", "fairy"]), st.integers(0, 2**32 - 1), st.integers(1, 3))
@strategies.examples(25)
def test_sampled_points_are_roundings(text, seed, rows):
    """``randomized_points`` makes of a row of uniforms what ``round`` makes of it."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((2, 4))
    q = Quantizer.parse(text + "/row" if text != "fairy" else "fairy/l1/row")
    if text == "fairy":
        w = w + 1j * rng.standard_normal((2, 4))
    u = rng.random((rows, sampling.coordinates(q, w)))
    points = sampling.randomized_points(q, w, u)
    inner = 16 if text == "fairy" else 8
    for row, point in zip(u, points, strict=True):
        own = row[:inner].reshape((2, 4, 2) if text == "fairy" else (2, 4))
        scale = row[inner:] if q.scale.is_drawn else None
        assert np.array_equal(q.round(w, own, scale), point)
