"""The sweep engine: what it runs and stores, and what is left when the driver itself is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from testbeds.sweep.driver import Summary, run_sweep
from testbeds.sweep.store import Store
from tests.sweep_cases import PATIENCE, ROOT, by_seed, gone, starts, sweep, task, until
from tests.sweep_kinds import REFERENCE, logged, two_phases

pytestmark = pytest.mark.usefixtures("plain_signals")


# What is run and stored


def test_a_plan_is_asked_again_until_it_names_nothing_new(store, tmp_path):
    log = tmp_path / "log"
    seen = []
    plan = two_phases(4, 0, log)
    summary = sweep(store, plan, progress=lambda done, total, row: seen.append((done, total, row and row["seed"])))
    # In the order of the plan; the final run of seed 3 equals a tuning run and is copied.
    assert starts(log) == [0, 1, 2, 3, 4, 5, 6]
    assert seen == [(0, 4, None), (1, 4, 0), (2, 4, 1), (3, 4, 2), (4, 4, 3),
                    (4, 8, None), (5, 8, 3), (6, 8, 4), (7, 8, 5), (8, 8, 6), (8, 8, None)]  # fmt: skip
    assert summary == Summary(8, 8, 0, 0, 0, 1, 0, summary.seconds) and summary.seconds > 0
    assert store.done("e", "final") == {t.key for t in plan(store)[4:]}
    again = sweep(store, plan)
    assert (again.done, again.skipped) == (0, 8) and len(starts(log)) == 7


@pytest.mark.parametrize("pool", ["serial", "processes"])
def test_every_end_of_a_task_has_its_status(store, pool):
    tasks = [
        task(1),
        task(2, kind="diverge"),
        task(3, kind="fail"),
        task(4, kind="exit"),
        task(5, kind="unknown"),
        task(6),
    ]
    summary = sweep(store, tasks, pool, processes=2)
    rows = by_seed(store)
    assert [rows[seed]["status"] for seed in range(1, 7)] == ["ok", "diverged", "failed", "failed", "failed", "ok"]
    assert rows[2]["metrics"] == {"loss": None, "steps": 3} and rows[6]["metrics"] == {"value": 36}
    assert rows[5]["message"].startswith("ValueError: kind='unknown'")
    assert (summary.done, summary.ok, summary.diverged, summary.failed, summary.crashed) == (6, 2, 1, 3, 0)
    assert all(row["attempts"] == 1 and "source=" in row["version"] and row["machine"] for row in rows.values())


def test_equal_tasks_run_once(store, tmp_path):
    log = str(tmp_path / "log")
    tasks = [
        task(1, log=log), task(1, "final", log=log), task(1, "tune", "f", log=log), task(1, log=log),
        task(2, kind="fail", log=log), task(2, "final", kind="fail", log=log),
    ]  # fmt: skip
    summary = sweep(store, tasks)
    assert starts(log) == [1, 2] and len(store.rows()) == 5
    assert (summary.done, summary.ok, summary.failed, summary.copied) == (5, 3, 2, 3)
    # A later sweep takes it from the store, without starting a pool.
    summary = sweep(store, [task(1, "tune", "g", log=log)], pool="processes")
    assert starts(log) == [1, 2] and summary.copied == summary.done == 1


def test_failed_runs_are_retried_on_request_and_only_once(store, tmp_path):
    log = str(tmp_path / "log")
    tasks = [task(1, log=log), task(2, kind="fail", log=log), task(3, kind="diverge", log=log)]
    sweep(store, tasks)
    assert sweep(store, tasks).skipped == 3
    summary = sweep(store, tasks, retry_failed=True)
    assert starts(log) == [1, 2, 3, 2]
    assert (summary.done, summary.failed, summary.skipped) == (1, 1, 2)
    assert by_seed(store)[2]["attempts"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "threads"}, "pool='threads': must be one of processes, serial, dask"),
        ({"processes": 0}, "processes=0: must be at least 1"),
        ({"processes": 10**17}, "processes=100000000000000000: must be at least 1 and at most 4,096"),
        ({"pool": "processes", "address": "local"}, "address='local': only pool='dask'"),
        ({"pool": "dask", "timeout": 1.0}, "timeout=1: only pool='processes'"),
        ({"pool": "processes", "timeout": 0.0}, "timeout=0: must be positive"),
    ],
)
def test_bad_settings_are_refused_even_if_nothing_is_to_be_done(store, settings, message):
    with pytest.raises(ValueError, match=message):
        sweep(store, [], **settings)
    with pytest.raises(ValueError, match="reference='nothing'"):
        run_sweep(lambda store: [], store, "nothing")


def test_two_sweeps_cannot_share_a_store(store):
    with Store(store.path) as other, other.writing(), pytest.raises(BlockingIOError, match="another sweep is writing"):
        sweep(store, [task()])
    assert sweep(store, [task()]).ok == 1


def test_a_full_disk_ends_the_sweep_and_keeps_what_was_committed(store):
    def fill(done, total, row):
        store._connection.execute(
            f"PRAGMA max_page_count={store._connection.execute('PRAGMA page_count').fetchone()[0]}"
        )

    with pytest.raises(OSError, match=r"runs\.db: database or disk is full"):
        sweep(store, [task(seed, text="x" * 5000) for seed in range(50)], progress=fill)
    store._connection.execute("PRAGMA max_page_count=1000000")
    kept = len(store.rows())
    assert kept < 50
    assert sweep(store, [task(seed, text="x" * 5000) for seed in range(50)]).skipped == kept


def test_a_sweep_off_the_main_thread(store):
    def run():
        with Store(store.path) as own:
            sweep(own, [task()], "processes", processes=1)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert by_seed(store)[0]["status"] == "ok"


# The driver


@contextlib.contextmanager
def driver(tmp_path, number=15, kind="sleep", seconds=0.02):
    """A driver in a process group of its own, with its store and the log of what was run."""
    path, log = tmp_path / "runs.db", tmp_path / "log"
    command = [sys.executable, "-m", "tests.sweep_kinds", str(path), str(log), str(number), kind, str(seconds)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process, path, log
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


def content(store):
    """What a table says, apart from when, how often and by which code: that may be edited during a long test."""
    apart = ("finished", "seconds", "attempts", "version")
    return [{k: v for k, v in row.items() if k not in apart} for row in store.rows()]


def kill_rounds(tmp_path, rounds, seed):
    """Kill a driver again and again; nothing it acknowledged may be lost or run again."""
    rng = np.random.default_rng(seed)
    acknowledged = set()
    for _ in range(rounds):
        with driver(tmp_path) as (process, path, log):
            known = len(logged(log))
            lines = [process.stdout.readline() for _ in range(rng.integers(1, 5))]
            time.sleep(rng.uniform(0, 0.06))
            process.kill()
            # Ends when the workers, which hold the other end as well, are gone.
            rest, _ = process.communicate(timeout=PATIENCE)
        with Store(path, readonly=True) as store:
            stored = {(row["phase"], row["key"]): row for row in store.rows()}
        again = {int(seed) for what, *_, seed in logged(log)[known:] if what == "start"}
        assert not again & acknowledged
        for line in "".join([*lines, rest]).splitlines():
            if line.startswith("Summary"):
                continue
            row = stored[tuple(line.split())]
            assert row["status"] == "ok" and row["attempts"] == 1
            acknowledged.add(row["seed"])
    with driver(tmp_path) as (process, path, log):
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    ended = [int(seed) for what, *_, seed in logged(log) if what == "end"]
    # A run may be repeated only if its result was on the way at the moment of a kill: two workers' each time.
    assert set(ended) == set(range(29)) and len(starts(log)) - 29 <= 2 * rounds
    with Store(path, readonly=True) as store, Store(tmp_path / "whole.db") as whole:
        run_sweep(two_phases(15, 0.02, log), whole, REFERENCE, "serial")
        assert content(store) == content(whole) and len(store.rows()) == 30


def test_killing_the_driver_loses_nothing_it_acknowledged(tmp_path):
    kill_rounds(tmp_path, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killing_the_driver_many_times_loses_nothing_it_acknowledged(tmp_path, seed):
    kill_rounds(tmp_path, 6, seed)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_their_driver(tmp_path, number):
    # Compiled code that does not let go cannot be interrupted, only killed; SIGINT must not reach the others either.
    kind = "sleep" if number == signal.SIGINT else "compute"
    with driver(tmp_path, 4, kind, 2 * PATIENCE) as (process, path, log):
        until(lambda: len(starts(log)) == 2)
        pids = [int(pid) for _, pid, _, _ in logged(log)]
        assert not any(gone(pid) for pid in pids)
        if number == signal.SIGINT:  # As the terminal does it: to the workers as well.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        said, errors = process.communicate(timeout=PATIENCE)
        until(lambda: all(gone(pid) for pid in pids))
        if number != signal.SIGKILL:
            assert (said, errors, process.returncode) == ("interrupted\n", "", 130)
    with Store(path) as store, store.writing():
        assert store.rows() == []
