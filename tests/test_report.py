"""The report without a browser: where its numbers come from, what it says of missing sources, and that it stands alone."""

import json
import re
from html import escape
from html.parser import HTMLParser

import pytest

from lotion_theory.formats.codebooks import codebook
from testbeds import cli
from testbeds.report import benchmarks, page, paper
from testbeds.report.lattices import NAMES, books
from testbeds.report.sources import Sources, default_sources, read, run_sources, shown
from testbeds.report.verdicts import FIELDS, TEXTS
from testbeds.results.leaderboard import default_reference, leaderboard
from testbeds.results.rows import by_method, excess, grouped
from testbeds.results.statistics import format_interval, mean_interval, paired
from testbeds.sweep.archive import write_archive
from tests import synthetic_rows as made
from tests.report_cases import COUNTEREXAMPLE, language, verdicts, write_sources

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def rows(sources):
    """Per experiment, the rows as they are stored."""
    return grouped(read(sources).rows, lambda r: r["experiment"])


@pytest.fixture(scope="module")
def html(sources):
    return page.report(sources)


@pytest.fixture(scope="module")
def data(html):
    """The data as the page's script reads them."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


# --- one file --------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_loads_nothing(html):
    """No element that fetches, no style or script that could; links in the text are for the reader to follow."""
    found = Elements(html).found
    for tag, attributes in found:
        assert tag not in ("img", "iframe", "object", "embed", "audio", "video", "source", "base", "form")
        assert "src" not in attributes and "style" not in attributes
        if tag == "link":
            assert attributes["href"] == "data:,"
    policy = next(a["content"] for t, a in found if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    outside = re.sub(r'<a href="https://arxiv\.org/abs/2510\.08757"', "", html)
    outside = outside.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest|importScripts", outside)


def test_text_of_rows_cannot_become_markup(html, data):
    """A counterexample with tags in it arrives as text and nowhere closes the script."""
    assert COUNTEREXAMPLE in data["verdicts"]["texts"]
    assert COUNTEREXAMPLE not in html
    assert [t for t, _ in Elements(html).found].count("script") == 2


@pytest.mark.parametrize(
    "text", ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "<!--", "a&b\u2028"]
)
def test_names_and_machines_cannot_become_markup(text, tmp_path):
    """Wherever text of a row stands, in the page itself or in its data, it is text."""
    rows = [
        {**made.train({"name": name}, seed, 0.1, experiment=text, machine=text, version=text), "finished": "2025-01-01"}
        for name in ("qat", "lotion") for seed in (0, 1)
    ]  # fmt: skip
    write_archive(rows, tmp_path / "a.jsonl.xz")
    html = page.report(Sources(stores=(tmp_path / "a.jsonl.xz",)))
    found = [tag for tag, _ in Elements(html).found]
    assert found.count("script") == 2 and "img" not in found
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert data["boards"][0]["name"] == text and data["about"]["machines"] == [text]
    # The machine also stands in the page's text, which a reader sees without scripts.
    assert text not in html and escape(text) in html


def test_sections_have_headings_and_the_page_a_language(html):
    found = Elements(html).found
    assert next(a for t, a in found if t == "html")["lang"] == "en"
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in found:
        if tag == "section":
            assert attributes["aria-labelledby"] in ids
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids


def test_absolute_paths_stay_out(html, sources, tmp_path):
    assert str(sources.stores[0].parent) not in html
    assert shown(tmp_path / "a.sqlite") == "a.sqlite"


# --- where the numbers come from -------------------------------------------------------------------------------------


def test_every_verdict_is_a_row(data):
    """The matrix unpacks to the rows of verify.csv, in their order."""
    found = data["verdicts"]
    rows = verdicts()
    assert len(found["rows"]) == len(rows) and found["cases"] == sum(r.checked for r in rows)
    assert found["surprises"] == 1
    for (format, claim, *values), row in zip(found["rows"], rows, strict=True):
        assert found["formats"][format] == row.format and found["claims"][claim]["id"] == row.claim
        for name, value in zip(FIELDS, values, strict=True):
            told = found["texts"][value] if name in TEXTS else float(value) if isinstance(value, str) else value
            assert told == getattr(row, name)


def test_every_line_of_a_board_is_computed_from_its_rows(data, rows):
    """Means, intervals and ratios again from the rows, by the functions that are tested on their own."""
    rows = rows["linear-regression-quick"]
    board = next(b for b in data["boards"] if b["name"] == "linear-regression-quick")
    assert board["rows"] == len(rows) and board["command"] == "lotion sweep quick --only linear-regression-quick"
    keys = [key for _, key in board["columns"]]
    reference = default_reference(rows)
    for format in ("int4", "int8"):
        methods = by_method([r for r in rows if r["config"]["format"] == format])
        lines = [x for x in board["lines"] if x["format"] == format]
        assert {x["method"] for x in lines} == set(methods)
        for line in lines:
            losses = [r["metrics"]["rtn_loss"] for r in methods[line["method"]]]
            mean = mean_interval(losses)
            assert line["rtn_loss"] == pytest.approx(mean.value, rel=1e-5)
            assert line["cells"][keys.index("rtn_loss")] == format_interval(mean)
            expected = paired(excess(methods[line["method"]]), excess(methods[reference])).geometric.value
            assert line["over_reference"] == pytest.approx(expected, rel=1e-5)


def test_boards_of_every_kind_and_no_other(data):
    kinds = {b["name"]: b["kind"] for b in data["boards"]}
    assert kinds == {"linear-regression-quick": "train", "two-layer": "train", "lambda": "train", "rounding": "round",
                     "estimators": "estimator", "minima": "minima"}  # fmt: skip
    for board in data["boards"]:
        assert all(len(line["cells"]) == len(board["columns"]) for line in board["lines"])
        assert board["lines"] and board["dates"] == ["2025-01-01"] and board["machines"] == ["m1"]


def test_language_models_have_their_own_section(data):
    (board,) = data["language"]["boards"]
    assert board["name"] == "lm-int4" and "lm-int4" not in {b["name"] for b in data["boards"]}
    expected = {r["config"]["method"]["name"]: [] for r in language()}
    for r in language():
        expected[r["config"]["method"]["name"]].append(r["metrics"]["rr_loss"])
    for line in board["lines"]:
        assert line["rr_loss"] == pytest.approx(mean_interval(expected[line["method"].split()[0]]).value, rel=1e-5)
    (curves,) = data["language"]["curves"]
    assert {frozenset(m["losses"]) for m in curves["methods"]} == {frozenset(("rtn", "rr", "float"))}
    for m in curves["methods"]:
        assert all(len(values) == len(m["steps"]) for values in m["losses"].values())


def test_curves_end_where_the_runs_end(data, rows):
    """The last point of a mean curve is the geometric mean of the runs' last points."""
    rows = [r for r in rows["linear-regression-quick"] if r["config"]["format"] == "int4"]
    curves = next(c for c in data["curves"] if c["experiment"] == "linear-regression-quick" and c["format"] == "int4")
    methods = by_method(rows)
    for m in curves["methods"]:
        for name, values in m["losses"].items():
            ends = [r["metrics"]["curve"][name][-1] for r in methods[m["method"]]]
            product = 1.0
            for end in ends:
                product *= end
            # Curves are shown to four digits and stored to six.
            assert values[-1][0] == pytest.approx(product ** (1 / len(ends)), rel=1e-3)


