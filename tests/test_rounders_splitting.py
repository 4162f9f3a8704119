"""LOTION's ramp by operator splitting: its prox, its fixed points, its limits, and exact optima."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory.rounders import Grid, coordinate_descent, lotion_splitting, rounder
from lotion_theory.rounders.base import Case
from lotion_theory.rounders.places import Between
from testbeds.oracles.enumeration import best_in_cell, best_on_grid
from tests.rounder_cases import FORMATS, ROUNDING, STREAM, case_of, few, row_losses, seeds

SPLITTING = rounder("lotion_splitting")


@few
@given(seeds, st.sampled_from((0.05, 0.5, 0.99, 1.0)), st.sampled_from((1.01, 1.5, 4.0)), st.booleans())
def test_the_step_to_the_levels_is_the_minimum(seed, weight, rho, uneven):
    """Against all of a fine grid: ``λ ½ (hi - z)(z - lo) + ρ/2 (z - v)²``, on lattices of either sign, beyond the ends."""
    rng = np.random.default_rng(seed)
    units = np.array([-4.0, -2.5, -1, 0, 2, 3.5]) if uneven else np.arange(-3.0, 4)
    step, shift = np.array([[0.3, -0.2]]), np.array([[0.1, -1.0]])
    grid = Grid(step, units, shift)
    low, high = grid.ends
    v = low - 0.3 + (high - low + 0.6) * rng.random((1, 2))
    found = Between(grid).moved(v, rho / (rho - weight), weight / (2 * (rho - weight)))

    def value(z):
        many = grid.carried(lambda x: np.repeat(x, len(z), axis=0))
        lo, hi = many.bracket(z)
        return weight / 2 * (hi - z) * (z - lo) + rho / 2 * (z - v) ** 2

    least = value(low + (high - low) * np.linspace(0, 1, 4001)[:, None]).min(axis=0)
    assert ((found >= low - 1e-15) & (found <= high + 1e-15)).all()
    assert (value(found) <= least + 1e-14).all()


@pytest.mark.parametrize("text", FORMATS)
def test_the_end_is_a_fixed_point_of_the_published_equations(text):
    """The matrix product solves ``(H + ρD) x = H W + ρD b``."""
    case = case_of(1, text, rows=3, n=16)
    rho, damping = 1.3, 0.05
    h = case.hessian + damping * case.curvature.mean() * np.eye(16)
    d = np.diag(np.diagonal(h))
    b = np.random.default_rng(0).normal(size=(3, 16))
    x = case.weights + (b - case.weights) @ lotion_splitting.resolvent(case, rho, damping)
    # Condition numbers of at most 16^1.1 < 22 times some ulps.
    assert np.allclose(x @ (h + rho * d), case.weights @ h + rho * b @ d, rtol=0, atol=1e-13)


@pytest.mark.parametrize("text", FORMATS)
def test_diagonal_hessians_keep_the_nearest_level(text):
    case = case_of(2, text, rows=4, n=16)
    case = replace(case, hessian=np.diag(case.curvature))
    for chosen in ({}, {"relaxation": 1.6}, {"rho": 1.5, "power": 1.0}, {"sweeps": 0}):
        assert (SPLITTING(case, STREAM, **chosen) == case.grid.nearest(case.weights)).all()


def test_without_steps_it_is_the_nearest_level_descended():
    case = case_of(3, rows=4, n=16)
    nearest = case.grid.nearest(case.weights)
    assert (SPLITTING(case, STREAM, steps=0, sweeps=0) == nearest).all()
    assert (SPLITTING(case, STREAM, steps=0, sweeps=9) == coordinate_descent.descend(case, nearest, 9)).all()


@few
@given(seeds, st.sampled_from(FORMATS))
def test_descent_never_leaves_a_row_above_its_start(seed, text):
    case = case_of(seed, text, rows=3)
    start = row_losses(case, SPLITTING(case, STREAM, steps=40, sweeps=0))
    assert (row_losses(case, SPLITTING(case, STREAM, steps=40)) <= start * (1 + ROUNDING)).all()


def test_exact_optima_of_ten_weights():
    """Mean loss over the mean of the best point of the lattice, 30 problems; RTN and GPTQ beside it."""
    cases = [case_of(seed, "int4/absmax/row", rows=1, n=10) for seed in range(30)]
    loss = {
        name: np.array([case.loss(rounder(name)(case, STREAM)[None])[0] for case in cases])
        for name in ("rtn", "gptq", "lotion_splitting")
    }
    cell = np.array([best_in_cell(case).loss for case in cases])
    ratio = {name: values.mean() / cell.mean() for name, values in loss.items()}
    # Between what was measured (1.02, and 60 % exact) and the next worse scheme: regressions, not theorems.
    assert ratio["lotion_splitting"] < 1.06 < ratio["gptq"] < ratio["rtn"]
    small = [case_of(seed, "int3/absmax/row", rows=2, n=4) for seed in range(10)]
    for case in small:
        assert case.loss(SPLITTING(case, STREAM)[None])[0] >= best_on_grid(case).loss * (1 - ROUNDING)


def test_it_beats_gptq_on_a_layer():
    case = case_of(4, "int4/absmax/row", rows=8, n=128)
    points = {"gptq": rounder("gptq")(case, STREAM, order="curvature"), "own": SPLITTING(case, STREAM)}
    assert row_losses(case, points["own"]).sum() < 0.9 * row_losses(case, points["gptq"]).sum()
    low = Case(
        *(x.astype(np.float32) for x in (case.hessian, case.weights)),
        replace(case.grid, step=case.grid.step.astype(np.float32)),
    )
    single = SPLITTING(low, STREAM).astype(np.float64)
    assert row_losses(case, single).sum() < 1.02 * row_losses(case, points["own"]).sum()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"rho": 1.0}, "rho=1.0: needs more than 1"), ({"steps": -1}, "steps=-1"), ({"power": 0.0}, "power=0.0"),
        ({"relaxation": 2.0}, "relaxation=2.0"), ({"sweeps": -1}, "sweeps=-1"), ({"damping": -0.1}, "damping=-0.1"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        SPLITTING(case_of(0), STREAM, **chosen)
