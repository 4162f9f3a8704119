"""Do the tests of the report, of tables and of figures bite? Deliberate errors in each are noticed."""

import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from testbeds.figures import curves as figure_curves
from testbeds.figures import estimators as figure_estimators
from testbeds.figures import landscapes, minima, planes, rounders, series, style, widths
from testbeds.report import benchmarks, boards, contents, curves, lattices, page, paper, section, sources, verdicts
from testbeds.results import leaderboard, studies
from testbeds.text import boards as text
from tests import report_cases
from tests import test_damaged_rows as damaged
from tests import test_figures as pictures
from tests import test_leaderboard as ranked
from tests import test_report as reported
from tests import test_sweep_figures as drawn
from tests.mutants import Mutant, by_hand, noticed, whole


@cache
def folder() -> tempfile.TemporaryDirectory:
    """The folder of :func:`report_cases.write_sources`, removed when the process ends."""
    return tempfile.TemporaryDirectory()


@cache
def written() -> sources.Sources:
    return report_cases.write_sources(Path(folder().name))


# Reading the presets takes half of the time of a page.
PRESETS = cache(boards.presets)


@cache
def piece(name: str) -> Any:
    """What a test of the report calls ``name``, for reading only."""
    if name == "rows":
        return reported.grouped(sources.read(written()).rows, lambda r: r["experiment"])
    if name == "html":
        return page.report(written())
    return json.loads(json.dumps(page.page_data(sources.read(written()))))


def on_page(test: Callable) -> Callable[[], None]:
    """A test of the report: what it takes of sources, rows, html and data. A mutant makes them anew."""
    names = signature(test).parameters

    def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(boards, "presets", PRESETS)
        made = piece if whole() else piece.__wrapped__
        given = {name: made(name) for name in ("rows", "html", "data") if name in names}
        given |= {"sources": written(), "tmp_path": tmp_path}
        test(**{name: value for name, value in given.items() if name in names})

    return by_hand(call)


MARKUP = tuple(
    by_hand(reported.test_names_and_machines_cannot_become_markup, text=text)
    for text in ("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>")
)
COUNTED = (ranked.test_rounding_without_known_optima,)

REPORT = {
    "autoescape off": Mutant(page, "Environment(autoescape=True,", "Environment(autoescape=False,", MARKUP),
    "data that close their script": Mutant(page, 'return text.replace("<", "\\\\u003c")', "return text", MARKUP),
    "a page of any size": Mutant(
        page, "if (size := len(text.encode())) > LIMIT:", "if (size := len(text.encode())) > 1000 * LIMIT:",
        (by_hand(partial(reported.test_too_large_a_page_is_refused, written())),),
    ),
    "every missing source called there": Mutant(
        section, "if not _something(data[name])}", "if data[name] is None}", (on_page(reported.test_missing_sources_are_said),),
    ),
    "texts of verdicts one place off": Mutant(
        verdicts, "texts.setdefault(getattr(r, f), len(texts))", "texts.setdefault(getattr(r, f), len(texts) + 1)",
        (on_page(reported.test_every_verdict_is_a_row),),
    ),
    "ends of an interval exchanged": Mutant(
        studies, "else [found.low, found.high]", "else [found.high, found.low]", (on_page(reported.test_studies_agree_with_the_leaderboard),),
    ),
    "losses with another's name": Mutant(
        curves, '[interval(i) for i in bands[name][label]]', "[interval(i) for i in bands[names[0]][label]]",
        (on_page(reported.test_curves_end_where_the_runs_end),),
    ),
    "widths under the last reference's name": Mutant(
        studies, "ratios.get((reference, format), {})", "ratios.get((references[-1], format), {})",
        (on_page(reported.test_studies_agree_with_the_leaderboard),),
    ),
    "lines counted as rows": Mutant(
        boards, '"rows": len(mine),', '"rows": len(lines),', (on_page(reported.test_every_line_of_a_board_is_computed_from_its_rows),),
    ),
    "language models among the others": Mutant(
        contents, "return name in names() and descriptor(name).language", "return False",
        (on_page(reported.test_language_models_have_their_own_section),),
    ),
    "ties to odd": Mutant(
        lattices, "[int(e) for e in book.even]", "[1 - int(e) for e in book.even]",
        (on_page(reported.test_codebooks_of_the_page_are_the_library_s),),
    ),
    "paths of this machine on the page": Mutant(
        sources, "return path.name if path.is_absolute() else path.as_posix()", "return path.as_posix()",
        (on_page(reported.test_absolute_paths_stay_out),),
    ),
    "layers with a loss of zero": Mutant(
        sources, "good = isinstance(value, float) and 0 < value < math.inf", "good = isinstance(value, float) and 0 <= value < math.inf",
        (by_hand(partial(damaged.test_a_damaged_table_of_a_report_is_named, sources=written()), name="real_losses.csv",
                 text="format,layer,rtn_relative,rr_relative,conditional_relative,rr_over_rtn_diagonal\nint4,0,0,1,,1\n",
                 message="rtn_relative = '0' is no positive number"),),
    ),
    "rows beyond the longest table not told": Mutant(
        benchmarks, '"left_out": max(0, len(records) - MOST)', '"left_out": 0', (reported.test_long_benchmarks_are_cut_and_medians_taken,),
    ),
    "largest for median seconds": Mutant(
        benchmarks, 'median(r["seconds"] for r in mine)', 'max(r["seconds"] for r in mine)',
        (reported.test_long_benchmarks_are_cut_and_medians_taken,),
    ),
    "third parties' numbers as the paper's": Mutant(
        paper, '"3.295, 3.315, 3.864", THIRD,', '"3.295, 3.315, 3.864", PAPER,', (on_page(reported.test_third_parties_numbers_are_called_so),),
    ),
}  # fmt: skip

