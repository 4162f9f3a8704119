"""Toy tasks for the sweep engine, and a driver to be killed.

The driver: ``python -m tests.sweep_kinds STORE LOG TASKS KIND SECONDS``.

Tasks that have a ``log`` in their configuration write a line to it when they start and another when they end, so that
tests see what was really run, and where.
"""

import os
import signal
import sys
import time
from pathlib import Path

from testbeds.problems import Diverged
from testbeds.sweep.driver import run_sweep
from testbeds.sweep.store import Store
from testbeds.sweep.task import Task

REFERENCE = "tests.sweep_kinds:run"


def note(log, *words):
    """Append a line in one write, which several processes may do at once."""
    with open(log, "ab", buffering=0) as file:
        file.write((" ".join(map(str, words)) + "\n").encode())


def logged(log):
    """The lines of ``log`` as lists of words; a line that was being written when its writer died is left out."""
    text = Path(log).read_text() if Path(log).exists() else ""
    return [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]


def run(kind, config, seed):
    """One toy task; see the kinds below."""
    if "log" in config:
        note(config["log"], "start", os.getpid(), os.getppid(), seed)
    if kind == "square":
        metrics = {"value": seed * seed}
    elif kind == "sleep":
        time.sleep(config["seconds"])
        metrics = {"value": seed}
    elif kind == "compute":
        # For an hour, in one call of compiled code that lets no other thread of Python run.
        metrics = {"value": sum(range(10**12))}
    elif kind == "wait":
        deadline = time.monotonic() + 300
        while not Path(config["flag"]).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{config['flag']} did not appear")
            time.sleep(0.01)
        metrics = {"value": seed}
    elif kind == "diverge":
        raise Diverged("weights left the\nfinite range", {"loss": float("inf"), "steps": 3})
    elif kind == "fail":
        raise ArithmeticError(f"seed {seed}")
    elif kind == "exit":
        sys.exit(3)
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "die once":
        flag = Path(config["flag"])
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        metrics = {"value": seed}
    elif kind == "threads":
        metrics = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    elif kind == "raw":
        metrics = config["metrics"]
    else:
        raise ValueError(f"kind={kind!r}")
    if "log" in config:
        note(config["log"], "end", os.getpid(), os.getppid(), seed)
    return metrics


def two_phases(number, seconds, log, kind="sleep"):
    """A plan: ``number`` tasks to tune, then as many final ones, of which the first equals a tuning task."""

    def plan(store):
        tune = [Task("e", "tune", kind, {"seconds": seconds, "log": str(log)}, i) for i in range(number)]
        if len(store.done("e", "tune")) < number:
            return tune
        best = max(row["metrics"]["value"] for row in store.rows("e", "tune"))
        return tune + [Task("e", "final", kind, t.config, best + t.seed) for t in tune]

    return plan


def acknowledge(done, total, row):
    if row is not None:
        print(row["phase"], row["key"], flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs inherit that it is ignored.
    path, log, number, kind, seconds = sys.argv[1:]
    with Store(path) as store:
        try:
            print(
                run_sweep(
                    two_phases(int(number), float(seconds), log, kind),
                    store,
                    REFERENCE,
                    processes=2,
                    progress=acknowledge,
                )
            )
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.exit(130)
