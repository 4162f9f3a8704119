"""Language models as runs of a sweep."""

import pytest

from testbeds.kinds import run
from testbeds.lm import runs
from testbeds.lm.loop.train import train
from testbeds.results.leaderboard import leaderboard
from testbeds.sweep.check import check
from testbeds.sweep.config import parse
from testbeds.sweep.driver import run_sweep
from testbeds.sweep.plan import candidates, plan
from testbeds.sweep.store import Store

TEXT = """
experiments:
  - name: small
    kind: train
    title: t
    problem: {name: decoder, width: 16, depth: 1, heads: 2, hidden: 16, context: 16, batch: 2, warmup: 1, windows: 4, samples: 2, points: 2}
    formats: [int4]
    seeds: 2
    steps: 4
    lr: 3.0e-3
    methods:
      - {name: ptq}
      - {name: lotion, scale: attached, weight: 1.0}
"""


@pytest.fixture
def experiment():
    return parse(TEXT)[0]


def test_a_run_gives_what_the_trainer_gives(experiment):
    task = plan([experiment], [])[-1]
    row = run(task.kind, task.config, task.seed)
    direct = train(runs.configuration(task.config, task.seed))
    for name in ("float_loss", "rtn_loss", "rr_loss", "gap"):
        assert row[name] == direct["metrics"][name]
    assert row["curve"]["step"] == [2, 4] and row["curve"]["rtn"][-1] == row["rtn_loss"]
    assert row["gap"] == pytest.approx(row["rtn_loss"] - row["float_loss"], abs=1e-12)
    assert row["parameters"] > row["quantized_parameters"] > 0


def test_configuration_sets_what_it_is_told(experiment):
    config = dict(plan([experiment], [])[-1].config)
    made = runs.configuration({**config, "schedule": "wsd"}, 7)
    assert made.model.width == 16 and made.model.context == 16 and made.batch == 2 and made.seed == 7
    assert made.optimizer.lr == 3e-3 and made.optimizer.schedule == "wsd" and made.optimizer.warmup == 1
    assert (made.method.name, made.method.format) == ("lotion", "int4")
    assert made.method.settings == {"scale": "attached", "weight": 1.0}
    assert (made.evaluation.windows, made.evaluation.samples, made.run.evaluate_every) == (4, 2, 2)


def test_a_sweep_and_its_leaderboard(experiment, tmp_path):
    check([experiment])
    with Store(tmp_path / "s.sqlite") as store:
        done = run_sweep(lambda s: plan([experiment], s.rows()), store, pool="serial")
        assert done.ok == 4
        lines = leaderboard(store.rows(), "small", "ptq")
    assert {line.method for line in lines} == {"ptq", "lotion (attached)"}
    assert all(line.seeds == 2 and line.rr_loss is not None for line in lines)


def test_methods_are_paired_by_seed(experiment):
    """With λ = 0 LOTION is plain training: the same initial weights and batches, so the same losses to the bit."""
    ptq, lotion = (dict(plan([experiment], [])[k].config) for k in (0, 2))
    lotion["method"] = {**lotion["method"], "weight": 0.0}
    a, b = run("train", ptq, 3), run("train", lotion, 3)
    assert (a["float_loss"], a["rtn_loss"], a["rr_loss"]) == (b["float_loss"], b["rtn_loss"], b["rr_loss"])
    assert run("train", ptq, 4)["float_loss"] != a["float_loss"]


def test_all_methods_have_the_same_tuning_budget():
    text = TEXT.replace("lr: 3.0e-3", "tuning: {lr: [1.0e-3, 1.0e-2], budget: 6, seeds: 1}").replace(
        ", weight: 1.0", ""
    )
    experiment = parse(text)[0]
    base = {"problem": dict(experiment.problem), "format": "int4"}
    grids = [candidates(experiment, base, method) for method in experiment.methods]
    assert [len(grid) for grid in grids] == [6, 6]
    assert len({config["lr"] for config in grids[0]}) == 6
    assert {config["method"]["weight"] for config in grids[1]} == {0.5, 2.0}


def test_seconds_per_step_are_measured(experiment):
    config = dict(plan([experiment], [])[0].config)
    methods = [dict(m) for m in experiment.methods]
    found = run("timing", {**config, "methods": methods, "steps": 2, "rounds": 2}, 0)["seconds_per_step"]
    assert len(found) == 2 and all(0 < s < 60 for s in found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch: 2", "bach: 2", "problem decoder has no setting 'bach'"),
        ("heads: 2", "heads: 3", "model.heads = 3"),
        ("name: ptq", "name: cbo", "method.name = 'cbo'"),
        ("scale: attached", "scal: attached", "lotion has no setting 'scal'"),
        ("formats: [int4]", "formats: [int4/absmax/block=5]", "block"),
        ("points: 2", "points: 0", "points = 0"),
        ("kind: train", "kind: estimator", "decoder is for kind train"),
        ("steps: 4", "steps: 4\n    optimizer: sgd", "valid for decoder: adam"),
        ("context: 16", "context: 16, tokens: /nowhere/tokens", "no such folder"),
    ],
)
def test_what_cannot_run_is_refused_before_it_runs(old, new, message):
    text = TEXT.replace(old, new)
    assert text != TEXT
    if "estimator" in new:
        text = text.replace("    lr: 3.0e-3\n", "")
    with pytest.raises(ValueError, match="experiment small: ") as caught:
        check(parse(text))
    assert message in str(caught.value)
