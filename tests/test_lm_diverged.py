"""Runs whose numbers are none any more end as "diverged": in the result, the exit status, and a search."""

import json
import math

import pytest
import torch

from testbeds import cli
from testbeds.documents import read_json, unsealed
from testbeds.lm.loop import train as training
from testbeds.lm.loop.train import train
from testbeds.lm.measure.tune import tune
from testbeds.lm.model.methods import METHODS, Plain
from testbeds.lm.model.quantized import maker
from tests.lm_cases import SMALL, small


class Raising(Plain):
    """At step 3, breaks a weight (as ``breaks`` says) and raises what a lookup would."""

    breaks, error = True, IndexError("index 9 is out of bounds")

    def __init__(self, setting):
        super().__init__(setting)
        self.weight = setting.weights[next(iter(setting.weights))]

    def after_step(self, step):
        if step.number == 3 and self.breaks:
            with torch.no_grad():
                self.weight[0, 0] = math.nan

    def before_forward(self, step):
        if step.number == 4:
            raise self.error


@pytest.mark.parametrize("error", [IndexError("index 9"), RuntimeError("invalid probabilities"), ValueError("nan")])
def test_a_method_that_refuses_what_is_no_number_has_diverged(tmp_path, monkeypatch, error):
    monkeypatch.setitem(METHODS, "raising", type("Method", (Raising,), {"error": error}))
    config = small(method__name="raising")
    result = train(config, tmp_path)
    assert (result["status"], result["step"], result["metrics"]) == ("diverged", 4, {})
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"
    assert train(config, tmp_path) == unsealed(read_json(tmp_path / "result.json"))


def test_an_error_of_a_run_with_finite_numbers_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "raising", type("Method", (Raising,), {"breaks": False}))
    with pytest.raises(IndexError, match="index 9 is out of bounds"):
        train(small(method__name="raising"), tmp_path)
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("format", ["int4/absmax/block=16", "nf4/absmax/block=16", "e2m1/absmax/block=16"])
@pytest.mark.parametrize(
    "method, settings", [("qat", {}), ("lotion", {}), ("lotion", {"curvature": "gnb", "every": 1})]
)
def test_learning_rates_that_explode(tmp_path, format, method, settings):
    config = small(method__name=method, method__format=format, method__settings=settings, optimizer__lr=1e30, steps=8)
    result = train(config, tmp_path)
    assert result["status"] == "diverged" and result["step"] < 8


def test_a_cast_that_is_no_number_has_diverged(monkeypatch):
    """Where the floats are still finite."""
    found = {"float_loss": 1.0, "rtn_loss": math.nan, "rr_loss": 1.0, "rr_perplexity": math.inf}
    monkeypatch.setattr(training, "metrics", lambda _: found)
    result = train(SMALL)
    assert result["status"] == "diverged" and result["metrics"] == {}
    found["rtn_loss"] = 1000.0
    assert train(SMALL)["status"] == "ok"


def test_the_command_ends_with_1(tmp_path, capsys):
    options = ["--format", "nf4/absmax/block=16", "--method", "qat", "--lr", "1e30", "--steps", "12", "--batch", "2",
               "--device", "cpu", "--set", "model.width=16", "model.heads=2", "model.depth=1", "model.hidden=16",
               "model.context=16", "optimizer.warmup=1"]  # fmt: skip
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *options, "--out", str(tmp_path)])
        out, err = capsys.readouterr()
        assert ended.value.code == 1 and "diverged at step" in out and "Traceback" not in err


def test_a_search_goes_on_past_a_trial_that_diverges(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    made, kinds = [], []

    def make(setting):
        made.append(setting)
        kinds.append(Raising if len(made) == 2 else maker("qat"))
        return kinds[-1](setting)

    monkeypatch.setitem(METHODS, "qat", make)
    found = tune(small(method__name="qat", steps=6), tmp_path, trials=2, seeds=1)
    # One model more than trials: the search looks first whether a run can start.
    assert len(made) == 3 and len(found.trials) == 2
    worst = next(trial for trial in found.trials if trial["rtn"] == [None])
    assert worst["value"] == pytest.approx(math.log(SMALL.model.vocabulary), rel=1e-15)
    assert isinstance(found.best["lr"], float)
