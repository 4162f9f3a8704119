"""The report in a browser: nothing loaded, nothing logged, every control works by keyboard, and its mathematics is the library's."""

import csv
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lotion_theory import csv_text
from testbeds.report import page as report
from testbeds.report import section as sections
from testbeds.results.studies import figure as study
from tests import page_mathematics
from tests.report_cases import COUNTEREXAMPLE, write_sources

pytest.importorskip("jinja2")
sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The path of another one, or empty for none.
BROWSER = os.environ.get("LOTION_BROWSER", FOUND)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return report.write_report(write_sources(folder), folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_tab(browser, address):
    """``open_tab(**options)``: an empty tab of a context of its own, and the list of what it logs or asks for."""

    def open_one(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        # A loaded machine draws slowly; what never comes is still an error.
        context.set_default_timeout(180_000)
        tab, told = context.new_page(), []
        tab.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: told.append(f"error: {error}"))
        tab.on(
            "request", lambda request: request.url.startswith(("data:", "blob:", address)) or told.append(request.url)
        )
        return tab, told

    return open_one


@pytest.fixture(scope="module")
def usual(open_tab):
    """The tab of all visits without options, and what it says."""
    return open_tab()


@pytest.fixture
def visit(request, open_tab, address):
    """Loads the page with these sections made, by default all; it must log nothing and ask for nothing.

    Without options there is one tab, so that a test has one page at a time.
    """
    visited = []

    def load(*sections, **options):
        tab, told = open_tab(**options) if options else request.getfixturevalue("usual")
        visited.append((tab, told, options))
        tab.goto(address)
        tab.evaluate("(ids) => Lotion.make(...ids)", list(sections))
        return tab

    yield load
    for tab, _, options in visited:
        if options:
            tab.context.close()
    said = [line for _, told, _ in visited for line in told]
    for _, told, _ in visited:
        told.clear()
    assert not said


@pytest.fixture(scope="module")
def page(open_tab, address):
    """The page with everything made, for tests that read it only."""
    tab, told = open_tab()
    tab.goto(address)
    tab.evaluate("Lotion.make()")
    yield tab
    assert not told


def unfold(tab):
    """Open everything that is folded, and wait until what is inside has been made."""
    tab.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    tab.evaluate(FRAME)


# Two frames: one that draws what was asked for, one that comes after it.
FRAME = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_section_is_drawn(visit):
    """Figures have lines or dots, tables rows, and each figure a command and three downloads."""
    tab = visit()
    assert tab.locator("figure.chart").count() > 12
    unfold(tab)
    figures = tab.evaluate("""() => [...document.querySelectorAll("figure.chart")].map((f) => ({
      drawn: f.querySelectorAll(".line, .bar, path[transform], image").length,
      command: f.querySelector(".command code").textContent,
      downloads: [...f.querySelectorAll(".downloads button")].map((b) => b.textContent) }))""")
    for figure in figures:
        assert figure["drawn"] > 0 and figure["command"].startswith("lotion "), figure
        assert figure["downloads"] == ["PNG", "SVG", "CSV"]
    assert 0 not in tab.evaluate(
        "[...document.querySelectorAll('table')].map((t) => t.querySelectorAll('tbody tr').length)"
    )
    text = tab.evaluate("document.querySelector('main').textContent")
    assert "NaN" not in text and "undefined" not in text
    assert tab.locator("[d*=NaN], [points*=NaN], [x1*=NaN], [y1*=NaN], [transform*=NaN]").count() == 0


def test_no_width_scrolls_the_page_sideways(visit):
    tab = visit(viewport={"width": 390, "height": 844})
    unfold(tab)
    for width in (390, 768, 1280):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.evaluate(FRAME)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        # Type in drawings keeps its size: a drawing is laid out for the width it has.
        scales = tab.evaluate(
            "[...document.querySelectorAll('svg.plot')].map(s => s.clientWidth / s.viewBox.baseVal.width)"
        )
        assert min(scales) > 0.9, width


def test_dark_colours_by_preference_and_by_button(visit):
    def ground(tab):
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = (visit("line", color_scheme=scheme) for scheme in ("light", "dark"))
    bright, dim = ground(light), ground(dark)
    assert bright != dim
    light.locator("#theme").press("Enter")
    dark.locator("#theme").press("Enter")
    assert (ground(light), ground(dark)) == (dim, bright)


def test_text_stands_out_from_its_ground(visit):
    """WCAG AA: a contrast of 4.5 for text, in both colours."""
    script = """() => {
      const style = getComputedStyle(document.documentElement);
      const light = (name) => { const v = parseInt(style.getPropertyValue(name).trim().slice(1), 16);
        const part = (s) => { const c = ((v >> s) & 255) / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
        return 0.2126 * part(16) + 0.7152 * part(8) + 0.0722 * part(0); };
      const pairs = [["--ink", "--page"], ["--ink", "--panel"], ["--soft", "--page"], ["--soft", "--panel"], ["--accent", "--page"],
        ["--holds-ink", "--holds"], ["--fails-ink", "--fails"], ["--ink", "--mark"], ["--caution", "--page"]];
      return pairs.map(([a, b]) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return [a + b, (x + 0.05) / (y + 0.05)]; });
    }"""
    tab = visit("line", color_scheme="light")
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for names, contrast in tab.evaluate(script):
            assert contrast >= 4.5, (scheme, names, contrast)


def test_controls_have_names(page):
    """Every button, field and drawing says what it is to someone who does not see it."""
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, svg[role=img]")].filter(n =>
      !(n.getAttribute("aria-label") || n.textContent.trim() || (n.labels && n.labels.length))).map(n => n.outerHTML)""")
    assert unnamed == []


def _own_section(contents):
    drawing = study("Runs", "Numbers of runs.", ("seed", False), ("runs", True), {"a": [[0, 1.0], [1, 2.0, 1.5, 3.0]]})
    dots = {**study("By name", "", ("value", False), ("", False), {"b": [["x", 1.0], ["y", 2.0]]}), "dots": True}
    found = sections.table("Some cells", ["name", "value"], [["<b>", 2.5], ["none", None], ["less", 0.5]])
    figures = [sections.figure(drawing, "lotion report"), sections.figure(dots)]
    return [sections.text("A <paragraph>"), sections.command("lotion sweep quick"), found, *figures]


def test_an_own_section_is_drawn_from_its_blocks(browser, tmp_path, monkeypatch):
    """Text stays text, a table sorts, and figures have lines and dots: a section needs no script of its own."""
    module = ModuleType("own")
    module.SECTION = sections.Section("own", "Own <section>", "Own", blocks=_own_section)
    monkeypatch.setitem(sys.modules, "testbeds.report.own", module)
    monkeypatch.setattr(report, "SECTIONS", (*report.SECTIONS, "own"))
    tab = browser.new_page()
    told = []
    tab.on("pageerror", lambda error: told.append(f"error: {error}"))
    tab.goto(report.write_report(write_sources(tmp_path), tmp_path / "report.html").as_uri())
    tab.evaluate("Lotion.make('own-blocks')")
    place = tab.locator("section[aria-labelledby=own]")
    assert place.locator("h2").inner_text() == "Own <section>"
    assert tab.locator("nav a").all_inner_texts()[-2:] == ["Own", "Sources"]
    assert place.locator("#own-blocks > p").inner_text() == "A <paragraph>"
    assert place.locator(".command code").all_inner_texts() == ["lotion sweep quick", "lotion report"]
    assert column(place.locator("table"), 0) == ["<b>", "none", "less"]
    place.locator("thead button").nth(1).press("Enter")
    assert column(place.locator("table"), 1) == ["0.5", "2.5", ""]
    assert place.locator("figure.chart h4").all_inner_texts() == ["Runs", "By name"]
    assert place.locator("figure.chart").nth(1).locator("path[transform]").count() == 2
    tab.close()
    assert not told


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_cell_opens_by_keyboard(visit):
    """Arrow keys walk over the cells, Enter opens one, Escape closes it and gives the focus back."""
    tab = visit("verdict-matrix")
    matrix = tab.locator("#verdict-matrix")
    assert matrix.locator('button[tabindex="0"]').count() == 1
    first = matrix.locator("tbody button").first
    first.focus()
    tab.keyboard.press("ArrowDown")
    assert "mxfp4, C1" in tab.evaluate("document.activeElement.getAttribute('aria-label')")
    tab.keyboard.press("Enter")
    dialog = matrix.locator("dialog")
    assert dialog.evaluate("d => d.open")
    text = dialog.inner_text()
    assert COUNTEREXAMPLE in text and "0.9333333333" in text and "77" in text
    assert "lotion verify --formats mxfp4 --claims C1" in text
    tab.keyboard.press("Escape")
    assert not dialog.evaluate("d => d.open")
    assert "mxfp4, C1" in tab.evaluate("document.activeElement.getAttribute('aria-label')")


def test_a_surprise_is_marked_without_colour(page):
    """One that a reader must see: its text differs, not its colour alone."""
    cells = page.locator("#verdict-matrix tbody button")
    told = cells.evaluate_all("nodes => nodes.map((n) => [n.getAttribute('aria-label'), n.textContent])")
    odd = [text for label, text in told if "against expectation" in label]
    assert len(odd) == 1 and odd[0].endswith("!")
    failing = [text for label, text in told if ": fails" in label]
    assert len(failing) == 2 and all(text.startswith("✕") for text in failing)


def test_formats_are_filtered(visit):
    tab = visit("verdict-matrix")
    matrix = tab.locator("#verdict-matrix")
    assert matrix.locator("tbody tr").count() == 4
    matrix.get_by_label("with a failure only").check()
    assert matrix.locator("tbody tr").count() == 2
    matrix.get_by_label("Formats that contain").fill("MX")
    assert matrix.locator("tbody th").all_inner_texts() == ["mxfp4"]


# --- tables and figures ----------------------------------------------------------------------------------------------


def column(table, k):
    return table.evaluate("(t, k) => [...t.tBodies[0].rows].map((row) => row.cells[k].textContent)", k)


def visit_regression(visit):
    tab = visit("boards")
    tab.locator("[data-name=boards-experiment]").select_option("linear-regression-quick")
    return tab


def test_headings_sort_by_keyboard(visit):
    """Once up, again down, the arrow told to screen readers; numbers as numbers, not as text."""
    tab = visit_regression(visit)
    table = tab.locator("#boards table").first
    rtn = [float(text.split()[0]) for text in column(table, 1)]
    assert rtn == sorted(rtn) and len(rtn) == 8
    heading = table.locator("thead th").nth(1)
    for direction, expected in (("ascending", sorted(rtn)), ("descending", sorted(rtn, reverse=True))):
        heading.locator("button").focus()
        tab.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == direction
        assert [float(text.split()[0]) for text in column(table, 1)] == expected
    table.locator("thead th").nth(0).locator("button").press("Enter")
    assert column(table, 0) == sorted(column(table, 0), key=str.lower)
    assert heading.get_attribute("aria-sort") == "none"


def test_a_board_is_filtered_by_experiment_format_and_method(visit):
    tab = visit_regression(visit)
    boards = tab.locator("#boards")
    before = column(boards.locator("table").first, 1)
    boards.locator("[data-name=boards-format]").select_option("int8")
    assert column(boards.locator("table").first, 1) != before
    boards.locator("[data-name=boards-text]").fill("LOTION")
    names = column(boards.locator("table").first, 0)
    assert len(names) == 3 and all(name.startswith("lotion") for name in names)
    boards.locator("[data-name=boards-text]").fill("")
    boards.locator("[data-name=boards-experiment]").select_option("rounding")
    assert len(column(boards.locator("table").first, 0)) == 70
    boards.locator("[data-name=boards-experiment]").select_option("minima")
    assert boards.locator("table tbody tr").count() == 18


def test_csv_holds_the_rows_shown(visit):
    tab = visit_regression(visit)
    with tab.expect_download() as found:
        tab.locator("#boards .tablebox .downloads button").click()
    with open(found.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["method"] for r in rows] == [
        n.removesuffix(" (reference)") for n in column(tab.locator("#boards table").first, 0)
    ]
    assert all(float(r["rtn_loss_low"]) < float(r["rtn_loss"]) < float(r["rtn_loss_high"]) for r in rows)


def test_figures_are_downloaded(visit):
    """A PNG with two pixels a point, an SVG whose colours do not depend on the page, and the numbers."""
    tab = visit("line", "plane")
    for place in ("#line figure >> nth=0", "#plane figure"):
        figure, content = tab.locator(place), {}
        for kind in ("PNG", "SVG", "CSV"):
            with tab.expect_download() as found:
                figure.locator(f".downloads button:text-is('{kind}')").click()
            assert found.value.suggested_filename.endswith(kind.lower())
            content[kind] = Path(found.value.path()).read_bytes()
        width = figure.locator("svg.plot").evaluate("s => s.viewBox.baseVal.width")
        assert content["PNG"][:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(content["PNG"][16:20], "big") == 2 * width
        assert b"var(--" not in content["SVG"] and b"<svg" in content["SVG"] and b"rgb(" in content["SVG"]
        assert len(content["CSV"].splitlines()) > 100


def test_a_legend_switches_its_line(visit):
    tab = visit("line")
    figure = tab.locator("#line figure").first
    before = figure.locator(".line").count()
    figure.locator(".legend button").first.press("Enter")
    assert figure.locator(".line").count() == before - 1
    assert figure.locator(".legend button").first.get_attribute("aria-pressed") == "false"


def test_arrow_keys_read_values(visit):
    tab = visit("line")
    figure = tab.locator("#line figure").first
    figure.locator("svg.plot").focus()
    tab.keyboard.press("ArrowRight")
    assert figure.locator(".reading").inner_text().startswith("weight w -1.5: float L(w) ")


def test_language_models_are_drawn(page):
    section = page.locator("#language")
    assert set(column(section.locator("table").first, 0)) == {"lotion (attached)", "qat (reference)"}
    assert section.locator(".triple figure h4").all_inner_texts() == [
        "RTN loss during training", "RR loss during training", "float loss during training"]  # fmt: skip


# --- landscapes ------------------------------------------------------------------------------------------------------


def lines(figure):
    return figure.locator(".line").evaluate_all("nodes => nodes.map(n => n.getAttribute('points'))")


def test_sliders_move_the_curves(visit):
    """By the keyboard: a step to the right changes losses or gradients."""
    tab = visit("line")
    losses, slopes = tab.locator("#line figure").all()
    for name in ("bits", "lambda", "h", "optimum", "partner", "partner_h"):
        before = lines(losses) + lines(slopes)
        tab.locator(f'#line input[data-name="{name}"]').press("ArrowRight")
        assert lines(losses) + lines(slopes) != before, name


def test_a_frozen_scale_is_another_landscape(visit):
    tab = visit("line")
    losses = tab.locator("#line figure").first
    before = lines(losses)
    assert tab.locator('#line input[data-name="step"]').is_disabled()
    tab.locator('#line input[data-name="frozen"]').check()
    frozen = lines(losses)
    assert frozen != before
    tab.locator('#line input[data-name="step"]').press("ArrowRight")
    assert lines(losses) != frozen


def test_format_and_bits_move_together(visit):
    tab = visit("line")
    place = tab.locator("#line")
    place.locator('input[data-name="bits"]').fill("5")
    assert place.locator("select").input_value() == "int5"
    place.locator("select").select_option("nf4")
    assert place.locator('input[data-name="bits"]').is_disabled()
    assert place.locator("code").first.inner_text() == "lotion landscape nf4 --dimension 1"


def test_the_plane_follows_its_controls(visit):
    tab = visit("plane")
    plane = tab.locator("#plane")

    def seen():
        tab.evaluate(FRAME)
        return plane.locator("image").get_attribute("href"), lines(plane), plane.locator(".arrow").count()

    first = seen()
    plane.locator("[data-name=shown]").select_option("quantized")
    second = seen()
    assert second[0] != first[0] and second[1] == first[1]
    plane.locator("[data-name=start1]").press("ArrowLeft")
    third = seen()
    assert third[0] == second[0] and third[1] != second[1]
    plane.locator("[data-name=field]").select_option("none")
    assert third[2] > 0 and seen()[2] == 0


# --- the page's mathematics ------------------------------------------------------------------------------------------


def test_the_page_computes_what_the_library_computes(page):
    """Losses and gradients of the page's script against lotion_theory, in float64."""
    given = list(page_mathematics.cases())
    found = page.evaluate(
        """(given) => given.map((c) => { const p = {...c, book: Lotion.data.books[c.format]};
        return {cast: Lotion.math.cast(p, c.w), slopes: Lotion.math.gradients(p, c.w), ...Lotion.math.losses(p, c.w)}; })""",
        given,
    )
    eps = np.finfo(float).eps
    for case, mine in zip(given, found, strict=True):
        theirs = page_mathematics.expected(case)
        # Rounding to nearest is a choice, not a computation: no tolerance.
        assert mine["cast"] == theirs["cast"].tolist(), case
        # Each value is a sum of at most 4 x 4 products of an entry of H, λ and two lengths, none above `reach`, each
        # with fewer than 8 roundings on its way; gradients have one length less, so `size` bounds them too if above 1.
        reach = max(map(abs, [*case["w"], *case["center"], case["top"], 1.0])) * 2
        size = np.abs(case["h"]).max() * max(1.0, case["lambda"]) * reach**2
        tolerance = 16 * 8 * eps * size
        for name in ("float", "quantized", "smoothed", "penalized"):
            assert mine[name] == pytest.approx(theirs[name], rel=0, abs=tolerance), (name, case)
        for name, slope in theirs["slopes"].items():
            assert mine["slopes"][name] == pytest.approx(slope.tolist(), rel=0, abs=tolerance), (name, case)


