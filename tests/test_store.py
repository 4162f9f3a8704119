"""Tasks, what becomes of them, and the file that keeps it."""

import contextlib
import csv
import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbeds import machine
from testbeds.sweep import store as store_module
from testbeds.sweep.store import Store
from testbeds.sweep.task import Outcome, Task, canonical, execute, resolve
from tests.sweep_kinds import REFERENCE

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text(max_size=5), JSON, max_size=4)


def task(seed=0, phase="tune", experiment="e", kind="square", **config):
    return Task(experiment, phase, kind, config, seed)


def outcome(status="ok", **metrics):
    return Outcome(status, "", metrics, 0.5, "v", "m")


# Tasks


@given(CONFIGS, st.integers(0, 2**63 - 1))
def test_a_configuration_survives_json_and_keeps_its_key(config, seed):
    one = Task("e", "tune", "train", config, seed)
    assert json.loads(canonical(one.config)) == one.config
    two = Task("e", "tune", "train", json.loads(canonical(one.config)), seed)
    assert two == one and hash(two) == hash(one) and two.key == one.key and two.config == one.config


def test_the_key_is_that_of_the_computation():
    one = Task("e", "tune", "train", {"lr": 0.1, "method": {"name": "rat", "k": 2}}, 3)
    text = '["train",{"lr":0.1,"method":{"k":2,"name":"rat"}},3]'
    assert one.key == hashlib.sha256(text.encode()).hexdigest()[:32]
    # Neither the order of settings, nor tuples for lists, nor numpy's floats, nor what the run is for.
    assert one.key == Task("f", "final", "train", {"method": {"k": 2, "name": "rat"}, "lr": np.float64(0.1)}, 3).key
    assert Task("e", "p", "k", {"a": (1, 2)}, 0).key == Task("e", "p", "k", {"a": [1, 2]}, 0).key
    others = [
        Task("e", "tune", "round", one.config, 3), Task("e", "tune", "train", one.config, 4),
        Task("e", "tune", "train", {**one.config, "lr": math.nextafter(0.1, 1)}, 3),
        Task("e", "tune", "train", {**one.config, "batch": None}, 3),
    ]  # fmt: skip
    assert len({t.key for t in [one, *others]}) == 5
    # The format of a number is part of it: otherwise 1 and 1.0 and True would be one setting.
    assert len({Task("e", "p", "k", {"a": a}, 0).key for a in (1, 1.0, True, "1")}) == 4


def test_a_task_does_not_change_with_the_mapping_it_was_made_from():
    config = {"a": [1]}
    one = Task("e", "p", "k", config, 0)
    config["a"].append(2)
    assert one.config == {"a": [1]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": math.nan}, r"config\.lr=nan: must be finite"),
        ({"a": {"b": [1, math.inf]}}, r"config\.a\.b\[1\]=inf"),
        ({"a": {1: 2}}, r"config\.a: the key 1 must be a string"),
        ({"a": {1}}, r"config\.a=\{1\}: a set is not"),
        ([1], r"config=\[1\]: must be a mapping"),
    ],
)
def test_a_bad_configuration_names_its_place(config, message):
    with pytest.raises(ValueError, match=message):
        Task("e", "p", "k", config, 0)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None])
def test_a_bad_seed(seed):
    with pytest.raises(ValueError, match="seed="):
        Task("e", "p", "k", {}, seed)


# Outcomes


def test_what_comes_of_a_task():
    good = execute(REFERENCE, task(3))
    assert (good.status, good.message, good.metrics) == ("ok", "", {"value": 9}) and good.seconds >= 0
    assert good.version == machine.code_version() and good.machine == machine.machine()
    away = execute(REFERENCE, task(kind="diverge"))
    assert away.status == "diverged" and away.metrics == {"loss": None, "steps": 3}
    assert away.message == "weights left the finite range"
    bad = execute(REFERENCE, task(7, kind="fail"))
    assert bad.status == "failed" and bad.metrics == {}
    assert (
        bad.message.startswith("ArithmeticError: seed 7 (at sweep_kinds.py:") and "raise ArithmeticError" in bad.message
    )
    assert execute(REFERENCE, task(kind="exit")).message.startswith("SystemExit: 3")
    assert execute("no.such.module:run", task()).status == "failed"


