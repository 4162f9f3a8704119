"""Experiment files and the runs they stand for."""

import itertools
from collections import Counter

import numpy as np
import pytest

from testbeds import kinds
from testbeds.documents import canonical
from testbeds.settings import made, to_dict
from testbeds.sweep.check import check
from testbeds.sweep.config import Experiment, Tuning, load, parse, presets
from testbeds.sweep.plan import TUNING_SEEDS, candidates, experiment_tasks, plan
from testbeds.sweep.task import Task

BASE = """
experiments:
  - name: e
    title: t
    kind: train
    problem: {name: linear_regression, d: 8}
    formats: [int4]
    lr: 1e-2
    methods: [{name: ptq}, {name: lotion, scale: [attached, detached]}]
"""


def experiment(**changes) -> Experiment:
    settings = {
        "name": "e", "kind": "train", "title": "t", "problem": {"name": "linear_regression", "d": 8},
        "formats": ("int4",), "methods": ({"name": "ptq"}, {"name": "lotion", "scale": "attached"}), "seeds": 3,
        "steps": 50, "tuning": Tuning((1e-3, 1e-1), budget=6, seeds=2),
    }  # fmt: skip
    return Experiment(**{**settings, **changes})


def row(task: Task, loss: float | None, status: str = "ok", **metrics) -> dict:
    return {
        "experiment": task.experiment, "phase": task.phase, "kind": task.kind, "config": dict(task.config),
        "seed": task.seed, "status": status, "metrics": {"rtn_loss": loss, **metrics},
    }  # fmt: skip