def test_studies_agree_with_the_leaderboard(data, rows):
    """The ratio in the figure against the width is the leaderboard's."""
    lines = leaderboard(rows["two-layer"], "two-layer", "qat")
    figure = next(f for f in data["figures"] if f["experiment"] == "two-layer")
    points = {s["name"]: s["points"] for s in figure["series"]}
    for line in lines:
        if line.method == "lotion":
            k = int(line.problem.split("k=")[1])
            (point,) = [p for p in points[f"{line.format}, over QAT"] if p[0] == k]
            assert point[1:] == pytest.approx(list(line.over_reference[:3]), rel=1e-3)


def test_figures_of_every_study(data):
    names = {f["experiment"] for f in data["figures"]}
    assert names == {"two-layer", "lambda", "rounding", "estimators", "minima"}
    assert all(s["points"] for f in data["figures"] for s in f["series"])


def test_codebooks_of_the_page_are_the_library_s(data):
    assert list(data["books"]) == list(NAMES)
    for name, book in books().items():
        found = codebook(name)
        assert found.balanced, "an absmax scale would clip"
        assert data["books"][name]["units"] == [float(u) for u in found.units] == book["units"]
        assert data["books"][name]["even"] == [int(e) for e in found.even]


def test_benchmarks_of_other_options_tell_their_command():
    rows = [{"seconds": 0.5}]
    plain, own = benchmarks.tables(
        {
            "lm_step": {"steps": rows},
            "small": {"about": {"threads": 1, "command": "python x.py --small"}, "steps": rows},
        }
    )
    assert (plain["command"], own["command"]) == ("python benchmarks/lm_step.py", "python x.py --small")
    assert own["about"] == "threads 1"