def test_metrics_become_json(monkeypatch):
    def measured(metrics):
        monkeypatch.setattr("tests.sweep_kinds.run", lambda kind, config, seed: metrics)
        return execute(REFERENCE, task())

    got = measured({"a": np.float32(0.5), "b": np.arange(2), "c": (np.nan, -np.inf, 1e308), "d": {"e": np.bool_(True)}})
    assert got.metrics == {"a": 0.5, "b": [0, 1], "c": [None, None, 1e308], "d": {"e": True}}
    assert measured({"a": 1j}).message.startswith("ValueError: metrics.a=1j: a complex is not a JSON value")
    assert measured([1]).message.startswith("TypeError: tests.sweep_kinds:run returned a list")
    assert measured({1: 2}).status == "failed"


@pytest.mark.parametrize(
    "reference", ["run", "tests.sweep_kinds:", "tests.sweep_kinds:none", "no.such:run", "tests.sweep_kinds:REFERENCE"]
)
def test_a_reference_that_is_no_function(reference):
    with pytest.raises(ValueError, match="reference="):
        resolve(reference)


def test_the_version_names_code_and_commit(tmp_path):
    words = machine.code_version().split()
    assert words[1].startswith("source=") and len(words[1]) == len("source=") + 12
    assert machine._commit(tmp_path) is None
    assert machine.cores() >= 1 and machine.processor()


# The store


def test_rows_come_back_as_they_were_put_in(tmp_path):
    with Store(tmp_path / "new" / "runs.db") as store:
        one = task(1, lr=0.1, nested={"b": [1, None]})
        added = store.add(one, outcome(loss=0.1 + 0.2, curve={"step": [0, 1]}), attempts=2)
        assert store.rows() == [added]
    with Store(tmp_path / "new" / "runs.db") as store:
        (row,) = store.rows()
    finished = row.pop("finished")
    assert finished.endswith("+00:00")
    assert row == {
        "experiment": "e", "phase": "tune", "kind": "square", "key": one.key, "config": one.config, "seed": 1,
        "status": "ok", "message": "", "seconds": 0.5, "metrics": {"loss": 0.1 + 0.2, "curve": {"step": [0, 1]}},
        "attempts": 2, "version": "v", "machine": "m",
    }  # fmt: skip


def test_rows_are_chosen_and_ordered_whatever_the_order_of_their_arrival(tmp_path):
    tasks = [task(seed, phase, experiment, kind, lr=lr)
             for experiment in "ab" for phase in ("final", "tune") for kind in ("k", "l") for lr in (0.1, 0.2) for seed in (0, 1)]  # fmt: skip
    shuffled = np.random.default_rng(0).permutation(len(tasks))
    with Store(tmp_path / "runs.db") as store:
        statuses = ("ok", "diverged", "failed", "crashed")
        store.add_all((tasks[i], outcome(statuses[i % 4]), 1) for i in shuffled)
        assert [row["key"] for row in store.rows()] == [t.key for t in tasks]
        assert len(store.rows("a")) == 16 and len(store.rows("a", "final", "k")) == 4
        assert {row["status"] for row in store.rows(status=("failed", "crashed"))} == {"failed", "crashed"}
        assert len(store.rows(status="ok")) == 8 and store.rows(experiment="c") == [] and store.rows(status=()) == []
        with pytest.raises(ValueError, match="status='fine'"):
            store.rows(status="fine")
        with pytest.raises(ValueError, match="status='fine'"):
            store.add(tasks[0], outcome("fine"))
        keys = {t.key for t in tasks}
        assert store.done("a", "final") == keys
        assert len(store.done("a", "final", retry_failed=True)) == 4


