"""The ``lotion`` command, run in this process: what it prints, writes, and exits with."""

import csv
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import testbeds.figures
import testbeds.reproduce
from lotion_theory.formats import catalog
from lotion_theory.formats.catalog import FORMATS
from lotion_theory.theory import verification
from lotion_theory.theory.verification import Row
from testbeds import cli, commands
from tests.test_verification import example

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--formats", "int2", "mxfp4", "--claims", "C5", "C16", "--evidence", "exhaustive", "--processes", "1"]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(lotion):
    code, out, _ = lotion("--help")
    assert code == 0
    assert all(command in out for command in commands.NAMES)


@pytest.mark.parametrize("command", commands.NAMES)
def test_help_of_a_command_has_an_example(command, lotion):
    """One that starts with the command itself, and every option described."""
    code, out, _ = lotion(command, "--help")
    assert code == 0
    assert f"Example: lotion {command}" in out
    assert out.count("(default") >= sum(line.startswith("│ --") for line in out.splitlines())


def test_examples_parse(monkeypatch):
    """Every example in the help is a command line that is accepted."""
    parsed = []
    for name in commands.NAMES:
        command = commands.command(name)
        monkeypatch.setattr(command, "run", lambda self, console: parsed.append(self) or 0)
        line = next(line for line in command.__doc__.splitlines() if "Example:" in line)
        for example_text in line.split("Example:")[1].split(";"):
            with pytest.raises(SystemExit) as stopped:
                cli.main(example_text.split()[1:])
            assert stopped.value.code == 0
    assert {type(one) for one in parsed} == {commands.command(name) for name in commands.NAMES}


def test_help_is_quick_and_needs_no_torch():
    """The command line imports neither torch nor matplotlib before they are needed."""
    code = "import sys, testbeds.cli; print(sorted({'torch', 'matplotlib', 'numba', 'z3', 'sympy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_lists_the_catalogue(lotion):
    code, out, _ = lotion("formats")
    assert code == 0
    shown = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert [name for name in shown if name] == list(FORMATS)


