"""Threads that run parts of one call side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress

_pool: ThreadPoolExecutor | None = None
_size = 0
_MOST = 64


def count() -> int:
    """How many threads a call may use: ``LOTION_THREADS`` or else ``OMP_NUM_THREADS``, by default the processors that
    this process may run on."""
    for name in ("LOTION_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 0:
            return min(int(text), _MOST)
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, _MOST)


def in_parallel(tasks: Sequence[Callable[[], int]], threads: int) -> int:
    """Run the tasks, which let go of Python's lock, and return their results or-ed together."""
    global _pool, _size
    if len(tasks) == 1 or threads < 2:
        found = 0
        for task in tasks:
            found |= task()
        return found
    if _pool is None or _size < threads - 1:
        _pool, _size = ThreadPoolExecutor(threads - 1, "lotion-fused"), threads - 1
    running: list[Future[int]] = []
    rest = list(tasks)
    with suppress(RuntimeError):  # the interpreter is ending, and takes no new work
        while len(rest) > 1:
            running.append(_pool.submit(rest[-1]))
            rest.pop()
    found = 0
    try:
        for task in rest:
            found |= task()
    finally:
        _finish(running)
    for one in running:
        found |= one.result()
    return found


def _finish(running: list[Future[int]]) -> None:
    """Wait for all, whatever interrupts: they write to memory that the caller would free."""
    interruption: BaseException | None = None
    while not all(one.done() for one in running):
        try:
            wait(running)
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _forget() -> None:
    """In a forked child: the threads stayed in the parent."""
    global _pool, _size
    _pool, _size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
