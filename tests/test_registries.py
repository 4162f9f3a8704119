"""Problems, kinds of experiment and commands describe themselves: each is one file and one line, and no engine names it."""

import ast
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import testbeds
from lotion_theory import Quantizer
from testbeds import cli, commands, kinds, problems
from testbeds.descent import methods as descent_methods
from testbeds.kinds import Kind
from testbeds.problems import Descriptor, Trainer
from testbeds.results.leaderboard import leaderboard
from testbeds.sweep.check import check
from testbeds.sweep.config import parse
from testbeds.sweep.driver import run_sweep
from testbeds.sweep.plan import plan
from testbeds.sweep.store import Store

ENGINE = Path(testbeds.__file__).parent / "sweep"
PHASES = {"timing", "oracle"}
"""Parts of an experiment that share the name of a kind."""


@pytest.mark.parametrize("path", sorted(ENGINE.glob("*.py")), ids=lambda path: path.stem)
def test_the_engine_of_sweeps_knows_no_problem_kind_or_search_by_name(path):
    known = {*problems.names(), *kinds.names(), *descent_methods.SEARCHES} - PHASES
    constants = {n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)}
    assert not known & {value for value in constants if isinstance(value, str)}


@pytest.mark.parametrize("name", problems.names())
def test_problems_offer_something_to_some_kind(name):
    found = problems.descriptor(name)
    assert found.name == name
    assert kinds.names(lambda kind: kind.check and kind.takes(found))


@pytest.mark.parametrize("name", kinds.names())
def test_kinds_name_kinds_that_there_are(name):
    kind = kinds.kind(name)
    assert kind.name == name and set(kind.required) <= set(kind.settings)
    assert {kind.cost, kind.oracle} - {None} <= set(kinds.names(lambda other: other.check is None))
    assert bool(kind.tuned) == bool(kind.cost)


@pytest.mark.parametrize("name", descent_methods.names())
def test_methods_say_whether_they_follow_a_gradient(name):
    """A search is no method of the core package, declares what it tunes, and says what is not valid."""
    found = descent_methods.search(name)
    assert descent_methods.follows_gradient(name) == (found is None)
    if found is not None:
        assert found.name == name and set(found.tuning) <= set(found.settings)
        with pytest.raises(ValueError, match=f"{name} has no setting 'bogus'"):
            found.check({"bogus": 1})


def test_a_method_without_gradient_is_no_estimator():
    text = """
experiments:
  - {name: e, title: t, kind: estimator, problem: {name: linear_regression, d: 4}, formats: [int4], methods: [{name: cbo}],
     settings: {draws: 4, spread: 0.1}}
"""
    with pytest.raises(ValueError, match="experiment e: method cbo follows no gradient"):
        check(parse(text))


def test_an_oracle_belongs_to_kinds_that_have_one():
    text = """
experiments:
  - {name: e, title: t, kind: train, problem: {name: linear_regression, d: 4}, formats: [int4], methods: [{name: ptq}],
     lr: 0.1, oracle: true}
"""
    with pytest.raises(ValueError, match="oracle belongs to kind round, minima"):
        parse(text)


# --- adding one ------------------------------------------------------------------------------------------------------

CONFIG = """
experiments:
  - name: own
    title: A line fitted in torch
    kind: train
    problem: {name: torch_line, size: 6}
    formats: [int4]
    methods: [{name: ptq}, {name: momentum}]
    seeds: 2
    steps: 20
    tuning: {lr: [1.0e-2, 1.0e-1], budget: 4, seeds: 1}
    equal_time: true
    reference: ptq
  - name: counted
    title: Distinct levels in use
    kind: levels
    problem: {name: power_law, d: 5}
    formats: [int2, int4]
    seeds: 2
"""


