"""Rounding schemes known from the literature, against slow transcriptions, brute force and exact identities."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Stream
from lotion_theory.rounders import clip_search, conditional, coordinate_descent, gptq, rr, rtn
from lotion_theory.rounders.base import Case
from lotion_theory.rounding import conditional_expectation as reference_conditional
from lotion_theory.smoothing import Quadratic
from tests.strategies import examples
from tests.tolerances import bernstein_bound, standard_error_bound, ulp

FORMATS = (
    "int4/absmax/tensor", "int3/absmax/block=4", "nf4/absmax/row", "e2m1/absmax/block=8", "ternary/absmax/row",
)  # fmt: skip
ROUNDERS = {m.ROUNDER.name: m.ROUNDER for m in (rtn, rr, clip_search, conditional, coordinate_descent, gptq)}
# Every scheme with the settings that change what it does.
VARIANTS = (
    ("rtn", {}), ("rr", {}), ("rr", {"draws": 8}), ("clip_search", {}),
    *(("conditional_expectation", {"order": order}) for order in conditional.ORDERS),
    *(("coordinate_descent", {"start": start}) for start in coordinate_descent.STARTS),
    *(("gptq", {"order": order, "damping": 0.0}) for order in conditional.ORDERS), ("gptq", {}),
)  # fmt: skip
FIXED = tuple(v for v in VARIANTS if ROUNDERS[v[0]].grid == "fixed")
STREAM = Stream(0, "test_rounders_classical")
seeds = st.integers(0, 2**32 - 1)
few = examples(10)
# Losses of these well-conditioned problems are sums of at most some thousand rounded terms.
ROUNDING = 1e-12


def _hessian(n: int, rng: np.random.Generator) -> np.ndarray:
    """Haar eigenvectors, eigenvalues ``i^-1.1``."""
    vectors, r = np.linalg.qr(rng.normal(size=(n, n)))
    vectors *= np.sign(np.diagonal(r))
    h = (vectors * np.arange(1, n + 1) ** -1.1) @ vectors.T
    return (h + h.T) / 2


def _case(seed: int, text: str = "int4", rows: int = 3, n: int = 8) -> Case:
    rng = np.random.default_rng(seed)
    return Case.make(_hessian(n, rng), rng.normal(size=(rows, n)), text)


def _diagonal(case: Case) -> Case:
    return Case(np.diag(case.curvature), case.weights, case.grid)


def _row_losses(case: Case, points: np.ndarray) -> np.ndarray:
    return np.array([(e @ case.hessian @ e) / 2 for e in points - case.weights])


def _row(case: Case, r: int) -> Case:
    return Case(case.hessian, case.weights[r : r + 1], case.grid.rows(slice(r, r + 1)))


def _best(case: Case, choices: np.ndarray) -> float:
    """Least loss of one row over the product of ``choices`` (n, levels), by enumeration."""
    errors = np.array(list(itertools.product(*choices))) - case.weights
    return float(((errors @ case.hessian) * errors).sum(axis=1).min() / 2)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize(("name", "chosen"), VARIANTS)
def test_points_are_levels_and_nothing_else_changes(name, chosen, text):
    case = _case(1, text)
    before = case.hessian.copy(), case.weights.copy(), case.grid.step.copy()
    points = ROUNDERS[name](case, STREAM, **chosen)
    top = clip_search.clipped_grid(case).step if name == "clip_search" else case.grid.step
    assert points.shape == case.weights.shape
    assert (points[..., None] == top[..., None] * case.grid.units).any(axis=-1).all()
    assert (points == ROUNDERS[name](case, STREAM, **chosen)).all()
    for now, then in zip((case.hessian, case.weights, case.grid.step), before, strict=True):
        assert (now == then).all()


@pytest.mark.parametrize("text", ("int3/absmax/row", "nf4/absmax/row", "e2m1/absmax/row", "ternary/absmax/row"))
@pytest.mark.parametrize("seed", range(3))
def test_no_scheme_on_the_grid_beats_all_its_points(text, seed):
    case = _case(seed, text, rows=1, n=3)
    best = _best(case, case.grid.levels[0])
    for name, chosen in FIXED:
        loss = case.loss(ROUNDERS[name](case, STREAM, **chosen)[None])[0]
        assert loss >= best * (1 - ROUNDING), name


@pytest.mark.parametrize("text", FORMATS)
@few
@given(seed=seeds)
def test_without_correlations_nearest_is_best(text, seed):
    case = _diagonal(_case(seed, text))
    nearest = ROUNDERS["rtn"](case, STREAM)
    for name, chosen in VARIANTS:
        if name not in ("rr", "clip_search") and chosen.get("start") != "rr":
            assert (ROUNDERS[name](case, STREAM, **chosen) == nearest).all(), (name, chosen)
    from_random = ROUNDERS["coordinate_descent"](case, STREAM, start="rr")
    assert np.allclose(_row_losses(case, from_random), _row_losses(case, nearest), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize(("name", "chosen"), [v for v in VARIANTS if v[0] != "rr" and v[1].get("start") != "rr"])
def test_rows_do_not_see_each_other(name, chosen):
    # Rows rounded together or alone go through differently ordered sums; no decision here is that close.
    case = _case(2, "int3/absmax/block=4", rows=4)
    together = ROUNDERS[name](case, STREAM, **chosen)
    for r in range(4):
        assert (ROUNDERS[name](_row(case, r), STREAM, **chosen) == together[r]).all()


def _published_gptq(case: Case, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of arXiv 2210.17323 as printed, one row at a time, with the errors e."""
    n = len(case.hessian)
    h = case.hessian + damping * case.curvature.mean() * np.eye(n)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    points, errors = np.empty_like(case.weights), np.empty_like(case.weights)
    for r, row in enumerate(case.weights):
        w = row.copy()
        for i in range(n):
            levels = case.grid.levels[r, i]
            points[r, i] = levels[np.argmin(np.abs(levels - w[i]))]
            errors[r, i] = (w[i] - points[r, i]) / upper[i, i]
            w[i:] -= errors[r, i] * upper[i, i:]
    return points, errors


