"""Figures of sweeps show what their rows say, and can be read. All rows are made up."""

from __future__ import annotations

import itertools
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from scipy.stats import gmean

from testbeds.figures import save, style
from testbeds.figures.curves import figure_curves
from testbeds.figures.estimators import figure_estimators
from testbeds.figures.minima import figure_minima
from testbeds.figures.plain import figure_plain
from testbeds.figures.rounders import figure_rounders
from testbeds.figures.sensitivity import figure_lambda
from testbeds.figures.series import COLOURS, MARKERS, looks
from testbeds.figures.sweeps import draw_all
from testbeds.figures.widths import figure_widths
from testbeds.results.leaderboard import leaderboard
from testbeds.results.rows import method_label
from testbeds.results.statistics import mean_interval, paired, proportion_interval
from testbeds.results.studies import figure as study
from tests import synthetic_rows as made

MODULES = ("curves", "sensitivity", "widths", "rounders", "estimators", "minima")


def drawn(ax, label: str):
    """The line of a label."""
    return next(line for line in ax.get_lines() if line.get_label() == label)


def bars(ax, line) -> np.ndarray:
    """Ends of the intervals of a line, (points, 2)."""
    from matplotlib.colors import to_rgb

    found = [c for c in ax.collections if to_rgb(c.get_color()[0]) == to_rgb(line.get_color())]
    segments = [
        s for c in found for s in c.get_segments() if np.isin(np.round(s[0, 0], 9), np.round(line.get_xdata(), 9))
    ]
    return np.array([s[:, 1] for s in segments])


def figures() -> dict:
    return {
        "curves": figure_curves(made.contest(), "synthetic", "int4/absmax"), "sensitivity": figure_lambda(made.lambdas()),
        "widths": figure_widths(made.widths()), "rounders": figure_rounders(made.rounding(instances=10)),
        "estimators": figure_estimators(made.estimators()), "minima": figure_minima(made.minima()),
    }  # fmt: skip


def test_every_figure_can_be_read():
    for name, figure in figures().items():
        with style.styled():
            figure.draw_without_rendering()
        assert figure.get_figwidth() == style.WIDTH, name
        page = figure.bbox
        boxes = [ax.get_tightbbox() for ax in figure.axes]
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0, f"{name}: the legend leaves the page"
            assert not any(box.overlaps(other) for other in boxes), f"{name}: the legend covers a panel"
        for ax, box in zip(figure.axes, boxes, strict=True):
            # Two pixels at 100 per inch: half the width of a line.
            assert box.x0 >= -2 and box.x1 <= page.x1 + 2 and box.y1 <= page.y1 + 2, f"{name}: a panel leaves the page"
            assert ax.get_title(loc="left").startswith("(")
            shown = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text() and t.get_visible()]
            inside = [b for b in shown if ax.bbox.x0 - 1 <= (b.x0 + b.x1) / 2 <= ax.bbox.x1 + 1]
            inside.sort(key=lambda b: b.x0)
            assert all(a.x1 < b.x0 for a, b in itertools.pairwise(inside)), f"{name}: tick labels touch"
        texts = [t for ax in figure.axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label)]
        # 9-point type of a 7.2 inch figure is 10 pixels high at 800 pixels; 8-point type still 9.
        assert min(t.get_fontsize() for t in texts) >= 8, name
        assert {ax.get_xlabel() for ax in figure.axes[-1:]} != {""}, name


@pytest.mark.parametrize("name", MODULES)
def test_captions_explain_the_intervals(name):
    caption = import_module(f"testbeds.figures.{name}").CAPTION
    assert caption.endswith(".") and "  " not in caption
    assert name == "estimators" or "95 %" in caption


# --- looks -----------------------------------------------------------------------------------------------------------


