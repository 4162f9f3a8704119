"""The set-up script, without a network: which Python and which arguments it takes, what it pins, and what it says."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import _bootstrap
import bootstrap

ROOT = Path(bootstrap.__file__).parent


VERSIONS = st.tuples(st.integers(2, 4), st.integers(0, 40), st.integers(0, 20))


@given(VERSIONS)
def test_python_version_is_refused_exactly_below_the_minimum(version):
    problem = bootstrap.python_problem(version)
    assert (problem is None) == (version[:2] >= (3, 11))
    if problem:
        assert "3.11" in problem
        assert ".".join(map(str, version)) in problem


def older_pythons():
    """Interpreters that work and are below the minimum, beside the one that runs or on the path."""
    beside = Path(sys.base_prefix).resolve().parent.glob("*/bin/python")
    named = (shutil.which(f"python{version}") for version in ("2.7", "3.6", "3.8", "3.10"))
    ask = "import sys; sys.exit(sys.version_info >= (3, 11))"
    found = sorted({str(path) for path in (*beside, *named) if path})
    return [path for path in found if subprocess.run([path, "-c", ask], capture_output=True).returncode == 0]


def test_an_older_python_gets_one_sentence():
    pythons = older_pythons()
    if not pythons:
        pytest.skip("no older Python on this machine")
    for python in {pythons[0], pythons[-1]}:
        done = subprocess.run([python, ROOT / "bootstrap.py", "test"], capture_output=True, text=True)
        assert done.returncode == 1 and done.stdout == ""
        assert re.fullmatch(r"bootstrap: this project needs Python 3\.11 or newer, and .*\n", done.stderr), python


def test_the_front_is_written_in_what_every_python_knows():
    """Neither f-strings nor annotations nor anything else of Python 3, and ASCII, as Python 2 expects."""
    text = (ROOT / "bootstrap.py").read_bytes().decode("ascii")
    tree = ast.parse(text, feature_version=(3, 4))
    kinds = {type(node).__name__ for node in ast.walk(tree)}
    assert not kinds & {"JoinedStr", "AnnAssign", "NamedExpr", "AsyncFunctionDef", "Nonlocal", "Match", "Starred"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None and not node.args.kwonlyargs
            assert all(argument.annotation is None for argument in node.args.args)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"os", "sys", "_bootstrap"}


@pytest.mark.parametrize("missing", [{"ensurepip"}, {"venv"}, {"venv", "ensurepip"}])
def test_missing_venv_names_module_and_debian_package(missing, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    problem = _bootstrap.missing_modules_problem((3, 12))
    assert all(name in problem for name in missing)
    assert "python3.12-venv" in problem
    assert "python3-venv" in problem


def test_complete_python_has_no_venv_problem(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert _bootstrap.missing_modules_problem((3, 12)) is None


@pytest.mark.parametrize("arguments", [[], ["instal"]])
def test_unknown_command_is_one_sentence_with_the_choices(arguments):
    command = [sys.executable, ROOT / "bootstrap.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in (*arguments, *_bootstrap.COMMANDS))


def test_unknown_extra_lists_the_known_ones():
    with pytest.raises(_bootstrap.BootstrapError, match=r"'numbda'.*fast, proofs"):
        _bootstrap.parse_extras("torch,numbda", ["torch", "proofs", "fast"])


@given(st.lists(st.sampled_from(["-k", "-n", "0", "--extras", "--verbose", "x y", "-m", "slow"]), max_size=6))
def test_arguments_after_the_command_reach_pytest_unchanged(arguments):
    options = _bootstrap.parse(["--verbose", "test", *arguments])
    command = _bootstrap.pytest_command(Path("python"), options.arguments, 2)
    assert command[len(command) - len(arguments) :] == arguments
    assert options.verbose


def test_setup_takes_options_on_either_side(monkeypatch):
    monkeypatch.setenv("LOTION_TORCH_INDEX", "from-environment")
    early = _bootstrap.parse(["--extras", "fast", "setup"])
    late = _bootstrap.parse(["setup", "--extras", "fast"])
    assert vars(early) | {"arguments": []} == vars(late) | {"arguments": []}
    assert late.torch_index == "from-environment"
    assert _bootstrap.parse(["setup", "--torch-index", "given"]).torch_index == "given"


@given(st.one_of(st.none(), st.integers(1, 512)))
def test_worker_count_is_between_two_and_eight(cpus):
    command = _bootstrap.pytest_command(Path("python"), [], cpus)
    workers = int(command[command.index("-n") + 1])
    assert 2 <= workers <= 8
    assert workers == cpus or cpus is None or not 2 <= cpus <= 8


@pytest.mark.parametrize("arguments", [["--help"], ["instal"]])
def test_it_speaks_ascii(arguments):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    command = [sys.executable, ROOT / "bootstrap.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr and (ROOT / "scripts" / "_bootstrap.py").read_text(encoding="utf-8").isascii()


def test_identity_does_not_depend_on_the_locale():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import _bootstrap, pathlib\n"
        "print(ascii(_bootstrap.venv_identity(pathlib.Path(sys.argv[2]), (3, 11))))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, ROOT / "scripts", b"/tmp/\xc3\xbc b"], capture_output=True, text=True, check=True,
            env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": mode},
        ).stdout
        for mode in "01"
    }  # fmt: skip
    assert len(told) == 1


def direct_requirements() -> list[Requirement]:
    """Return every requirement that pyproject.toml names, but for its references to the project itself."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return [r for r in map(Requirement, named) if r.name != project["name"]]


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_pinned_inside_its_range(requirement):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_commands_ask_for_extras_that_exist():
    known = set(_bootstrap.extras_table(ROOT))
    assert set().union(*_bootstrap.OWN_EXTRAS.values(), _bootstrap.NEEDS_TORCH, _bootstrap.NEEDS_WEIGHTS) <= known
    assert _bootstrap.OWN_EXTRAS["reproduce"] <= _bootstrap.dev_members(_bootstrap.extras_table(ROOT))


def test_weights_are_pinned_by_version_and_hash():
    text = (ROOT / "requirements-real.txt").read_text(encoding="utf-8")
    assert "--require-hashes" in text
    assert re.search(r"^\S+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