@pytest.mark.parametrize("text", FORMATS)
@few
@given(seed=seeds, damping=st.sampled_from((0.0, 0.01, 0.3)))
def test_gptq_is_the_published_algorithm(text, seed, damping):
    case = _case(seed, text)
    points, errors = _published_gptq(case, damping)
    assert (ROUNDERS["gptq"](case, STREAM, damping=damping) == points).all()
    if damping == 0:
        # The inverse and its factor lose the condition number, 8^1.1 < 10, times some ulps.
        assert np.allclose(2 * _row_losses(case, points), (errors**2).sum(axis=1), rtol=10 * ROUNDING, atol=0)


def test_gptq_order_is_a_permutation_of_the_problem():
    case = _case(3, "int4/absmax/row", n=12)
    for order in conditional.ORDERS:
        columns = conditional.column_order(case, order, STREAM)
        assert sorted(columns) == list(range(12))
        moved = Case(case.hessian[np.ix_(columns, columns)], case.weights[:, columns], case.grid)
        assert (ROUNDERS["gptq"](moved, STREAM) == ROUNDERS["gptq"](case, STREAM, order=order)[:, columns]).all()
        assert (
            ROUNDERS["conditional_expectation"](moved, STREAM)
            == ROUNDERS["conditional_expectation"](case, STREAM, order=order)[:, columns]
        ).all()
    falling = case.curvature[conditional.column_order(case, "curvature", STREAM)]
    assert (np.diff(falling) <= 0).all()


@pytest.mark.parametrize("block", (1, 7, 32, 100))
def test_gptq_does_not_depend_on_the_column_block(block):
    # Sums are ordered differently, so equality rests on no compensated weight lying within some ulps of a midpoint;
    # of these 4 * 100 weights one does so with probability about 1e-11.
    case = _case(4, "int3/absmax/block=25", rows=4, n=100)
    columns = np.arange(100)
    assert (gptq.compensated_rounding(case, columns, 0.0, block) == gptq.compensated_rounding(case, columns, 0.0)).all()


def test_gptq_with_dead_columns_and_scaled_hessians():
    case = _case(5, "int4/absmax/row")
    dead = np.array([0, 5])
    h = case.hessian.copy()
    h[dead], h[:, dead] = 0, 0
    live = np.setdiff1d(np.arange(8), dead)
    reduced = Case(h[np.ix_(live, live)], case.weights[:, live], case.grid.columns(live))
    for damping in (0.0, 0.01):
        points = ROUNDERS["gptq"](Case(h, case.weights, case.grid), STREAM, damping=damping)
        # The mean that scales the damping is over all 8 columns there, over 6 here.
        alone = ROUNDERS["gptq"](reduced, STREAM, damping=damping * 6 / 8)
        assert (points[:, live] == alone).all() and (points[:, dead] == 0).all()
        for scale in (2.0**-40, 2.0**40):
            scaled = Case(scale * h, case.weights, case.grid)
            assert (ROUNDERS["gptq"](scaled, STREAM, damping=damping) == points).all()
    nothing = Case(0 * h, case.weights, case.grid)
    for name, chosen in VARIANTS:
        assert np.isfinite(ROUNDERS[name](nothing, STREAM, **chosen)).all()


