"""Leaderboards: what the lines say about rows whose answer is known, and what the tables show. All rows are made up."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from testbeds.results.leaderboard import leaderboard, rounding_table, tuning_table
from testbeds.results.rows import method_label, problem_label, row_labels
from testbeds.results.statistics import holm, mean_interval, paired, proportion_interval
from testbeds.text.boards import cautions, print_lines, records, sheets, to_csv, to_json, to_markdown
from tests import synthetic_rows as made

QAT, PTQ = {"name": "qat"}, {"name": "ptq"}


def duel(seeds: int = 6, floor: float | None = None) -> list[dict]:
    """LOTION at 0.6 times QAT's loss above the floor, give or take 1 %."""
    rows = []
    for s in range(seeds):
        loss = 0.1 * made.noise(s, "duel")
        rows.append(made.train(QAT, s, (floor or 0) + loss, floor=floor))
        other = 0.6 * loss * (1.01 if s % 2 else 1 / 1.01)
        rows.append(made.train({"name": "lotion", "weight": 1.0}, s, (floor or 0) + other, floor=floor, lr=0.03))
    return rows


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ({"name": "qat"}, "qat"),
        ("qat", "qat"),
        ({"name": "lotion", "scale": "attached", "ramp": True, "weight": 3.0, "lr": 0.1}, "lotion (attached, ramp)"),
        ({"name": "lotion", "ramp": False, "error_feedback": True}, "lotion (ramp off, error feedback)"),
        ({"name": "mc", "samples": 8, "damping": 1e-6, "start": None}, "mc (samples=8, damping=1e-06)"),
    ],
)
def test_method_labels(method, label):
    assert method_label(method) == label


def test_what_is_not_tuned_tells_methods_apart():
    assert method_label({"name": "lotion", "weight": 2.0}, tuned=()) == "lotion (weight=2)"
    assert problem_label({"name": "two_layer", "d": 64, "k": 4, "decay": 1.1}) == "two_layer d=64 k=4 decay=1.1"
    # Settings whose values read alike are written with their names, and what rows differ in besides is added.
    rows = [made.train({"name": "x", "start": "rtn"}, 0, 1.0), made.train({"name": "x", "end": "rtn"}, 0, 1.0)]
    assert row_labels(rows) == ["x (start=rtn)", "x (end=rtn)"]
    rows = [made.train(QAT, 0, 1.0), made.train(QAT, 0, 1.0, optimizer="sgd"), made.train(PTQ, 0, 1.0, steps=10)]
    assert row_labels(rows) == ["qat, adam, steps=3000", "qat, sgd, steps=3000", "ptq, adam, steps=10"]
    rows = [made.train(QAT, 0, 1.0, phase="equal_time"), made.train(PTQ, 0, 1.0, steps=10, phase="equal_time")]
    assert row_labels(rows) == ["qat", "ptq"]


# --- training --------------------------------------------------------------------------------------------------------


def test_lines_hold_the_statistics_of_their_rows():
    rows = duel()
    best, worst = leaderboard(rows, "synthetic", "qat")
    a = {r["seed"]: r["metrics"]["rtn_loss"] for r in rows if r["config"]["method"]["name"] == "lotion"}
    b = {r["seed"]: r["metrics"]["rtn_loss"] for r in rows if r["config"]["method"]["name"] == "qat"}
    assert (best.method, best.reference, worst.method, worst.reference) == ("lotion", False, "qat", True)
    assert best.rtn_loss == mean_interval(a.values()) and worst.rtn_loss == mean_interval(b.values())
    assert best.rr_loss.value == pytest.approx(1.1 * best.rtn_loss.value)
    assert best.gap.value == pytest.approx(best.rtn_loss.value - best.float_loss.value)
    assert best.comparison == paired(a, b) and best.comparison.wins == 6
    # Half of the ratios are .6 x 1.01, the others .6 / 1.01: the geometric mean is .6, and all six have one sign.
    assert best.over_reference.value == pytest.approx(0.6, rel=1e-12) and best.p_holm == 2 / 2**6
    assert best.over_best[:3] == (1, 1, 1) and worst.over_best.value == pytest.approx(1 / 0.6, rel=1e-12)
    assert worst.over_reference[:3] == (1, 1, 1) and worst.comparison is None and worst.p_holm is None
    assert best.tuned == {"weight": 1.0, "lr": 0.03} and best.seconds == pytest.approx(3.25) and best.seeds == 6


