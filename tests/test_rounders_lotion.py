"""LOTION as a rounding scheme, inside a cell and by a ramp: its guarantee, its limits and where it comes to rest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quadratic
from lotion_theory.rounders import adaround, conditional, coordinate_descent, lotion_cell, lotion_ramp
from lotion_theory.rounders.base import Case
from tests.rounder_cases import (
    FORMATS,
    ROUNDING,
    STEPS,
    case_of,
    few,
    rounded_by,
    row_losses,
    seeds,
    smoothed_at_weights,
)


@few
@given(seeds, st.sampled_from(FORMATS), st.integers(1, 4))
def test_lotion_in_the_cell_keeps_its_guarantee(seed, text, starts):
    """``L(result) <= E L(RR(W))`` in every row (claim C12), which round-to-nearest does not have."""
    case = case_of(seed, text, rows=3)
    points = rounded_by(case, "lotion_cell", starts=starts, steps=20)
    assert (row_losses(case, points) <= smoothed_at_weights(case) * (1 + ROUNDING)).all()


@few
@given(seeds, st.sampled_from(FORMATS), st.sampled_from((0.5, 1.0, 1.9, 2.0)))
def test_smoothed_loss_never_increases_in_the_cell(seed, text, step):
    case = case_of(seed, text, rows=2)
    lo, hi = case.grid.bracket(case.weights)
    w = case.weights
    values = [lotion_cell.smoothed_losses(case, w, lo, hi)]
    for _ in range(30):
        w = lotion_cell.descend(case, w, 1, step)
        assert ((w >= lo) & (w <= hi)).all()
        values.append(lotion_cell.smoothed_losses(case, w, lo, hi))
    assert (np.diff(values, axis=0) <= ROUNDING * values[0]).all()
    settled = lotion_cell.settle(case, w, lo, hi)
    assert (row_losses(case, settled) <= values[-1] + ROUNDING * values[0]).all()


@few
@given(seeds)
def test_steps_are_as_long_as_curvature_allows(seed):
    """``diag(1 / step) - (H - diag H)`` is positive semidefinite, and only just."""
    case = case_of(seed)
    room = np.diag(1 / lotion_cell.step_sizes(case) + case.curvature) - case.hessian
    least = np.linalg.eigvalsh(room)[0]
    assert abs(least) <= ROUNDING * np.abs(room).max()


@few
@given(seeds, st.sampled_from(FORMATS))
def test_smoothed_loss_is_the_library_s(seed, text):
    """Value and slope against the multilinear interpolation of L at the 2^n vertices (claim C10)."""
    text = text.replace("block=8", "block=4")
    case = case_of(seed, text, rows=1, n=4)
    lo, hi = case.grid.bracket(case.weights)
    x = np.random.default_rng(seed).random(lo.shape)
    w = lo + (hi - lo) * x
    up = (np.arange(16)[:, None] >> np.arange(4)) & 1
    chance = np.where(up, x, 1 - x)
    at_vertices = Quadratic(case.hessian, case.weights[0])(np.where(up, hi, lo))
    size = case.loss(lo[None])[0] + case.loss(hi[None])[0]
    value = lotion_cell.smoothed_losses(case, w, lo, hi)[0]
    assert abs(value - chance.prod(axis=1) @ at_vertices) <= ROUNDING * size
    slope = lotion_cell.smoothed_slope(case, w, lo, hi)[0]
    for i in range(4):
        others = np.delete(chance, i, axis=1).prod(axis=1)
        rise = (others * np.where(up[:, i], 1, -1)) @ at_vertices
        assert abs(slope[i] * (hi - lo)[0, i] - rise) <= ROUNDING * size


def test_adaround_control_has_the_slope_of_the_smoothed_loss():
    """One step of the control with a tiny rate moves every logit against that slope (Adam keeps signs)."""
    case = case_of(11, rows=2)
    lo, hi = case.grid.bracket(case.weights)
    start = adaround.learn(case, steps=0)
    moved = adaround.learn(case, steps=1, lr=1e-3, kind="lotion", warm=0.0) - start
    inside = hi > lo
    slope = lotion_cell.smoothed_slope(case, case.weights, lo, hi)
    assert (np.sign(moved) == -np.sign(slope))[inside].all()


@pytest.mark.parametrize("text", FORMATS)
def test_without_descent_lotion_is_conditional_expectation(text):
    case = case_of(12, text, rows=3)
    expected = conditional.conditional_expectation(case, np.arange(8))
    assert (rounded_by(case, "lotion_cell", steps=0) == expected).all()
    assert (rounded_by(case, "lotion_ramp", steps=0) == expected).all()
    assert (rounded_by(case, "lotion_ramp", end=0.0, steps=50) == expected).all()  # W is the minimum of L itself


@few
@given(seeds, st.sampled_from(FORMATS))
def test_ramp_ends_at_strict_local_minima(seed, text):
    """Claim C11: descent at λ = 1 ends at lattice points that no single step improves; what is left is settled and
    polished away. The result is never above the smoothed loss it was settled from."""
    case = case_of(seed, text, rows=2)
    w = lotion_ramp.follow(case, steps=100)
    lo, hi = case.grid.bracket(w)
    size = smoothed_at_weights(case)
    points = rounded_by(case, "lotion_ramp", steps=100)
    assert (row_losses(case, points) <= lotion_cell.smoothed_losses(case, w, lo, hi) + ROUNDING * size).all()
    polished = rounded_by(case, "lotion_ramp", steps=100, polish=True)
    assert (row_losses(case, polished) <= row_losses(case, points) + ROUNDING * size).all()
    assert (coordinate_descent.descend(case, polished) == polished).all()


def test_ramp_comes_to_rest_on_the_lattice():
    case = case_of(13, rows=4, n=32)
    w = lotion_ramp.follow(case)
    # A weight along which the smoothed loss happens to be flat may stay between levels.
    assert (np.abs(w - case.grid.nearest(w)) < 0.001 * case.grid.step / 7).mean() > 0.95
    points = rounded_by(case, "lotion_ramp")
    assert (points == rounded_by(case, "lotion_ramp", polish=True)).mean() > 0.95


def test_rows_are_rounded_on_their_own():
    """All schemes but AdaRound, whose λ is per case: a row's result does not depend on the others.

    Sums run in another order for one row than for several, so results may differ where two levels are equally good;
    such ties do not happen with these weights.
    """
    case = case_of(14, "int4/absmax/row", rows=3)
    for name, chosen in (("lotion_cell", {}), ("lotion_ramp", {"steps": STEPS}), ("discquant", {"start": "weights"})):
        together = rounded_by(case, name, **chosen)
        for r in range(3):
            alone = Case(case.hessian, case.weights[r : r + 1], case.grid.rows(slice(r, r + 1)))
            assert (rounded_by(alone, name, **chosen)[0] == together[r]).all(), name
