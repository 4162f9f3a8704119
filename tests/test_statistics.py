"""Statistics against scipy, by hand, and by simulation of what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lotion_theory import Stream
from testbeds.results import statistics as s

EPS = np.finfo(float).eps


def pairs(n: int, seed: int = 0, shift: float = 0.3) -> tuple[dict[int, float], dict[int, float]]:
    normal = Stream(seed, "test/pairs").numpy_generator().standard_normal((3, n))
    a = np.exp(0.3 * normal[0] + 0.1 * normal[1] - shift)
    b = np.exp(0.3 * normal[0] + 0.1 * normal[2])
    return dict(enumerate(a.tolist())), dict(enumerate(b.tolist()))


@pytest.mark.parametrize("n", [2, 3, 7, 40])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_mean_interval_is_scipys(n, level):
    x = np.array(list(pairs(n)[0].values()))
    found = s.mean_interval(x, level)
    low, high = stats.t.interval(level, n - 1, loc=x.mean(), scale=stats.sem(x))
    # Two routes to the same quantile; scipy states 1e-12 or better for it.
    assert found.value == pytest.approx(x.mean(), rel=4 * EPS) and found.n == n
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-10)
    assert found.half == pytest.approx((high - low) / 2, rel=1e-10)


def test_one_value_has_no_interval():
    assert s.mean_interval([2.5]) == s.Interval(2.5, None, None, 1)
    assert s.mean_interval([2.5]).half is None
    assert s.paired({3: 2.0, 4: 9.0}, {3: 1.0}).difference == s.Interval(1.0, None, None, 1)


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (5, 0.95), (10, 0.8)])
def test_intervals_of_normal_values_cover_as_often_as_they_say(n, level):
    runs = 20_000
    draws = Stream(11, "test/coverage").numpy_generator().normal(3.0, 2.0, (runs, n))
    covered = sum(i.low <= 3.0 <= i.high for i in map(lambda x: s.mean_interval(x, level), draws))
    # The t interval is exact for normal values: a binomial count, two-sided false-alarm rate 1e-6 (4.89 deviations).
    assert abs(covered / runs - level) <= stats.norm.isf(5e-7) * np.sqrt(level * (1 - level) / runs)


def test_geometric_interval_is_that_of_the_logarithms():
    x = list(pairs(6)[0].values())
    found, logs = s.geometric_interval(x), s.mean_interval(np.log(x))
    assert found == pytest.approx([np.exp(logs.value), np.exp(logs.low), np.exp(logs.high), 6], rel=8 * EPS)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_paired_agrees_with_scipy(n):
    a, b = pairs(n)
    x, y = np.array(list(a.values())), np.array(list(b.values()))
    found = s.paired(a, b)
    test = stats.ttest_rel(x, y)
    ends = test.confidence_interval(0.95)
    assert found.difference[:3] == pytest.approx((x.mean() - y.mean(), ends.low, ends.high), rel=1e-10)
    log_ends = stats.ttest_rel(np.log(x), np.log(y)).confidence_interval(0.95)
    assert found.geometric[:3] == pytest.approx(
        (stats.gmean(x) / stats.gmean(y), np.exp(log_ends.low), np.exp(log_ends.high)), rel=1e-10
    )
    assert found.ratio_of_means == pytest.approx(x.mean() / y.mean(), rel=8 * EPS)
    assert (found.wins, found.ties, found.losses) == ((x < y).sum(), 0, (x > y).sum())
    exact = stats.permutation_test((x, y), lambda u, v: np.mean(u - v), permutation_type="samples", n_resamples=np.inf)
    # scipy doubles the smaller tail, which for this symmetric law of the mean is the same number.
    assert found.p_value == pytest.approx(exact.pvalue, abs=1e-12)


def test_differences_of_one_size_give_the_sign_test():
    for n, wins in itertools.product((1, 4, 9, 16), (0, 1, 4)):
        if wins <= n:
            d = np.where(np.arange(n) < wins, 0.1, -0.1)
            assert s.sign_flip_p(d) == pytest.approx(stats.binomtest(wins, n).pvalue, abs=1e-12)


def test_sampled_flips_estimate_the_exact_share(monkeypatch):
    a, b = pairs(16, seed=2, shift=0.03)
    exact = s.paired(a, b).p_value
    assert 0.05 < exact < 0.95  # neither end, where an error would not show
    monkeypatch.setattr(s, "MOST_ENUMERATED", 15)
    found = s.paired(a, b)
    assert found.p_value == s.paired(a, b).p_value != s.paired(a, b, seed=1).p_value
    # A binomial share of 1e5 flips, two-sided false-alarm rate 1e-6, and 1e-5 for the correction.
    bound = stats.norm.isf(5e-7) * np.sqrt(exact * (1 - exact) / s.FLIPS) + 1 / s.FLIPS
    assert abs(found.p_value - exact) <= bound


def test_more_pairs_than_enumerated_never_give_zero():
    far = {k: 100.0 for k in range(30)}, {k: 1.0 + 0.01 * k for k in range(30)}
    # 2 of 2^30 flips: none of 1e5 hits except with probability 2e-4; this seed has none.
    assert s.paired(*far).p_value == 1 / (1 + s.FLIPS)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=8))
def test_sign_flip_p_counts_flips(values):
    d = np.array(values) / 7  # sums that tie in exact arithmetic and differ by rounding
    total = abs(sum(values))
    flips = [abs(sum(f * v for f, v in zip(signs, values, strict=True))) >= total
             for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    assert s.sign_flip_p(d) == np.mean(flips)


def test_only_common_seeds_are_compared_and_order_is_nothing():
    a, b = pairs(6)
    more = {9: 1e9, **dict(reversed(a.items()))}
    assert s.paired(more, {**b, 17: -1.0}) == s.paired(a, b)
    swapped, plain = s.paired(b, a), s.paired(a, b)
    assert swapped.p_value == plain.p_value and swapped.difference.value == -plain.difference.value
    assert (swapped.wins, swapped.losses) == (plain.losses, plain.wins)


def test_equal_values_and_signs():
    same = s.paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same.p_value == 1 and same.ties == 2 and same.geometric == s.Interval(1, 1, 1, 2)
    assert s.paired({0: -1.0, 1: 1.0}, {0: 1.0, 1: 2.0}).geometric is None
    assert s.paired({0: 1.0, 1: 1.0}, {0: 1.0, 1: -1.0}).ratio_of_means is None


def test_comparison_intervals_of_two_are_those_of_their_ratio():
    a, b = pairs(8)
    hard = {k: 100.0 ** (k % 3) for k in a}
    found = s.comparison_intervals(
        {"a": {k: v * hard[k] for k, v in a.items()}, "b": {k: v * hard[k] for k, v in b.items()}}
    )
    ratio = s.paired(a, b).geometric
    # Half the log-ratio is what sets either apart from what they share, and √(2/1) widens it: the log-ratio's over √2.
    for name in "ab":
        half = np.log(found[name].high / found[name].low) / 2
        assert half == pytest.approx(np.log(ratio.high / ratio.low) / 2 / np.sqrt(2), rel=1e-9)
    assert found["a"].value / found["b"].value == pytest.approx(ratio.value)
    assert s.comparison_intervals({"a": a}) == {"a": pytest.approx(s.geometric_interval(a.values()))}
    one = s.comparison_intervals({"a": {0: 2.0}, "b": {0: 3.0}})["b"]
    assert one.value == pytest.approx(3.0) and one.half is None


def test_comparison_intervals_take_out_what_complete_names_share():
    rng = Stream(5, "test/comparison").numpy_generator()
    names, seeds = "abcd", range(6)
    logs = {n: {k: float(v) for k, v in zip(seeds, rng.standard_normal(6), strict=True)} for n in names}
    values = {n: {k: float(np.exp(v)) for k, v in by.items()} for n, by in logs.items()}
    del values["d"][2]  # has a seed less: compared, but no part of what is shared
    found = s.comparison_intervals(values)
    shared = {k: np.mean([logs[n][k] for n in "abc"]) for k in seeds}
    for n in names:
        rest = s.mean_interval([np.log(v) - shared[k] for k, v in values[n].items()])
        assert np.log(found[n].high / found[n].value) == pytest.approx(rest.half * np.sqrt(3 / 2))
        assert found[n].n == len(values[n])


def test_holm_known_answers():
    # Holm by hand: 4 x .005, 3 x .01, then 2 x .03 = .06 carried over to the last, 1 x .04.
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert s.holm([]) == [] and s.holm([0.7, 0.8]) == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_lies_between_none_and_bonferroni(p):
    found = s.holm(p)
    assert all(v <= a <= min(1, len(p) * v) for v, a in zip(p, found, strict=True))
    assert found[int(np.argmin(p))] == min(found)
    order = np.argsort(p, kind="stable")
    assert all(found[i] <= found[j] for i, j in itertools.pairwise(order))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 30), (1, 3), (17, 40), (40, 40)])
def test_proportions_are_scipys_wilson(k, n):
    for level in (0.9, 0.95):
        ends = stats.binomtest(k, n).proportion_ci(level, method="wilson")
        found = s.proportion_interval(k, n, level)
        assert found.value == k / n and found.n == n
        assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
        assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.mean_interval([]), "at least one value"),
        (lambda: s.mean_interval([1.0, float("nan")]), "1 of 2 are not finite"),
        (lambda: s.mean_interval([1.0], level=1.0), "level=1.0"),
        (lambda: s.geometric_interval([1.0, 0.0]), "positive"),
        (lambda: s.paired({1: 1.0}, {2: 1.0}), r"seeds \[1\], b has \[2\]"),
        (lambda: s.holm([0.5, 1.5]), "1.5 at 1"),
        (lambda: s.proportion_interval(3, 2), "successes=3 of n=2"),
        (lambda: s.proportion_interval(0, 0), "n at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (s.Interval(0.04302, 0.0418, 0.0442, 5), "0.0430 ± 0.0012"),
        (s.Interval(0.04302, None, None, 1), "0.04302"),
        (s.Interval(12.3456, 12.3456, 12.3456, 3), "12.35 ± 0"),
        (s.Interval(1234.5, 1134.5, 1334.5, 3), "1234 ± 100"),
        (s.Interval(4.3e-6, 4.18e-6, 4.42e-6, 4), "(4.30 ± 0.12)e-6"),
        (s.Interval(0.001, -0.099, 0.101, 4), "0.001 ± 0.100"),
        (s.Interval(1.0, 0.0004, 1.9996, 4), "1.00 ± 1.00"),
        (s.Interval(-2.5e7, -2.6e7, -2.4e7, 4), "(-2.50 ± 0.10)e7"),
        (s.Interval(0.04302, 0.032, 0.0544, 5), "0.0430 ± 0.0112"),
        (None, ""),
    ],
)
def test_intervals_are_written_to_the_digits_they_deserve(interval, text):
    assert s.format_interval(interval) == text
    if interval is not None:
        assert str(interval) == text


def test_numbers_and_ends_as_text():
    assert [s.format_number(v) for v in (None, 0.0, 0.0999999, 12345.678, 1.5e-7, float("inf"))] == [
        "", "0", "0.1000", "12346", "1.500e-7", "inf",
    ]  # fmt: skip
    assert s.format_ends(s.Interval(0.5741, 0.52, 0.634, 5)) == "0.574 [0.520, 0.634]"
    assert s.format_ends(s.Interval(2.0, None, None, 1)) == "2.00" and s.format_ends(None) == ""
    assert [s.format_p(p) for p in (None, 0.0625, 1.0, 1e-5)] == ["", "0.062", "1", "<0.0001"]


# --- numbers near the end of the float range -------------------------------------------------------------------------


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6), st.integers(-10, 1020))
def test_sizes_near_the_end_of_the_range_change_nothing_but_the_exponent(values, power):
    """A run may end with a huge but finite loss: means and intervals scale with it, to the bit for powers of two."""
    large = [np.ldexp(v, power) for v in values]
    for small, found in zip(s.mean_interval(values)[:3], s.mean_interval(large)[:3], strict=True):
        assert found == small * 2.0**power or np.isinf(found)  # only the ends of an interval may lie beyond
    assert np.isfinite(s.mean_interval(large).value)
    assert s.average(large) == np.ldexp(s.average(values), power)
    assert s.sign_flip_p(large) == s.sign_flip_p(values)


def test_losses_far_apart_are_compared():
    a, b = {0: 1e300, 1: 1.7e308}, {0: 1e-300, 1: 1e-200}
    found = s.paired(a, b)
    assert found.wins == 0 and found.losses == 2 and found.geometric.value == np.inf
    assert s.paired(b, a).geometric.value == 0.0
    intervals = s.comparison_intervals({"a": a, "b": b, "c": {0: 1.0, 1: 2.0}})
    assert intervals["a"].high == np.inf and intervals["a"].value == pytest.approx(
        np.exp(np.log([1e300, 1.7e308]).mean())
    )
    assert s.format_interval(s.mean_interval(list(a.values()))).endswith("± inf")