def test_ratios_are_of_losses_above_the_noise_floor():
    plain, floored = leaderboard(duel(), "synthetic", "qat"), leaderboard(duel(floor=0.5), "synthetic", "qat")
    for a, b in zip(plain, floored, strict=True):
        # Adding and subtracting a floor of 5 times the loss costs a few ulp of the floor.
        assert b.over_best == pytest.approx(a.over_best, rel=1e-14 * 10) and b.p_holm == a.p_holm
        assert b.rtn_loss.value == pytest.approx(a.rtn_loss.value + 0.5) and b.noise_floor == 0.5
    below = [made.train(QAT, s, 0.4 + 0.1 * s, floor=0.5) for s in range(4)] + duel(4, floor=0.5)[1::2]
    ratio = leaderboard(below, "synthetic", "lotion")[0].over_reference
    assert ratio.low is None  # no logarithm of a loss below the floor: the ratio of means stands alone


def test_known_optima_beat_lowest_losses():
    rows = duel()
    rows[0]["metrics"]["optimum"] = 0.3 * rows[0]["metrics"]["rtn_loss"]
    found = [r for r in rows if r["seed"] == 0]
    assert leaderboard(found, "synthetic")[0].over_best.value == pytest.approx(0.6 / 0.3 / 1.01)
    # A lower loss in another experiment on the same instance counts, one on another instance does not.
    other = made.train(PTQ, 0, 0.01, experiment="other"), made.train(PTQ, 0, 1e-9, format="int2", experiment="other")
    line = leaderboard([*found, *other], "synthetic")[0]
    assert line.over_best.value == pytest.approx(found[1]["metrics"]["rtn_loss"] / 0.01)


def test_groups_are_adjusted_separately_and_sorted():
    rows = made.contest(seeds=7)
    lines = leaderboard(rows, "synthetic", "qat")
    assert [line.format for line in lines] == ["int4/absmax"] * 8 + ["int8/absmax"] * 8
    for group in (lines[:8], lines[8:]):
        tests = [line.comparison.p_value for line in group if not line.reference]
        assert [line.p_holm for line in group if not line.reference] == holm(tests) and len(tests) == 7
        means = [line.rtn_loss.value for line in group]
        assert means == sorted(means)
    labels = {line.method for line in lines}
    assert {"lotion (attached, ramp)", "lotion (attached, ramp off)", "lotion (detached, ramp off)"} <= labels


def test_equal_time_is_a_second_table_and_other_phases_are_none():
    rows = [r for phase in ("equal_time", "final", "tune", "timing") for r in made.contest(3, phase=phase)]
    lines = leaderboard(rows, "synthetic")
    assert [line.phase for line in lines] == ["final"] * 16 + ["equal_time"] * 16
    assert [s.title for s in sheets(lines)][1:3] == [
        "synthetic: linear_regression d=64, int8/absmax, equal steps",
        "synthetic: linear_regression d=64, int4/absmax, equal time",
    ]  # fmt: skip


def test_runs_that_diverge_or_fail_are_counted():
    rows = [*duel(), made.train(QAT, 7, None), made.train(QAT, 8, None, status="crashed"), made.train(PTQ, 0, None)]
    lines = leaderboard(rows, "synthetic", "qat")
    assert [(line.method, line.seeds, line.diverged, line.failed) for line in lines] == [
        ("lotion", 6, 0, 0), ("qat", 6, 1, 1), ("ptq", 0, 1, 0),
    ]  # fmt: skip
    assert lines[2].rtn_loss is None and lines[2].comparison is None and lines[0].p_holm == 2 / 2**6
    notes = cautions(rows, lines)
    for lost in (
        "qat on linear_regression d=64, int4/absmax: 6 of 8",
        "ptq on linear_regression d=64, int4/absmax: 0 of 1",
    ):
        assert any(lost in note for note in notes)
    # A reference that never got anywhere leaves nothing to compare with.
    assert all(line.comparison is None for line in leaderboard(rows, "synthetic", "ptq"))
    assert to_json(lines) and to_markdown(lines)


def test_repeated_runs_count_once_and_the_last_wins():
    old = [made.train(QAT, s, 9.0, finished="2024-01-01T00:00:00", version="v0") for s in range(6)]
    assert (
        leaderboard(duel() + old, "synthetic")
        == leaderboard(old + duel(), "synthetic")
        == leaderboard(duel(), "synthetic")
    )
    assert cautions(duel() + old) == []
    mixed = cautions([*duel(), made.train(PTQ, 0, 1.0, version="v0", machine="m2")])
    assert "2 versions of the code: v0, v1" in mixed[0] and "2 machines: m1, m2" in mixed[1]


def test_settings_side_by_side_are_separate_lines():
    lines = leaderboard(made.lambdas(("int4/absmax",)), "synthetic", "lotion (attached, ramp)")
    assert len(lines) == 21 and sum(line.reference for line in lines) == 1
    best = next(line for line in lines if line.method == "lotion (attached, ramp)")
    assert best.reference  # the best of the label's seven settings


