"""The script that runs the suite under other circumstances: each of them is what it says, and results are counted."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import variants

ROOT = Path(__file__).resolve().parents[1]

# What a process sees of its circumstances, as JSON.
PROBE = """
import json, os, signal, sys, locale
def writable(folder):
    try:
        os.makedirs(folder, exist_ok=True)
        open(os.path.join(folder, "probe"), "w").close()
        return True
    except OSError:
        return False
print(json.dumps({
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    "output": sys.stdout.encoding.lower(), "files": locale.getpreferredencoding(False).lower(), "folder": os.getcwdb().decode("utf-8"),
    "ignored": [n for n in ("SIGINT", "SIGQUIT", "SIGHUP") if signal.getsignal(getattr(signal, n)) == signal.SIG_IGN],
    "user": os.getuid(), "groups": os.getgroups(), "home": writable(os.path.expanduser("~")), "here": writable("."),
    "terminal": sys.stdin.isatty(), "browser": os.environ.get("LOTION_BROWSER"), "torch": os.environ.get("ATEN_CPU_CAPABILITY"),
    "numpy": os.environ.get("NPY_DISABLE_CPU_FEATURES"),
}))
"""


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """What a process sees under a variant; a small checkout of its own keeps copies small."""
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    monkeypatch.setattr(variants, "ROOT", root)
    monkeypatch.delenv("LC_ALL", raising=False)

    def seen(name, code=PROBE):
        # Not in pytest's own folder, where another user may not look.
        with tempfile.TemporaryDirectory() as scratch:
            plain = variants.Run(root, Path(sys.executable), Path(scratch), {**os.environ, "PYTHONPATH": str(root)})
            try:
                with variants.VARIANTS[name].around(plain) as run:
                    process = variants.start(run, [run.python, "-c", code], subprocess.PIPE)
                    printed = process.communicate()[0].decode()
            except variants.Unavailable as reason:
                pytest.skip(str(reason))
        assert process.returncode == 0, printed
        return json.loads(printed)

    return seen


def test_one_core(seen):
    assert seen("one-core")["cores"] == 1


def test_a_locale_of_plain_ascii(seen):
    found = seen("ascii")
    assert {found["output"], found["files"]} <= {"ascii", "ansi_x3.4-1968", "us-ascii"}


def test_a_path_with_spaces_and_an_umlaut(seen):
    folder = seen("path")["folder"]
    assert " " in folder and not folder.isascii()


def test_signals_ignored_and_no_terminal(seen):
    found = seen("background")
    assert found["ignored"] == ["SIGINT", "SIGQUIT", "SIGHUP"] and not found["terminal"]


def test_a_home_that_cannot_be_written(seen):
    found = seen("no-home")
    assert found["home"] is False and found["here"] is True


def test_an_ordinary_user(seen):
    found = seen("user")
    assert found["user"] not in (0, os.getuid()) and 0 not in found["groups"]
    assert found["home"] is True and found["here"] is True and found["folder"] != str(variants.ROOT)


def test_the_ordinary_users_python_has_the_same_packages(seen):
    code = "import json, numpy, pytest, hypothesis; print(json.dumps([numpy.__version__, pytest.__version__]))"
    assert seen("user", code) == seen("plain", code)


def test_processors_and_programs_that_are_taken_away(seen):
    assert seen("no-browser")["browser"] == "" and seen("plain-torch")["torch"] == "default"
    assert "AVX512" in seen("no-avx512")["numpy"]


def test_numpy_heeds_what_is_switched_off(seen):
    """A name that numpy does not know would be a warning, one that it cannot leave out an error."""
    code = (
        "import json, os, warnings; warnings.simplefilter('error'); from numpy._core._multiarray_umath import __cpu_features__ as f\n"
        "print(json.dumps([f[name] for name in os.environ['NPY_DISABLE_CPU_FEATURES'].split()]))"
    )
    assert not any(seen("no-avx512", code))


def test_busy_processes_end_with_the_run(tmp_path, monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(variants.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with variants.busy(variants.Run(tmp_path, Path(sys.executable), tmp_path, {})):
        assert len(started) == 4 and all(process.poll() is None for process in started)
    assert all(process.poll() is not None for process in started)


# --- the program -----------------------------------------------------------------------------------------------------

CASES = """
import os
import pytest
def test_passes(): pass
def test_speaks(): print("Δ")
@pytest.mark.skip
def test_left_out(): pass
def test_place(): assert os.getcwd().isascii()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout whose tests fail in a folder with an umlaut."""
    root = tmp_path / "project"
    (root / "tests").mkdir(parents=True)
    (root / "pytest.ini").write_text("[pytest]\n")
    (root / "tests" / "test_cases.py").write_text(CASES, encoding="utf-8")
    monkeypatch.setattr(variants, "ROOT", root)
    return root


def test_a_table_of_what_passed_and_failed(project, tmp_path, capfd):
    folder = tmp_path / "logs"
    call = ["--only", "path", "--folder", str(folder), "--"]
    assert variants.main([*call, "-n0", "tests"]) == 1
    rows = {
        line.split()[0]: line.split()[1:4] for line in capfd.readouterr().out.splitlines() if re.search(r"\d\.\d", line)
    }
    assert rows == {"path": ["2", "1", "1"]}
    assert "test_place" in (folder / "path.log").read_text(encoding="utf-8") and (folder / "path.xml").exists()


@pytest.mark.parametrize("code", [0, 1, 4, 5])
def test_what_ends_pytest_is_no_success(project, tmp_path, capfd, monkeypatch, code):
    """Not even its exit code of failed tests, where it reports none."""
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    monkeypatch.setattr(variants._bootstrap, "pytest_command", lambda *arguments: command)
    assert variants.main(["--only", "plain", "--folder", str(tmp_path)]) == (code > 0)
    assert (f"ended with exit code {code}" in capfd.readouterr().out) == (code > 0)


def test_a_variant_that_this_machine_has_not_is_left_out(project, tmp_path, capfd, monkeypatch):
    monkeypatch.delattr(variants.os, "sched_setaffinity", raising=False)
    assert variants.main(["--only", "one-core", "--folder", str(tmp_path)]) == 0
    assert "left out: this system does not bind processes to cores" in capfd.readouterr().out


def test_another_python_sets_up_its_own_environment(project, tmp_path, capfd):
    (project / "bootstrap.py").write_text(
        "import sys\nreport = next(a for a in sys.argv if a.startswith('--junit-xml=')).partition('=')[2]\n"
        'open(report, \'w\').write(\'<testsuite tests="7" errors="0" failures="0" skipped="2"/>\')\n'
        "print(sys.argv[1:3])\n"
    )
    folder = tmp_path / "logs"
    call = ["--python", sys.executable, "--folder", str(folder), "--", "-x"]
    assert variants.main(call) == 0
    assert re.search(r"  5 +0 +2 ", capfd.readouterr().out)
    name = re.sub(r"[^\w.-]+", "-", sys.executable).strip("-")
    assert (folder / f"{name}.log").read_text().startswith("['test', '-x']")
    # What the last call left is no part of the next, but for the environment, which costs minutes.
    copy = folder / f"checkout-{name}"
    (copy / ".venv").mkdir()
    (copy / "stale").touch()
    assert variants.main(call) == 0
    assert (copy / ".venv").exists() and not (copy / "stale").exists()
    assert variants.main(["--python", str(tmp_path / "gone"), "--folder", str(folder)]) == 1


def test_a_fresh_clone_has_an_empty_home_and_no_caches(project, tmp_path, capfd, monkeypatch):
    """Only what is committed is there; both commands run, and the exit code of either counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (project / "bootstrap.py").write_text(
        "import os, sys\nprint(sys.argv[1:2], os.listdir('.'), os.listdir(os.environ['HOME']), os.environ.get('XDG_CACHE_HOME'))\n"
        "sys.exit(sys.argv[1] == 'reproduce')\n"
    )
    git = ["git", "-C", str(project), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "bootstrap.py"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "x"], check=True)
    assert variants.main(["--fresh", "--folder", str(tmp_path / "logs")]) == 1
    assert re.search(r"fresh-reproduce .* ended with exit code 1\n", capfd.readouterr().out)
    for command in ("test", "reproduce"):
        told = (tmp_path / "logs" / f"fresh-{command}.log").read_text(encoding="utf-8").strip()
        assert told in {
            f"['{command}'] {files} [] None" for files in (["bootstrap.py", ".git"], [".git", "bootstrap.py"])
        }


def test_every_variant_is_listed_and_concerns_tests_that_exist(capsys):
    assert variants.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(variants.VARIANTS) and all(len(line) > 15 for line in listed)
    for variant in variants.VARIANTS.values():
        assert variant.concerns and all((ROOT / file).exists() for file in variant.concerns)