def test_methods_differ_in_marker_and_in_colour_or_dash():
    labels = [method_label(m) for m, _ in made.VARIANTS]
    found = looks(labels)
    assert list(found) == labels and looks(reversed(labels)) == dict(reversed(found.items()))
    assert len({look.color for look in found.values()}) == 8 and style.YELLOW not in COLOURS
    assert found["qat"].color == style.VERMILLION and found["lotion (attached, ramp off)"].color == style.BLUE
    many = looks(f"method {k}" for k in range(16))
    assert len({look.marker for look in many.values()}) == 16
    assert len({(look.color, str(look.dash)) for look in many.values()}) == 16
    with pytest.raises(ValueError, match="17 methods in one figure; valid: up to 16"):
        looks(map(str, range(17)))
    assert len(set(MARKERS)) == 16


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_are_geometric_means_over_seeds():
    rows = made.contest()
    figure = figure_curves(rows, "synthetic", "int4/absmax")
    left, right = figure.axes
    mine = [
        r["metrics"]["curve"]
        for r in rows
        if r["config"]["method"] == {"name": "qat"} and r["config"]["format"] == "int4/absmax"
    ]
    line = drawn(left, "qat")
    assert np.array_equal(line.get_xdata(), made.STEPS)
    assert line.get_ydata() == pytest.approx(gmean([c["rtn"] for c in mine]))
    later = drawn(right, "qat")
    assert np.array_equal(later.get_xdata(), mine[0]["seconds"]) and np.array_equal(later.get_ydata(), line.get_ydata())
    floats = [x.get_ydata() for x in left.get_lines() if x.get_linestyle() != "-"]
    assert len(floats) == 8 and any(np.allclose(y, gmean([c["float"] for c in mine])) for y in floats)
    assert left.get_xscale() == left.get_yscale() == "log" and len(left.collections) == 16  # a band per line
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    order = [x.method for x in leaderboard(rows, "synthetic") if x.format == "int4/absmax"]
    assert names == [*order, "rounded to nearest", "float"]


def test_bands_leave_out_what_instances_share():
    # Instances a hundredfold apart, methods that differ by the same factor on each: nothing is uncertain about it.
    rows = [
        made.train({"name": name}, s, 0.1 * 10.0**s * factor)
        for s in range(3)
        for name, factor in (("qat", 1.0), ("ptq", 1.5))
    ]
    for r in rows:
        scale = r["metrics"]["rtn_loss"]
        r["metrics"]["curve"]["rtn"] = [scale / (1 + k) for k in range(8)]
    band = figure_curves(rows, "synthetic", "int4/absmax").axes[0].collections
    ends = [c.get_paths()[0].vertices[:, 1] for c in band]
    line = drawn(figure_curves(rows, "synthetic", "int4/absmax").axes[0], "qat").get_ydata()
    assert line == pytest.approx([1 / (1 + k) for k in range(8)])
    assert any(np.allclose(np.unique(e.round(9)), np.sort(line).round(9)) for e in ends)
    # Two methods whose log-ratios have deviation s: each differs from the shared mean by half of it, and √2 makes
    # that s / √2 a method, so that the difference of two has s.
    for r in rows:
        if r["config"]["method"]["name"] == "qat":
            r["metrics"]["curve"]["rtn"] = [v * np.exp(0.1 * (r["seed"] - 1)) for v in r["metrics"]["curve"]["rtn"]]
    figure = figure_curves(rows, "synthetic", "int4/absmax")
    expected = mean_interval([-0.1, 0, 0.1]).half / np.sqrt(2)
    line = drawn(figure.axes[0], "qat").get_ydata()
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in figure.axes[0].collections]
    assert any(top == pytest.approx(line[0] * np.exp(expected)) for top in tops)