def test_gptq_against_round_to_nearest_on_random_instances():
    loss = np.empty((200, 3))
    for seed in range(200):
        case = _case(seed, rows=1, n=10)
        points = np.stack([ROUNDERS["rtn"](case, STREAM), ROUNDERS["gptq"](case, STREAM, damping=0.0)])
        ends = np.stack(case.grid.bracket(case.weights), axis=-1)[0]
        loss[seed] = [*case.loss(points), _best(case, ends)]
    # Known from 200 other instances: 91 %. The difference of two such shares has a standard error of
    # sqrt(2 * .91 * .09 / 200) = .029; five of them are exceeded by chance once in 10^6.
    share = (loss[:, 1] <= loss[:, 0] * (1 + ROUNDING)).mean()
    assert abs(share - 0.91) <= 5 * math.sqrt(2 * 0.91 * 0.09 / 200)
    # Ratios of means to the best up/down rounding over 2000 other instances, and the deviation of such a ratio over 40
    # instances: RTN 1.475 and .088, GPTQ 1.125 and .042; over 200 instances less by sqrt(5).
    ratios = loss[:, :2].mean(axis=0) / loss[:, 2].mean()
    allowed = standard_error_bound(np.array([0.088, 0.042]) ** 2, 5, false_alarm=1e-6, comparisons=2)
    assert (np.abs(ratios - [1.475, 1.125]) <= allowed).all()


@pytest.mark.parametrize("text", FORMATS)
@few
@given(seed=seeds)
def test_coordinate_descent_ends_in_a_local_minimum_below_its_start(text, seed):
    case = _case(seed, text)
    for start, scheme in coordinate_descent.STARTS.items():
        points = ROUNDERS["coordinate_descent"](case, STREAM, start=start)
        losses = _row_losses(case, points)
        assert (losses <= _row_losses(case, scheme(case, STREAM)) * (1 + ROUNDING)).all()
        for r, j in np.ndindex(points.shape):
            changed = np.repeat(points[r][None], len(case.grid.units), axis=0)
            changed[:, j] = case.grid.levels[r, j]
            errors = changed - case.weights[r]
            assert ((errors @ case.hessian) * errors).sum(axis=1).min() / 2 >= losses[r] * (1 - ROUNDING)


def test_coordinate_descent_leaves_the_cell_and_stops_at_equal_levels():
    # Two nearly equal inputs: only their sum matters much, and RTN leaves it off by .98 steps. One step of one weight
    # mends it, out of its cell where that is needed.
    h = np.array([[1, 0.99], [0.99, 1]])
    case = Case(h, np.array([[0.49, 0.49]]) / 7, replace(Case.make(h, np.ones(2), "int4").grid, step=np.ones((1, 2))))
    points = ROUNDERS["coordinate_descent"](case, STREAM)
    assert np.allclose(points * 7, [[1, 0]])
    far = coordinate_descent.descend(case, np.array([[1.0, -1.0]]), sweeps=1)
    assert case.loss(far[None])[0] < case.loss(np.array([[[1.0, -1.0]]]))[0]
    # Exactly between two levels both are as good: the point stays where it is.
    tie = Case(np.eye(2), np.array([[0.5, 1.5]]) / 7, case.grid)
    for start in itertools.product((0.0, 1 / 7), (1 / 7, 2 / 7)):
        assert (coordinate_descent.descend(tie, np.array([start])) == start).all()


@pytest.mark.parametrize("text", FORMATS)
@few
@given(seed=seeds)
def test_conditional_expectation_keeps_its_promise(text, seed):
    case = _case(seed, text)
    lo, hi = case.grid.bracket(case.weights)
    expected = ((hi - case.weights) * (case.weights - lo)) @ case.curvature / 2
    for order in conditional.ORDERS:
        points = ROUNDERS["conditional_expectation"](case, STREAM, order=order)
        assert ((points == lo) | (points == hi)).all()
        assert (_row_losses(case, points) <= expected * (1 + ROUNDING)).all()
    if "tensor" not in text:  # there a row alone would have another scale
        plain = ROUNDERS["conditional_expectation"](case, STREAM)
        for w, x in zip(case.weights, plain, strict=True):
            assert (reference_conditional(Quadratic(case.hessian, w), w, text) == x).all()


