"""The processes that compute for a sweep, of this machine and of a cluster: what is left when they are killed."""

import contextlib
import os
import signal
import sys
import threading
import time
import types

import numpy as np
import pytest

from lotion_theory.workers import ProcessPool
from testbeds.sweep.driver import CRASH_LIMIT
from testbeds.sweep.pools import open_pool
from tests.sweep_cases import PATIENCE, by_seed, echo, kill_one, starts, sweep, task, until
from tests.sweep_kinds import logged

pytestmark = pytest.mark.usefixtures("plain_signals")


# Worker processes


def test_workers_compute_with_one_thread(store, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    sweep(store, [task(kind="threads")], "processes", processes=1)
    assert by_seed(store)[0]["metrics"] == {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7" and "NUMBA_NUM_THREADS" not in os.environ


def test_the_death_of_a_worker_ends_only_what_it_ran(store, tmp_path):
    log = str(tmp_path / "log")
    tasks = [
        task(1, kind="die", log=log), task(2, kind="die once", flag=str(tmp_path / "flag"), log=log),
        *(task(seed, kind="sleep", seconds=0.05, log=log) for seed in range(3, 9)),
    ]  # fmt: skip
    summary = sweep(store, tasks, "processes", processes=2)
    assert (summary.ok, summary.crashed) == (7, 1)
    rows = by_seed(store)
    assert rows[1]["status"] == "crashed" and "exit code -9" in rows[1]["message"]
    # Once beside others, which does not count, then until the limit alone.
    assert rows[1]["attempts"] == starts(log).count(1) == 1 + CRASH_LIMIT
    assert rows[2]["status"] == "ok" and rows[2]["attempts"] == 2
    assert all(rows[seed]["attempts"] == starts(log).count(seed) == 1 for seed in range(3, 9))
    # What lost its process comes last, with nothing beside it.
    lines = logged(log)
    last = max(i for i, (*_, seed) in enumerate(lines) if int(seed) > 2)
    assert sorted(int(seed) for *_, seed in lines[last + 1 :]) == [1] * CRASH_LIMIT + [2, 2]


def test_a_task_with_the_only_worker_is_alone(store, tmp_path):
    log = str(tmp_path / "log")
    sweep(store, [task(1, kind="die", log=log), task(2, log=log)], "processes", processes=1)
    rows = by_seed(store)
    assert rows[1]["status"] == "crashed" and rows[1]["attempts"] == CRASH_LIMIT and rows[2]["status"] == "ok"


def test_a_worker_killed_from_outside(store, tmp_path):
    log, flag = str(tmp_path / "log"), tmp_path / "flag"
    tasks = [task(seed, kind="wait", flag=str(flag), log=log) for seed in (1, 2)]

    def disturb():
        with contextlib.suppress(AssertionError):
            kill_one(log, 1)
        flag.touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    summary = sweep(store, tasks, "processes", processes=2)
    thread.join()
    assert summary.ok == 2
    assert [by_seed(store)[seed]["attempts"] for seed in (1, 2)] == [2, 1]


def test_a_task_that_exceeds_its_time(store):
    tasks = [task(1, kind="sleep", seconds=2 * PATIENCE), task(2, kind="sleep", seconds=0)]
    sweep(store, tasks, "processes", processes=1, timeout=1.5)
    rows = by_seed(store)
    assert rows[1]["status"] == "failed" and rows[1]["message"] == "ended after 1.5 seconds"
    assert rows[1]["seconds"] == 1.5 and rows[2]["status"] == "ok"


def test_workers_that_cannot_start(monkeypatch):
    ghost = types.ModuleType("ghost")
    exec("def function(argument): return argument", ghost.__dict__)
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    pool = ProcessPool(ghost.function, 2)
    pool.submit(1)
    with pytest.raises(OSError, match="worker processes cannot be started"):
        pool.completed()
    pool.close()


def echo_and_leave(argument):
    """Answer, and end the process shortly after if told so."""
    if argument == "leave":
        threading.Timer(0.1, os._exit, [1]).start()
    return argument


def test_a_worker_that_dies_between_two_calls():
    pool = ProcessPool(echo_and_leave, 1)
    try:
        pool.submit(1)
        assert pool.completed() == [(1, 1, None)]
        # An answer that was given counts, whatever became of the worker.
        pool.submit("leave")
        until(lambda: pool._workers[0].process.exitcode is not None)
        assert pool.completed() == [("leave", "leave", None)]
        # A call is not lost to a worker that is known to have died only when it gets the call.
        pool.submit(2)
        assert pool.completed() == [(2, 2, None)]
    finally:
        pool.close()


def storm(rounds, seed):
    """Calls answered while idle and busy workers are killed at random moments, many of them while they send."""
    rng = np.random.default_rng(seed)
    pool = ProcessPool(echo, 2)
    kills = deaths = 0
    answered = []
    calls = list(range(rounds))[::-1]
    running = 0
    try:
        while calls or running:
            while calls and running < pool.capacity:
                pool.submit((calls.pop(), float(rng.uniform(0, 0.02))))
                running += 1
            for (number, _), result, error in pool.completed():
                running -= 1
                if error is None:
                    assert result[0] == number and len(result[1]) == 300_000
                    answered.append(number)
                else:
                    deaths += 1
                    calls.append(number)
            ready = [worker for worker in pool._workers if worker.ready]
            if ready and kills < rounds // 4 and rng.random() < 0.3:
                time.sleep(rng.uniform(0, 0.02))
                os.kill(ready[rng.integers(len(ready))].process.pid, signal.SIGKILL)
                kills += 1
    finally:
        pool.close()
    return answered, kills, deaths


def test_workers_killed_at_any_moment_are_replaced():
    answered, kills, _ = storm(16, 0)
    assert sorted(answered) == list(range(16)) and kills > 1


@pytest.mark.slow
def test_workers_killed_at_any_moment_are_replaced_many_times():
    answered, kills, deaths = storm(200, 1)
    assert sorted(answered) == list(range(200)) and kills == 50 and 0 < deaths <= kills


# A dask cluster


def test_dask_that_is_absent_names_the_extra(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lotion-theory\[cluster\]'"):
        sweep(store, [task()], "dask")


def test_a_cluster_that_is_not_there(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        open_pool(echo, "dask", address=str(tmp_path / "none.json"))


@pytest.mark.slow
def test_a_local_cluster_with_a_worker_killed_on_the_way(store, tmp_path):
    pytest.importorskip("distributed")
    log, flag = str(tmp_path / "log"), tmp_path / "flag"
    tasks = [
        *(task(seed, kind="wait", flag=str(flag), log=log) for seed in (1, 2)),
        task(3, kind="die", log=log), task(4, kind="fail", log=log), task(5, kind="threads"),
        *(task(seed, log=log) for seed in range(6, 16)),
    ]  # fmt: skip

    def disturb():
        with contextlib.suppress(AssertionError):
            kill_one(log, 1)
        flag.touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    summary = sweep(store, tasks, "dask", processes=2)
    thread.join()
    rows = by_seed(store)
    assert (summary.ok, summary.failed, summary.crashed) == (13, 1, 1)
    assert rows[1]["attempts"] == 2 and rows[3]["status"] == "crashed" and rows[4]["status"] == "failed"
    assert set(rows[5]["metrics"].values()) == {"1"}
    assert sweep(store, tasks, "dask").skipped == len(tasks)
