"""Worker processes of this machine that die alone.

Each worker has its own pipe. A pool whose workers share a queue and its locks breaks, or waits for ever, when one of
them is killed at the wrong moment.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from typing import Any, Generic, NamedTuple, TypeVar

A = TypeVar("A")
R = TypeVar("R")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
POLL_SECONDS = 1.0
MOST_WORKERS = 4096
"""Worker processes of one machine, more than any has cores for: beyond it a number was mistyped."""
# Workers that die before they are ready cannot be started at all, unless something kills them this often in a row.
_FAILED_STARTS = 5
# How many calls a pool that tells families apart may hold.
_KNOWN = 4096


def cores() -> int:
    """Cores this process may run on; a scheduler or container may have given it fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def worker_count(processes: int | None, name: str = "processes=") -> int:
    """How many worker processes were asked for, by default one per core; ValueError for none or too many of them.

    ``name``: begins the error, as the one who asked calls the number.
    """
    if processes is None:
        return cores()
    if not 1 <= processes <= MOST_WORKERS:
        raise ValueError(f"{name}{processes}: must be at least 1 and at most {MOST_WORKERS:,}")
    return processes


class WorkerDied(Exception):
    """The process that ran a task is gone: killed, out of memory, or crashed in compiled code."""


class TimedOut(Exception):
    """A task ran longer than the ``seconds`` it was allowed, and was ended."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"ended after {seconds:g} seconds")
        self.seconds = seconds


class Completed(NamedTuple):
    """The argument of a finished call with its result or, if there is none, the reason."""

    argument: Any
    result: Any
    error: WorkerDied | TimedOut | None


@dataclass(eq=False)
class _Worker:
    """A worker process and what it is doing."""

    process: Any
    pipe: connection.Connection
    ready: bool = False
    argument: Any = None
    busy: bool = False
    deadline: float = float("inf")
    families: set[Hashable] = field(default_factory=set)


class ProcessPool(Generic[A, R]):
    """Worker processes of this machine, ``workers`` of them, each computing with one thread.

    ``function`` must be importable by the workers (spawned, not forked: the caller may hold threads that a fork would
    copy half-way) and must not raise. ``timeout``: seconds after which a call is ended by killing its worker.
    ``prepare``: called once by each worker before its first call. ``family(argument)``: calls of one family share what
    a worker does at the first of them, such as compiling; a worker prefers families it has had, then those that nobody
    has had, then the largest. Workers die with the process that made them, however it dies.
    """

    def __init__(
        self,
        function: Callable[[A], R],
        workers: int,
        timeout: float | None = None,
        prepare: Callable[[], object] | None = None,
        family: Callable[[A], Hashable] | None = None,
    ) -> None:
        self._function = function
        self._prepare = prepare
        self._family = family if workers > 1 else None
        self._timeout = float("inf") if timeout is None else timeout
        self._size = workers
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []
        self._waiting: collections.deque[A] = collections.deque()
        self._failed_starts = 0

    @property
    def capacity(self) -> int:
        # Families can be told apart only among calls that are known.
        return self._size if self._family is None else max(self._size, _KNOWN)

    def submit(self, argument: A) -> None:
        self._waiting.append(argument)
        self._assign()

    def completed(self) -> list[Completed]:
        while True:
            self._assign()
            if not self._waiting and not any(worker.busy for worker in self._workers):
                raise RuntimeError("nothing was submitted")
            nearest = min(worker.deadline for worker in self._workers)
            # Looks up now and then: a child of a dead worker may hold its pipe open.
            patience = min(POLL_SECONDS, max(nearest - time.monotonic(), 0))
            readable = set(connection.wait([worker.pipe for worker in self._workers], patience))
            ended = [done for worker in list(self._workers) for done in self._news(worker, worker.pipe in readable)]
            if ended:
                return ended

    def close(self) -> None:
        self._waiting.clear()
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()

    def _assign(self) -> None:
        """Start missing workers, as many as there is work for, and give waiting calls to those that are ready."""
        unemployed = [worker for worker in self._workers if not worker.busy]
        while len(self._workers) < self._size and len(unemployed) < len(self._waiting):
            worker = self._start()
            self._workers.append(worker)
            unemployed.append(worker)
        for worker in unemployed:
            if worker.ready and self._waiting:
                place = self._choice(worker)
                argument = self._waiting[place]
                try:
                    worker.pipe.send(argument)
                except OSError:
                    continue  # It has died; its replacement gets the call.
                del self._waiting[place]
                if self._family is not None:
                    worker.families.add(self._family(argument))
                worker.argument, worker.busy = argument, True
                worker.deadline = time.monotonic() + self._timeout

    def _choice(self, worker: _Worker) -> int:
        """The place among the waiting calls of the one that suits a worker best."""
        if self._family is None:
            return 0
        families = [self._family(argument) for argument in self._waiting]
        taken: set[Hashable] = set().union(*(each.families for each in self._workers))
        for place, family in enumerate(families):
            if family in worker.families:
                return place
        for place, family in enumerate(families):
            if family not in taken:
                return place
        # Another worker has them all: where there is most to do, beginning anew pays soonest.
        return families.index(collections.Counter(families).most_common(1)[0][0])

    def _start(self) -> _Worker:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # A worker that runs its parent's script, which lacks the guard: the parent says so, once and in words.
            sys.exit(1)
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(theirs, self._function, self._prepare, os.getpid()),
            name="lotion-worker",
            daemon=True,
        )
        with single_threaded(), _undisturbed():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _news(self, worker: _Worker, readable: bool) -> Iterator[Completed]:
        """What a worker has sent, or that it has died or ran out of time."""
        dead = worker.process.exitcode is not None
        if readable or (dead and worker.pipe.poll()):
            try:
                result = worker.pipe.recv()
            except (EOFError, OSError):
                dead = True
            else:
                if not worker.ready:
                    worker.ready = True
                    self._failed_starts = 0
                else:
                    yield Completed(self._release(worker), result, None)
                return  # If it has died since, its pipe says so the next time.
        if dead:
            self._remove(worker)
            code = worker.process.exitcode
            if worker.busy:
                yield Completed(self._release(worker), None, WorkerDied(f"worker process died (exit code {code})"))
            elif not worker.ready:
                self._failed_starts += 1
                if self._failed_starts >= _FAILED_STARTS:
                    raise OSError(
                        f"worker processes cannot be started (exit code {code}); a script that uses several processes"
                        " needs `if __name__ == '__main__':`"
                    )
        elif time.monotonic() >= worker.deadline:
            self._remove(worker)
            yield Completed(self._release(worker), None, TimedOut(self._timeout))

    @staticmethod
    def _release(worker: _Worker) -> A:
        argument = worker.argument
        worker.argument, worker.busy, worker.deadline = None, False, float("inf")
        return argument

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


Call = tuple[str, Callable[..., Any], tuple]
"""A name, a function and its arguments."""


def answers(calls: Sequence[Call], workers: int) -> Generator[tuple[str, Any], None, None]:
    """``(name, what the function returns)`` of every call, as they come: give the longest first.

    With one worker or one call all run here, in order. With several, functions must be importable by worker processes,
    which end with the generator: close it. Raises what a function raises, and ChildProcessError naming the call whose
    process was killed.
    """
    workers = min(workers, len(calls))
    if workers <= 1:
        for name, function, arguments in calls:
            yield name, function(*arguments)
        return
    pool: ProcessPool = ProcessPool(_answer, workers)
    try:
        for call in calls:
            pool.submit(call)
        unanswered = len(calls)
        while unanswered:
            for (name, _, _), result, died in pool.completed():
                unanswered -= 1
                if died is not None:
                    raise ChildProcessError(f"{name}: {died}; if memory ran out, try fewer processes")
                if isinstance(result, Exception):
                    raise result
                yield name, result
    finally:
        pool.close()


def _answer(call: Call) -> Any:
    """What a worker process sends back: a result, or the error that there is in its place."""
    _, function, arguments = call
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error


def _serve(
    pipe: connection.Connection, function: Callable[[Any], Any], prepare: Callable[[], object] | None, parent: int
) -> None:
    """A worker's life: say that it is ready, then answer calls until the other end is closed."""
    # Ctrl-C goes to all processes of a terminal; the driver decides what becomes of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with(parent)
    if prepare is not None:
        prepare()
    with contextlib.suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            pipe.send(function(pipe.recv()))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Processes started in this block hold back a Ctrl-C until they have said what they do with it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with(parent: int) -> None:
    """Let the kernel kill this process when process ``parent``, its parent, is gone.

    Elsewhere than on Linux a thread watches, which compiled code that holds Python's lock can delay.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            if ctypes.CDLL(None).prctl(1, signal.SIGKILL) == 0:  # PR_SET_PDEATHSIG
                if os.getppid() != parent:  # It was gone before.
                    os._exit(1)
                return
    creator = parent_process()
    if creator is not None:

        def watch() -> None:
            creator.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Processes started in this block compute with one thread each; this process's settings return afterwards.

    Several workers with several threads each are slower, and the order of a threaded sum is not reproducible.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