def _torch_line() -> ModuleType:
    """What the file of a problem in torch holds."""
    import torch

    def trained(config, seed):
        draw = torch.Generator().manual_seed(seed)
        size = config["problem"]["size"]
        target, w = (torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(2))
        w.requires_grad_()
        momentum = config["method"].get("momentum", 0.0)
        optimizer = torch.optim.SGD([w], lr=config["lr"], momentum=momentum)
        for _ in range(config["steps"]):
            optimizer.zero_grad()
            ((w - target) ** 2).sum().backward()
            optimizer.step()
        w = w.detach()
        rounded = Quantizer.parse(config["format"]).cast(w.numpy())
        losses = [float(((x - target.numpy()) ** 2).sum()) for x in (w.numpy(), rounded)]
        return {"float_loss": losses[0], "rtn_loss": losses[1], "gap": losses[1] - losses[0]}

    def checked(configs):
        for config in configs:
            if config["method"]["name"] not in ("ptq", "momentum"):
                raise ValueError(f"method {config['method']['name']!r}; valid: ptq, momentum")

    def tuning(method):
        return {"momentum": (0.5, 0.9)} if method == "momentum" else {}

    module = ModuleType("torch_line")
    trainer = Trainer(trained, lambda config, seed: 1e-3, tuning, checked, timed_steps=5)
    module.PROBLEMS = (Descriptor("torch_line", trainer=trainer, needs={"torch": "lotion-theory[torch]"}),)
    return module


def _levels() -> ModuleType:
    """What the file of a kind holds."""

    def counted(config, seed):
        case = kinds.round.rounding_case(config, seed)
        return {"levels": len(np.unique(case.grid.nearest(case.weights)))}

    def takes(problem):
        return problem.case is not None

    module = ModuleType("levels")
    module.KIND = Kind("levels", counted, kinds.round.check, takes=takes, methods=False)
    return module


@pytest.fixture
def extended(monkeypatch):
    """Both files beside those of the packages, each in its list."""
    pytest.importorskip("torch")
    kinds.kind("round")
    monkeypatch.setitem(sys.modules, "testbeds.problems.torch_line", _torch_line())
    monkeypatch.setitem(problems.FILES, "torch_line", ".torch_line")
    monkeypatch.setitem(sys.modules, "testbeds.kinds.levels", _levels())
    monkeypatch.setattr(kinds, "NAMES", (*kinds.NAMES, "levels"))


def test_a_problem_and_a_kind_are_one_file_and_one_line(extended, tmp_path):
    experiments = parse(CONFIG)
    check(experiments)
    with Store(tmp_path / "s.sqlite") as store:
        done = run_sweep(lambda s: plan(experiments, s.rows()), store, pool="serial")
        rows = store.rows()
        again = run_sweep(lambda s: plan(experiments, s.rows()), store, pool="serial")
    # Per method 4 runs to tune, 2 final ones and 2 of equal time, the same by equal costs; a timing run; 2 formats of 2.
    assert (done.ok, done.done, again.done) == (2 * (4 + 2 + 2) + 1 + 4, 2 * (4 + 2 + 2) + 1 + 4, 0)
    (timing,) = [row for row in rows if row["phase"] == "timing"]
    assert timing["config"]["steps"] == 5
    lines = leaderboard(rows, "own", "ptq")
    assert {line.method.split(" ")[0] for line in lines} == {"ptq", "momentum"}
    counts = {(r["config"]["format"], r["metrics"]["levels"]) for r in rows if r["kind"] == "levels"}
    assert counts and all(1 <= n <= min(5, 2 ** int(text[3:])) for text, n in counts)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: momentum", "name: lotion", "experiment own: method 'lotion'; valid: ptq, momentum"),
        ("kind: levels", "kind: round", "experiment counted: no methods"),
        ("name: power_law, d: 5", "name: torch_line", "experiment counted: problem torch_line is for kind train"),
    ],
)
def test_their_own_checks_are_asked(extended, old, new, message):
    assert CONFIG.replace(old, new) != CONFIG
    with pytest.raises(ValueError) as caught:
        check(parse(CONFIG.replace(old, new)))
    assert message.removeprefix("experiment counted: ") in str(caught.value)


def test_a_command_is_one_file_and_one_line(monkeypatch, capsys):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Greet:
        """Say hello.

        Example: lotion greet --name you
        """

        name: str = "all"

        def run(self, console):
            print(f"hello {self.name}")
            return 0

    module = ModuleType("greet")
    module.COMMAND = Greet
    monkeypatch.setitem(sys.modules, "testbeds.commands.greet", module)
    monkeypatch.setattr(cli, "NAMES", (*commands.NAMES, "greet"))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["greet", "--name", "you"])
    assert stopped.value.code == 0 and capsys.readouterr().out == "hello you\n"