def test_a_second_outcome_replaces_the_first_and_adds_its_attempts(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.add(task(), outcome("crashed"), attempts=3)
        store.add(task(), outcome("ok", value=1))
        (row,) = store.rows()
    assert row["status"] == "ok" and row["metrics"] == {"value": 1} and row["attempts"] == 4


def test_equal_runs_are_copied_and_failed_ones_are_not(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        first = store.add(task(1), outcome(value=1))
        store.add(task(2), outcome("failed"))
        wanted = [task(1, "final"), task(1, "tune", "f"), task(2, "final"), task(3, "final"), task(1)]
        copies = store.copy(wanted)
        assert [(row["experiment"], row["phase"]) for row in copies] == [("e", "final"), ("f", "tune")]
        assert all({**row, "experiment": "e", "phase": "tune"} == first for row in copies)
        assert len(store.rows()) == 4


def test_several_outcomes_are_committed_together_or_not_at_all(tmp_path):
    with Store(tmp_path / "runs.db") as store, pytest.raises(sqlite3.IntegrityError):
        store.add_all([(task(1), outcome(), 1), (task(2), Outcome("ok", None, {}, 0.0, "v", "m"), 1)])
    with Store(tmp_path / "runs.db") as store:
        assert store.rows() == []


def test_one_writer_many_readers(tmp_path):
    path = tmp_path / "runs.db"
    with Store(path) as writer, Store(path) as other, writer.writing():
        writer.add(task(1), outcome())
        assert len(other.rows()) == 1
        with Store(path, readonly=True) as reader:
            assert len(reader.rows()) == 1
            writer.add(task(2), outcome())
            assert len(reader.rows()) == 2
            with pytest.raises(ValueError, match="reading only"):
                reader.add(task(3), outcome())
        with pytest.raises(BlockingIOError, match=rf"runs\.db: another sweep .*\(process {os.getpid()} on "):
            other.add(task(3), outcome())
    with Store(path) as other:
        other.add(task(3), outcome())
        assert len(other.rows()) == 3


HOLDER = """
import sys
from testbeds.sweep.store import Store
store = Store(sys.argv[1])
with store.writing():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_the_lock_ends_with_its_process_even_if_that_is_killed(tmp_path):
    path = tmp_path / "runs.db"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == "locked\n"
        with Store(path) as store, pytest.raises(BlockingIOError, match=f"process {holder.pid} on "):
            store.add(task(), outcome())
        holder.kill()
    with Store(path) as store:
        store.add(task(), outcome())


def test_a_file_that_is_absent_or_not_a_sweeps(tmp_path):
    for readonly in (False, True):
        with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
            Store(tmp_path, readonly=readonly)
    with pytest.raises(FileNotFoundError, match=r"none\.db"):
        Store(tmp_path / "none.db", readonly=True)
    assert not (tmp_path / "none.db").exists()
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"name,value\n" * 500)
    foreign = tmp_path / "foreign.db"
    with contextlib.closing(sqlite3.connect(foreign)) as connection:
        connection.execute("CREATE TABLE runs (a)")
    for path in (garbage, foreign):
        before = path.read_bytes()
        for readonly in (False, True):
            with pytest.raises(ValueError, match=f"{path.name}: not a "):
                Store(path, readonly=readonly)
        assert path.read_bytes() == before
    # Left by a process that died before it made the tables.
    (tmp_path / "empty.db").touch()
    with Store(tmp_path / "empty.db") as store:
        assert store.rows() == []
    with pytest.raises(OSError, match=str(tmp_path)):
        Store(tmp_path)


def test_a_file_of_a_later_schema(tmp_path):
    path = tmp_path / "runs.db"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = '3' WHERE name = 'schema'")
    with pytest.raises(ValueError, match=r"runs\.db: results of schema 3; this version reads up to 2"):
        Store(path)


def changed(path, statement):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    "change",
    [
        "metrics = replace(metrics, '0.25', '0.75')", "config = replace(config, '7', '8')", "status = 'diverged'",
        "seed = 5", "seconds = 2.5", "version = 'other'", "finished = '2020'", "key = 'ab'",
    ],
)  # fmt: skip
def test_a_changed_value_is_noticed(tmp_path, change):
    """A digit that is another one is still a run in form; its checksum tells."""
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.add_all([(task(1, d=7), outcome(loss=0.25), 1), (task(2, d=7), outcome(), 1)])
        kept = store.rows()
    changed(path, "UPDATE runs SET attempts = 9")
    with Store(path, readonly=True) as store:
        assert [row["attempts"] for row in store.rows()] == [9, 9]
    changed(path, f"UPDATE runs SET {change} WHERE seed = 1")
    with Store(path) as store:
        for read in (store.rows, lambda: store.copy([task(1, experiment="other", d=7)])):
            if change.startswith("key") and read != store.rows:
                continue  # Nothing has that key any more.
            with pytest.raises(ValueError, match=r"runs\.db: run \w+ of .* is damaged \(its values do not fit"):
                read()
        # Running it again puts a sound one in its place.
        if not change.startswith(("key", "seed")):
            store.add(task(1, d=7), outcome(loss=0.25))
            assert [row["metrics"] for row in store.rows()] == [row["metrics"] for row in kept]


def test_a_file_without_checksums_is_read_and_grows(tmp_path):
    """Schema 1: its rows load as they are; written to, the file gets the column, and rows without one stay readable."""
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.add(task(1), outcome())
        first = store.rows()
    changed(path, "ALTER TABLE runs DROP COLUMN digest")
    changed(path, "UPDATE meta SET value = '1' WHERE name = 'schema'")
    before = path.read_bytes()
    with Store(path, readonly=True) as store:
        assert store.rows() == first
    with Store(path) as store:
        assert store.rows() == first and path.read_bytes() == before
        store.add(task(2), outcome())
        assert store.rows()[:1] == first
    with Store(path) as store, store.writing():
        assert [row["seed"] for row in store.rows()] == [1, 2]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT digest IS NULL FROM runs ORDER BY seed").fetchall() == [(1,), (0,)]
        assert connection.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == ("2",)


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_file_is_refused_before_anything_is_added(tmp_path, damage):
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.add_all((task(seed, text="x" * 500), outcome(), 1) for seed in range(100))
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        del data[len(data) // 2 :]
    else:  # One page of rows, which adding another row need not touch.
        data[4096 * 10 : 4096 * 11] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"runs\.db: not a readable results file"), Store(path) as store:
        store.add(task(1000), outcome())


def test_a_full_disk_names_the_file_and_keeps_what_was_committed(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.add(task(0), outcome())
        # The database's own limit fails as the disk would: SQLITE_FULL.
        store._connection.execute(
            f"PRAGMA max_page_count={store._connection.execute('PRAGMA page_count').fetchone()[0] + 2}"
        )
        with pytest.raises(OSError, match=r"runs\.db: database or disk is full"):
            for seed in range(1, 100):
                store.add(task(seed, text="x" * 1000), outcome())
        assert 1 <= len(store.rows()) == seed
        store._connection.execute("PRAGMA max_page_count=1000000")
        store.add(task(200), outcome())
        assert len(store.rows()) == seed + 1


def test_a_network_file_system_gets_a_journal_that_works_there(tmp_path, monkeypatch):
    assert not store_module.on_network(Path("/proc/self"))
    with Store(tmp_path / "runs.db") as store:
        store.add(task(0), outcome())
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    monkeypatch.setattr(store_module, "on_network", lambda path: True)
    with Store(tmp_path / "runs.db") as store:
        store.add(task(1), outcome())
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert len(store.rows()) == 2


# Export


def filled(tmp_path):
    store = Store(tmp_path / "runs.db")
    store.add(task(1, lr=0.1, problem={"name": "a, b", "d": 2}, tied=True), outcome(loss=0.1 + 0.2, curve=[1, 2.5]))
    store.add(task(2, lr=1, problem={"name": "c"}, tied=None), outcome("diverged", loss=None, mixed="x"))
    store.add(task(3, problem={}), outcome("failed"))
    store.add(task(4, lr="auto", grid=[0.1]), outcome(mixed=1))
    return store


def test_csv_has_a_column_per_setting(tmp_path):
    with filled(tmp_path) as store:
        store.export(tmp_path / "out" / "runs.csv")
    with (tmp_path / "out" / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = {int(row["seed"]): row for row in csv.DictReader(file)}
    assert float(rows[1]["metrics.loss"]) == 0.1 + 0.2 and rows[1]["metrics.curve"] == "[1,2.5]"
    assert rows[1]["config.problem.name"] == "a, b" and rows[1]["config.tied"] == "true"
    assert rows[2]["metrics.loss"] == "" and rows[3]["config.problem"] == "{}" and rows[4]["config.lr"] == "auto"
    assert "metrics" not in rows[3]
    with (
        filled(tmp_path) as store,
        pytest.raises(ValueError, match=r"runs\.txt: the name must end in \.csv or \.parquet"),
    ):
        store.export(tmp_path / "runs.txt")


def test_parquet_has_one_type_per_column(tmp_path):
    polars = pytest.importorskip("polars")
    with filled(tmp_path) as store:
        store.export(tmp_path / "runs.parquet")
        rows = store.rows()
    frame = polars.read_parquet(tmp_path / "runs.parquet")
    assert frame["key"].to_list() == [row["key"] for row in rows]
    assert frame.schema["metrics.loss"] == polars.Float64 and frame.schema["config.tied"] == polars.Boolean
    assert frame.schema["config.problem.d"] == polars.Int64 and frame.schema["config.lr"] == polars.String
    by_seed = {row["seed"]: row for row in frame.to_dicts()}
    assert by_seed[1]["metrics.loss"] == 0.1 + 0.2 and by_seed[1]["config.tied"] is True
    assert by_seed[4]["metrics.mixed"] == "1" and by_seed[2]["metrics.mixed"] == "x"


def test_parquet_without_polars_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with filled(tmp_path) as store, pytest.raises(ModuleNotFoundError, match=r"pip install 'lotion-theory\[sweep\]'"):
        store.export(tmp_path / "runs.parquet")
    assert not (tmp_path / "runs.parquet").exists()


def test_an_empty_store_exports_a_header(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.export(tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_text(encoding="utf-8").startswith("experiment,phase,key,kind,seed,status")