def test_curves_above_the_noise_floor_and_not_below_all_sense():
    rows = made.contest(3, ("int4/absmax",))
    for r in rows:
        curve = r["metrics"]["curve"]
        r["metrics"]["noise_floor"] = 0.5
        curve["float"] = [0.5 + 10.0**-k for k in range(8)]
        curve["rtn"] = [0.5 + v for v in curve["rtn"]]
        curve["step"], curve["rtn"][-1] = [0, *curve["step"][1:]], curve["rtn"][-1]
    figure = figure_curves(rows, "synthetic", "int4/absmax")
    ax = figure.axes[0]
    assert ax.get_ylabel() == "loss above the smallest possible"
    lowest = min(min(line.get_ydata()) for line in ax.get_lines() if line.get_linestyle() == "-")
    assert lowest > 0.03 and 0.05 * lowest < ax.get_ylim()[0] <= lowest / 9
    assert drawn(ax, "qat").get_xdata()[0] == 3  # step 0 has no place on a logarithmic axis


def test_curves_take_common_steps_and_leave_out_failures():
    rows = made.contest(2, ("int4/absmax",))
    for r in rows[::2]:
        r["metrics"]["curve"] = {k: v[::2] for k, v in r["metrics"]["curve"].items()}
    rows.append(made.train({"name": "qat"}, 9, None))
    figure = figure_curves(rows, "synthetic", "int4/absmax")
    assert np.array_equal(drawn(figure.axes[0], "qat").get_xdata(), made.STEPS[::2])


# --- the others ------------------------------------------------------------------------------------------------------


def test_lambda_panels_hold_the_three_losses():
    rows = made.lambdas()
    baseline = [made.train({"name": "qat"}, s, 0.1 + 0.01 * s) for s in range(3)]
    slow = [
        made.train({"name": "lotion", "scale": "attached", "ramp": True, "weight": 1.0}, s, 0.9, lr=1e-5)
        for s in range(5)
    ]
    figure = figure_lambda([*rows, *baseline, *slow])
    assert len(figure.axes) == 6
    mine = [r for r in rows if r["config"]["format"] == "int4/absmax" and r["config"]["method"]["ramp"]]
    for ax, metric in zip(figure.axes, ("rtn_loss", "rr_loss", "float_loss"), strict=False):
        line = drawn(ax, "lotion (attached, ramp)")
        assert np.array_equal(line.get_xdata(), [0.01, 0.03, 0.1, 0.3, 1, 3, 10])
        means = [
            gmean([r["metrics"][metric] for r in mine if r["config"]["method"]["weight"] == w])
            for w in line.get_xdata()
        ]
        assert line.get_ydata() == pytest.approx(means)  # the worse learning rate at λ = 1 does not enter
    assert drawn(figure.axes[0], "qat").get_ydata()[0] == pytest.approx(gmean([0.1, 0.11, 0.12]))
    assert [t.get_text() for t in figure.axes[5].get_xticklabels()] == ["0.01", "", "0.1", "", "1", "", "10"]


def test_widths_are_paired_ratios():
    rows = made.widths()
    figure = figure_widths(rows)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["(a) lotion over qat", "(b) lotion over ptq"]
    for ax, reference in zip(figure.axes, ("qat", "ptq"), strict=True):
        line = drawn(ax, "int4/absmax")
        ends = bars(ax, line)
        for at, k in enumerate((1, 4, 16, 64, 256)):
            a, b = (
                {r["seed"]: r["metrics"]["rtn_loss"] for r in rows
                 if r["config"]["problem"]["k"] == k and r["config"]["format"] == "int4/absmax" and r["config"]["method"]["name"] == name}
                for name in ("lotion", reference)
            )  # fmt: skip
            expected = paired(a, b).geometric
            assert line.get_ydata()[at] == pytest.approx(expected.value)
            assert ends[at] == pytest.approx([expected.low, expected.high])
        # Formats side by side stay closer to their own width than to the next.
        assert np.abs(np.log2(line.get_xdata() / np.array([1, 4, 16, 64, 256]))).max() < 0.5


