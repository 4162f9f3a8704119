"""CONTRIBUTING.md: its places are there, and each of its recipes, followed in a copy of the packages, makes the thing.

The copy is edited as the recipes say, once for all of them, and used from a process of its own.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

# thing: (new files, lines added elsewhere as (file, the text they stand before, what is added))
RECIPES = {
    "codebook": (
        {
            "lotion_theory/formats/nine.py": """
from fractions import Fraction

from .codebooks import Codebook, register_codebook

LEVELS = tuple(Fraction(k, 2) for k in (-7, -4, -2, -1, 0, 1, 2, 4, 7))
register_codebook(Codebook("nine", LEVELS, (True, False) * 4 + (True,), 3.17, "nine levels, denser at zero"))
"""
        },
        [("lotion_theory/formats/__init__.py", "from .scale_protocol", "from . import nine\n")],
    ),
    "stored scale": (
        {},
        [
            (
                "lotion_theory/formats/scale_formats.py",
                'ScaleFormat("fp16"',
                'ScaleFormat("e5m2", 2, -14, Fraction(57344)),\n        ',
            )
        ],
    ),
    "stored block type": (
        {
            "lotion_theory/stored/quarter.py": """
from . import search
from .base import StoredType
from .layout import Field, half, planes


def near(step, shift):
    return {"d": step[..., None].astype("<f2")}


TYPES = (
    StoredType(
        name="quarter", ggml="QUARTER", block=64, size=18, group=64, levels=(-1, 0, 1, 2),
        codes=Field("codes", 64, planes(2, 16, 2, 1)), fields=(half("d", 0),),
        scales=lambda fields: (fields["d"][..., 0].astype("f4"), None),
        own=lambda x, importance: near(abs(x.reshape(len(x), -1, 64)).max(axis=2), None), near=near, best=search.scaled,
    ),
)
"""
        },
        [("lotion_theory/stored/__init__.py", '"legacy", "k_quants"', '"quarter", ')],
    ),
    "rounder": (
        {
            "lotion_theory/rounders/downward.py": """
from .base import Rounder

ROUNDER = Rounder(
    name="downward", run=lambda case, settings, stream: case.grid.bracket(case.weights)[0], information="none",
    grid="fixed", source="a test", evaluations="none", settings={}, tuning={},
)
"""
        },
        [("lotion_theory/rounders/__init__.py", '"gptq": "gptq"', '"downward": "downward",\n    ')],
    ),
    "training method": (
        {
            "lotion_theory/methods/halved.py": """
from .rule import Method, Rule, at_nearest


def half(p, g, h, a):
    return 0.5 * g


METHOD = Method(
    "halved", rule=lambda settings: Rule(at_nearest, half), information="gradient at RTN(w)", grid="absmax",
    source="a test", settings={}, any_format=True,
)
"""
        },
        [("lotion_theory/methods/rule.py", '"ptq", "qat"', '"halved", ')],
    ),
    "claim": (
        {
            "lotion_theory/theory/claims/signs.py": """
import numpy as np

from ._base import Outcome, claim

C23 = claim("C23", "signs", "equality", "RTN(-w) = -RTN(w) on symmetric levels",
            applies=lambda q: None if q.codebook.symmetric else "levels are not symmetric")


@C23.check("property", "one block")
def mirrored(q):
    w = np.linspace(-1, 1, 32)
    off = float(abs(q.cast(w) + q.cast(-w)).max())
    return Outcome(off, 0.0, 1, None if off == 0 else "w = linspace(-1, 1, 32)")
"""
        },
        [("lotion_theory/theory/claims/__init__.py", "from ._base", "from . import signs\n")],
    ),
    "torch problem": (
        {
            "testbeds/problems/pull.py": """
from .descriptor import Descriptor, Trainer


def train(config, seed):
    import torch

    from lotion_theory.training import StraightThrough

    torch.manual_seed(seed)
    w, goal = torch.nn.Parameter(torch.zeros(4, 8)), torch.randn(4, 8)
    name = config["method"]["name"]
    st = StraightThrough([("w", w)], config["format"], name, total_steps=config["steps"])
    optimizer = torch.optim.SGD([w], config["lr"])
    for _ in range(config["steps"]):
        optimizer.zero_grad()
        with st:
            loss = ((w - goal) ** 2).sum()
            loss.backward()
        st.before_step_(optimizer)
        optimizer.step()
        st.step()
    with torch.no_grad(), st:
        rounded = float(((w - goal) ** 2).sum())
    full = float(((w - goal) ** 2).sum().detach())
    return {"float_loss": full, "rtn_loss": rounded, "rr_loss": rounded, "gap": rounded - full, "train_seconds": 1.0,
            "curve": {"step": [config["steps"]], "seconds": [1.0], "float": [full], "rtn": [rounded], "rr": [rounded]}}


