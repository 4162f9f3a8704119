"""Settings of rounding schemes: equal budgets, honest edges, and refusals that do not end the search."""

import math

import numpy as np
import pytest

from lotion_theory import Stream
from lotion_theory.rounders import Case, Rounder, names, rounder
from lotion_theory.rounders.tuning import tune_rounder
from tests.rounder_cases import case_of

CASES = [case_of(seed, rows=2) for seed in range(2)]


def scored(values: dict, settings: dict, refuse=lambda settings: False) -> tuple[Rounder, list]:
    """A scheme whose loss over RTN's is ``2 + Σ |setting|``, and the settings that it was asked for."""
    asked = []

    def run(case, settings, stream):
        asked.append(dict(settings))
        if refuse(settings):
            raise ValueError("not that")
        nearest = case.grid.nearest(case.weights)
        return case.weights + (nearest - case.weights) * math.sqrt(2 + sum(abs(v) for v in settings.values()))

    return Rounder("scored", run, "H", "fixed", "a test", "none", settings, values), asked


def test_every_combination_is_tried_where_the_budget_allows():
    scheme, asked = scored({"a": (-1, 0, 1), "b": (3, 5)}, {"a": 1, "b": 5})
    found = tune_rounder(scheme, CASES, 100)
    assert len(found.trials) == 6 and found.exhausted and len(asked) == 6 * len(CASES)
    assert found.settings == {"a": 0, "b": 3} and math.isclose(found.score, 5, rel_tol=1e-12)
    assert found.edges == ("b",)
    assert dict(found.trials[0].settings) == {"a": 1, "b": 5}


@pytest.mark.parametrize("budget", (1, 2, 5, 9))
def test_budgets_are_spent_and_not_exceeded(budget):
    scheme, asked = scored({"a": tuple(range(-3, 4)), "b": tuple(range(1, 8))}, {"a": 3, "b": 7})
    found = tune_rounder(scheme, CASES, budget)
    assert len(found.trials) == budget and len(asked) == budget * len(CASES) and not found.exhausted
    assert len({tuple(trial.settings.values()) for trial in found.trials}) == budget
    assert found.score == min(trial.score for trial in found.trials)


def test_settings_are_searched_one_after_the_other():
    scheme, _ = scored({"a": tuple(range(-9, 10)), "b": tuple(range(-9, 10))}, {"a": 9, "b": 9})
    assert tune_rounder(scheme, CASES, 19 + 18).settings == {"a": 0, "b": 0}


def test_refused_settings_count_and_lose():
    scheme, _ = scored({"a": (0, 1, 2)}, {"a": 2}, refuse=lambda settings: settings["a"] == 0)
    found = tune_rounder(scheme, CASES, 9)
    assert found.settings == {"a": 1} and not found.edges
    assert [trial.error for trial in found.trials if trial.score == math.inf] == ["not that"]
    scheme, _ = scored({"a": (0, 1)}, {"a": 1}, refuse=lambda settings: True)
    with pytest.raises(ValueError, match="scored refused all 2 combinations, the first one saying: not that"):
        tune_rounder(scheme, CASES, 9)


def test_settings_can_be_fixed_and_grids_given():
    scheme, asked = scored({"a": (0, 1), "b": (0, 1)}, {"a": 1, "b": 1})
    assert tune_rounder(scheme, CASES, 9, fixed={"a": 1}).settings == {"a": 1, "b": 0}
    assert all(settings["a"] == 1 for settings in asked)
    assert tune_rounder(scheme, CASES, 9, grid={"a": (5, 0.5)}).settings == {"a": 0.5}


@pytest.mark.parametrize("name", [name for name in names() if name not in ("matgptq", "adaquant_learned")])
def test_declared_values_are_taken_by_every_scheme(name):
    fixed = {"steps": 3} if "steps" in rounder(name).settings else {}
    found = tune_rounder(name, CASES[:1], 4, fixed=fixed, stream=Stream(1, "tuning"))
    assert 1 <= len(found.trials) <= 4 and all(not trial.error for trial in found.trials)
    assert found == tune_rounder(name, CASES[:1], 4, fixed=fixed, stream=Stream(1, "tuning"))


@pytest.mark.parametrize(
    ("arguments", "chosen", "message"),
    [
        (("rtn", CASES, 0), {}, "budget=0 on 2 cases"), (("rtn", [], 3), {}, "budget=3 on 0 cases"),
        (("gptq", CASES, 3), {"fixed": {"order_": 1}}, "gptq has no setting 'order_'; valid: order, damping"),
        (("gptq", [Case(CASES[0].hessian, 0 * CASES[0].weights, CASES[0].grid)], 3), {}, "case 0: RTN has no loss"),
    ],
)  # fmt: skip
def test_what_cannot_be_tuned_is_refused(arguments, chosen, message):
    with pytest.raises(ValueError, match=message):
        tune_rounder(*arguments, **chosen)


def test_the_score_is_relative_to_rounding_to_nearest():
    assert math.isclose(tune_rounder("rtn", CASES, 1).score, 1, rel_tol=1e-12)
    gptq = rounder("gptq")
    ratios = [
        case.loss(gptq(case, Stream(0, "x"))[None])[0] / case.loss(case.grid.nearest(case.weights)[None])[0]
        for case in CASES
    ]
    assert math.isclose(tune_rounder("gptq", CASES, 1).score, np.sqrt(np.prod(ratios)), rel_tol=1e-12)