def test_long_benchmarks_are_cut_and_medians_taken():
    many = [{"step": k, "seconds": 0.5} for k in range(benchmarks.MOST + 3)]
    seconds = (1.0, 2.0, 9.0)
    solved = [{"solver": "search", "d": 4, "seconds": t, "proven": t < 9} for t in seconds]
    long, solvers = benchmarks.tables({"descent": {"steps": many}, "exact_solvers": {"runs": solved}})
    (table,) = long["tables"]
    assert (len(table["rows"]), table["left_out"]) == (benchmarks.MOST, 3)
    (table,) = solvers["tables"]
    assert table["rows"] == [[["search", "search"], ["4", 4], ["3", 3], ["2.000", 2.0], ["9.000", 9.0], ["2 of 3"] * 2]]


def test_third_parties_numbers_are_called_so(data):
    """What is known from others only is marked; what was not run has no number of ours."""
    for line in data["paper"]:
        if re.search(r"\d\.\d{3}", line["paper"]):
            assert line["source"] == paper.THIRD
            assert line["ours"].startswith(paper.NOT_MEASURED)
    assert any("decoder" in line["ours"] for line in data["paper"])


# --- sources ---------------------------------------------------------------------------------------------------------


def test_missing_sources_are_said(tmp_path, sources):
    """Each section that has nothing says so; nothing else breaks."""
    data = page.page_data(read(Sources(stores=sources.stores[:1])))
    assert set(data["missing"]) == {"verdicts", "trained", "language", "benchmarks"}
    assert data["missing"]["language"] == "No language-model rows stored."
    text = page.report(Sources(theory=sources.theory))
    assert "No experiments stored" in text and "No language-model rows stored." in text
    with pytest.raises(ValueError, match="nothing to report"):
        read(default_sources(tmp_path / "results"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theory": "absent"}, "no verify.csv in .*absent"),
        ({"stores": ("absent.jsonl.xz",)}, "no such store of runs: .*absent.jsonl.xz"),
        ({"benchmarks": "absent"}, "no such folder of benchmarks: .*absent"),
    ],
)
def test_wrong_paths_are_errors(tmp_path, change, message):
    name, value = next(iter(change.items()))
    given = tuple(tmp_path / v for v in value) if isinstance(value, tuple) else tmp_path / value
    with pytest.raises(FileNotFoundError, match=message):
        read(Sources(**{name: given}))


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "verify.csv").write_text("format,claim\nint4,C1\n")
    with pytest.raises(ValueError, match=r"verify\.csv, line 2: not a row of lotion verify"):
        read(Sources(theory=tmp_path))
    (tmp_path / "speed.json").write_text("{")
    with pytest.raises(ValueError, match=r"speed\.json is not JSON"):
        read(Sources(benchmarks=tmp_path))


def test_a_run_s_folder_is_a_source(sources, tmp_path):
    folder = tmp_path / "reproduced"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no output folder of lotion reproduce"):
        run_sources(folder)
    (folder / "quick.jsonl.xz").write_bytes(sources.stores[0].read_bytes())
    assert run_sources(folder) == Sources(stores=(folder / "quick.jsonl.xz",))
    (folder / "verify.csv").write_bytes((sources.theory / "verify.csv").read_bytes())
    assert run_sources(folder).theory == folder


def test_the_command(sources, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def lotion(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["report", *map(str, arguments)])
        return stopped.value.code, capsys.readouterr()

    code, told = lotion()
    assert code == 2 and "nothing to report" in told.err
    code, told = lotion("--theory", tmp_path / "absent")
    assert code == 2 and "no verify.csv" in told.err
    code, told = lotion("--theory", sources.theory, "--out", "page.txt")
    assert code == 2 and "must end in .html" in told.err
    assert not list(tmp_path.iterdir())
    code, told = lotion("--theory", sources.theory, "--out", "deep/page.html")
    assert code == 0 and told.out.strip() == "deep/page.html"
    assert (tmp_path / "deep" / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["page.html"]


def test_too_large_a_page_is_refused(sources, monkeypatch):
    monkeypatch.setattr(page, "LIMIT", 1000)
    with pytest.raises(ValueError, match="name fewer stores"):
        page.report(Sources(theory=sources.theory))