def test_few_seeds_are_said_to_prove_nothing():
    lines = leaderboard(duel(3), "synthetic", "qat")
    assert cautions(duel(3), lines) == [
        "With 3 common seeds and 1 methods compared, no adjusted p-value can be below 0.25 (1 comparisons)."
    ]
    assert cautions(duel(6), leaderboard(duel(6), "synthetic", "qat")) == []


def test_six_seeds_and_two_methods_are_too_few():
    # The lowest p-value of six seeds is 2 / 64; twice that is above 0.05.
    rows = [*duel(6), *(made.train(PTQ, s, 0.3 * made.noise(s, "third")) for s in range(6))]
    (note,) = cautions(rows, leaderboard(rows, "synthetic", "qat"))
    assert "With 6 common seeds and 2 methods compared, no adjusted p-value can be below 0.062" in note


# --- rounding and tuning ---------------------------------------------------------------------------------------------


def test_rounding_shares_and_ratios():
    rows = made.rounding()
    lines = rounding_table(rows)
    assert len(lines) == 7 * len(made.ROUNDERS)
    line = next(x for x in lines if x.problem == "rotated d=10" and x.method == "gptq")
    mine = [r["metrics"] for r in rows if r["config"]["problem"]["d"] == 10 and r["config"]["method"]["name"] == "gptq"]
    assert line.optimal == proportion_interval(sum(m["optimal"] for m in mine), 40)
    assert line.ratio == mean_interval([m["ratio"] for m in mine]) and line.instances == 40
    first = [x for x in lines if x.problem == "rotated d=10"]
    assert [x.ratio.value for x in first] == sorted(x.ratio.value for x in first)


def test_rounding_without_known_optima():
    config = {"problem": {"name": "layer", "d": 64}, "format": "int4", "method": {"name": "gptq", "damping": 0.01}}
    metrics = [{"loss": 1.0, "optimum": None, "ratio": None, "optimal": None, "seconds": 0.5},
               {"loss": 1.0, "optimum": 0.5, "ratio": 2.0, "optimal": False, "seconds": 1.5}]  # fmt: skip
    rows = [made.row("round", config, s, m) for s, m in enumerate(metrics)]
    (line,) = rounding_table([*rows, made.row("round", config, 2, status="failed")])
    assert (line.method, line.instances, line.failed, line.seconds) == ("gptq (damping=0.01)", 2, 1, 1.0)
    assert line.ratio.n == line.optimal.n == 1
    (sheet,) = sheets([line])
    assert sheet.cells == (("gptq (damping=0.01)", "0 % [0, 79] of 1", "2.000 (n=1)", "1.00", "2", "1"),)
    (line,) = rounding_table(rows[:1])
    assert line.optimal is None and sheets([line])[0].headings == ("method", "seconds", "instances")


def test_a_searched_grid_has_another_optimum():
    config = {"problem": {"name": "layer", "d": 64}, "format": "int4", "method": {"name": "best_scale"}}
    metrics = {"loss": 0.9, "optimum": 1.0, "ratio": 0.9, "optimal": True, "seconds": 1.0, "grid": "searched"}
    (line,) = rounding_table([made.row("round", config, s, metrics) for s in range(3)])
    assert line.optimal is None and line.ratio.value == pytest.approx(0.9) and line.grid == "searched"
    assert "searched" in to_markdown([line])


def grid(best: float, lrs=(1e-3, 3e-3, 1e-2, 3e-2), **more) -> list[dict]:
    return [
        made.train(QAT, s, 0.1 + 0.01 * abs(np.log10(lr / best)) + 0.001 * s, lr=lr, phase="tune", **more)
        for lr in lrs for s in range(3)
    ]  # fmt: skip


def test_tuning_marks_the_choice_and_flags_edges():
    inside = tuning_table(grid(1e-2))
    assert [(x.tuned["lr"], x.chosen, x.edges) for x in inside] == [
        (1e-3, False, ()), (3e-3, False, ()), (1e-2, True, ()), (3e-2, False, ()),
    ]  # fmt: skip
    assert cautions(grid(1e-2), inside) == []
    for best, edge in ((1e-3, "lr lowest of 4"), (3e-2, "lr highest of 4")):
        lines = tuning_table(grid(best))
        assert [x.edges for x in lines if x.chosen] == [(edge,)]
        assert edge in cautions(grid(best), lines)[0] and f"EDGE: {edge}" in to_markdown(lines)
    assert tuning_table(grid(1e-2, lrs=(1e-2,)))[0].edges == ()


def test_tuning_follows_the_final_runs_and_avoids_failures():
    # What final runs used is the choice, even where another mean is lower, and however long they are.
    final = [made.train(QAT, 9, 0.1, lr=3e-3, steps=9000)]
    assert [x.tuned["lr"] for x in tuning_table(grid(1e-2) + final) if x.chosen] == [3e-3]
    broken = [r for r in grid(1e-2) if not (r["config"]["lr"] == 1e-2 and r["seed"] == 1)]
    lines = tuning_table([*broken, made.train(QAT, 1, None, lr=1e-2, phase="tune")])
    chosen = [x for x in lines if x.chosen]
    assert chosen[0].tuned["lr"] in (3e-3, 3e-2) and [x.failed for x in lines] == [0, 0, 1, 0]