def test_lists_of_settings_are_lines_and_numbers_are_numbers():
    (found,) = parse(BASE)
    assert [dict(m) for m in found.methods] == [
        {"name": "ptq"}, {"name": "lotion", "scale": "attached"}, {"name": "lotion", "scale": "detached"},
    ]  # fmt: skip
    assert found.lr == 0.01 and found.problem["d"] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: train", "kind: trian"), "unknown kind 'trian'; valid: train, round"),
        (("lr: 1e-2", "lr: 1e-2\n    stepz: 3"), "no setting 'stepz'; valid: name, kind"),
        (("    title: t\n", ""), "title is missing"),
        (("title: t", "title: 3\n    oracle: 1"), "put it in quotes; oracle = 1: expected true or false"),
        (("lr: 1e-2", "tuning: {lr: [1]}"), "tuning.lr = [1]: expected a list of two numbers"),
        (("lr: 1e-2", "tuning: {lr: [1, x], bujet: 3}"), "no setting 'tuning.bujet'; valid: tuning.lr, tuning.budget"),
        (("lr: 1e-2", "tuning: 3"), "tuning = 3: expected settings: lr, budget, seeds"),
        (("{name: ptq}", "ptq"), "methods[0] = 'ptq': expected settings by name"),
        (("experiments:\n", "experiments:\n  - 3\n"), "experiment 0: 3: expected settings: name, kind"),
        (("    lr: 1e-2\n", ""), "either lr or tuning"),
        (("[{name: ptq}, {name: lotion, scale: [attached, detached]}]", "[]"), "no methods"),
        (("{name: ptq}", "{nam: ptq}"), "has no name"),
        (("experiments:", "experiment:"), "under the key 'experiments'"),
        (("title: t", "title: [t"), "not valid YAML"),
        (("formats: [int4]", "formats: []"), "formats: name at least one"),
        (("problem: {name: linear_regression, d: 8}", "problem: 3"), "problem = 3: expected settings by name"),
        (("lr: 1e-2", "lr: 1e-2\n    vary: {d: 4}"), "vary.d = 4: expected a list of values"),
        (("lr: 1e-2", "lr: 1e-2\n    seeds: 0"), "at least 1"),
        (("lr: 1e-2", "lr: 1e-2\n    equal_time: true"), "reference"),
        (("lr: 1e-2", "lr: 0"), "lr = 0: must be positive and finite"),
        (("lr: 1e-2", "lr: -1"), "lr = -1: must be positive and finite"),
        (("lr: 1e-2", "lr: .inf"), "lr = inf: must be positive and finite"),
        (("lr: 1e-2", "lr: .nan"), "lr = nan: must be positive and finite"),
        (("lr: 1e-2", "lr: true"), "lr = True: expected a number or null"),
        (("lr: 1e-2", "tuning: {lr: [1, .inf]}"), "positive and finite"),
        (
            ("lr: 1e-2", "tuning: {lr: [1, 2], seeds: 100000}"),
            "tuning.seeds = 100000: must be at least 1 and at most 1,000",
        ),
        (("lr: 1e-2", "lr: 1e-2\n    seeds: 1000000000"), "seeds = 1000000000: must be at least 1 and at most 1,000"),
        (("lr: 1e-2", "lr: 1e-2\n    seeds: 1e9"), "seeds = '1e9': expected a whole number"),
        (("lr: 1e-2", "lr: 1e-2\n    steps: 10000000000"), "steps = 10000000000: must be"),
        (("lr: 1e-2", "lr: 1e-2\n    lr: 1e-3"), "'lr' is given twice"),
        (("name: lotion", "name: lotion, name: ptq"), "'name' is given twice"),
        (("name: e\n", "name:\n"), "name = None: expected text"),
        (("name: e\n", "name: ''\n"), "name: must not be empty"),
        (("title: t", "title: 3"), "title = 3: expected text; put it in quotes"),
        (("title: t", "null: t"), "a name must be text"),
        (("d: 8", "d: *d"), "not valid YAML"),
        (
            ("lr: 1e-2", f"lr: 1e-2\n    vary: {{d: {list(range(1, 1001))}, tail: {list(range(1000))}}}"),
            "20,000,000 runs; valid: up to 1,000,000",
        ),
        (("lr: 1e-2", "lr: 1e-2\n    steps: 2.5"), "steps = 2.5: expected a whole number"),
        (("lr: 1e-2", "tuning: {lr: [1, 0.1]}"), "the lowest and the highest"),
        (("formats: [int4]", "formats: int4"), "formats = 'int4': expected a list of texts"),
        (("kind: train", "kind: round"), "belong to kind train"),
    ],
)
def test_bad_files_are_answered(change, message):
    text = BASE.replace(*change)
    assert text != BASE
    with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
        parse(text, "mine.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("int4", "mxfp4"), "needs an absmax scale"),
        (("int4", "int4/absmax/block=7"), "does not divide"),
        (("int4", "int44"), "int44"),
        (("name: ptq", "name: quat"), "unknown training method 'quat'"),
        (("scale: [attached, detached]", "scale: fixed"), "valid: attached, detached"),
        (("scale: [attached, detached]", "weight: -1"), "not negative"),
        (("scale: [attached, detached]", "weight: abc"), "must be a finite number"),
        (("scale: [attached, detached]", "foo: 1"), "no setting 'foo'"),
        (("linear_regression", "nope"), "unknown problem 'nope'"),
        (("d: 8", "d: 8, dim: 1"), "no setting 'dim'"),
        (("lr: 1e-2", "lr: 1e-2\n    optimizer: sgdd"), "valid: adam, gd"),
        (("lr: 1e-2", "lr: 1e-2\n    reference: qat"), "none of its methods: ptq"),
        (("lr: 1e-2", "lr: 1e-2\n    settings: {bogus: 1}"), "kind train has no setting 'bogus'; valid: checkpoints"),
        (("name: linear_regression", "name: null"), "unknown problem None; valid: linear_regression"),
        (("name: ptq", "name: null"), "unknown training method None; valid: ptq"),
    ],
)
def test_experiments_that_cannot_run_are_refused_before_any_run(change, message):
    text = BASE.replace(*change)
    assert text != BASE
    with pytest.raises(ValueError, match="experiment e: ") as caught:
        check(parse(text))
    assert message in str(caught.value)