def test_paths_descend_by_the_gradients(page):
    """A path is the method's gradient, step by step."""
    problem = {"format": "int3", "h": [[2.0, 0.3], [0.3, 1.0]], "center": [0.83, -0.4], "frozen": False, "top": 1.0,
               "lambda": 1.0}  # fmt: skip
    for method in ("ste", "rrste", "detached", "attached"):
        points, slopes = page.evaluate(
            """([c, method]) => { const p = {...c, book: Lotion.data.books[c.format]};
            const points = Lotion.math.path(p, method, [1.2, 0.9], 0.05, 20);
            return [points, points.map((w) => Lotion.math.gradients(p, w)[method])]; }""",
            [problem, method],
        )
        assert len(points) == 21
        for before, slope, after in zip(points, slopes, points[1:], strict=False):
            assert after == [w - 0.05 * g for w, g in zip(before, slope, strict=True)]


def test_cells_of_csv_are_no_formulas(page):
    """As in :mod:`lotion_theory.csv_text`: text that a spreadsheet would run gets an apostrophe; numbers stay."""
    values = ["=1+1", "-x", "@a", "'=b", "'c", "-1.5", "+2e3", "x=1", "a,b"]
    found = page.evaluate("(row) => Lotion.export.csvText([row])", [*values, -3, None])
    (line,) = csv.reader(found.splitlines())
    assert line == [*(csv_text.cell(v) for v in values), "-3", ""]
