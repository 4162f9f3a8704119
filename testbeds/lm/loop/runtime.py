"""What a run needs from the process: memory used, deterministic kernels, signals turned into notes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes of the largest memory so far: of the accelerator, or of this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within the block, if ``wanted``, torch uses only kernels that give the same bits every time."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def memory_named() -> Iterator[None]:
    """In the block, ValueError saying so where memory does not suffice: torch's own error is a RuntimeError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = (str(error).splitlines() or ["out of memory"])[0]
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and not any(part in text for part in _NO_MEMORY):
            raise
        advice = "a smaller model, batch or run.micro_batch takes less"
        raise ValueError(f"the run does not fit into memory ({text}): {advice}") from error


_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "array is too big")
"""Words of torch's allocators where they raise no error of their own kind."""


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Numbers of the signals caught (SIGTERM, SIGINT) in the block; a second SIGINT interrupts as usual."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
