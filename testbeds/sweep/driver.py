"""Runs the tasks of a plan, commits each result, and can be killed and started again at any moment."""

from __future__ import annotations

import collections
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from types import FrameType
from typing import Any

from lotion_theory.workers import TimedOut, WorkerDied

from .pools import Pool, check_pool, open_pool
from .store import Store
from .task import Outcome, Task, execute, prepare, resolve

Plan = Callable[[Store], Sequence[Task]]
Progress = Callable[[int, int, dict[str, Any] | None], None]

# A task that ended its process this often, with nothing else running, will do it again.
CRASH_LIMIT = 3


@dataclass(frozen=True)
class Summary:
    """What a sweep did. ``done`` rows were added: ``ok`` + ``diverged`` + ``failed`` + ``crashed``.

    ``copied`` of them were taken from equal runs of another phase or experiment. ``skipped`` tasks were stored before.
    ``seconds``: wall time.
    """

    done: int
    ok: int
    diverged: int
    failed: int
    crashed: int
    copied: int
    skipped: int
    seconds: float


def run_sweep(
    plan: Plan,
    store: Store,
    reference: str = "testbeds.kinds:run",
    pool: str = "processes",
    processes: int | None = None,
    address: str | None = None,
    timeout: float | None = None,
    retry_failed: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Run every task of ``plan`` that ``store`` does not hold, and store what came of it.

    ``plan(store)``: all tasks that can be known from the rows so far, in order of importance; asked again when they are
    finished, until it names nothing new. ``reference``: ``"module:function"``, see :func:`.task.execute`. ``pool``,
    ``processes``, ``address``, ``timeout``: where tasks run, see :func:`.pools.check_pool`. ``retry_failed``: run once
    more what is stored as failed or crashed. ``progress(done, total, row)`` is called with each row once it is
    committed, and with None whenever the plan was asked; ``done`` and ``total`` count the tasks named so far.

    Equal tasks (same kind, config and seed) run once, whatever their phase and experiment. A task whose process dies is
    run again when nothing else runs, so that it can neither suffer from its neighbours nor be blamed for them; after
    three deaths in that state it is stored as crashed. A task that exceeds ``timeout`` is stored as failed.

    Rows are committed as they come. An interrupt (Ctrl-C, or SIGTERM in the main thread) ends the workers and leaves by
    KeyboardInterrupt; killing the process loses what runs at that moment.
    Raises ValueError for bad arguments, OSError if the store cannot be written or is being written by another sweep.
    """
    check_pool(pool, processes, address, timeout)
    resolve(reference)
    start = time.perf_counter()
    with store.writing(), _terminable(), contextlib.ExitStack() as stack:

        def opened() -> Pool:
            crew = open_pool(
                partial(execute, reference), pool, processes, address, timeout, partial(prepare, reference),
                attrgetter("family"),
            )  # fmt: skip
            stack.callback(crew.close)
            return crew

        sweep = _Sweep(store, opened, retry_failed, progress)
        while batch := sweep.ask(plan):
            sweep.run(batch)
    count = sweep.count
    return Summary(
        sum(count.values()), count["ok"], count["diverged"], count["failed"], count["crashed"], sweep.copied,
        len(sweep.skipped), time.perf_counter() - start,
    )  # fmt: skip


class _Sweep:
    """The state of one call of :func:`run_sweep`. Tasks of one key form a group that is run once, by its first."""

    def __init__(self, store: Store, opened: Callable[[], Pool], retry_failed: bool, progress: Progress | None) -> None:
        self.store = store
        self.retry_failed = retry_failed
        self.progress = progress
        self.count: collections.Counter[str] = collections.Counter()
        self.copied = 0
        self.skipped: set[Task] = set()
        self._finished: set[Task] = set()
        self._total = 0
        self._opened = opened
        self._pool: Pool | None = None
        self._groups: dict[str, list[Task]] = {}
        self._attempts: collections.Counter[str] = collections.Counter()

    def ask(self, plan: Plan) -> list[Task]:
        """Tasks to run now, one of each key; tasks that equal finished ones are copied."""
        tasks = list(dict.fromkeys(plan(self.store)))
        places = dict.fromkeys((task.experiment, task.phase) for task in tasks)
        stored = {place: self.store.done(*place, self.retry_failed) for place in places}
        missing = []
        for task in tasks:
            if task in self._finished:
                continue
            if task.key in stored[task.experiment, task.phase]:
                self.skipped.add(task)
            else:
                missing.append(task)
        self._total = len(self._finished) + len(self.skipped) + len(missing)
        self._tell(None)
        copies = {(row["experiment"], row["phase"], row["key"]): row for row in self.store.copy(missing)}
        self.copied += len(copies)
        self._groups = {}
        for task in missing:
            if task.name in copies:
                self._finish(task, copies[task.name])
            else:
                self._groups.setdefault(task.key, []).append(task)
        return [group[0] for group in self._groups.values()]

    def run(self, batch: Sequence[Task]) -> None:
        """Run and commit ``batch``: all of it side by side, then those that lost their process one by one."""
        if self._pool is None:
            self._pool = self._opened()
        waiting = collections.deque(batch)
        suspects: collections.deque[Task] = collections.deque()
        deaths: collections.Counter[str] = collections.Counter()
        running: set[Task] = set()
        while waiting or suspects or running:
            alone = not running
            while (waiting and len(running) < self._pool.capacity) or not running:
                task = (waiting or suspects).popleft()
                alone = alone and not running
                self._attempts[task.key] += 1
                self._pool.submit(task)
                running.add(task)
            ended = []
            for task, outcome, error in self._pool.completed():
                running.remove(task)
                if isinstance(error, WorkerDied):
                    deaths[task.key] += alone
                    if deaths[task.key] < CRASH_LIMIT:
                        suspects.append(task)
                        continue
                    outcome = Outcome("crashed", f"{error}, {CRASH_LIMIT} times with nothing else running")
                elif isinstance(error, TimedOut):
                    outcome = Outcome("failed", str(error), seconds=error.seconds)
                ended.append((task, outcome))
            self._commit(ended)

    def _commit(self, ended: list[tuple[Task, Outcome]]) -> None:
        """Commit the runs and all that equal them, together: one wait for the disk."""
        items = [
            (twin, outcome, self._attempts[task.key])
            for task, outcome in ended
            for twin in self._groups[task.key]
        ]  # fmt: skip
        if not items:
            return
        rows = self.store.add_all(items)
        self.copied += len(items) - len(ended)
        for (task, _, _), row in zip(items, rows, strict=True):
            self._finish(task, row)

    def _finish(self, task: Task, row: dict[str, Any]) -> None:
        self._finished.add(task)
        self.count[row["status"]] += 1
        self._tell(row)

    def _tell(self, row: dict[str, Any] | None) -> None:
        if self.progress is not None:
            self.progress(len(self._finished) + len(self.skipped), self._total, row)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in this block; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
