"""Sweeps of tasks that take no time, and what to ask about the processes that run them."""

import os
import signal
import time
from pathlib import Path

from testbeds.sweep.driver import run_sweep
from testbeds.sweep.task import Task
from tests.sweep_kinds import REFERENCE, logged

ROOT = Path(__file__).parents[1]
# Seconds after which a test gives up on another process; only a failure takes them, on however busy a machine.
PATIENCE = 300


def task(seed=0, phase="tune", experiment="e", kind="square", **config):
    return Task(experiment, phase, kind, config, seed)


def sweep(store, tasks, pool="serial", **settings):
    plan = tasks if callable(tasks) else lambda store: tasks
    return run_sweep(plan, store, REFERENCE, pool, **settings)


def starts(log):
    """Seeds of the tasks that were started, in order."""
    return [int(seed) for what, *_, seed in logged(log) if what == "start"]


def by_seed(store):
    return {row["seed"]: row for row in store.rows()}


def until(condition, seconds=PATIENCE):
    """Wait for something another process does; an assertion if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def gone(pid):
    """Whether a process has ended, its parent having noticed or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_one(log, seed):
    """Kill the worker that runs ``seed``, from outside and as the system does when memory runs out."""
    until(lambda: len(starts(log)) >= 2)
    os.kill(next(int(pid) for _, pid, _, s in logged(log) if int(s) == seed), signal.SIGKILL)


def echo(argument):
    time.sleep(argument[1])
    return argument[0], b"x" * 300_000
