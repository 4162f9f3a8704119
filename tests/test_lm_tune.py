"""Tuning of learning rate and weight: the search, its repeats, and going on after an interruption."""

import math

import pytest

from testbeds import cli
from testbeds.lm import train as training
from testbeds.lm.config import assigned, load, preset
from testbeds.lm.tune import FIRST_SEED, Stopped, tune, with_settings

pytest.importorskip("optuna", reason="needs optuna (extra 'tune')")

SMALL = (
    "model.width=16", "model.depth=1", "model.heads=2", "model.hidden=16", "model.context=16", "steps=4", "batch=2",
    "optimizer.warmup=1", "evaluation.windows=4", "evaluation.samples=2", "method.name=lotion", "method.format=int4",
)  # fmt: skip


@pytest.fixture
def config():
    return assigned(preset("tiny"), SMALL)


def test_best_trial_is_the_one_of_lowest_mean_rtn_loss(config, tmp_path):
    found = tune(config, tmp_path, trials=3, seeds=2, weight=(0.1, 10.0))
    assert len(found.trials) == 3
    values = [t["value"] for t in found.trials]
    assert values == sorted(values) and found.value == values[0]
    for trial in found.trials:
        assert 3e-4 <= trial["lr"] <= 3e-2 and 0.1 <= trial["weight"] <= 10
        assert trial["value"] == pytest.approx(sum(trial["rtn"]) / 2, rel=1e-15)
    # A run of its own with these settings and the first seed gives the stored loss to the bit.
    again = training.train(assigned(with_settings(config, found.best), (f"seed={FIRST_SEED}",)))
    assert again["metrics"]["rtn_loss"] == found.trials[0]["rtn"][0]
    assert found.config.method.settings == {"weight": found.best["weight"]}


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(config, tmp_path, monkeypatch):
    whole = tune(config, tmp_path / "whole", trials=7, seeds=1, weight=(0.1, 10.0))
    real, calls = training.train, []

    def stopping(run, out):
        calls.append(out)
        return {"status": "stopped"} if len(calls) == 4 else real(run, out)

    monkeypatch.setattr(training, "train", stopping)
    with pytest.raises(Stopped):
        tune(config, tmp_path / "parts", trials=7, seeds=1, weight=(0.1, 10.0))
    parts = tune(config, tmp_path / "parts", trials=7, seeds=1, weight=(0.1, 10.0))
    assert calls[3] == calls[4], "the interrupted trial is tried again"
    assert len(calls) == 8, "finished trials are not"
    assert parts.trials == whole.trials


def test_a_diverged_run_counts_as_guessing(config, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train", lambda run, out: {"status": "diverged", "metrics": {}})
    found = tune(config, tmp_path, trials=1, seeds=2)
    assert found.value == pytest.approx(math.log(256), rel=1e-15) and found.trials[0]["rtn"] == [None, None]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("method.name=lotion", {"trials": 0}, "trials = 0"),
        ("method.name=lotion", {"lr": (1e-2, 1e-3)}, "lr = 0.01 ... 0.001"),
        ("method.name=qat", {"weight": (0.1, 1.0)}, "qat has no setting"),
        ("method.name=none", {}, "no quantized loss"),
    ],
)
def test_bad_searches_are_refused(config, tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        tune(assigned(config, (change,)), tmp_path, **{"trials": 1, **options})


def test_a_folder_holds_one_search(config, tmp_path):
    tune(config, tmp_path, trials=1, seeds=1)
    with pytest.raises(ValueError, match="seeds: 1, now 2"):
        tune(config, tmp_path, trials=1, seeds=2)


def test_the_command_writes_settings_that_train_reads(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", "--preset", "tiny", "--trials", "2", "--seeds", "1", "--out", str(tmp_path), "--set", *SMALL])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count("RTN loss") == 2 and f"lotion train --preset tiny --config {tmp_path / 'best.yaml'}" in shown
    best = load(tmp_path / "best.yaml")
    assert 0.1 <= best.method.settings["weight"] <= 10 and best.model.width == 16