def test_formats_shows_promises(lotion):
    code, out, _ = lotion("formats", "int4full/absmax7.5", "nf4")
    assert code == 0
    rows = {line.split("│")[1].strip(): line.split("│")[2:7] for line in out.splitlines() if line.startswith("│")}
    assert [c.strip() for c in rows["int4full/absmax7.5"]] == ["4", "16", "no", "yes", "no"]
    assert [c.strip() for c in rows["nf4"]] == ["4", "16", "yes", "yes", "yes"]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formats", "int99"], "unknown codebook 'int99'; valid: int2, int3"),
        (["formats", "int4/nope"], "unknown scale 'nope'; valid: absmax"),
        (["formats", "int4/absmax/blocks"], "valid"),
        (["verify", "--formats", "int4", "int99"], "unknown codebook 'int99'; valid: int2"),
        (["verify", "--claims", "C23"], "unknown claim 'C23'; valid: C1, C2"),
        (["verify", "--evidence", "faith"], "Expected one of ('proved', 'exhaustive', 'property')"),
        (["verify", "--json", "--csv"], "--json and --csv exclude each other"),
        (["verify", "--processes", "0"], "--processes 0: must be at least 1"),
        (["verify", "--processes", "100000000000000000"], "must be at least 1 and at most 4,096"),
        (["reproduce", "--processes", "100000000000000000"], "--processes 100000000000000000: must be at least 1"),
        (["sweep", "quick", "--processes", "4097"], "--processes 4097: must be at least 1 and at most 4,096"),
        (["verify", "--processes", "two"], "--processes"),
        (["verify", "--out", "rows.txt"], "must end in .json or .csv"),
        (
            ["verify", "--formats", "fairy", "--claims", "C8", "--processes", "1"],
            "none of the claims C8, C8b applies to fairy",
        ),
        (["verify", "--unknown"], "--unknown"),
        (["landscape"], "Missing from lotion landscape"),
        (["landscape", "int99"], "unknown codebook 'int99'"),
        (["landscape", "fairy"], "complex"),
        (["landscape", "int4", "--dimension", "3"], "--dimension"),
        (["landscape", "int4", "--points", "8"], "--points 8: must be at least 9"),
        (["landscape", "int4", "--seed", "-1"], "--seed -1"),
        (["reproduce", "--preset", "huge"], "quick"),
        (["trian"], "formats"),
        ([], "formats"),
    ],
)
def test_bad_input_exits_with_2(arguments, message, lotion, tmp_path, monkeypatch):
    """The message is on standard error, one line of ours or a box of the parser's; nothing on standard output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verification, "_check_format", lambda job: [])
    code, out, err = lotion(*arguments)
    assert code == 2
    assert not out
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir()), "something was written"


def test_folders_that_cannot_be_made_exit_with_2(lotion, tmp_path, monkeypatch):
    """Exit status 1 is for claims; and a result that cannot be written is not computed."""
    monkeypatch.setattr(verification, "_check_format", lambda job: pytest.fail("the checks ran"))
    file = tmp_path / "file"
    file.write_text("")
    for arguments in (
        ["verify", *SMALL, "--cache", file],
        ["verify", *SMALL, "--out", file / "rows.json"],
        ["landscape", "int2", "--points", 9, "--out", file],
        ["reproduce", "--out", file, "--skip-real"],
    ):
        code, _, err = lotion(*arguments)
        assert code == 2
        assert str(file) in err.replace("\n", "") and "Traceback" not in err and "Errno" not in err


def test_out_in_place_of_a_folder(lotion, tmp_path, monkeypatch):
    """A name that is a folder already is refused before the run too."""
    monkeypatch.setattr(verification, "_check_format", lambda job: pytest.fail("the checks ran"))
    (tmp_path / "rows.json").mkdir()
    code, _, err = lotion("verify", *SMALL, "--out", tmp_path / "rows.json")
    assert code == 2 and "rows.json" in err


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_prints_tables(lotion):
    code, out, err = lotion("verify", *SMALL)
    assert code == 0
    flat = " ".join(out.split())
    assert "│ int2 │ ✓E │ ✓E │" in flat and "│ mxfp4 │ ✓E │ ✓E │" in flat
    assert "4 rows" in flat and "0 against expectation" in flat
    assert "Which formats keep the promises" not in flat
    assert "checked mxfp4" in err


def test_verify_prints_promises_and_failures(lotion):
    code, out, _ = lotion(
        "verify",
        "--formats",
        "int4full/absmax7.5",
        "--claims",
        "C1",
        "C14",
        "--evidence",
        "exhaustive",
        "--processes",
        "1",
    )
    assert code == 0
    flat = " ".join(out.replace("│", " ").split())
    assert "int4full/absmax7.5 ✗E ✗E" in flat
    assert "unbiased: 1 → 14/15 on average" in flat
    assert "int4full/absmax7.5 C14 (straight-through has no signal) fails: w = " in flat
    assert "measured" in flat and "0 against expectation" in flat


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_verify_prints_machine_readable_rows(kind, lotion, tmp_path):
    """Standard output is the rows and nothing else, the same as in the file."""
    path = tmp_path / "sub" / f"rows.{kind}"
    code, out, err = lotion("verify", *SMALL, f"--{kind}", "--out", path)
    assert code == 0
    assert path.read_text(encoding="utf-8") == out and err
    if kind == "json":
        rows = [Row(**r) for r in json.loads(out)]
        assert [(r.format, r.claim) for r in rows] == [
            ("int2", "C5"),
            ("mxfp4", "C5"),
            ("int2", "C16"),
            ("mxfp4", "C16"),
        ]
    else:
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [(r["format"], r["claim"]) for r in rows] == [
            ("int2", "C5"),
            ("mxfp4", "C5"),
            ("int2", "C16"),
            ("mxfp4", "C16"),
        ]
        assert {r["verdict"] for r in rows} == {"holds"}


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_surprise_exits_with_1(form, lotion, monkeypatch):
    rows = [example(), example(claim="C4", verdict="fails", counterexample="(8, -8) → (8, -7)")]
    monkeypatch.setattr(verification, "_check_format", lambda job: rows if job[0] else [])
    code, out, _ = lotion(
        "verify", "--formats", "int4", "--claims", "C1", "C4", "--evidence", "property", "--processes", "1", *form
    )
    assert code == 1
    if not form:
        flat = " ".join(out.split())
        assert "1 against expectation" in flat
        assert "UNEXPECTED int4 C4 unbiased: fails, expected holds. (8, -8) → (8, -7)" in flat


def test_verify_resumes(lotion, tmp_path, monkeypatch):
    """Interrupted it exits with 130 and says how to go on; the second run does only the rest."""
    checked = []
    whole = verification._check_format

    def interrupted(job):
        if checked:
            raise KeyboardInterrupt
        checked.append(job[0])
        return whole(job)

    monkeypatch.setattr(verification, "_check_format", interrupted)
    code, _, err = lotion("verify", *SMALL, "--cache", tmp_path)
    assert code == 130 and "run the same command again" in err
    monkeypatch.setattr(verification, "_check_format", lambda job: checked.append(job[0]) or whole(job))
    code, out, _ = lotion("verify", *SMALL, "--cache", tmp_path, "--csv")
    assert code == 0 and checked == ["int2", "mxfp4"]
    assert len(out.splitlines()) == 5


# --- landscape and reproduce -----------------------------------------------------------------------------------------


def test_landscape_passes_its_options_on(lotion, tmp_path, monkeypatch):
    seen = []

    def draw(*arguments, progress):
        seen.append(arguments)
        progress("losses")
        return [tmp_path / "a.png", tmp_path / "a.pdf"]

    monkeypatch.setattr(testbeds.figures, "landscape_figures", draw)
    code, out, _ = lotion("landscape", "nf4", "--dimension", 2, "--out", tmp_path, "--seed", 3, "--points", 31)
    assert code == 0
    assert seen == [("nf4", tmp_path, 2, 3, 31)]
    assert out.split() == [str(tmp_path / "a.png"), str(tmp_path / "a.pdf")]


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2])
def test_landscape_writes_figures(dimension, lotion, tmp_path):
    code, out, _ = lotion("landscape", "int2", "--points", 9, "--dimension", dimension, "--out", tmp_path / "figures")
    assert code == 0
    paths = [Path(line) for line in out.split()]
    assert {p.suffix for p in paths} == {".png", ".pdf", ".svg"} and len(paths) >= 9
    assert all(p.stat().st_size > 1000 for p in paths)
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())


@pytest.mark.parametrize("status", [0, 1])
def test_reproduce_passes_its_options_on(status, lotion, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(testbeds.reproduce, "reproduce", lambda *a: seen.append(a[:3]) or status)
    code, _, _ = lotion("reproduce", "--out", tmp_path, "--processes", 3, "--skip-real")
    assert code == status and seen == [(tmp_path, 3, True)]


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "testbeds.cli", "formats", "int4"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0 and "int4" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor before the program starts")
@pytest.mark.parametrize("arguments", [["formats", "int4"], ["verify", *SMALL, "--json"]])
def test_no_standard_output_is_no_failure(arguments):
    """As `lotion ... >&-` in a shell: there is no stream to write to, or to flush."""
    done = subprocess.run(
        [sys.executable, "-m", "testbeds.cli", *arguments], stderr=subprocess.PIPE, text=True, check=False,
        cwd=ROOT, preexec_fn=lambda: os.close(1),
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileExistsError(errno.EEXIST, "File exists", "out"), "out: is a file, not a folder"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "out: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            OSError(errno.ENOSPC, "cannot write out: No space left on device"),
            "cannot write out: No space left on device",
        ),
        (FileNotFoundError("out: no such file"), "out: no such file"),
    ],
)
def test_what_the_system_refuses_is_a_sentence_without_numbers(error, sentence, lotion, monkeypatch):
    def refuse(names):
        raise error

    monkeypatch.setattr(catalog, "formats", refuse)
    assert lotion("formats") == (2, "", f"lotion: {sentence}\n")
