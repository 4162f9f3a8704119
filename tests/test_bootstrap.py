"""The set-up script, without a network: what it decides, what it records, and what it says when something is wrong."""

import ast
import importlib.util
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

import bootstrap

ROOT = Path(bootstrap.__file__).parent
VERSIONS = st.tuples(st.integers(2, 4), st.integers(0, 40), st.integers(0, 20))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder, its path with a space, that bootstrap takes for its own; pip and venv calls are recorded."""
    root = tmp_path / "a project"
    root.mkdir()
    for name in bootstrap.PINNED_BY:
        shutil.copy(ROOT / name, root)
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.setattr(bootstrap, "VENV", root / ".venv")
    monkeypatch.setattr(bootstrap, "STATE", root / ".venv" / "bootstrap.json")
    return root


@pytest.fixture
def calls(project, monkeypatch):
    """The commands that set-up would have run, in order; making a venv leaves an empty interpreter file behind."""
    recorded = []

    def record(*command, what):
        recorded.append([str(part) for part in command])
        if "venv" in command:
            python = bootstrap.program("python")
            python.parent.mkdir()
            python.touch()

    monkeypatch.setattr(bootstrap, "run", record)
    return recorded


@given(VERSIONS)
def test_python_version_is_refused_exactly_below_the_minimum(version):
    problem = bootstrap.python_problem(version)
    assert (problem is None) == (version[:2] >= (3, 11))
    if problem:
        assert "3.11" in problem
        assert ".".join(map(str, version)) in problem


def test_script_parses_on_the_interpreters_it_must_refuse():
    ast.parse((ROOT / "bootstrap.py").read_text(encoding="utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("missing", [{"ensurepip"}, {"venv"}, {"venv", "ensurepip"}])
def test_missing_venv_names_module_and_debian_package(missing, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    problem = bootstrap.missing_modules_problem((3, 12))
    assert all(name in problem for name in missing)
    assert "python3.12-venv" in problem
    assert "python3-venv" in problem


def test_complete_python_has_no_venv_problem(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert bootstrap.missing_modules_problem((3, 12)) is None


@pytest.mark.parametrize("name", bootstrap.PINNED_BY)
def test_install_key_follows_every_pinning_file(name, project):
    before = bootstrap.install_key(project)
    (project / "README.md").write_text("not a pin")
    assert bootstrap.install_key(project) == before
    (project / name).write_bytes((project / name).read_bytes() + b"\n")
    assert bootstrap.install_key(project) != before


@given(st.binary(max_size=8), st.integers(0, 8))
def test_install_key_depends_on_where_a_file_ends(tmp_path_factory, data, cut):
    root = tmp_path_factory.mktemp("key")
    keys = set()
    cuts = {min(cut, len(data)), len(data)}
    for end in cuts:
        (root / "pyproject.toml").write_bytes(data[:end])
        (root / "constraints.txt").write_bytes(data[end:])
        keys.add(bootstrap.install_key(root))
    assert len(keys) == len(cuts)


def test_venv_identity_tells_places_and_pythons_apart(tmp_path):
    identities = [
        bootstrap.venv_identity(root, version) for root in (tmp_path, tmp_path / "b") for version in ((3, 11), (3, 12))
    ]
    assert len(set(identities)) == 4


@pytest.mark.parametrize("arguments", [[], ["instal"]])
def test_unknown_command_is_one_sentence_with_the_choices(arguments):
    command = [sys.executable, ROOT / "bootstrap.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in (*arguments, *bootstrap.COMMANDS))


def test_unknown_extra_lists_the_known_ones():
    with pytest.raises(bootstrap.BootstrapError, match=r"'numbda'.*fast, proofs"):
        bootstrap.parse_extras("torch,numbda", ["torch", "proofs", "fast"])


@given(st.lists(st.sampled_from(["-k", "-n", "0", "--extras", "--verbose", "x y", "-m", "slow"]), max_size=6))
def test_arguments_after_the_command_reach_pytest_unchanged(arguments):
    options = bootstrap.parse(["--verbose", "test", *arguments])
    command = bootstrap.pytest_command(Path("python"), options.arguments, 2)
    assert command[len(command) - len(arguments) :] == arguments
    assert options.verbose


def test_setup_takes_options_on_either_side(monkeypatch):
    monkeypatch.setenv("LOTION_TORCH_INDEX", "from-environment")
    early = bootstrap.parse(["--extras", "fast", "setup"])
    late = bootstrap.parse(["setup", "--extras", "fast"])
    assert vars(early) | {"arguments": []} == vars(late) | {"arguments": []}
    assert late.torch_index == "from-environment"
    assert bootstrap.parse(["setup", "--torch-index", "given"]).torch_index == "given"


@given(st.one_of(st.none(), st.integers(1, 512)))
def test_worker_count_is_between_two_and_eight(cpus):
    command = bootstrap.pytest_command(Path("python"), [], cpus)
    workers = int(command[command.index("-n") + 1])
    assert 2 <= workers <= 8
    assert workers == cpus or cpus is None or not 2 <= cpus <= 8


def test_second_install_does_nothing_until_a_pin_changes(project, calls):
    bootstrap.install(frozenset({"dev"}))
    first = len(calls)
    assert first > 0
    bootstrap.install(frozenset({"dev"}))
    # The dev extra contains these, so one environment serves both commands.
    bootstrap.install(frozenset({"fast", "proofs", "real"}))
    assert len(calls) == first
    (project / "constraints.txt").write_text("numpy==2.0.0\n")
    bootstrap.install(frozenset({"dev"}))
    # Everything again but the environment itself.
    assert len(calls) == 2 * first - 1


def test_extras_add_up_in_one_environment(project, calls):
    bootstrap.install(frozenset())
    assert "." in calls[-1]
    for extra in ("fast", "proofs"):
        bootstrap.install(frozenset({extra}))
        assert f".[{extra}]" in calls[-1]
    done = len(calls)
    bootstrap.install(frozenset({"fast", "proofs"}))
    assert len(calls) == done


def test_torch_comes_first_with_the_pin_and_its_own_index(project, calls):
    bootstrap.install(frozenset({"torch"}), torch_index="some-index")
    torch, own = calls[1:]
    assert torch[-1] == "torch"
    assert "some-index" in torch
    assert "some-index" not in own
    assert all("constraints.txt" in command for command in (torch, own))


def test_base_install_asks_for_neither_torch_nor_weights(project, calls):
    bootstrap.install(frozenset())
    assert not any("torch" in command or "requirements-real.txt" in command for command in calls)


def test_missing_weights_do_not_stop_the_rest_and_are_tried_again(project, calls, monkeypatch, capsys):
    record = bootstrap.run

    def without_weights(*command, what):
        record(*command, what=what)
        if "requirements-real.txt" in command:
            raise bootstrap.BootstrapError("installing the pretrained weights failed")

    monkeypatch.setattr(bootstrap, "run", without_weights)
    bootstrap.install(frozenset({"real"}))
    assert "going on without them" in capsys.readouterr().out
    done = len(calls)
    bootstrap.install(frozenset({"real"}))
    assert [("requirements-real.txt" in command) for command in calls[done:]] == [True]


def test_interrupted_environment_is_made_again(project, calls, monkeypatch):
    def interrupt(*command, what):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(bootstrap, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.make_venv()
    assert bootstrap.make_venv()["made"]
    assert len(calls) == 1


def test_foreign_environment_is_left_alone(project, calls):
    (project / ".venv").mkdir()
    (project / ".venv" / "pyvenv.cfg").write_text("not ours")
    with pytest.raises(bootstrap.BootstrapError, match="not made by bootstrap"):
        bootstrap.install(frozenset())
    assert (project / ".venv" / "pyvenv.cfg").read_text() == "not ours"
    assert calls == []


def test_clean_removes_what_was_made_and_keeps_results(project, calls):
    bootstrap.install(frozenset())
    (project / "results").mkdir()
    bootstrap.main(["clean"])
    assert {path.name for path in project.iterdir()} == {*bootstrap.PINNED_BY, "results"}


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
    known = set(bootstrap.extras_table(ROOT))
    assert set().union(*bootstrap.OWN_EXTRAS.values(), bootstrap.NEEDS_TORCH, bootstrap.NEEDS_WEIGHTS) <= known
    assert bootstrap.OWN_EXTRAS["reproduce"] <= bootstrap.dev_members(bootstrap.extras_table(ROOT))


def test_weights_are_pinned_by_version_and_hash():
    text = (ROOT / "requirements-real.txt").read_text(encoding="utf-8")
    assert "--require-hashes" in text
    assert re.search(r"^\S+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
