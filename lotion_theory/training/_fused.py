"""The penalty's gradient on a CPU in one pass over the memory, by loops that numba compiles.

No formula is written here: the loops call the functions of ``kernels``. They find the cells that
:meth:`lotion_theory.training.fake.Levels.sides` finds and give the bits of the plain path, so that it does not matter
which of the two serves a tensor, nor when the one takes over from the other.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import kernels
from ..formats import compiled
from ..formats.compiled import largest_bits
from . import _blocks
from ._blocks import SPAN
from .fake import Levels
from .selection import Quantized

# Compiling takes a few seconds, in which the plain path does some 500 steps with this many weights.
SMALLEST = 1 << 19
# Weights in all after which smaller models have their code compiled, for this process and those that follow; and after
# which they load what is kept, which takes a few tenths of a second.
COMPILE_AFTER = 1 << 25
LOAD_AFTER = 1 << 23

_SIGNED: dict[torch.dtype, Any] = {torch.float32: np.int32, torch.float64: np.int64}

Triple = tuple[Tensor, Tensor, Tensor]
"""What is added to, weights and curvature: contiguous, on a CPU, of the levels' working type."""


class Table(NamedTuple):
    """The levels of a codebook as the loops see them, in the working type; see ``Levels``. ``high``: 0 where levels are
    looked up."""

    magnitude: Any
    zero: Any
    one: Any
    high: Any
    step_high: Any
    step_low: Any
    bins: Any
    units: np.ndarray
    of_bin: np.ndarray


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
    return _demand >= (LOAD_AFTER if _is_kept() else COMPILE_AFTER) and loops() is not None


@lru_cache(maxsize=1)
def kept_in() -> Path:
    """Where compiled code is kept from one process to the next: a folder of its own for each state of what it is made
    of, so that none is ever used for another."""
    digest = hashlib.sha256()
    for module in (kernels, compiled, _blocks):
        digest.update(Path(module.__file__ or "").read_bytes())
    for name in ("_fused.py", "_pointers.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    digest.update("".join(version(name) for name in ("numba", "llvmlite", "numpy")).encode())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "lotion-theory" / "compiled" / digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _is_kept() -> bool:
    """Whether a process before this one has left compiled code."""
    try:
        return any(kept_in().rglob("*.nbc"))
    except (OSError, RuntimeError, PackageNotFoundError):
        return False


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
        from ._pointers import gradient_at
    except ImportError:
        return None

    def run(t: Table, triples: Sequence[Triple], n: int, half: Any, attached: bool) -> None:
        places = np.array([[*(x.data_ptr() for x in one), one[0].numel() // n] for one in triples], np.int64)
        empty = t.units[:0]
        gradient_at(t, places, n, (empty, empty.view(t.magnitude.dtype)), half, attached)

    return run


def interpreted(t: Table, triples: Sequence[Triple], n: int, half: Any, attached: bool) -> None:
    """The loops as plain Python."""
    for one in triples:
        out, w, g = (x.detach().view(-1, n).numpy() for x in one)
        gradient_rows(t, Blocks(out, w, w.view(t.magnitude.dtype), g), half, attached)


# --- the loops; all below is compiled, and runs as plain Python too --------------------------------------------------


def _integers_beside(x: np.ndarray, top: Any, share: Any, t: Table, first: np.ndarray, second: np.ndarray) -> None:
    """Unit levels beside each weight: the one nearest to it, and its neighbour on the weight's side."""
    for j in range(x.size):
        k = np.rint(x[j] / share * t.high)
        first[j] = k * t.step_high + k * t.step_low
        off = x[j] - top * first[j]
        k += t.one if off > t.zero else (-t.one if off < t.zero else t.zero)
        second[j] = k * t.step_high + k * t.step_low


def _levels_beside(x: np.ndarray, top: Any, share: Any, t: Table, first: np.ndarray, second: np.ndarray) -> None:
    """The same for levels that are looked up."""
    for j in range(x.size):
        place = np.rint(x[j] / share * t.bins) + t.bins
        # NaN, and what lies an ulp beyond the range, must not become an index; unsigned, so that none counts backwards.
        bin = np.uint32(place) if place >= t.zero else np.uint32(0)
        k = t.of_bin[min(bin, np.uint32(t.of_bin.size - 1))]
        first[j] = t.units[np.uint32(k)]
        off = x[j] - top * first[j]
        second[j] = t.units[np.uint32(k + (off > t.zero) - (off < t.zero))]


def _fold(x: np.ndarray, n: int) -> Any:
    """The sum of the first ``n`` entries, which are overwritten, in the order of ``_blocks.fold``."""
    while n > 1:
        half = (n + 1) // 2
        for j in range(n - half):
            x[j] += x[half + j]
        n = half
    return x[0]


def _to_leaders(x: np.ndarray, top: Any, total: Any, out: np.ndarray) -> None:
    """Share ``total``, the derivative in the largest magnitude, among the weights that have it."""
    count, place = 0, 0
    for j in range(x.size):
        hit = abs(x[j]) == top
        count += hit
        place += j * hit
    part = total / (x.dtype.type(count) * top)
    if count == 1:
        out[place] += x[place] * part  # x / top is its sign
        return
    for j in range(x.size):
        if abs(x[j]) == top:
            out[j] += x[j] * part


class Blocks(NamedTuple):
    """Arrays (blocks, n): what is added to, weights, the same as integers of their bits, and curvature."""

    out: np.ndarray
    w: np.ndarray
    bits: np.ndarray
    g: np.ndarray


def gradient_rows(t: Table, blocks: Blocks, half: Any, attached: bool) -> None:
    """Add to ``out`` the gradient of ``half Σ g Var(RR(w))``."""
    out, w, bits, g = blocks
    peak_bits = np.empty(1, bits.dtype)
    peak = peak_bits.view(w.dtype)
    first, second, through = np.empty(SPAN, w.dtype), np.empty(SPAN, w.dtype), np.empty(SPAN, w.dtype)
    spans = np.empty((w.shape[1] + SPAN - 1) // SPAN, w.dtype)
    for b in range(w.shape[0]):
        peak_bits[0] = largest_bits(bits[b], t.magnitude)
        top = peak[0]
        share = top if top != t.zero else t.one
        for start in range(0, w.shape[1], SPAN):
            x, h, y = w[b, start : start + SPAN], g[b, start : start + SPAN], out[b, start : start + SPAN]
            if t.high > t.zero:
                _integers_beside(x, top, share, t, first, second)
            else:
                _levels_beside(x, top, share, t, first, second)
            for j in range(x.size):
                weight = h[j] * half
                one, other = top * first[j], top * second[j]
                y[j] += weight * kernels.variance_dw(x[j], one, other)
                through[j] = weight * kernels.variance_danchor(x[j], one, other, first[j], second[j])
            spans[start // SPAN] = _fold(through, x.size)
        if attached and top > t.zero:
            _to_leaders(w[b], top, _fold(spans, spans.size), out[b])
