"""The tolerance helpers, held to the definitions they implement."""

import numpy as np
import pytest

from tests.tolerances import bernstein_bound, hoeffding_bound, standard_error_bound, ulp, within_ulps


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulp_is_numpy_spacing(dtype):
    info = np.finfo(dtype)
    x = np.array([0, 1, 1.5, 7, 1000, info.tiny, info.smallest_subnormal, info.max], dtype=dtype)
    x = np.concatenate([x, np.nextafter(x[1:-1], dtype(0)), -x])
    # numpy's spacing of the largest number is inf, its successor not existing: compare below it.
    keep = np.abs(x) < info.max
    np.testing.assert_array_equal(ulp(x, dtype)[keep], np.spacing(np.abs(x[keep])).astype(np.float64))
    assert np.all(ulp(x[~keep], dtype) == info.max - float(np.nextafter(info.max, dtype(0))))


def test_ulp_of_bfloat16_is_its_spacing():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    codes = np.arange(0x7F7F, dtype=np.uint16)  # every finite non-negative number but the last
    x = codes.view(ml_dtypes.bfloat16).astype(np.float64)
    successor = (codes + np.uint16(1)).view(ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(ulp(x, "bfloat16"), successor - x)


def test_ulp_names_and_errors():
    assert ulp(1.0, "float32") == ulp(1.0, np.float32) == ulp(1.0, np.dtype("float32")) == 2.0**-23
    assert np.isnan(ulp([np.inf, np.nan])).all()
    with pytest.raises(ValueError, match="float8"):
        ulp(1.0, "float8")


def test_within_ulps_counts_ulps_symmetrically():
    x = np.float32(1)
    for n in (1, 2, 5):
        y = x
        for _ in range(n):
            y = np.nextafter(y, np.float32(2))
        for a, b in ((x, y), (y, x)):
            assert within_ulps(a, b, n, np.float32)
            assert not within_ulps(a, b, n - 1, np.float32)
    assert within_ulps(0.0, -0.0, 0)
    assert within_ulps([np.inf, 1], [np.inf, 1], 0)
    assert not within_ulps(np.inf, -np.inf, 10)
    assert not within_ulps(np.nan, np.nan, 10)
    assert not within_ulps(np.finfo(float).max, -np.finfo(float).max, 10)


def test_normal_quantile_and_bonferroni():
    # 1.96 standard errors at 5 %, from the tables; ten comparisons at 5 % are one at 0.5 %.
    assert standard_error_bound(4.0, 100, 0.05) == pytest.approx(1.959964 * 0.2, rel=1e-6)
    for bound in (standard_error_bound, hoeffding_bound):
        assert bound(2.0, 50, 0.05, comparisons=10) == pytest.approx(bound(2.0, 50, 0.005))


def test_bounds_invert_their_inequalities():
    n, alarm, m = 400, 1e-6, 7
    t = hoeffding_bound(3.0, n, alarm, m)
    assert 2 * np.exp(-2 * n * t**2 / 3.0**2) == pytest.approx(alarm / m)
    variance, deviation = np.array([0.0, 0.1, 0.25]), 1.0
    t = bernstein_bound(variance, deviation, n, alarm, m)
    np.testing.assert_allclose(2 * np.exp(-n * t**2 / (2 * variance + 2 * deviation * t / 3)), alarm / m)


def test_bernstein_between_the_normal_bound_and_hoeffding_for_rare_draws():
    # Two points 0, 1 with probability p of 1: variance p(1-p), deviation at most 1, spread 1.
    n, alarm, p = 10_000, 1e-6, 0.01
    normal = standard_error_bound(p * (1 - p), n, alarm)
    assert normal < bernstein_bound(p * (1 - p), 1.0, n, alarm) < hoeffding_bound(1.0, n, alarm)


def test_the_exact_binomial_tail_respects_hoeffding_and_bernstein():
    from scipy.stats import binom

    alarm = 1e-3
    for n in (10, 100, 1000):
        for p in (0.5, 0.1, 0.01):
            for t in (hoeffding_bound(1.0, n, alarm), bernstein_bound(p * (1 - p), max(p, 1 - p), n, alarm)):
                upper, lower = n * (p + t), n * (p - t)
                tail = binom.sf(np.ceil(upper - 1e-9) - 1, n, p) + binom.cdf(np.floor(lower + 1e-9), n, p)
                assert tail <= alarm


@pytest.mark.parametrize("arguments", [(0, 0.1, 1), (10, 0.0, 1), (10, 1.0, 1), (10, 0.1, 0)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="false_alarm"):
        standard_error_bound(1.0, *arguments)
