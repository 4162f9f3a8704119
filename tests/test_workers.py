"""Checks in worker processes: what is left of them when the process that started them, or one of them, is killed."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lotion_theory.theory import verification
from lotion_theory.workers import ProcessPool, answers

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

VERIFYING = """
import os, signal, sys, time
from pathlib import Path
from lotion_theory.theory import verification

def check(job):
    # Runs in a worker: says where, and then computes for an hour in a call that lets no other thread of Python run.
    Path(sys.argv[1], f"{os.getpid()}").touch()
    sum(range(10**12))

verification._check_format = check
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs inherit that it is ignored.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        verification.verify(["int2", "int3"], ["C5"], ["exhaustive"], processes=2)
    except (OSError, KeyboardInterrupt) as error:
        print(type(error).__name__, error)
"""
UNGUARDED = """
from lotion_theory import verify
verify(["int2", "int3"], ["C5"], ["exhaustive"], processes=2)
"""


def until(condition, seconds=120.0):
    """Wait for something another process does; an assertion if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def gone(pid):
    """Whether a process has ended, its parent having noticed or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def verifying(tmp_path):
    """A process that checks with two workers, in a group of its own, and the numbers of those."""
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(VERIFYING, encoding="utf-8")
    pids.mkdir()
    command = [sys.executable, script, pids]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: len(list(pids.iterdir())) == 2 or process.poll() is not None)
        yield process, [int(path.name) for path in pids.iterdir()]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=120)


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_a_verification(tmp_path, number):
    with verifying(tmp_path) as (process, pids):
        assert len(pids) == 2 and process.pid not in pids and not any(map(gone, pids))
        process.send_signal(number)
        said, errors = process.communicate(timeout=120)
        until(lambda: all(map(gone, pids)))
    assert errors == ""
    if number == signal.SIGINT:
        assert (said.strip(), process.returncode) == ("KeyboardInterrupt", 0)
    else:
        assert (said, process.returncode) == ("", -number)


@LINUX
def test_a_worker_that_is_killed_is_named_and_ends_the_verification(tmp_path):
    """As the system does it when memory runs out: an error in words, and nothing left waiting."""
    with verifying(tmp_path) as (process, pids):
        os.kill(pids[0], signal.SIGKILL)
        said, errors = process.communicate(timeout=120)
        until(lambda: gone(pids[1]))
    assert errors == "" and process.returncode == 0
    kind, _, message = said.strip().partition(" ")
    assert kind == "ChildProcessError"
    assert message.partition("/")[0].partition(":")[0] in ("int2", "int3") and "exit code -9" in message


def test_workers_end_where_a_verification_is_left():
    """At once, also where the exception, and with it the whole stack, is kept."""

    def stop(label, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        verification.verify(["int2", "int3"], ["C5"], ["exhaustive"], 2, progress=stop)
    assert kept.traceback and not multiprocessing.active_children()


def test_a_script_without_a_guard_is_told_so_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert "needs `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]


def where(argument):
    """Which process a call runs in; it takes long enough for the other worker to come by."""
    time.sleep(0.02)
    return os.getpid()


def test_calls_of_one_family_stay_with_one_worker():
    """A worker takes up a family that nobody has had before it helps another with theirs."""
    families = "abcabcabcd" * 2
    pool = ProcessPool(where, 2, family=lambda argument: families[argument])
    try:
        for k in range(len(families)):
            pool.submit(k)
        done = []
        while len(done) < len(families):
            done += pool.completed()
    finally:
        pool.close()
    assert sorted(d.argument for d in done) == list(range(len(families)))
    order = {pid: [families[d.argument] for d in done if d.result == pid] for pid in {d.result for d in done}}
    for mine in order.values():
        # Until none is left that nobody has had, a worker ends one family before it begins the next.
        others = [f for pid, theirs in order.items() if order[pid] is not mine for f in theirs]
        own = [f for f in mine if f not in others]
        assert own == sorted(own, key=own.index)


def double(x):
    return 2 * x


def refuse(x):
    raise ValueError(f"no {x}")


@pytest.mark.parametrize("workers", [1, 2])
def test_answers_carry_the_names_of_their_calls(workers):
    calls = [(f"call {k}", double, (k,)) for k in range(3)]
    assert dict(answers(calls, workers)) == {f"call {k}": 2 * k for k in range(3)}
    with (
        contextlib.closing(answers([*calls, ("bad", refuse, (7,))], workers)) as found,
        pytest.raises(ValueError, match="no 7"),
    ):
        dict(found)


def test_answers_without_calls():
    assert list(answers([], 2)) == []