def test_widths_name_the_variant_where_there_are_several():
    rows = made.widths((1, 4))
    more = [
        {**r, "config": {**r["config"], "method": {"name": "lotion", "ramp": True}}}
        for r in rows
        if r["config"]["method"]["name"] == "lotion"
    ]
    with pytest.raises(ValueError, match=r"'lotion' names several"):
        figure_widths(
            [{**r, "config": {**r["config"], "method": {**r["config"]["method"], "scale": "attached"}}} for r in rows]
            + more
        )
    figure = figure_widths(rows + more, method="lotion (ramp)", references=("qat", "absent"))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["(a) lotion (ramp) over qat"]


def test_rounders_show_shares_and_excess():
    rows = made.rounding(instances=12)
    left, right = figure_rounders(rows).axes
    line, above = drawn(left, "gptq"), drawn(right, "gptq")
    for at, d in enumerate((4, 6, 8, 10, 12, 16, 20)):
        mine = [
            r["metrics"] for r in rows if r["config"]["problem"]["d"] == d and r["config"]["method"]["name"] == "gptq"
        ]
        share = proportion_interval(sum(m["optimal"] for m in mine), 12)
        ratio = mean_interval([m["ratio"] for m in mine])
        assert line.get_ydata()[at] == share.value
        assert above.get_ydata()[at] == pytest.approx(ratio.value - 1)
        assert bars(left, line)[at] == pytest.approx([share.low, share.high])
        assert bars(right, above)[at] == pytest.approx([max(0, ratio.low - 1), ratio.high - 1])
    assert right.yaxis.get_major_formatter()(0.01) == "1.01" and right.yaxis.get_major_formatter()(0) == "1"
    assert left.get_xlabel() == "dimension d" and len(left.get_lines()) == len(made.ROUNDERS)


def test_rounders_that_always_find_the_optimum_are_drawn_at_one():
    config = {"problem": {"name": "easy", "d": 3}, "format": "int2", "method": {"name": "rtn"}}
    rows = [
        made.row("round", config, s, {"loss": 1.0, "ratio": 1.0, "optimal": True, "seconds": 1.0}) for s in range(3)
    ]
    # Neither a scheme with scales of its own nor an instance whose optimum is not proven has a place here.
    other = {**config, "method": {"name": "best_scale"}}
    searched = {"loss": 0.9, "ratio": 0.9, "optimal": True, "seconds": 1.0, "grid": "searched"}
    rows.append(made.row("round", other, 0, searched))
    rows.append(made.row("round", config, 3, {"loss": 2.0, "ratio": 2.0, "optimal": None, "seconds": 1.0}))
    (left, right) = figure_rounders(rows).axes
    assert drawn(left, "rtn").get_ydata()[0] == 1 and drawn(right, "rtn").get_ydata()[0] == 0
    assert [line.get_label() for line in left.get_lines()] == ["rtn"]


def test_estimators_put_zero_apart_and_hide_what_is_not_known():
    rows = made.estimators()
    left, right = figure_estimators(rows).axes
    names = [t.get_text() for t in left.get_yticklabels()]
    assert names[0] == "exact" and names[-1] == "rtn straight through"
    assert names[1:4] == ["conditional difference", "antithetic", "monte carlo"]  # may be unbiased: quietest first
    marks = {}
    for ax in (left, right):
        for line in ax.get_lines():
            if line.get_label() == "int4/absmax":
                marks[ax is left, names[round(line.get_ydata()[0])]] = line
    mine = [
        r["metrics"]
        for r in rows
        if r["config"]["method"]["name"] == "straight_through" and r["config"]["format"] == "int4/absmax"
    ]
    assert marks[True, "straight through"].get_xdata()[0] == np.median([m["bias"] for m in mine])
    assert marks[False, "straight through"].get_xdata()[0] == np.median([m["deviation"] for m in mine])
    zero = marks[True, "exact"].get_xdata()[0]
    assert left.xaxis.get_major_formatter()(zero) == "0" and zero == marks[False, "rtn straight through"].get_xdata()[0]
    assert zero < min(m["bias"] for m in (r["metrics"] for r in rows) if m["bias"] > 1e-9)
    assert (
        marks[True, "monte carlo"].get_markerfacecolor()
        == "white"
        != marks[True, "straight through"].get_markerfacecolor()
    )
    assert marks[False, "monte carlo"].get_markerfacecolor() != "white"