TRAINER = Trainer(train, lambda config, seed: 1.0, lambda method: {}, lambda configs: None)
PROBLEMS = (Descriptor("pull", trainer=TRAINER),)
"""
        },
        [("testbeds/problems/__init__.py", '"two_layer": ".two_layer"', '"pull": ".pull",\n    ')],
    ),
    "experiment": (
        {
            "testbeds/configs/mine.yaml": """
experiments:
  - {name: mine-rounding, title: Rounding, kind: round, problem: {name: power_law, d: 6}, formats: [int3],
     seeds: 2, methods: [{name: rtn}, {name: downward}]}
  - {name: mine-training, title: Training, kind: train, problem: {name: pull}, formats: [int4/absmax/row],
     seeds: 2, steps: 20, lr: 0.1, reference: qat, methods: [{name: qat}, {name: halved}]}
  - {name: mine-levels, title: Levels, kind: levels, problem: {name: power_law, d: 6}, formats: [int3, int4], seeds: 3}
"""
        },
        [],
    ),
    "kind of experiment": (
        {
            "testbeds/kinds/levels.py": """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..results.rows import grouped, instance, of_kind, values
from ..results.statistics import Interval, format_interval, mean_interval
from ..results.studies import add, figure
from ..results.table import Column, Table
from ..values import NAME, PROBLEM
from .base import Kind
from .round import check, has_case, rounding_case


def levels_run(config, seed):
    case = rounding_case(config, seed)
    return {"levels": len(np.unique(case.grid.nearest(case.weights)))}


@dataclass(frozen=True)
class LevelsLine:
    problem: str
    format: str
    levels: Interval
    experiment: str

    table: ClassVar = Table(
        (Column("format", "format", lambda x: x.format), Column("levels used", "levels", lambda x: format_interval(x.levels))),
        "±: 95 % t interval of the mean over instances.", place=("experiment", "problem"),
    )


def table(rows, experiment, reference):
    places = grouped(of_kind(rows, "levels"), instance)
    return [LevelsLine(*place, mean_interval(values(runs, "levels").values()), experiment) for place, runs in places.items()]


def figures(rows):
    series = {}
    for line in table(rows, "", None):
        add(series, line.problem, int(line.format[3:]), line.levels)
    yield figure("Levels by bits", "Different levels that RTN uses.", ("bits", False), ("levels", True), series)


KIND = Kind(
    "levels", levels_run, check, takes=has_case, methods=False, config={"problem": PROBLEM, "format": NAME},
    words="levels in use", table=table, figures=figures,
)
"""
        },
        [("testbeds/kinds/__init__.py", '"train", "timing"', '"levels", ')],
    ),
    "report section": (
        {
            "testbeds/report/weather.py": """
from .section import Section, table, text


def blocks(contents):
    runs = contents.material.rows
    return [text("Weather of the runs"), table("Runs", ["experiment", "seed"], [[r["experiment"], r["seed"]] for r in runs])]


SECTION = Section("weather", "Weather", "Weather", blocks=blocks)
"""
        },
        [("testbeds/report/page.py", '"verdicts", "lattices"', '"weather", ')],
    ),
    "command": (
        {
            "testbeds/commands/hello.py": '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Hello:
    """Say hello.

    Example: lotion hello
    """

    def run(self, console):
        print("hello from a new command")
        return 0


COMMAND = Hello
'''
        },
        [("testbeds/commands/__init__.py", '"formats", "verify"', '"hello", ')],
    ),
}  # fmt: skip

USE = """
import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import lotion_theory as lt

w = np.linspace(-1, 1, 32)
assert lt.codebook("nine") is pickle.loads(pickle.dumps(lt.codebook("nine")))
assert len(set(lt.Quantizer.parse("nine/absmax/tensor").cast(w))) == 9

for how in ("nearest", "up", "sr"):
    assert lt.Quantizer.parse(f"e2m1/e5m2-{how}/block=16").cast(w).shape == w.shape

from lotion_theory.stored import StoredTensor, stored_type
quarter = stored_type("quarter").quantize(np.linspace(-1, 1, 128), search="error")
again = StoredTensor.from_bytes(quarter.type, quarter.to_bytes(), (128,))
assert quarter.bits_per_weight == 2.25 and (again.values() == quarter.values()).all()
assert abs(again.values() - np.linspace(-1, 1, 128)).mean() < 0.3

