"""The environment that the set-up script makes: what it records, and what happens when something is wrong with it."""

import importlib.util
import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import _bootstrap
import bootstrap

ROOT = Path(bootstrap.__file__).parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder, its path with a space, that bootstrap takes for its own; pip and venv calls are recorded."""
    root = tmp_path / "a project"
    root.mkdir()
    for name in _bootstrap.PINNED_BY:
        shutil.copy(ROOT / name, root)
    monkeypatch.setattr(_bootstrap, "ROOT", root)
    monkeypatch.setattr(_bootstrap, "VENV", root / ".venv")
    monkeypatch.setattr(_bootstrap, "STATE", root / ".venv" / "bootstrap.json")
    return root


@pytest.fixture
def calls(project, monkeypatch):
    """The commands that set-up would have run, in order; making a venv leaves an empty interpreter file behind."""
    recorded = []

    def record(*command, what):
        recorded.append([str(part) for part in command])
        if "venv" in command:
            python = _bootstrap.program("python")
            python.parent.mkdir()
            python.touch()

    monkeypatch.setattr(_bootstrap, "run", record)
    return recorded


@pytest.mark.parametrize("name", _bootstrap.PINNED_BY)
def test_install_key_follows_every_pinning_file(name, project):
    before = _bootstrap.install_key(project)
    (project / "README.md").write_text("not a pin")
    assert _bootstrap.install_key(project) == before
    (project / name).write_bytes((project / name).read_bytes() + b"\n")
    assert _bootstrap.install_key(project) != before


@given(st.binary(max_size=8), st.integers(0, 8))
def test_install_key_depends_on_where_a_file_ends(tmp_path_factory, data, cut):
    root = tmp_path_factory.mktemp("key")
    keys = set()
    cuts = {min(cut, len(data)), len(data)}
    for end in cuts:
        (root / "pyproject.toml").write_bytes(data[:end])
        (root / "constraints.txt").write_bytes(data[end:])
        keys.add(_bootstrap.install_key(root))
    assert len(keys) == len(cuts)


def test_venv_identity_tells_places_and_pythons_apart(tmp_path):
    identities = [
        _bootstrap.venv_identity(root, version) for root in (tmp_path, tmp_path / "b") for version in ((3, 11), (3, 12))
    ]
    assert len(set(identities)) == 4


def test_second_install_does_nothing_until_a_pin_changes(project, calls):
    _bootstrap.install(frozenset({"dev"}))
    first = len(calls)
    assert first > 0
    _bootstrap.install(frozenset({"dev"}))
    # The dev extra contains these, so one environment serves both commands.
    _bootstrap.install(frozenset({"fast", "proofs", "real"}))
    assert len(calls) == first
    (project / "constraints.txt").write_text("numpy==2.0.0\n")
    _bootstrap.install(frozenset({"dev"}))
    # Everything again but the environment itself.
    assert len(calls) == 2 * first - 1


def test_extras_add_up_in_one_environment(project, calls):
    _bootstrap.install(frozenset())
    assert "." in calls[-1]
    for extra in ("fast", "proofs"):
        _bootstrap.install(frozenset({extra}))
        assert f".[{extra}]" in calls[-1]
    done = len(calls)
    _bootstrap.install(frozenset({"fast", "proofs"}))
    assert len(calls) == done


def test_torch_comes_first_with_the_pin_and_its_own_index(project, calls):
    _bootstrap.install(frozenset({"torch"}), torch_index="some-index")
    torch, own = calls[1:]
    assert torch[-1] == "torch"
    assert "some-index" in torch
    assert "some-index" not in own
    assert all("constraints.txt" in command for command in (torch, own))


def test_base_install_asks_for_neither_torch_nor_weights(project, calls):
    _bootstrap.install(frozenset())
    assert not any("torch" in command or "requirements-real.txt" in command for command in calls)


def test_missing_weights_do_not_stop_the_rest_and_are_tried_again(project, calls, monkeypatch, capsys):
    record = _bootstrap.run

    def without_weights(*command, what):
        record(*command, what=what)
        if "requirements-real.txt" in command:
            raise _bootstrap.BootstrapError("installing the pretrained weights failed")

    monkeypatch.setattr(_bootstrap, "run", without_weights)
    _bootstrap.install(frozenset({"real"}))
    assert "going on without them" in capsys.readouterr().out
    done = len(calls)
    _bootstrap.install(frozenset({"real"}))
    assert [("requirements-real.txt" in command) for command in calls[done:]] == [True]


def test_interrupted_environment_is_made_again(project, calls, monkeypatch):
    def interrupt(*command, what):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(_bootstrap, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _bootstrap.make_venv()
    assert _bootstrap.make_venv()["made"]
    assert len(calls) == 1


@pytest.mark.parametrize("linked", [False, True])
def test_foreign_environment_is_left_alone(project, calls, tmp_path, linked):
    place = tmp_path / "elsewhere" if linked else project / ".venv"
    place.mkdir()
    if linked:
        (project / ".venv").symlink_to(place)
    (place / "pyvenv.cfg").write_text("not ours")
    with pytest.raises(_bootstrap.BootstrapError, match="not made by bootstrap"):
        _bootstrap.install(frozenset())
    assert (place / "pyvenv.cfg").read_text() == "not ours"
    assert calls == []


def test_a_file_in_place_of_the_environment_is_left_alone(project, calls):
    (project / ".venv").write_text("some tool's")
    with pytest.raises(_bootstrap.BootstrapError, match="not made by bootstrap"):
        _bootstrap.install(frozenset())
    assert (project / ".venv").read_text() == "some tool's" and calls == []


WHOLE = {"identity": "x", "made": True, "key": None, "extras": None, "weights": False}


DAMAGED = [
    b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 100_000, b"{}",
    *(json.dumps({k: v for k, v in WHOLE.items() if k != name}).encode() for name in WHOLE),
    *(json.dumps(WHOLE | wrong).encode() for wrong in ({"identity": 3}, {"key": 1}, {"extras": "fast"}, {"extras": [1]})),
]  # fmt: skip


@pytest.mark.parametrize("record", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_means_a_new_environment(project, calls, record, capsys):
    _bootstrap.install(frozenset())
    done = len(calls)
    _bootstrap.STATE.write_bytes(record)
    _bootstrap.install(frozenset())
    assert len(calls) == 2 * done and "damaged" in capsys.readouterr().out


def test_a_record_that_is_a_folder(project, calls):
    _bootstrap.STATE.mkdir(parents=True)
    _bootstrap.install(frozenset())
    assert _bootstrap.read_state()["made"]


def test_pip_that_fails_half_way_leaves_nothing_that_counts_as_installed(project, calls, monkeypatch):
    _bootstrap.install(frozenset({"fast"}))
    pins = (project / "constraints.txt").read_bytes()
    record = _bootstrap.run

    def fail(*command, what):
        record(*command, what=what)
        raise _bootstrap.BootstrapError(f"{what} failed with exit code 1")

    with monkeypatch.context() as broken:
        broken.setattr(_bootstrap, "run", fail)
        (project / "constraints.txt").write_text("numpy==2.0.0\n")
        with pytest.raises(_bootstrap.BootstrapError, match="installing lotion-theory"):
            _bootstrap.install(frozenset({"fast"}))
    # Back to the pins whose packages were there before.
    (project / "constraints.txt").write_bytes(pins)
    done = len(calls)
    _bootstrap.install(frozenset({"fast"}))
    assert len(calls) == done + 1


# A .venv that is a link, say to a larger disk


@pytest.fixture
def linked(project, tmp_path):
    """An empty folder elsewhere that .venv links to."""
    place = tmp_path / "larger disk"
    place.mkdir()
    (project / ".venv").symlink_to(place)
    return place


def test_a_linked_environment_is_made_and_made_again_where_it_lies(project, linked, calls, monkeypatch):
    _bootstrap.install(frozenset())
    assert (linked / "bootstrap.json").exists()
    (linked / "left over").mkdir()
    (linked / "left over" / "file").touch()
    monkeypatch.setattr(_bootstrap.platform, "machine", lambda: "another")
    _bootstrap.install(frozenset())
    assert (project / ".venv").is_symlink() and not (linked / "left over").exists()


def test_cleaning_removes_a_link_and_not_what_it_points_to(project, linked, calls):
    _bootstrap.install(frozenset())
    kept = {path.name for path in linked.iterdir()}
    assert _bootstrap.main(["clean"]) == 0
    assert not (project / ".venv").is_symlink() and {path.name for path in linked.iterdir()} == kept


def test_a_link_to_another_checkouts_environment_is_left_alone(project, linked, calls, tmp_path):
    _bootstrap.install(frozenset())
    state = _bootstrap.read_state()
    (linked / "kept").touch()
    for record in (state | {"identity": _bootstrap.venv_identity(tmp_path, (3, 11))}, []):
        (linked / "bootstrap.json").write_text(json.dumps(record))
        with pytest.raises(_bootstrap.BootstrapError, match="another checkout: remove the link"):
            _bootstrap.install(frozenset())
        assert (linked / "kept").exists()


def test_a_link_to_nothing_is_a_sentence(project, linked, calls):
    linked.rmdir()
    with pytest.raises(_bootstrap.BootstrapError, match="does not exist: make it, or remove the link"):
        _bootstrap.install(frozenset())
    _bootstrap.clean()
    assert not (project / ".venv").is_symlink()


# Two at once, folders that cannot be written, other locales


@pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="this system has no such locks")
def test_of_two_at_once_the_second_waits_and_finds_the_work_done(project, calls, monkeypatch):
    waiting = threading.Event()
    monkeypatch.setattr(_bootstrap, "say", lambda text: waiting.set() if "waiting" in text else None)
    second = threading.Thread(target=_bootstrap.run_command, args=(["setup", "--extras", "fast"],))
    with _bootstrap.alone():
        second.start()
        assert waiting.wait(300) and calls == []
        _bootstrap.install(frozenset({"fast"}))
        done = len(calls)
    second.join()
    assert len(calls) == done


def test_where_there_are_no_locks_work_goes_on(project, calls, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert _bootstrap.run_command(["setup", "--extras", ""]) == 0 and calls


def test_a_checkout_that_cannot_be_written_is_a_sentence_and_a_complete_one_is_used(project, calls, monkeypatch):
    monkeypatch.setattr(_bootstrap.os, "access", lambda *arguments: False)
    told = _bootstrap.run_command(["setup"])
    assert told.startswith(f"bootstrap: {project} cannot be written") and calls == []
    with monkeypatch.context() as writable:
        writable.setattr(_bootstrap.os, "access", lambda *arguments: True)
        assert _bootstrap.run_command(["setup", "--extras", ""]) == 0
    assert _bootstrap.run_command(["setup", "--extras", ""]) == 0


def test_lint_checks_rules_format_and_types(project, calls, monkeypatch):
    steps = []
    monkeypatch.setattr(_bootstrap.subprocess, "call", lambda step, cwd: steps.append(step[2:]) or len(steps) - 1)
    assert _bootstrap.main(["lint"]) == 1
    assert [step[:2] for step in steps] == [["ruff", "check"], ["ruff", "format"], ["mypy"]]


def test_clean_removes_what_was_made_and_keeps_results(project, calls):
    _bootstrap.install(frozenset())
    (project / "results").mkdir()
    _bootstrap.main(["clean"])
    assert {path.name for path in project.iterdir()} == {*_bootstrap.PINNED_BY, "results"}