def test_weight_and_rate_are_both_tuned():
    rows = [
        made.train({"name": "lotion", "weight": weight}, s, 0.1 + abs(np.log10(weight)) + abs(np.log10(lr / 0.1)), lr=lr, phase="tune")
        for weight in (0.1, 1.0, 10.0) for lr in (0.01, 0.1) for s in range(2)
    ]  # fmt: skip
    lines = tuning_table(rows)
    assert len(lines) == 6 and {x.method for x in lines} == {"lotion"}
    assert [(x.tuned, x.edges) for x in lines if x.chosen] == [({"weight": 1.0, "lr": 0.1}, ("lr highest of 2",))]


def test_what_a_method_tunes_of_its_own_is_tuned():
    rows = [
        made.train({"name": "quant_noise", "p": p}, s, 1 - 0.5 * p + 0.01 * s, lr=lr, phase="tune")
        for p in (0.1, 0.5, 0.9) for lr in (0.01, 0.1) for s in range(2)
    ]  # fmt: skip
    lines = tuning_table(rows)
    assert {x.method for x in lines} == {"quant_noise"} and len(lines) == 6
    assert [x.edges for x in lines if x.chosen] == [("p highest of 3", "lr lowest of 2")]
    (line,) = leaderboard([made.train({"name": "quant_noise", "p": 0.9}, s, 0.1) for s in range(2)], "synthetic")
    assert line.method == "quant_noise" and line.tuned == {"p": 0.9, "lr": 0.01}
    assert {x.method for x in tuning_table(rows, ("lr",))} == {f"quant_noise (p={p:g})" for p in (0.1, 0.5, 0.9)}


# --- text ------------------------------------------------------------------------------------------------------------


def test_every_format_holds_every_line():
    rows = made.contest(6)
    lines = leaderboard(rows, "synthetic", "qat")
    text = to_csv(lines)
    table = list(csv.DictReader(io.StringIO(text)))
    data = json.loads(to_json(lines))
    assert len(table) == len(data) == len(records(lines)) == 16
    for line, cells, record in zip(lines, table, data, strict=True):
        assert float(cells["rtn_loss"]) == record["rtn_loss"] == line.rtn_loss.value
        assert record["rtn_loss_low"] == line.rtn_loss.low and record["lr"] == 0.01
        assert record["paired_p_value"] == (None if line.reference else line.comparison.p_value)
        assert cells["p_holm"] == ("" if line.reference else str(line.p_holm))
    assert '"lotion (attached, ramp)"' in text


def test_markdown_and_terminal_show_the_same_cells(capsys):
    rows = made.contest(6)
    lines = leaderboard(rows, "synthetic", "qat")
    markdown = to_markdown(lines, ["mind the gap | here"])
    print_lines(lines, Console(width=80, force_terminal=False), ["mind the gap"])
    terminal = capsys.readouterr().out
    for sheet in sheets(lines):
        assert f"### {sheet.title}" in markdown and sheet.title in terminal
        for cells in sheet.cells:
            assert f"| {' | '.join(cells)} |" in markdown
            assert all(cell in terminal for cell in cells)
    assert "qat (reference)" in markdown and "> **Warning:** mind the gap \\| here" in markdown
    assert "Warning: mind the gap" in terminal
    body = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in body}) == 1
    # Nothing to say, no column: no run failed and none was compared.
    assert "failed" not in sheets(lines)[0].headings
    assert "p (Holm)" not in sheets(leaderboard(rows, "synthetic"))[0].headings


def test_marks_of_markdown_are_text():
    text = to_markdown(leaderboard(duel(), "synthetic", "qat"), ["a\\b|c*d<e`f"])
    assert "a\\\\b\\|c\\*d\\<e\\`f" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: leaderboard(rows, "absent"), r"'absent'; valid: synthetic \(train\)"),
        (lambda rows: leaderboard(rows, "synthetic", "gptq"), "reference='gptq'.*valid: cage, detached_noise"),
        (lambda rows: leaderboard(rows, "synthetic", "lotion"), "several methods; valid: lotion"),
        (lambda rows: leaderboard([{**r, "phase": "tune"} for r in rows], "synthetic"), "final or equal_time"),
        (lambda rows: rounding_table(rows), "no rows of kind 'round'"),
        (lambda rows: rounding_table([]), "there are no rows"),
        (lambda rows: rounding_table([made.row("round", {}, 0, phase="tune")]), "only tuning and timing"),
        (lambda rows: tuning_table(rows), "none of phase 'tune'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(made.contest(2))