def test_conditional_expectation_from_beyond_the_grid():
    case = _case(6, "int4/absmax/row")
    narrow = Case(case.hessian, case.weights, replace(case.grid, step=0.4 * case.grid.step))
    lo, hi = narrow.grid.bracket(case.weights)
    mean = np.clip(case.weights, lo, hi)
    bound = _row_losses(case, mean) + ((hi - mean) * (mean - lo)) @ case.curvature / 2
    points = ROUNDERS["conditional_expectation"](narrow, STREAM)
    assert (_row_losses(case, points) <= bound * (1 + ROUNDING)).all()


def test_randomized_rounding_is_unbiased_and_more_draws_never_hurt():
    n, copies = 8, 4000
    case = _case(7, "e2m1/absmax/row", rows=1, n=n)
    lo, hi = case.grid.bracket(case.weights)
    many = Case(
        case.hessian, np.repeat(case.weights, copies, axis=0), replace(case.grid, step=case.grid.step.repeat(copies, 0))
    )
    points = ROUNDERS["rr"](many, STREAM)
    assert ((points == lo) | (points == hi)).all()
    variance = ((hi - case.weights) * (case.weights - lo))[0]
    allowed = bernstein_bound(variance, (hi - lo)[0], copies, false_alarm=1e-6, comparisons=n)
    allowed += copies * ulp(case.weights[0])  # the sum behind the mean is rounded at every term
    assert (np.abs(points.mean(axis=0) - case.weights[0]) <= allowed).all()

    case = _case(8, "int4/absmax/row", rows=5)
    losses = [_row_losses(case, ROUNDERS["rr"](case, STREAM, draws=k)) for k in (1, 2, 8, 64)]
    for fewer, more in itertools.pairwise(losses):
        assert (more <= fewer * (1 + ROUNDING)).all()
    assert (losses[-1] < losses[0]).any()
    ends = [
        _best(_row(case, r), np.stack((lo, hi), axis=-1))
        for r, (lo, hi) in enumerate(zip(*case.grid.bracket(case.weights), strict=True))
    ]
    assert (losses[-1] >= np.array(ends) * (1 - ROUNDING)).all()


@pytest.mark.parametrize("text", FORMATS)
@few
@given(seed=seeds)
def test_clip_search_is_never_worse_than_nearest(text, seed):
    case = _case(seed, text)
    points = ROUNDERS["clip_search"](case, STREAM)
    nearest = ROUNDERS["rtn"](case, STREAM)
    assert case.loss(points[None])[0] <= case.loss(nearest[None])[0] * (1 + ROUNDING)
    shrunk = clip_search.clipped_grid(case)
    share = shrunk.step / case.grid.step
    assert (share >= 0.3 * (1 - ROUNDING)).all() and (share <= 1).all()
    assert (shrunk.nearest(case.weights) == points).all()
    # No block gets more scales than the format stores for it.
    for tops, searched in zip(case.grid.step, shrunk.step, strict=True):
        assert len(np.unique(np.stack((tops, searched)), axis=1).T) == len(np.unique(tops))
    if "tensor" in text:
        assert len(np.unique(shrunk.step)) == 1
    else:
        assert (_row_losses(case, points) <= _row_losses(case, nearest) * (1 + ROUNDING)).all()


def _clipped_loss(case: Case, factors: np.ndarray) -> float:
    """Loss of RTN with every weight's top times its factor."""
    return float(case.loss(replace(case.grid, step=factors * case.grid.step).nearest(case.weights)[None])[0])


@pytest.mark.parametrize("seed", range(3))
def test_clip_search_is_exact_for_one_block_and_without_correlations(seed):
    factors = np.linspace(1, 0.3, 8)
    for text, rows in (("int3/absmax/row", 1), ("int3/absmax/tensor", 3)):
        case = _case(seed, text, rows=rows)
        least = min(_clipped_loss(case, f) for f in factors)
        assert math.isclose(case.loss(ROUNDERS["clip_search"](case, STREAM, count=8)[None])[0], least, rel_tol=ROUNDING)
    case = _diagonal(_case(seed, "int3/absmax/block=4", rows=1, n=12))
    least = min(_clipped_loss(case, np.repeat(f, 4)) for f in itertools.product(factors, repeat=3))
    assert math.isclose(case.loss(ROUNDERS["clip_search"](case, STREAM, count=8)[None])[0], least, rel_tol=ROUNDING)