def test_estimators_named_by_text_and_without_problem():
    rows = [made.row("estimator", {"method": name}, 0, {"bias": b, "bias_standard_error": 0.0, "deviation": 0.5})
            for name, b in (("a", 0.0), ("b", 0.3))]  # fmt: skip
    left, _ = figure_estimators(rows).axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b"]


def test_minima_counts_and_what_is_left():
    rows = made.minima()
    left, right = figure_minima(rows).axes
    kept = "int4/absmax: global minimum kept 60 of 60"
    counts = {
        name: [gmean([r["metrics"][name] for r in rows if r["config"]["d"] == d and r["config"]["format"] == "int4/absmax" and r["metrics"][name]])
               for d in (2, 3, 4, 5, 6, 8)]
        for name in ("local_minima_raw", "local_minima_smoothed")
    }  # fmt: skip
    solid = drawn(left, kept)
    dashed = [x for x in left.get_lines() if x.get_color() == solid.get_color() and x is not solid]
    assert solid.get_ydata() == pytest.approx(counts["local_minima_smoothed"])
    assert dashed[0].get_ydata() == pytest.approx(counts["local_minima_raw"]) and dashed[0].get_linestyle() == "--"
    share = np.array(counts["local_minima_smoothed"]) / 15.0 ** np.array((2, 3, 4, 5, 6, 8))
    assert drawn(right, kept).get_ydata() == pytest.approx(share)
    assert left.get_yscale() == right.get_yscale() == "log"


def test_minima_with_both_counts_in_one_row_and_a_lost_minimum():
    rows = [made.row("minima", {"d": d, "format": "int2", "smoothed": True}, s,
                     {"local_minima_raw": 4**d, "local_minima_smoothed": d, "global_kept": s > 0})
            for d in (2, 3) for s in range(3)]  # fmt: skip
    left, _ = figure_minima(rows).axes
    assert drawn(left, "int2: global minimum kept 4 of 6").get_ydata() == pytest.approx([2, 3])


def test_minima_of_several_problems_have_their_own_lines():
    rows = [made.row("minima", {"problem": {"name": "power_law", "d": d, "exponent": e}, "format": "int2"}, s,
                     {"local_minima_raw": 9, "local_minima_smoothed": 3, "global_kept": True})
            for d in (2, 3) for s in range(3) for e in (1.0, 2.0)]  # fmt: skip
    left, _ = figure_minima(rows[::2]).axes
    assert drawn(left, "int2: global minimum kept 6 of 6")
    left, _ = figure_minima(rows).axes
    assert drawn(left, "power_law exponent=2, int2: global minimum kept 6 of 6")


