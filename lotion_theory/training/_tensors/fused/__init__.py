"""The penalty's gradient on a CPU in one pass over the memory, by loops that numba compiles.

The loops find the cells that :meth:`lotion_theory.training.fake.Levels.sides` finds, and give the bits of the plain
path, so that it does not matter which of the two serves a tensor, nor when the one takes over from the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fake import Levels
from ...selection import Quantized
from .kept import is_kept
from .rows import Blocks, Table, gradient_rows

# Compiling takes a few seconds, in which the plain path does some 500 steps with this many weights.
SMALLEST = 1 << 19
# Weights in all after which smaller models have their code compiled, for this process and those that follow; and after
# which they load what is kept, which takes a few tenths of a second.
COMPILE_AFTER = 1 << 25
LOAD_AFTER = 1 << 23

_SIGNED: dict[torch.dtype, Any] = {torch.float32: np.int32, torch.float64: np.int64}

Triple = tuple[Tensor, Tensor, Tensor]
"""What is added to, weights and curvature: contiguous, on a CPU, of the levels' working type."""


@lru_cache(maxsize=256)
def table(levels: Levels) -> Table:
    """The :class:`Table` of ``levels``; made once."""
    units = levels.units.cpu().numpy()
    kind, signed = units.dtype.type, _SIGNED[levels.units.dtype]
    return Table(
        signed(np.iinfo(signed).max), kind(0), kind(1), kind(levels.high), kind(levels.step_high),
        kind(levels.step_low), kind(levels.bins), units, levels.of_bin.cpu().numpy().astype(np.int32),
    )  # fmt: skip


def worth(items: Sequence[Quantized]) -> bool:
    """Whether these tensors, all on a CPU, have so many weights that compiling pays, and numba is there."""
    if sum(item.local.numel() for item in items) < SMALLEST or any(item.local.device.type != "cpu" for item in items):
        return False
    return any(_has_loops(item.levels) for item in items) and loops() is not None


def _has_loops(levels: Levels | None) -> bool:
    # Not where levels are rounded to 16 bits, nor for codebooks with too many bins for a table.
    return levels is not None and levels.narrow is None and bool(levels.high or levels.bins)


def serves(levels: Levels, x: Tensor) -> bool:
    """Whether the loops take ``x``, one of a :data:`Triple`."""
    usual = type(x) is Tensor and x.is_contiguous() and x.device.type == "cpu" and x.dtype == levels.units.dtype
    return usual and _has_loops(levels)


_demand = 0


def in_demand(levels: Levels, size: int) -> bool:
    """Whether loops are to serve ``levels``: once so many weights came by, ``size`` more of them, that compiling
    pays."""
    global _demand
    if not _has_loops(levels) or levels.units.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    _demand += size
    return _demand >= (LOAD_AFTER if is_kept() else COMPILE_AFTER) and loops() is not None


def job(triples: Sequence[Triple], n: int, levels: Levels, scale: Tensor, attached: bool) -> Callable[[], None]:
    """What adds the gradient of ``scale ½ Σ g Var(RR(w))`` to the first of each triple, in blocks of ``n``, without
    torch and without Python's lock. Only where there are :func:`loops` that serve them."""
    run = loops()
    assert run is not None and _has_loops(levels), "asked before"
    half = table(levels).one.dtype.type(float(scale) * 0.5)
    for out, _, _ in triples:
        torch.autograd.graph.increment_version(out)
    return lambda: run(table(levels), triples, n, half, attached)


def in_parallel(jobs: Iterable[Callable[[], None]]) -> None:
    """Run ``jobs`` on as many threads as torch uses. They are taken from the iterable, on this thread, as threads
    become free: what a job holds in memory is there for that many at a time."""
    threads = torch.get_num_threads()
    if threads < 2:
        for one in jobs:
            one()
        return
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[None]] = deque()
        for one in jobs:
            if len(running) == threads:
                running.popleft().result()
            running.append(pool.submit(one))
        for one_running in running:
            one_running.result()


@lru_cache(maxsize=1)
def loops() -> Callable[..., None] | None:
    """:func:`interpreted`, compiled; None without numba."""
    try:
        from .pointers import add_gradients
    except ImportError:
        return None

    def run(t: Table, triples: Sequence[Triple], n: int, half: Any, attached: bool) -> None:
        places = np.array([[*(x.data_ptr() for x in one), one[0].numel() // n] for one in triples], np.int64)
        add_gradients(t, places, n, half, attached)

    return run


def interpreted(t: Table, triples: Sequence[Triple], n: int, half: Any, attached: bool) -> None:
    """The loops as plain Python."""
    for one in triples:
        out, w, g = (x.detach().view(-1, n).numpy() for x in one)
        gradient_rows(t, Blocks(out, w, w.view(t.magnitude.dtype), g), half, attached)