TEXT = {
    "instances without an optimum counted": Mutant(
        leaderboard, "found is None or found.n == line.instances", "found is None or found.n <= line.instances", COUNTED,
    ),
    "shares as they are called per cent": Mutant(leaderboard, '(f"{100 * end:.0f}" for end in', '(f"{end:.0f}" for end in', COUNTED),
    "columns kept where every line has something": Mutant(
        text, "if any(row[k] for row in cells)]", "if all(row[k] for row in cells)]", (ranked.test_every_format_holds_every_line,
            ranked.test_tuning_marks_the_choice_and_flags_edges),
    ),
    "ends of an interval exchanged": Mutant(
        text, "(interval.value, interval.low, interval.high)", "(interval.value, interval.high, interval.low)",
        (ranked.test_every_format_holds_every_line,),
    ),
    "too few seeds by a factor of two": Mutant(
        leaderboard, "        if m * 2 / 2**n > 0.05:\n", "        if m / 2**n > 0.05:\n", (ranked.test_six_seeds_and_two_methods_are_too_few,),
    ),
    "diverged runs not warned of": Mutant(
        leaderboard, "if line.diverged + line.failed]", "if line.failed]", (ranked.test_runs_that_diverge_or_fail_are_counted,),
    ),
    "versions of old runs counted": Mutant(
        text, "    rows = latest(rows)\n    out", "    rows = list(rows)\n    out",
        (ranked.test_repeated_runs_count_once_and_the_last_wins,),
    ),
    "every chosen value called an edge": Mutant(
        leaderboard, "for line in lines if line.edges]", "for line in lines if line.chosen]",
        (ranked.test_tuning_marks_the_choice_and_flags_edges,),
    ),
    "settings of a line under one name": Mutant(
        text, "            out.update(value)\n", '            out["tuned"] = str(value)\n', (ranked.test_every_format_holds_every_line,),
    ),
    "bars that end a cell of Markdown": Mutant(
        text, "        text = text.replace(mark,", '        text = text.replace(mark if mark != "|" else "~",',
        (ranked.test_marks_of_markdown_are_text,),
    ),
}  # fmt: skip

CURVES = (drawn.test_curves_are_geometric_means_over_seeds,)
ROUNDED = (drawn.test_rounders_show_shares_and_excess,)