def test_presets_pass_the_check():
    for name in presets():
        check(load(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"draws": 8}}, "settings.spread is missing: kind estimator needs it"),
        ({"settings": {"draws": 8, "spread": 0}}, r"settings\.spread = 0: must be a positive number"),
        ({"settings": {"draws": 8.0, "spread": 0.1}}, r"settings\.draws = 8\.0: must be a positive integer"),
        ({"settings": {"draws": 8, "spread": 0.1, "starts": 4}}, "kind estimator has no setting 'starts'; valid: draws, spread, fixed, pairs"),
        ({"kind": "minima", "settings": {"starts": True}}, r"settings\.starts = True: must be a positive integer"),
        ({"kind": "round", "settings": {"limit": "long"}}, r"settings\.limit = 'long': must be a positive number"),
        ({"kind": "round", "problem": {"name": "real_layer", "rows": 2}}, "problem real_layer has the settings layer and rows"),
        ({"kind": "round", "problem": {"name": "real_layer", "layer": "x", "rows": 2}}, r"layer = 'x'; valid: 0\.query"),
        ({"kind": "round", "problem": {"name": "real_layer", "layer": "0.up", "rows": 0}}, "rows = 0: must be a positive integer"),
    ],
)  # fmt: skip
def test_settings_of_an_experiment_are_those_of_its_kind(changes, message):
    e = experiment(**{"kind": "estimator", "tuning": None, "methods": ({"name": "ptq"},), **changes})
    with pytest.raises(ValueError, match=f"experiment {e.name}: {message}"):
        check([e])


