"""``lotion sweep``, ``leaderboard`` and ``figures`` as a user runs them."""

import json
from dataclasses import replace

import pytest

from testbeds import cli
from testbeds.sweep.archive import read_archive, write_archive
from testbeds.sweep.results import stored_rows

CONFIG = """
experiments:
  - name: tiny
    title: Rounding, small
    kind: round
    problem: {name: power_law, exponent: 1.1}
    vary: {d: [3, 4]}
    formats: [int3]
    seeds: 3
    oracle: true
    methods: [{name: rtn}, {name: rr}]
  - name: points
    title: Minima, small
    kind: minima
    problem: {name: power_law, exponent: 1.1}
    vary: {d: [2, 3]}
    formats: [int2]
    seeds: 2
    settings: {starts: 4}
"""


def lotion(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in arguments])
    return caught.value.code


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mine.yaml").write_text(CONFIG)
    path = folder / "runs" / "mine.sqlite"
    assert lotion("sweep", folder / "mine.yaml", "--store", path, "--pool", "serial") == 0
    return path


def test_a_second_sweep_computes_nothing(store, capsys):
    config = store.parent.parent / "mine.yaml"
    before = stored_rows(store)
    assert lotion("sweep", config, "--store", store, "--pool", "serial") == 0
    # 2 dimensions x 3 seeds x (2 methods and an oracle), and 2 x 2 counts.
    assert len(before) == 22 and stored_rows(store) == before
    assert "0 runs added" in capsys.readouterr().out


def test_failures_are_told_and_how_to_run_them_again(store, tmp_path, capsys, monkeypatch):
    from testbeds.kinds import minima

    def broken(config, seed):
        raise RuntimeError("a bug of mine")

    config, path = store.parent.parent / "mine.yaml", tmp_path / "a.sqlite"
    monkeypatch.setattr(minima, "KIND", replace(minima.KIND, run=broken))
    arguments = ("sweep", config, "--store", path, "--pool", "serial", "--only", "points")
    assert lotion(*arguments) == 1
    for _ in range(2):
        text = capsys.readouterr().out
        assert "4 failed" in text and "a bug of mine" in text and "--retry-failed" in text
        assert lotion(*arguments) == 1
    monkeypatch.undo()
    assert lotion(*arguments, "--retry-failed") == 0


def test_tables_in_every_form(store, capsys):
    for output in ("text", "markdown", "csv", "json"):
        assert lotion("leaderboard", "--store", store, "--experiment", "tiny", "--output", output) == 0
        text = capsys.readouterr().out
        assert "rtn" in text and "rr" in text
        if output == "json":
            assert json.loads(text)
    assert lotion("leaderboard", "--store", store, "--tuning") == 0


def test_figures_and_their_captions(store, tmp_path, capsys):
    assert lotion("figures", "--store", store, "--out", tmp_path) == 0
    names = {line.rsplit("/", 1)[1] for line in capsys.readouterr().out.splitlines()}
    assert {"tiny.png", "tiny.svg", "points.png", "captions.json"} <= names
    assert set(json.loads((tmp_path / "captions.json").read_text(encoding="utf-8"))) == {"tiny", "points"}


def test_archives_hold_what_the_store_holds(store, tmp_path, capsys):
    rows = stored_rows(store)
    for r in rows:
        r["metrics"]["curve"] = {"rtn": [0.123456789]}
    write_archive(rows, tmp_path / "a.jsonl.xz")
    found = read_archive(tmp_path / "a.jsonl.xz")
    assert [r["key"] for r in found] == [r["key"] for r in rows]
    finals = [r for r in found if r["phase"] == "final"]
    assert all(r["metrics"]["curve"] == {"rtn": [0.123457]} for r in finals)
    assert all("curve" not in r["metrics"] for r in found if r["phase"] != "final")
    assert lotion("leaderboard", "--store", tmp_path / "a.jsonl.xz", "--experiment", "tiny") == 0
    assert "rtn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("leaderboard", "--store", "{folder}/none.sqlite"), "no such file"),
        (("leaderboard", "--store", "{store}", "--experiment", "huge"), "valid: points, tiny"),
        (("sweep", "{folder}/none.yaml"), "presets: curvature, lm, lm-quick, paper, quantize, quick"),
        (("sweep", "{config}", "--only", "huge"), "valid: tiny, points"),
        (("sweep", "{config}", "--store", "{store}", "--processes", "0"), "processes"),
        (("sweep", "{config}", "--store", "{folder}/new.jsonl.xz"), "read only"),
        (("figures", "--store", "{config}"), "mine.yaml"),
        (("leaderboard", "--store", "{folder}/bad.jsonl.xz"), "not an archive"),
    ],
)
def test_bad_input_is_answered_in_one_line(store, capsys, arguments, message):
    folder = store.parent.parent
    (folder / "bad.jsonl.xz").write_bytes(b"no archive")
    names = {"folder": folder, "store": store, "config": folder / "mine.yaml"}
    assert lotion(*(a.format(**names) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