FIGURES = {
    "float losses drawn as the rounded ones": Mutant(
        figure_curves, '_draw(ax, x, bands["rtn"][label], style[label], (k % 3, 3))',
        '_draw(ax, x, bands["float"][label], style[label], (k % 3, 3))', CURVES,
    ),
    "seconds against steps": Mutant(figure_curves, "(right, curves.seconds)):", "(right, curves.steps)):", CURVES),
    "step zero on a logarithmic axis": Mutant(
        figure_curves, "if place > 0 and i is not None]", "if place >= 0 and i is not None]",
        (drawn.test_curves_above_the_noise_floor_and_not_below_all_sense,),
    ),
    "axes cut above the rounded losses": Mutant(
        figure_curves, "max(low, positive.min() / SHOWN_BELOW)", "max(low, positive.max() / SHOWN_BELOW)",
        (drawn.test_curves_above_the_noise_floor_and_not_below_all_sense,),
    ),
    "panels of one reference": Mutant(
        widths, "line = sorted(ratios.get((reference, format), {}).items())",
        "line = sorted(ratios.get((shown[0], format), {}).items())", (drawn.test_widths_are_paired_ratios,),
    ),
    "places apart by a whole spacing": Mutant(
        series, "at = at + spacing * share * ((k + 0.5) / count - 0.5)", "at = at + spacing * (k + 0.5)",
        (drawn.test_widths_are_paired_ratios,),
    ),
    "bars from the mean": Mutant(series, "ax.vlines(at, low, high,", "ax.vlines(at, values, high,", ROUNDED),
    "ends of an excess below zero": Mutant(
        rounders, "max(0.0, end - 1) for end", "end - 1 for end", (*ROUNDED,),
    ),
    "the ratio and not its excess": Mutant(rounders, "return Interval(max(0.0, ratio.value - 1),", "return Interval(ratio.value,", ROUNDED),
    "the lowest in the place of the median": Mutant(
        figure_estimators, "middle, low, high = (max(v, zero) for v in spread)", "low, middle, high = (max(v, zero) for v in spread)",
        (drawn.test_estimators_put_zero_apart_and_hide_what_is_not_known,),
    ),
    "deviations hollow as well": Mutant(
        figure_estimators, 'hollow = metric == "bias" and name in estimator.hidden', "hollow = name in estimator.hidden",
        (drawn.test_estimators_put_zero_apart_and_hide_what_is_not_known,),
    ),
    "share of minima by the raw ones": Mutant(
        minima, "draw_intervals(right, x, [None if c is None else c.share for c in at], look)",
        "draw_intervals(right, x, [None if c is None else c.raw for c in at], look)",
        (drawn.test_minima_counts_and_what_is_left,),
    ),
    "every curve the float loss": Mutant(
        landscapes, "values = getattr(s, name)", "values = s.loss", (pictures.test_lines_hold_the_slices_arrays,),
    ),
    "slopes uphill": Mutant(
        landscapes, "            s.t, values, color=look.color, ls=look.dash, lw=2.4 if main",
        "            s.t, -values, color=look.color, ls=look.dash, lw=2.4 if main", (pictures.test_lines_hold_the_slices_arrays,),
    ),
    "the path of the highest point": Mutant(
        landscapes, "lowest = s.blends.argmin(axis=1)", "lowest = s.blends.argmax(axis=1)",
        (pictures.test_the_path_of_the_minimum_reaches_the_lattice,),
    ),
    "three pictures of one surface": Mutant(
        planes, "image = _surface(ax, s, getattr(s, name), levels", "image = _surface(ax, s, s.smoothed, levels",
        (pictures.test_surfaces_share_one_scale,),
    ),
    "the global minimum among the local ones": Mutant(
        planes, "ax.plot(*points[1:, :2].T,", "ax.plot(*points[:, :2].T,", (pictures.test_fields_minima_and_trajectories_draw,),
    ),
    "looks by the order given": Mutant(
        series, "    labels = sorted(given)\n", "    labels = given\n", (drawn.test_methods_differ_in_marker_and_in_colour_or_dash,),
    ),
    "dates in files": Mutant(
        style, '"svg": {"Date": None}}', '"svg": {}}', (by_hand(pictures.test_files_hold_no_date),),
    ),
}  # fmt: skip

ROOMS = {"report": REPORT, "text": TEXT, "figures": FIGURES}
ALL = [(room, name) for room, mutants in ROOMS.items() for name in mutants]


@pytest.mark.parametrize(("room", "name"), ALL, ids=[f"{room}: {name}" for room, name in ALL])
def test_mutants_are_noticed(room, name):
    assert noticed(ROOMS[room][name])
