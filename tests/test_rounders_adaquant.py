"""AdaQuant: limits with known answers, exact optima, and scales that are learned."""

from dataclasses import replace

import numpy as np
import pytest

from lotion_theory.rounders import adaquant, rounder
from lotion_theory.rounders.base import Case
from testbeds.oracles.enumeration import best_in_cell, best_on_grid
from tests.rounder_cases import FORMATS, ROUNDING, STREAM, case_of, row_losses

FROZEN, LEARNED = rounder("adaquant"), rounder("adaquant_learned")


@pytest.mark.parametrize("text", FORMATS)
def test_no_row_is_above_the_nearest_level(text):
    case = case_of(1, text, rows=3)
    nearest = row_losses(case, case.grid.nearest(case.weights))
    points = FROZEN(case, STREAM, steps=100)
    assert (case.grid.nearest(points) == points).all()
    assert (row_losses(case, points) <= nearest * (1 + ROUNDING)).all()
    assert (FROZEN(case, STREAM, lr=0.0, steps=3) == case.grid.nearest(case.weights)).all()
    found, grid = LEARNED.placed(case, STREAM, steps=100)
    assert (grid.nearest(found) == found).all()
    assert row_losses(case, found).sum() <= nearest.sum() * (1 + ROUNDING)


@pytest.mark.parametrize("text", FORMATS)
def test_diagonal_hessians_give_the_nearest_level(text):
    case = case_of(2, text)
    case = replace(case, hessian=np.diag(case.curvature))
    assert (FROZEN(case, STREAM, steps=50) == case.grid.nearest(case.weights)).all()


def test_no_point_beats_the_best_one_of_the_lattice():
    for seed in range(8):
        case = case_of(seed, "int3/absmax/row", rows=1, n=4)
        loss = case.loss(FROZEN(case, STREAM, steps=100, lr=0.05)[None])[0]
        assert loss >= best_on_grid(case).loss * (1 - ROUNDING)


@pytest.mark.parametrize("seed", range(4))
def test_one_scale_alone_is_a_line_search(seed):
    """With weights at rest a single factor is learned. Between two changes of the codes the loss is a parabola in it,
    whose minimum Adam finds; no factor near by has less, up to the square of how far it still is."""
    case = case_of(seed, "int4/absmax/tensor", rows=1)
    points, grid = adaquant.learn(case, steps=300, lr=0.0, scale_lr=0.003)
    reached = float(grid.step[0, 0] / case.grid.step[0, 0])

    def at(factor):
        return case.loss(replace(case.grid, step=factor * case.grid.step).nearest(case.weights)[None])[0]

    loss, near = case.loss(points[None])[0], min(at(reached + d) for d in np.linspace(-0.004, 0.004, 81))
    assert near * (1 - 1e-3) <= loss <= near * (1 + 1e-6)
    assert loss < at(1.0)
    if seed != 2:  # which ends in another minimum than the least one
        assert loss <= min(at(factor) for factor in np.linspace(0.7, 1.3, 601)) * (1 + 1e-6)


def test_scales_are_learned_by_block():
    for text, blocks in (("int4/absmax/tensor", 1), ("int3/absmax/block=4", 2), ("int4/absmax/row", 1)):
        case = case_of(3, text, rows=3)
        _, grid = LEARNED.placed(case, STREAM, steps=30)
        factors = grid.step / case.grid.step
        assert all(len(np.unique(row)) <= blocks for row in factors)
        assert len(np.unique(factors)) <= (1 if "tensor" in text else 3 * blocks)
        assert (factors != 1).any()


def test_learned_scales_help_where_they_were_wrong():
    case = case_of(4, "int4/absmax/row", rows=4, n=32)
    wide = Case(case.hessian, case.weights, replace(case.grid, step=1.5 * case.grid.step))
    frozen = row_losses(case, FROZEN(wide, STREAM, steps=300)).sum()
    assert row_losses(case, LEARNED(wide, STREAM, steps=300, scale_lr=0.01)).sum() < 0.9 * frozen


def test_it_lies_between_rounding_to_nearest_and_the_optimum():
    cases = [case_of(seed, rows=1, n=10) for seed in range(10)]
    best = sum(best_in_cell(case).loss for case in cases)
    nearest = sum(case.loss(case.grid.nearest(case.weights)[None])[0] for case in cases)
    found = sum(case.loss(FROZEN(case, STREAM, steps=200)[None])[0] for case in cases)
    assert best * 0.9 < found < (best + nearest) / 2


@pytest.mark.parametrize(
    ("scheme", "chosen", "message"),
    [
        (FROZEN, {"steps": -1}, "steps=-1"), (FROZEN, {"lr": -1.0}, "lr=-1.0"),
        (LEARNED, {"scale_lr": 0.0}, "scale_lr=0.0: needs a positive number"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(scheme, chosen, message):
    with pytest.raises(ValueError, match=message):
        scheme(case_of(0), STREAM, **chosen)