def test_one_seed_draws_no_intervals(tmp_path):
    for name, figure in {
        "curves": figure_curves(made.contest(1), "synthetic", "int8/absmax"),
        "lambda": figure_lambda(made.lambdas(("int4/absmax",), 1)),
        "minima": figure_minima(made.minima(("int4/absmax",), 1)),
    }.items():
        for ax in figure.axes:
            assert not any(
                s.size and np.isfinite(s).all() for c in ax.collections for s in getattr(c, "get_segments", list)()
            ), name
    assert [p.suffix for p in save(figure, tmp_path / "minima", dpi=30)] == [".png", ".pdf", ".svg"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figure_curves(made.contest(1), "synthetic", "int2"), r"format='int2'.*int4/absmax"),
        (lambda: figure_curves(made.contest(1), "synthetic", "int4/absmax", "absent"), r"'absent'.*valid: linear_regression d=64"),
        (lambda: figure_curves(made.widths((1, 4), 1), "synthetic", "int4/absmax"), "problem=None.*two_layer k=1, two_layer k=4"),
        (lambda: figure_lambda(made.contest(1)), "several weights"),
        (lambda: figure_widths(made.contest(1)), "width='k'"),
        (lambda: figure_widths(made.widths((1,), 1), method="absent"), "method='absent'"),
        (lambda: figure_rounders(made.rounding(instances=1), "k"), "'k' and a known optimum"),
        (lambda: figure_estimators([made.row("estimator", {"method": "a"}, 0, status="failed")]), "no run of kind 'estimator'"),
        (lambda: figure_minima(made.contest(1)), "no rows of kind 'minima'; valid"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_matplotlib_is_imported_late():
    names = ", ".join(f"testbeds.figures.{name}" for name in (*MODULES, "plain", "training", "sweeps"))
    code = f"import {names}, testbeds.text.boards, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- names of files --------------------------------------------------------------------------------------------------


@pytest.fixture
def written(monkeypatch, tmp_path):
    """Draws rows into ``tmp_path/out`` without rendering; returns the names of the files, whatever folder they are in."""

    def draw(rows):
        def savefig(self, part, **_):
            part.write_bytes(b"x")

        monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
        paths = draw_all(rows, tmp_path / "out")
        found = sorted(p for p in tmp_path.rglob("*") if p.is_file())
        assert sorted(paths) == found and all(p.parent == tmp_path / "out" for p in found)
        return {p.stem for p in found if p.suffix == ".png"}

    return draw


def test_no_name_leaves_the_folder(written):
    names = ("../up", "../../a/b", "/etc/x", "a/b", "a-b", "..", ".hidden", "C:\\x", "a\nb", "x" * 300, "ä/ö")
    rows = [{**r, "experiment": name} for name in names for r in made.estimators(("int4",), 1)]
    rows += [{**r, "experiment": "../train"} for r in made.contest(1, ("int4", "../int8"))]
    assert len(written(rows)) == len(names) + 2


def test_ordinary_names_stay_and_figures_never_share_a_file(written):
    rows = [
        *({**r, "experiment": "minima-steep"} for r in made.minima(("int4/absmax",), 1)),
        *({**r, "experiment": "linear_regression"} for r in made.contest(1)),
        *({**r, "experiment": "linear-regression"} for r in made.contest(1)),
    ]
    stem = "linear-regression-linear-regression-d-64-int"
    assert written(rows) == {"minima-steep", *(f"{stem}{n}-absmax{k}" for n in (4, 8) for k in ("", "-2"))}


# --- figures of plain data -------------------------------------------------------------------------------------------


def plain(points, **more):
    return {**study("t", "c", ("x", more.pop("log_x", False)), ("y", True), points, more.pop("rule", None)), **more}


def test_plain_figures_draw_every_point_and_its_interval():
    """Values, gaps and ends of the data are those of the drawing; a rule is a level line, an axis what it says."""
    data = {"a": [[1, 2.0, 1.5, 3.0], [10, 4.0]], "b": [[10, 5.0, 4.5, 6.0]]}
    (ax,) = figure_plain(plain(data, log_x=True, rule=1.0)).axes
    for name, points in data.items():
        assert drawn(ax, name).get_xydata().tolist() == [point[:2] for point in points]
    ends = [segment[:, 1].tolist() for c in ax.collections for segment in c.get_segments() if len(segment)]
    assert ends == [point[2:] for points in data.values() for point in points if len(point) > 2]
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "log", "x", "y")
    assert [line.get_ydata() for line in ax.get_lines() if list(line.get_ydata()) == [1.0, 1.0]]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "10"]


def test_plain_figures_by_name_have_a_line_each():
    (ax,) = figure_plain(plain({"a": [["one", 2.0, 1.0, 4.0], ["two", 3.0]]}, dots=True)).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["one", "two"]
    assert drawn(ax, "a").get_xydata().tolist() == [[2.0, 0.0], [3.0, 1.0]]
    assert [s.tolist() for c in ax.collections for s in c.get_segments()] == [[[1.0, 0.0], [4.0, 0.0]]]
