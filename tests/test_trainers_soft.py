"""Methods with a soft staircase against the known answers of their papers: DSQ, DGM, Hestia."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from lotion_theory.formats.codebooks import codebook
from lotion_theory.methods import dgm, dsq, hestia
from lotion_theory.methods import method as training_method
from lotion_theory.methods.rule import Shares
from testbeds.problems import linear_regression
from tests.rival_cases import midpoints, parameters_at, place_at, train_with

# DSQ and DGM


def _slopes(rule, r, q="int4"):
    """``φ'`` at places r of the cells from 0 up, where the highest level is 1."""
    state, p = place_at(rule, np.append(r, 1.0), q)
    return rule.direction(p, np.ones(len(r) + 1), 0, parameters_at(state))[:-1]


@pytest.mark.parametrize(
    ("rule", "middle", "end"),
    [(dsq.METHOD(), 1.155, 0.739), (dgm.METHOD(), 1.08198, 0.85092), (dsq.METHOD(k=1.0), 1.08198, 0.85092)],
)
def test_dsq_slopes(rule, middle, end):
    tolerance = 0.5e-5 if middle > 1.05 and middle < 1.1 else 0.6e-3  # the printed digits
    r = np.array([0.5, 0.0, 1.0]) / 7
    np.testing.assert_allclose(_slopes(rule, r), [middle, end, end], rtol=0, atol=tolerance)


@pytest.mark.parametrize("q", ["int4", "e2m1"])
def test_dsq_soft_staircase_joins_the_levels(q):
    """The mean slope over every cell is 1, whatever its width: the soft staircase meets all levels."""
    units = [float(v) for v in codebook(q).units if v >= 0]
    for rule in (dsq.METHOD(alpha=0.2), dgm.METHOD(beta=3.0)):
        for lo, hi in itertools.pairwise(units):
            mean, _ = quad(lambda w: _slopes(rule, np.array([w]), q)[0], lo, hi, epsabs=1e-10)  # noqa: B023
            assert mean == pytest.approx(hi - lo, rel=1e-8)


def test_dsq_limits():
    """k -> 0 is STE; α = 0.4 is k = log 4 with S = 5/3."""
    r = midpoints(7) / 7
    np.testing.assert_allclose(_slopes(dsq.METHOD(k=1e-6), r), 1, rtol=0, atol=1e-9)
    k, amplitude = dsq.METHOD().parameters(np.zeros(1))[0]
    assert (k, 2 * amplitude / k) == pytest.approx((math.log(4), 5 / 3), rel=1e-14)


# Hestia


def _soft(z, tau, q="ternary", warm=0.0, progress=0.0):
    """``(q, dq/dz)`` in code units at temperature ``tau``; the last weight sets the scale and is dropped."""
    book = codebook(q)
    high = float(book.high)
    rule = hestia.METHOD(tau0=tau - hestia.SOFTEST, warm=warm, scale="absmax")
    state, p = place_at(rule, np.append(z, high), q)
    a = parameters_at(state, progress)
    return (f(*x)[:-1] for f, x in ((state.rule.point, (p, a)), (state.rule.direction, (p, 1.0, 0, a))))


@pytest.mark.parametrize("tau", [0.05, 0.35089, 2.0])
def test_hestia_ternary_closed_form(tau):
    """``q = sinh(2z/τ) / (cosh(2z/τ) + ½ e^{1/τ})``, and its derivative by differences."""
    z = np.linspace(-1, 1, 41)
    q, slope = _soft(z, tau)
    np.testing.assert_allclose(
        q, np.sinh(2 * z / tau) / (np.cosh(2 * z / tau) + np.exp(1 / tau) / 2), rtol=0, atol=1e-14
    )
    e = 1e-5
    inner = z[1:-1]
    (up, _), (down, _) = _soft(inner + e, tau), _soft(inner - e, tau)
    # Third derivatives are of order (2/τ)³/8, which e² / 6 multiplies.
    np.testing.assert_allclose(slope[1:-1], (up - down) / (2 * e), rtol=0, atol=e**2 * (2 / tau) ** 3 + 1e-9)


@pytest.mark.parametrize("q", ["int3", "e2m1"])
def test_hestia_slope_is_the_variance_of_the_softmax(q):
    z, tau = np.linspace(-2.9, 2.9, 30), 0.4
    codes = codebook(q).values
    shares = np.exp(-((z[:, None] - codes) ** 2) / tau)
    shares /= shares.sum(axis=1, keepdims=True)
    mean = shares @ codes
    soft, slope = _soft(z, tau, q)
    np.testing.assert_allclose(soft, mean, rtol=0, atol=1e-13)
    np.testing.assert_allclose(slope, 2 / tau * (shares @ codes**2 - mean**2), rtol=0, atol=1e-12)


def test_hestia_first_temperature_is_the_best_for_ternary_weights():
    """Mean squared error on normals of E|z| = 1, least at τ = 0.35089: 0.36759, against 0.41372 for hard rounding."""
    sigma = math.sqrt(math.pi / 2)

    def error(tau):
        def density(z):
            # cosh and e^{1/τ} divided by the latter; beyond |z| = 12 the law has no mass left to matter.
            down = math.exp((-2 * z - 1) / tau), math.exp((2 * z - 1) / tau)
            q = (down[1] - down[0]) / (down[0] + down[1] + 1)
            return (q - z) ** 2 * stats.norm.pdf(z, scale=sigma)

        return 2 * quad(density, 0, 12, points=[0.5, 1, 2])[0]

    best = minimize_scalar(error, bounds=(0.1, 1), method="bounded", options={"xatol": 1e-7})
    assert best.x == pytest.approx(hestia.METHOD.settings["tau0"], abs=1e-5)
    assert best.fun == pytest.approx(0.36759, abs=1e-5)


def test_hestia_warm_integers_are_the_identity():
    """On a unit grid ``|q(z) - z| ≈ 2πτ e^{-π²τ}``, here far from the grid's ends."""
    z, tau = np.linspace(-1, 1, 201), 1.0  # 0.25, where the deviation peaks, is among them
    q, _ = _soft(z, tau, "int4")
    peak = 2 * math.pi * tau * math.exp(-(math.pi**2) * tau)
    assert np.abs(q - z).max() == pytest.approx(peak, rel=1e-3)


def test_hestia_without_temperature_is_ste():
    problem = linear_regression(64, seed=2)
    cold, ste = (
        train_with(problem, rule).state.w
        for rule in (training_method("hestia")(tau0=0.0, warm=0.0, scale="absmax"), training_method("qat")())
    )
    np.testing.assert_array_equal(cold, ste)


def test_hestia_schedule_and_the_coldest_step():
    share, tau = hestia.schedule(0.4, 0.2, Shares(np.array([0, 0.1, 0.2, 0.6, 1.0])))
    np.testing.assert_allclose(share, [0, 0.5, 1, 1, 1])
    np.testing.assert_allclose(tau, [0.4, 0.4, 0.4, 0.2, 0], atol=1e-16)
    z = np.array([-7, -0.5, 0.2, 0.5, 0.500001, 6.99])
    q, slope = _soft(z, 2 * hestia.SOFTEST, "int8")
    np.testing.assert_allclose(q, [-7, -0.5, 0, 0.5, 0.5 + 0.25, 7], atol=0.25)
    assert np.isfinite(slope).all()
    assert slope.min() >= 0