def test_a_configuration_of_other_encoding_or_kind_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes("experiments: [\xfc]".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.yaml is not UTF-8 text"):
        load(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "b.yaml").write_text("\ufeff" + BASE, encoding="utf-8")
    assert load(tmp_path / "b.yaml") == parse(BASE)


def test_repeated_names_and_unknown_presets_are_answered():
    with pytest.raises(ValueError, match="repeat: e"):
        parse(BASE + BASE.split("experiments:\n")[1])
    with pytest.raises(FileNotFoundError, match="presets: curvature, lm, lm-quick, paper, quantize, quick"):
        load("papper")


@pytest.mark.parametrize("name", presets())
def test_experiments_survive_plain_data(name):
    assert [made(Experiment, to_dict(e)) for e in load(name)] == load(name)


@pytest.mark.parametrize("name", presets())
def test_presets_name_what_exists(name):
    """Every run of a preset can be named, every method and setting exists, and every method has the same budget."""
    for e in load(name):
        tasks = experiment_tasks(e, [])
        assert tasks and {t.kind for t in tasks} <= set(kinds.names())
        assert len({t.name for t in tasks}) == len(tasks)
        if e.tuning is not None:
            known = {}
            tuned = [t for t in tasks if t.phase == "tune"]
            counts = Counter((t.config["format"], str(t.config["problem"]), _line(e, t, known)) for t in tuned)
            assert set(counts.values()) == {e.tuning.budget * e.tuning.seeds}


def _line(e: Experiment, task: Task, known: dict) -> int:
    """Which of the experiment's methods a tuning run belongs to; ``known`` keeps the settings in which each is tuned."""
    base = {k: v for k, v in task.config.items() if k not in ("method", "lr")}
    if str(base) not in known:
        known[str(base)] = [[c["method"] for c in candidates(e, base, m)] for m in e.methods]
    (found,) = [i for i, settings in enumerate(known[str(base)]) if task.config["method"] in settings]
    return found


def test_tuning_comes_first_and_finals_use_other_seeds():
    e = experiment()
    first = experiment_tasks(e, [])
    assert {t.phase for t in first} == {"tune"} and len(first) == 2 * 6 * 2
    assert {t.seed for t in first} == {TUNING_SEEDS, TUNING_SEEDS + 1}
    # ptq's tuning alone is finished: its final runs are known, at the best learning rate.
    ptq = [t for t in first if t.config["method"]["name"] == "ptq"]
    rates = sorted({t.config["lr"] for t in ptq})
    rows = [row(t, abs(t.config["lr"] - rates[3])) for t in ptq]
    final = [t for t in experiment_tasks(e, rows) if t.phase == "final"]
    assert [t.seed for t in final] == [0, 1, 2]
    assert {t.config["lr"] for t in final} == {rates[3]} and {t.config["method"]["name"] for t in final} == {"ptq"}
    assert plan([e], rows) == experiment_tasks(e, rows)
    assert plan([e], [{**r, "experiment": "other"} for r in rows]) == first


def test_every_method_gets_the_same_budget():
    e = experiment()
    base = {"problem": dict(e.problem), "format": "int4"}
    plain, own = (candidates(e, base, m) for m in e.methods)
    assert len(plain) == len(own) == 6
    assert len({c["lr"] for c in plain}) == 6 and len({c["lr"] for c in own}) == 2
    assert {c["method"]["weight"] for c in own} == {0.3, 1.0, 3.0}
    assert len({c["lr"] for c in candidates(e, base, {"name": "lotion", "weight": 1.0})}) == 6
    assert min(c["lr"] for c in plain) == 1e-3 and max(c["lr"] for c in plain) == 1e-1
    with pytest.raises(ValueError, match="multiple of 3"):
        candidates(experiment(tuning=Tuning((1e-3, 1e-1), budget=4)), base, e.methods[1])


def test_a_diverged_configuration_is_not_chosen():
    e = experiment(methods=({"name": "ptq"},))
    tasks = experiment_tasks(e, [])
    best = tasks[4].config["lr"]
    rows = [row(t, 0.0 if t.config["lr"] == best else 1.0) for t in tasks]
    rows[4] = row(tasks[4], 0.0, "diverged")
    final = [t for t in experiment_tasks(e, rows) if t.phase == "final"]
    assert {t.config["lr"] for t in final} == {tasks[0].config["lr"]}
    # Where nothing works, the smallest learning rate is shown to fail.
    final = [t for t in experiment_tasks(e, [row(t, None, "failed") for t in tasks]) if t.phase == "final"]
    assert {t.config["lr"] for t in final} == {1e-3}


def test_equal_time_follows_the_timing_run():
    e = experiment(equal_time=True, reference="ptq", tuning=None, lr=0.01)
    tasks = experiment_tasks(e, [])
    (timing,) = [t for t in tasks if t.phase == "timing"]
    assert timing.config["methods"] == [dict(m) for m in e.methods]
    done = row(timing, None, seconds_per_step=[1e-5, 4e-5])
    steps = {
        t.config["method"]["name"]: t.config["steps"] for t in experiment_tasks(e, [done]) if t.phase == "equal_time"
    }
    # 50 steps of the reference take as long as 12.5 of a method four times as slow; 12.5 rounds to even.
    assert steps == {"ptq": 50, "lotion": 12}
    with pytest.raises(ValueError, match="none of ptq, lotion"):
        experiment_tasks(experiment(equal_time=True, reference="qat", tuning=None, lr=0.01), [
            row(t, None, seconds_per_step=[1.0, 1.0])
            for t in experiment_tasks(experiment(equal_time=True, reference="qat", tuning=None, lr=0.01), [])
            if t.phase == "timing"
        ])  # fmt: skip


def test_varied_settings_are_problems_and_oracles_come_with_them():
    e = experiment(
        kind="round", tuning=None, problem={"name": "power_law"}, vary={"d": (4, 6), "exponent": (1.0, 2.0)},
        methods=({"name": "rtn"},), oracle=True, seeds=2,
    )  # fmt: skip
    assert [p["d"] for p in e.problems()] == [4, 4, 6, 6]
    tasks = experiment_tasks(e, [])
    assert len([t for t in tasks if t.kind == "oracle"]) == 8 and len([t for t in tasks if t.kind == "round"]) == 8


def test_learning_rates_are_spread_in_the_logarithm():
    e = experiment(methods=({"name": "ptq"},))
    rates = [c["lr"] for c in candidates(e, {"problem": dict(e.problem), "format": "int4"}, {"name": "ptq"})]
    # Written with four digits.
    assert np.allclose(np.diff(np.log(rates)), np.log(100) / 5, rtol=1e-3)


# --- tuning goes on at the edges -------------------------------------------------------------------------------------


def _tuned_out(e: Experiment, loss) -> tuple[list[Task], list[Task]]:
    """Plan, run and plan again until nothing is left to be tuned: tuning runs and final runs."""
    rows: list[dict] = []
    for _ in range(30):
        tasks = experiment_tasks(e, rows)
        tuned = [t for t in tasks if t.phase == "tune"]
        known = {canonical([r["config"], r["seed"]]) for r in rows}
        new = [t for t in tuned if canonical([t.config, t.seed]) not in known]
        if not new:
            return tuned, [t for t in tasks if t.phase == "final"]
        rows += [row(t, loss(t.config)) for t in new]
    raise AssertionError("tuning never ends")


@pytest.mark.parametrize("best_rate", [1e-5, 1e-2, 3.0])
@pytest.mark.parametrize("best_weight", [0.01, 1.0, 50.0])
def test_a_grid_is_continued_until_the_best_lies_inside(best_rate, best_weight):
    """On a loss with one minimum, wherever that is, the choice has tried neighbours on both sides in every number."""
    e = experiment(methods=({"name": "lotion"},), tuning=Tuning((1e-3, 1e-1), budget=12, seeds=2, extend=40))

    def loss(config):
        return abs(np.log(config["lr"] / best_rate)) + abs(np.log(config["method"]["weight"] / best_weight))

    tuned, final = _tuned_out(e, loss)
    chosen = final[0].config
    for key, of in (("lr", lambda c: c["lr"]), ("weight", lambda c: c["method"]["weight"])):
        # A step is a factor of about 4.64 in the rate and 3.33 in the weight.
        tried = sorted({of(t.config) for t in tuned})
        assert tried[0] < of(chosen) < tried[-1], key
    assert loss(chosen) == min(loss(t.config) for t in tuned) <= np.log(4.7) / 2 + np.log(3.4) / 2
    first = experiment_tasks(e, [])
    assert [t.name for t in tuned[: len(first)]] == [t.name for t in first]


def test_extensions_are_counted_and_stop_where_a_method_ends():
    falling = experiment(methods=({"name": "ptq"},), tuning=Tuning((1e-3, 1e-1), budget=6, seeds=1, extend=3))
    tuned, final = _tuned_out(falling, lambda config: config["lr"])
    assert len(tuned) == 6 + 3 and final[0].config["lr"] == min(t.config["lr"] for t in tuned) < 1e-4
    none = experiment(methods=({"name": "ptq"},))
    assert len(_tuned_out(none, lambda config: config["lr"])[0]) == 6 * 2
    # DSQ's α lies in (0, 1): beyond 0.6 comes 0.9 and then nothing.
    ends = experiment(methods=({"name": "dsq"},), tuning=Tuning((1e-3, 1e-1), budget=12, seeds=1, extend=20))
    tuned, final = _tuned_out(ends, lambda config: abs(np.log(config["lr"] / 1e-2)) - config["method"]["alpha"])
    assert final[0].config["method"]["alpha"] == 0.9


def test_schemes_of_rounding_are_tuned_by_their_loss():
    e = experiment(
        kind="round", tuning=Tuning(budget=18, seeds=2), problem={"name": "power_law", "d": 4}, oracle=True, seeds=3,
        methods=({"name": "rtn"}, {"name": "gptq", "order": "natural"}, {"name": "adaround"}),
    )  # fmt: skip
    check([e])
    rows: list[dict] = []
    for _ in range(2):
        tasks = experiment_tasks(e, rows)
        rows = [
            {**row(t, None), "metrics": {"loss": abs(t.config["tuned"].get("weight", 0.3) - 0.3)}}
            for t in tasks if t.phase == "tune"
        ]  # fmt: skip
    phases = Counter((t.phase, t.config.get("method", {}).get("name")) for t in tasks)
    assert phases["tune", "gptq"] == 3 * 2 and phases["tune", "adaround"] == 15 * 2
    # A scheme with nothing to tune runs as it would without tuning.
    assert phases["tune", "rtn"] == 0 and phases["oracle", None] == 3
    plain = experiment_tasks(experiment(**{**_plain(e), "tuning": None}), [])
    assert {t.key for t in plain if t.config.get("method") == {"name": "rtn"}} <= {t.key for t in tasks}
    final = [t for t in tasks if t.phase == "final" and t.config["method"]["name"] == "adaround"]
    assert {t.config["tuned"]["weight"] for t in final} == {0.3} and final[0].config["method"] == {"name": "adaround"}
    assert kinds.run("round", final[0].config, 0)["loss"] >= 0


def _plain(e: Experiment) -> dict:
    return {key: getattr(e, key) for key in ("kind", "problem", "oracle", "seeds", "methods")}


def test_experiments_whose_grids_go_on_give_every_method_four_learning_rates():
    """Those without ``extend`` hold rows of an older, smaller budget, which leaves CAGE and DSQ two."""
    seen = 0
    for name in ("paper", "quick"):
        for e in load(name):
            if e.tuning is None or not e.tuning.extend:
                continue
            seen += 1
            for problem, method in itertools.product(e.problems(), e.methods):
                grid = candidates(e, {"problem": problem, "format": e.formats[0]}, method)
                rates = {}
                for config in grid:
                    rates.setdefault(canonical(config["method"]), set()).add(config.get("lr"))
                assert all(len(found) >= 4 or found == {None} for found in rates.values()), (e.name, method)
    assert seen