def test_clip_search_with_correlations_takes_blocks_from_left_to_right():
    apart = 0
    for seed in range(10):
        case = _case(seed, "int3/absmax/block=4", rows=1, n=12)
        factors = np.ones((1, 3))
        for b in range(3):
            tried = np.repeat(factors, 8, axis=0)
            tried[:, b] = np.linspace(1, 0.3, 8)
            factors = tried[None, np.argmin([_clipped_loss(case, np.repeat(f, 4)) for f in tried])]
        found = clip_search.clipped_grid(case, 0.3, 8).step
        assert np.allclose(found, case.grid.step * np.repeat(factors, 4), rtol=1e-15)
        apart += not np.allclose(found, clip_search.clipped_grid(_diagonal(case), 0.3, 8).step)
    assert apart > 0  # the correlations mattered


def test_clip_search_where_rows_have_different_runs_of_equal_tops():
    case = _case(10, "int3/absmax/block=4", rows=3, n=12)
    w = case.weights.copy()
    w[1, :8] *= np.repeat(1 / np.abs(w[1, :8]).reshape(2, 4).max(axis=1), 4)  # rows 0 and 2 keep three different tops
    case = Case.make(case.hessian, w, "int3/absmax/block=4")
    assert case.grid.step[1, 0] == case.grid.step[1, 7]
    together = clip_search.clipped_grid(case).step
    for r in range(3):
        assert (clip_search.clipped_grid(_row(case, r)).step[0] == together[r]).all()
    assert together[1, 0] == together[1, 7]


@pytest.mark.parametrize("text", ("int4/absmax/row", "int3/absmax/block=32"))
def test_layers_of_real_size(text):
    case = _case(11, text, rows=64, n=384)
    loss = {
        (name, *chosen.values()): case.loss(ROUNDERS[name](case, STREAM, **chosen)[None])[0] for name, chosen in FIXED
    }
    nearest = loss["rtn",]
    # Far apart at this size: what uses correlations is at most .6 of RTN here, and RR is about twice RTN.
    assert max(v for (name, *_), v in loss.items() if name not in ("rtn", "rr")) < 0.8 * nearest
    assert loss["rr",] > 1.5 * nearest and nearest > 0
    assert loss["coordinate_descent", "gptq"] < loss["gptq",]


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("rr", {"draws": 0}, "draws=0"),
        ("clip_search", {"lowest": 0.0}, "lowest=0.0"),
        ("clip_search", {"count": 0}, "count=0"),
        ("conditional_expectation", {"order": "up"}, "unknown order 'up'; valid: natural, curvature, random"),
        ("coordinate_descent", {"start": "ldlq"}, "unknown start 'ldlq'; valid: rtn, gptq, rr"),
        ("coordinate_descent", {"sweeps": 0}, "sweeps=0"),
        ("gptq", {"order": "up"}, "unknown order 'up'"),
        ("gptq", {"damping": -1.0}, "damping=-1.0"),
        ("rtn", {"draws": 2}, "rtn has no setting 'draws'"),
    ],
)
def test_bad_settings_are_named(name, chosen, message):
    with pytest.raises(ValueError, match=message):
        ROUNDERS[name](_case(0), STREAM, **chosen)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cases_are_finite(bad):
    with pytest.raises(ValueError, match=r"weights holds 1 NaN or infinite"):
        Case.make(np.eye(2), np.array([1.0, bad]), "nf4")
    with pytest.raises(ValueError, match=r"hessian holds 1 NaN or infinite"):
        Case.make(np.diag([bad, 1.0]), np.ones(2), "nf4")


def test_gptq_needs_damping_for_singular_hessians():
    case = _case(0, rows=2, n=2)
    singular = Case(np.array([[1.0, 2.0], [2.0, 1.0]]), case.weights, case.grid)
    with pytest.raises(ValueError, match=r"damping=0.0: the Hessian is not positive definite"):
        ROUNDERS["gptq"](singular, STREAM, damping=0.0)
    flat = Case(np.ones((2, 2)), case.weights, case.grid)
    assert case.loss(ROUNDERS["gptq"](flat, STREAM)[None])[0] >= 0


def test_defaults_and_tuning_name_settings_that_exist():
    for rounder in ROUNDERS.values():
        assert set(rounder.tuning) <= set(rounder.settings)
        for key, values in rounder.tuning.items():
            assert rounder.settings[key] in values
