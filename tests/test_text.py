"""Text that leaves and enters: files in UTF-8 whatever the locale, output on any terminal, cells that stay text."""

import ast
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import csv_text
from lotion_theory.theory.verification import Row, to_csv, to_json
from testbeds import cli
from testbeds.commands import command
from tests.test_verification import example

ROOT = Path(__file__).resolve().parents[1]
CODE = ("lotion_theory", "testbeds", "benchmarks", "scripts", "docs", "bootstrap.py")
SMALL = ("verify", "--formats", "mxfp4", "--claims", "C1", "C4", "--evidence", "exhaustive", "--processes", "1")
LOCALES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
}


# --- files -----------------------------------------------------------------------------------------------------------


def sources():
    for name in CODE:
        place = ROOT / name
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


def without_encoding(call):
    """Whether a call opens text, or starts a program whose output is text, in the locale's encoding."""
    named = {keyword.arg for keyword in call.keywords}
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if "encoding" in named or None in named:
        return False
    if name in ("read_text", "write_text"):
        # Functions of these names are ours and know their encoding; methods are those of paths.
        return isinstance(call.func, ast.Attribute)
    if name == "open":
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        return any(re.fullmatch(r"[rwax]t?\+?", mode) for mode in modes) or (not call.args and not call.keywords)
    return name in ("run", "Popen", "check_output") and bool({"text", "universal_newlines"} & named)


def test_every_file_of_text_names_its_encoding():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and without_encoding(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("p.read_text()", True), ("p.write_text(t)", True), ("write_text(p, t)", False), ("p.open('w')", True),
        ("open(p, 'rb')", False), ("p.open()", True), ("open(p, 'a', encoding='utf-8')", False), ("Image.open(p)", False),
        ("subprocess.run(c, text=True)", True), ("subprocess.run(c)", False),
    ],
)  # fmt: skip
def test_what_names_its_encoding(line, bad):
    assert without_encoding(ast.parse(line).body[0].value) is bad


# --- standard output -------------------------------------------------------------------------------------------------


def lotion(settings, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "testbeds.cli", *map(str, arguments)], cwd=ROOT, env={**os.environ, **settings},
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize("settings", LOCALES.values(), ids=LOCALES)
def test_results_survive_any_output_and_locale(settings, tmp_path):
    """The file holds every letter; what is printed has the same content, and is printed for people too."""
    out, encoding = tmp_path / "rows.csv", settings.get("PYTHONIOENCODING", "ascii")
    code, said = lotion(settings, *SMALL, "--cache", tmp_path / "cache", "--out", out, "--json")
    text = out.read_text(encoding="utf-8")
    assert code == 0 and "→" in text and said.isascii()
    assert to_csv(Row(**row) for row in json.loads(said)) == text
    code, said = lotion(settings, *SMALL, "--cache", tmp_path / "cache")
    assert code == 0 and "mxfp4" in said.decode(encoding)


@pytest.mark.parametrize("arguments", [("--help",), ("formats", "int4", "nf4")])
def test_help_and_tables_survive_an_output_of_ascii(arguments):
    code, said = lotion(LOCALES["ascii"], *arguments)
    assert code == 0 and said.isascii() and len(said) > 300


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pipe that closes")
def test_a_reader_that_has_seen_enough_is_no_error():
    with subprocess.Popen(
        [sys.executable, "-m", "testbeds.cli", "formats"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")


@pytest.mark.parametrize(
    ("error", "said"),
    [(MemoryError(), "lotion: out of memory"), (MemoryError("wanted 3 TiB"), "lotion: out of memory wanted 3 TiB")],
)
def test_too_little_memory_is_said_in_words(error, said, capsys, monkeypatch):
    def fail(self, console):
        raise error

    monkeypatch.setattr(command("formats"), "run", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["formats"])
    assert stopped.value.code == 2 and capsys.readouterr().err.strip() == said


# --- cells of CSV ----------------------------------------------------------------------------------------------------


@given(st.text() | st.from_regex(r"'{0,3}[=+\-@\t\r].*", fullmatch=True))
def test_a_cell_is_no_formula_and_comes_back(text):
    found = csv_text.cell(text)
    assert csv_text.text_of(found) == text
    assert found == text or found == "'" + text
    if found[:1] in ("=", "+", "-", "@", "\t", "\r"):
        float(found)  # A number is no formula that runs anything.


@given(st.integers() | st.floats() | st.booleans() | st.none())
def test_numbers_stay_as_they_are(value):
    assert csv_text.cell(value) is value
    assert csv_text.cell(str(value)) == str(value)


def test_verdicts_with_formulas_come_back():
    row = example(counterexample='=HYPERLINK("http://a.example";"x")', note="-1 → 2, 3", check="+", measured=-1.5)
    (line,) = csv.DictReader(io.StringIO(to_csv([row]), newline=""))
    assert line["counterexample"].startswith("'=") and line["note"].startswith("'-") and line["measured"] == "-1.5"
    assert csv_text.text_of(line["counterexample"]) == row.counterexample
    assert [Row(**r) for r in json.loads(to_json([row]))] == [row]


def test_brackets_are_no_markup():
    """``[low, high]`` is part of what a scale rule says of itself."""
    import io

    from rich.console import Console

    from lotion_theory import formats
    from testbeds.text.tables import format_table

    out = io.StringIO()
    Console(file=out, width=200).print(format_table(formats(["int4full/gauge/block=32"])))
    assert "smallest scale at which [low, high] holds the block" in out.getvalue()
