"""Tuning of learning rate and weight: the search, its repeats, and going on after an interruption."""

import math
import sqlite3
from contextlib import closing

import pytest

from testbeds import cli
from testbeds.lm.loop import train as training
from testbeds.lm.loop.config import assigned, load, preset
from testbeds.lm.measure.tune import FIRST_SEED, Stopped, tune, with_settings
from tests.strategies import storable

pytest.importorskip("optuna", reason="needs optuna (extra 'tune')")

SMALL = (
    "model.width=16", "model.depth=1", "model.heads=2", "model.hidden=16", "model.context=16", "steps=4", "batch=2",
    "optimizer.warmup=1", "evaluation.windows=4", "evaluation.samples=2", "method.name=lotion", "method.format=int4",
)  # fmt: skip


def diverged():
    return {"status": "diverged", "metrics": {}}


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


def test_repeats_differ_by_their_seed(config, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(training, "train", lambda run, out: runs.append((run, out)) or diverged())
    tune(config, tmp_path, trials=2, seeds=3)
    assert [run.seed for run, _ in runs] == 2 * [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
    assert len({out for _, out in runs}) == 6
    monkeypatch.undo()
    found = tune(config, tmp_path / "real", trials=1, seeds=2)
    assert len(set(found.trials[0]["rtn"])) == 2


@pytest.mark.parametrize(
    "name",
    filter(
        storable, ["a b", "ü λ", "50%", "a%20b", "run#1", "what?", "x?mode=memory", "a&b=c", "quote'", "back\\slash"]
    ),
)
def test_the_search_is_kept_in_its_folder_whatever_its_name(config, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "train", lambda run, out: diverged())
    first = tune(config, tmp_path / name, trials=1, seeds=1)
    assert (tmp_path / name / "study.sqlite").is_file() and [p.name for p in tmp_path.iterdir()] == [name]
    assert tune(config, tmp_path / name, trials=1, seeds=1) == first


@pytest.mark.parametrize("how", ["text", "cut", "search", "losses", "value", "folder"])
def test_a_damaged_search_is_named(config, tmp_path, monkeypatch, how):
    monkeypatch.setattr(training, "train", lambda run, out: diverged())
    tune(config, tmp_path, trials=1, seeds=1)
    path = tmp_path / "study.sqlite"
    change = {
        "search": "update study_user_attributes set value_json = '[1]'",
        "losses": "update trial_user_attributes set value_json = '{'",
        "value": "update trial_values set value = null, value_type = 'INF_POS'",
    }.get(how)
    if change is not None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(change)
            connection.commit()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(b"no data base" * 100 if how == "text" else path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"study\.sqlite is (damaged|a folder)"):
        tune(config, tmp_path, trials=1, seeds=1)


def test_a_search_that_cannot_start_leaves_no_folder(config, tmp_path):
    with pytest.raises(ValueError, match="does not divide the row length"):
        tune(assigned(config, ("method.format=int4/absmax/block=24",)), tmp_path / "out", trials=1)
    assert not (tmp_path / "out").exists()


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
    monkeypatch.setattr(training, "train", lambda run, out: diverged())
    found = tune(config, tmp_path, trials=1, seeds=2)
    assert found.value == pytest.approx(math.log(256), rel=1e-15) and found.trials[0]["rtn"] == [None, None]


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("method.name=lotion", {"trials": 0}, "trials = 0"),
        ("method.name=lotion", {"lr": (1e-2, 1e-3)}, "lr = 0.01 ... 0.001"),
        ("method.name=lotion", {"lr": (1e-2, math.inf)}, "lr = 0.01 ... inf"),
        ("method.name=lotion", {"lr": (math.nan, 1e-2)}, "lr = nan ... 0.01"),
        ("method.name=lotion", {"weight": (0.0, 1.0)}, "weight = 0 ... 1"),
        ("method.name=lotion", {"seeds": 10**9}, "seeds = 1000000000: must lie in 1 to 100000"),
        ("method.name=qat", {"weight": (0.1, 1.0)}, "qat has no setting"),
        ("method.name=none", {}, "no quantized loss"),
    ],
)
def test_bad_searches_are_refused(config, tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        tune(assigned(config, (change,)), tmp_path, **{"trials": 1, **options})


def test_a_search_is_refused_before_its_bar_is_drawn(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", "--method", "lotion", "--weight-range", "3", "1", "--out", str(tmp_path), "--set", *SMALL])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("lotion: weight = 3 ... 1: ")


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