from lotion_theory.rounders import Case, rounder
case = Case.make(np.eye(3), np.array([[0.3, -0.4, 1.0]]), "int3")
assert (rounder("downward")(case, lt.Stream(0, "x")) <= case.weights).all()

(row,) = lt.verify(["int4"], ["C23"], processes=1)
assert (row.claim, row.verdict) == ("C23", "holds"), row

# The method in the plain engine; in torch and in a sweep below.
from lotion_theory.methods import method
from testbeds.descent import Optimizer, train
from testbeds.problems import training_problem
problem = training_problem({"name": "linear_regression", "d": 8}, 0)
runs = [train(problem, method(name)(), "int4", Optimizer("gd", rate, "constant"), 5, engine="plain")
        for name, rate in (("halved", 0.02), ("qat", 0.01))]
assert np.array_equal(runs[0].state.w, runs[1].state.w)
from testbeds.lm.model.methods import METHODS
assert "halved" in METHODS

from testbeds import cli
def lotion(*arguments):
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
store, page = (str(Path(sys.argv[1]) / name) for name in ("runs.sqlite", "page.html"))
lotion("sweep", "mine", "--store", store, "--pool", "serial")
lotion("report", "--store", store, "--out", page)
text = Path(page).read_text(encoding="utf-8")
assert '"weather":[{"text":"Weather of the runs"},{"table":' in text and '"weather">Weather</h2>' in text
board = next(b for b in json.loads(re.search('id="data">(.*?)</script>', text)[1])["boards"] if b["name"] == "mine-levels")
assert board["words"] == "levels in use" and [h for h, _ in board["columns"]] == ["format", "levels used"]
assert [line["levels"] > 1 for line in board["lines"]] == [True, True]
assert '"title":"Levels by bits"' in text
lotion("leaderboard", "--store", store, "--experiment", "mine-levels", "--output", "markdown")
lotion("figures", "--store", store, "--out", str(Path(sys.argv[1]) / "figures"))
captions = json.loads((Path(sys.argv[1]) / "figures" / "captions.json").read_text(encoding="utf-8"))
assert captions["mine-levels-Levels-by-bits"] == "Different levels that RTN uses."
lotion("hello")
"""


def test_places_named_in_the_text_are_there():
    named = [
        p.strip("/") for p in re.findall(r"`((?:lotion_theory|testbeds|scripts|docs|tests|notebooks)/[\w/.*-]*)`", TEXT)
    ]
    assert len(named) > 30
    missing = [p for p in named if not list(ROOT.glob(p)) and not any(p in new for new, _ in RECIPES.values())]
    assert not missing
    for path, name in re.findall(r"`((?:lotion_theory|testbeds)/[\w/.-]+\.py)`: `([A-Za-z_]\w*)`", TEXT):
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:def |class )?{name}\b", source, re.MULTILINE), f"{path} has no {name}"


def test_rooms_of_the_map_are_those_of_the_tree():
    for package in ("lotion_theory", "testbeds"):
        rooms = {p.parent.name for p in (ROOT / package).glob("*/__init__.py")}
        assert rooms <= set(re.findall(rf"`{package}/(\w+)/`", TEXT)), f"{package}: the map lacks rooms"


@pytest.mark.parametrize("thing", RECIPES)
def test_recipes_name_the_files_that_are_touched(thing):
    (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| {thing} |"))
    new, edits = RECIPES[thing]
    for path in {*(str(Path(path).parent) + "/" for path in new), *(path for path, _, _ in edits)}:
        assert f"`{path}`" in line or f"`{path.rstrip('/')}/" in line, f"{thing}: {path}"


def test_following_the_recipes_makes_the_things(tmp_path):
    pytest.importorskip("torch")
    for package in ("lotion_theory", "testbeds"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for new, edits in RECIPES.values():
        for path, text in new.items():
            assert not (tmp_path / path).exists()
            (tmp_path / path).write_text(text, encoding="utf-8")
        for path, before, added in edits:
            source = (tmp_path / path).read_text(encoding="utf-8")
            assert source.count(before) == 1, (path, before)
            (tmp_path / path).write_text(source.replace(before, added + before), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "downward" in done.stdout and "halved" in done.stdout and "hello from a new command" in done.stdout
    assert "### mine-levels: power_law d=6\n\n| format | levels used |" in done.stdout
