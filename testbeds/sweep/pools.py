"""Where tasks run: in this process, in worker processes of this machine, or on a dask cluster.

All pools have one interface: ``submit(argument)`` starts ``function(argument)``, ``completed()`` waits for results. The
death of a worker is the end of what it was running and of nothing else.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, Protocol

from lotion_theory.workers import (
    POLL_SECONDS,
    THREAD_VARIABLES,
    A,
    Completed,
    ProcessPool,
    R,
    WorkerDied,
    single_threaded,
    worker_count,
)


class Pool(Protocol):
    """Runs one function on arguments."""

    @property
    def capacity(self) -> int:
        """How many calls may be submitted and not yet completed."""
        ...

    def submit(self, argument: Any) -> None:
        """Start a call."""
        ...

    def completed(self) -> list[Completed]:
        """Wait until at least one call has ended; return those that have, in no particular order."""
        ...

    def close(self) -> None:
        """End all workers at once; calls that run are lost."""
        ...


class SerialPool(Generic[A, R]):
    """One call after the other in this process, for debugging and for functions that must not be pickled."""

    capacity = 1

    def __init__(self, function: Callable[[A], R]) -> None:
        self._function = function
        self._waiting: list[A] = []

    def submit(self, argument: A) -> None:
        self._waiting.append(argument)

    def completed(self) -> list[Completed]:
        argument = self._waiting.pop(0)
        return [Completed(argument, self._function(argument), None)]

    def close(self) -> None:
        self._waiting.clear()


class DaskPool(Generic[A, R]):
    """A dask.distributed cluster.

    ``address``: of a running scheduler, such as ``tcp://host:8786``, or the path of its ``.json`` file; its workers
    need this package and should have one thread each. ``"local"``: a cluster of ``workers`` processes on this machine.
    A scheduler started with ``DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0`` reports the death of a worker at once,
    others after three more.
    Raises ModuleNotFoundError without dask, OSError if the cluster cannot be reached or is lost.
    """

    def __init__(self, function: Callable[[A], R], address: str, workers: int) -> None:
        try:
            import dask
            import distributed
        except ImportError:
            raise ModuleNotFoundError(
                "sweeps on a cluster need dask.distributed: pip install 'lotion-theory[cluster]'"
            ) from None
        self._function = function
        self._address = address
        self._completed: queue.SimpleQueue = queue.SimpleQueue()
        self._cluster: Any = None
        if address == "local":
            # One death is reported at once: dask blames every task its worker held, so the driver finds the culprit.
            with dask.config.set({"distributed.scheduler.allowed-failures": 0}), single_threaded():
                self._cluster = distributed.LocalCluster(
                    n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0,
                    env=dict.fromkeys(THREAD_VARIABLES, "1"), silence_logs=50,
                )  # fmt: skip
        by_file = address.endswith(".json")
        if by_file and not Path(address).exists():  # The client would wait for it for ever.
            raise FileNotFoundError(f"address={address!r}: no such file")
        try:
            self._client = distributed.Client(
                **({"scheduler_file": address} if by_file else {"address": self._cluster or address})
            )
        except (OSError, ValueError) as error:
            raise OSError(f"address={address!r}: no dask scheduler answers: {error}") from error
        self._killed = distributed.KilledWorker
        self._executor = self._client.get_executor(pure=False)
        self._counted = -float("inf")
        self._threads = 1

    @property
    def capacity(self) -> int:
        # Workers come and go. One call per thread: those that wait at a worker would be blamed for its death.
        if time.monotonic() - self._counted > 5:
            self._threads = max(1, sum(self._client.nthreads().values()))
            self._counted = time.monotonic()
        return self._threads

    def submit(self, argument: A) -> None:
        future = self._executor.submit(self._function, argument)
        future.add_done_callback(lambda future: self._completed.put((argument, future)))

    def completed(self) -> list[Completed]:
        while True:
            with contextlib.suppress(queue.Empty):
                ended = [self._completed.get(timeout=POLL_SECONDS)]
                break
            if self._client.status != "running":
                raise OSError(f"the dask cluster at {self._address} is lost")
        with contextlib.suppress(queue.Empty):
            while True:
                ended.append(self._completed.get_nowait())
        return [self._explained(argument, future) for argument, future in ended]

    def _explained(self, argument: A, future: Any) -> Completed:
        if future.cancelled():
            raise OSError(f"the dask cluster at {self._address} has dropped a task")
        error = future.exception()
        if error is None:
            return Completed(argument, future.result(), None)
        if isinstance(error, self._killed):
            return Completed(argument, None, WorkerDied("worker process of the cluster died"))
        raise OSError(f"the dask cluster at {self._address} cannot run tasks: {error!r}") from error

    def close(self) -> None:
        with contextlib.suppress(Exception):  # Of a cluster that is lost.
            self._executor.shutdown(wait=False)
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()


POOLS = ("processes", "serial", "dask")


def open_pool(
    function: Callable[[A], R],
    pool: str = "processes",
    processes: int | None = None,
    address: str | None = None,
    timeout: float | None = None,
    prepare: Callable[[], object] | None = None,
    family: Callable[[A], Hashable] | None = None,
) -> Pool:
    """The pool of this name: ``processes`` (of this machine), ``serial`` (this process) or ``dask``.

    ``prepare``: called once by each worker of ``processes`` before its first call. ``family``: which calls go well
    together there, see :class:`ProcessPool`. For the rest see :func:`check_pool`.
    """
    check_pool(pool, processes, address, timeout)
    if pool == "serial":
        return SerialPool(function)
    if pool == "processes":
        return ProcessPool(function, worker_count(processes), timeout, prepare, family)
    return DaskPool(function, address or "local", worker_count(processes))


def check_pool(pool: str, processes: int | None, address: str | None, timeout: float | None) -> None:
    """Raise ValueError for arguments :func:`open_pool` would refuse.

    ``processes``: how many workers, by default one per core; a running cluster has its own. ``address``: of dask only,
    see :class:`DaskPool`; by default ``"local"``. ``timeout``: of the pool ``processes`` only, seconds per call.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    worker_count(processes)
    if address is not None and pool != "dask":
        raise ValueError(f"address={address!r}: only pool='dask' has one, not {pool!r}")
    if timeout is not None and pool != "processes":
        raise ValueError(f"timeout={timeout:g}: only pool='processes' can end a task, not {pool!r}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout:g}: must be positive")
