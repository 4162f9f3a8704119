"""What runs of each kind compute, on instances small enough to know the answer."""

import json

import numpy as np
import pytest

from lotion_theory.methods import method as training_method
from lotion_theory.rounders import Case, names, rounder
from testbeds.kinds import names as kind_names
from testbeds.kinds import run
from testbeds.kinds.minima import _touching_minima
from testbeds.kinds.oracle import with_optima
from testbeds.kinds.round import rounding_case
from testbeds.problems import Diverged

PROBLEM = {"name": "linear_regression", "d": 24}
TRAIN = {"problem": PROBLEM, "format": "int3", "method": {"name": "ptq"}, "lr": 0.1, "steps": 60, "optimizer": "gd"}
SMALL = {"problem": {"name": "power_law", "d": 5}, "format": "int3"}


def test_training_metrics_are_consistent_and_json():
    metrics = run("train", TRAIN, 0)
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["gap"] == metrics["rtn_loss"] - metrics["float_loss"]
    assert metrics["curve"]["rtn"][-1] == metrics["rtn_loss"] and metrics["curve"]["step"][-1] == 60
    assert metrics["rr_loss"] >= metrics["float_loss"]  # the variance it adds is not negative
    assert run("train", TRAIN, 0)["rtn_loss"] == metrics["rtn_loss"] != run("train", TRAIN, 1)["rtn_loss"]


def test_the_optimum_rounded_is_the_limit_of_ptq():
    metrics = run("train", {**TRAIN, "problem": {**PROBLEM, "start": "optimum"}}, 3)
    assert metrics["float_loss"] == 0 and metrics["rtn_loss"] == metrics["rtn_of_optimum"]


def test_divergence_is_an_answer():
    with pytest.raises(Diverged) as caught:
        run("train", {**TRAIN, "lr": 1e4, "steps": 200}, 0)
    assert "after" in str(caught.value) and "rtn_loss" in caught.value.metrics


def test_timing_counts_every_method():
    config = {**TRAIN, "methods": [{"name": "ptq"}, {"name": "ptq"}], "rounds": 1, "steps": 5}
    found = run("timing", config, 0)["seconds_per_step"]
    assert len(found) == 2 and all(s > 0 for s in found)


# matgptq needs 2^b levels, which no codebook from -c to c has.
@pytest.mark.parametrize("name", [name for name in names() if name != "matgptq"])
def test_rounding_stays_on_its_grid_and_is_repeatable(name):
    config = {**SMALL, "method": {"name": name, **({"damping": 0.0} if name == "gptq" else {})}}
    first = run("round", config, 2)
    assert first["loss"] == run("round", config, 2)["loss"] > 0
    assert first["grid"] == rounder(name).grid
    optimum = run("oracle", SMALL, 2)
    assert optimum["proven"] and optimum["loss"] <= optimum["in_cell"] * (1 + 1e-12)
    if first["grid"] == "fixed":
        assert first["loss"] >= optimum["loss"] * (1 - 1e-12)


def test_optima_are_joined_with_rounding_runs():
    def row(kind, config, seed):
        return {"kind": kind, "config": config, "seed": seed, "status": "ok", "metrics": run(kind, config, seed)}

    config = {**SMALL, "method": {"name": "rr"}}
    rows = [row("oracle", SMALL, 0), row("round", config, 0), row("round", config, 1)]
    known, unknown = with_optima(rows)[1:]
    assert known["metrics"]["optimum"] == rows[0]["metrics"]["loss"]
    assert known["metrics"]["ratio"] == known["metrics"]["loss"] / known["metrics"]["optimum"]
    assert known["metrics"]["optimal"] == (known["metrics"]["ratio"] <= 1 + 1e-9)
    # Without an oracle the best known is this run itself, and nobody says that it is optimal.
    assert unknown["metrics"]["optimal"] is None and unknown["metrics"]["ratio"] == 1
    assert "ratio" not in rows[1]["metrics"]


def test_estimators_find_lotion_unbiased_and_the_others_not():
    base = {"problem": {"name": "linear_regression", "d": 16, "rotation": "dense"}, "format": "int3", "spread": 0.3}
    bias = {}
    for method in (
        {"name": "lotion"}, {"name": "lotion", "scale": "detached"}, {"name": "ptq"}, {"name": "rr_ste"},
        {"name": "qat"},
    ):  # fmt: skip
        found = run("estimator", {**base, "method": method, "draws": 400}, 1)
        bias["/".join(map(str, method.values()))] = found
        assert bool(found["deviation"]) == bool(training_method(method["name"])().noise)
    # Floating-point noise of sums over 16 terms.
    assert bias["lotion"]["bias"] < 1e-12
    assert bias["lotion/detached"]["bias"] > 0.01 and bias["qat"]["bias"] > 0.01
    # Claim C14: randomized rounding with STE follows the plain gradient; six standard errors.
    gap = abs(bias["rr_ste"]["bias"] - bias["ptq"]["bias"])
    assert gap <= 6 * bias["rr_ste"]["bias_standard_error"]


def test_minima_of_a_table():
    table = np.array([[3, 2, 3], [2, 1, 2], [3, 2, 0]])
    assert _touching_minima(table) == 1
    assert _touching_minima(np.array([1, 2, 0, 3])) == 2


@pytest.mark.parametrize("exponent", [1.1, 3.0])
def test_descent_ends_only_in_counted_minima(exponent):
    """Claim C11, by a descent that knows nothing of the enumeration."""
    config = {"problem": {"name": "power_law", "d": 3, "exponent": exponent}, "format": "int4", "starts": 16}
    found = run("minima", config, 5)
    assert found["descents"] == found["starts"] == 16
    assert 1 <= found["distinct_ends"] <= found["local_minima_smoothed"]
    assert found["points"] == 15**3 and found["global_kept"]
    assert found["local_minima_raw"] <= found["local_minima_smoothed"]


def test_cases_and_kinds_that_do_not_exist_are_answered():
    with pytest.raises(ValueError, match="unknown kind 'trian'; valid: train"):
        run("trian", TRAIN, 0)
    with pytest.raises(ValueError, match="unknown problem 'lin'; valid: linear_regression"):
        run("train", {**TRAIN, "problem": {"name": "lin"}}, 0)
    with pytest.raises(ValueError, match="no setting 'dim'; valid: d, exponent"):
        run("train", {**TRAIN, "problem": {"name": "linear_regression", "dim": 3}}, 0)
    with pytest.raises(ValueError, match="valid: power_law, real_layer"):
        rounding_case({"problem": {"name": "linear_regression"}, "format": "int4"}, 0)
    with pytest.raises(ValueError, match="unknown rounding scheme"):
        run("round", {**SMALL, "method": {"name": "rtm"}}, 0)
    with pytest.raises(ValueError, match="absmax scale"):
        Case.make(np.eye(3), np.ones(3), "mxfp4/tensor")
    assert set(kind_names()) == {"train", "timing", "round", "oracle", "estimator", "minima", "quantize"}
