"""Speed of randomized rounding on one core: this package, the plain formula in numpy and torch, and other libraries.

    python benchmarks/rounding.py [--size 10000000] [--repeats 15] [--json results/benchmarks/rounding.json]

Symmetric INT4 with one absmax scale per 32 weights, float32. Every contender runs once per round, the rounds repeat,
and medians over the rounds are compared with ``np.copyto`` of the same weights: machines differ and drift, ratios much
less. Where the contender's own random numbers are part of the time, the row says so (column "draws").
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from lotion_theory import Quantizer, streams
from lotion_theory.files import write_text
from lotion_theory.formats import compiled
from testbeds.machine import processor

FORMAT = "int4/absmax/block=32"
TOP, BLOCK = 7, 32
WIDTHS = (10, 7, 10, 9, 9, 8, 9, 9)


@dataclass
class Contender:
    """One thing to time. ``call()`` returns the rounded weights, as an array or tensor, or None for the copy.

    ``moved``: bytes of arguments read and results written per weight. ``draws``: whether the time includes random
    numbers. ``share``: part of the weights it gets, less than 1 where it is slow.
    """

    name: str
    library: str
    call: Callable[[], Any]
    moved: int
    draws: bool = False
    share: float = 1.0
    element: str = "int4"


def block_scale(w: Any, amax: Callable[[Any], Any], top: float) -> tuple[Any, Any]:
    """Weights as (blocks, 32) and the scale of each block."""
    rows = w.reshape(-1, BLOCK)
    return rows, amax(rows) / top


def contenders(w: np.ndarray, u: np.ndarray) -> Iterator[Contender]:
    """All contenders whose library is installed, on weights ``w`` and uniforms ``u`` (whole blocks of float32)."""
    yield Contender("np.copyto", "numpy", functools.partial(np.copyto, np.empty_like(w), w), 8)
    yield Contender("w.copy()", "numpy", w.copy, 8)  # the copy again, into new memory
    yield from ours(w, u)

    def numpy_plain(w: np.ndarray, u: np.ndarray) -> np.ndarray:
        rows, scale = block_scale(w, lambda x: np.abs(x).max(1, keepdims=True), TOP)
        return np.clip(np.floor(rows / scale + u.reshape(rows.shape)), -TOP, TOP) * scale

    yield Contender("plain formula, numpy", "numpy", lambda: numpy_plain(w, u), 12)
    if installed("torch"):
        yield from with_torch(w, u)
    if installed("gfloat"):
        yield from with_gfloat(w, 1 / 16)


def ours(w: np.ndarray, u: np.ndarray) -> Iterator[Contender]:
    """This package: compiled with and without ``out``, with its own random numbers, and the plain path."""
    q, library = Quantizer.parse(FORMAT), "lotion-theory"
    out = np.empty_like(w)
    if compiled._loops() is not None:
        compiled._demand, streams._demand = compiled._COMPILE_AFTER, streams._COMPILE_AFTER  # do not wait for demand
        yield Contender("cast, out=", library, lambda: q.cast(w, out=out), 8)
        yield Contender("cast", library, lambda: q.cast(w), 8)
        yield Contender("round, out=", library, lambda: q.round(w, u, out=out), 12)
        yield Contender("round", library, lambda: q.round(w, u), 12)
        stream = streams.Stream(0, "benchmark")
        yield Contender(
            "uniforms and round", library, lambda: q.round(w, stream.uniforms(w.shape, dtype="float32")), 16, draws=True
        )
        e2m1 = Quantizer.parse(f"e2m1/absmax/block={BLOCK}")
        yield Contender("round, out=", library, lambda: e2m1.round(w, u, out=out), 12, element="e2m1")

    def without_numba(call: Callable[[], Any]) -> Any:
        with mock.patch.object(compiled, "quantize", lambda *_: None):
            return call()

    part = slice(0, w.size // 4 // BLOCK * BLOCK)
    few, some = w[part], u[part]
    yield Contender("cast, no numba", library, lambda: without_numba(lambda: q.cast(few)), 8, share=1 / 4)
    yield Contender("round, no numba", library, lambda: without_numba(lambda: q.round(few, some)), 12, share=1 / 4)


def with_torch(w: np.ndarray, u: np.ndarray) -> Iterator[Contender]:
    """The plain formula in torch, and the libraries that work on its tensors."""
    import torch

    torch.set_num_threads(1)
    w_torch, u_torch = torch.from_numpy(w), torch.from_numpy(u)

    def amax(x: Any) -> Any:
        return x.abs().amax(1, keepdim=True)

    def plain(w: Any, u: Any) -> Any:
        rows, scale = block_scale(w, amax, TOP)
        return torch.floor(rows / scale + u.reshape(rows.shape)).clamp(-TOP, TOP) * scale

    yield Contender("plain formula, eager", "torch", lambda: plain(w_torch, u_torch), 12)
    fused = torch.compile(plain)
    try:
        fused(w_torch, u_torch)
    except Exception as error:
        print(f"left out, torch.compile does not work here: {type(error).__name__}", file=sys.stderr)
    else:
        yield Contender("plain formula, compile", "torch", lambda: fused(w_torch, u_torch), 12)

    if installed("qtorch"):
        # Compiles C++ code when imported first.
        from qtorch.quant import fixed_point_quantize

        def with_qtorch() -> Any:
            rows, scale = block_scale(w_torch, amax, TOP)
            return fixed_point_quantize(rows / scale, wl=4, fl=0, symmetric=True, rounding="stochastic") * scale

        yield Contender("fixed_point_quantize", "qtorch", with_qtorch, 8, draws=True)
    if installed("pychop"):
        from pychop import Chopf

        chop, few = Chopf(ibits=4, fbits=0, rmode=5), w_torch[: w.size // 4 // BLOCK * BLOCK]

        def with_pychop() -> Any:
            rows, scale = block_scale(few, amax, TOP)
            return chop(rows / scale).clamp(-TOP, TOP) * scale

        yield Contender("Chopf", "pychop", with_pychop, 8, draws=True, share=1 / 4)


def with_gfloat(w: np.ndarray, share: float) -> Iterator[Contender]:
    """gfloat rounds to FP4 here: its integer formats are not what it is made for."""
    import gfloat
    from gfloat.formats import format_info_ocp_e2m1

    few = w[: int(w.size * share) // BLOCK * BLOCK]
    bits = np.random.default_rng(2).integers(0, 2**20, (few.size // BLOCK, BLOCK))

    def rounded() -> np.ndarray:
        rows, scale = block_scale(few, lambda x: np.abs(x).max(1, keepdims=True), 6)
        mode = gfloat.RoundMode.Stochastic
        return gfloat.round_ndarray(format_info_ocp_e2m1, rows / scale, mode, True, bits, 20) * scale

    yield Contender("round_ndarray", "gfloat", rounded, 16, share=share, element="e2m1")


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# --- running ---------------------------------------------------------------------------------------------------------


def pin() -> int | None:
    """Bind the process to one core, the last it may use; its number, or None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def check(contender: Contender, w: np.ndarray) -> None:
    """Raise RuntimeError unless every weight ends within one step, the largest one of the format."""
    result = contender.call()
    if result is None:
        return
    y = np.asarray(result).reshape(-1, BLOCK)
    x = w.reshape(-1, BLOCK)[: len(y)]
    step = np.abs(x).max(1, keepdims=True) / (TOP if contender.element == "int4" else 3)
    # Each float32 operation is off by at most 2^-24 of the largest weight, 7 steps: a few of them by less than 1e-4.
    if not np.all(np.abs(y - x) <= (1 + 1e-4) * step):
        raise RuntimeError(f"{contender.library}: {contender.name} does not round to a neighbouring level")


def measure(field: list[Contender], repeats: int) -> list[np.ndarray]:
    """Seconds per call, wall and processor time: an array (2, repeats) per contender, all run in turn in each round."""
    seconds = [np.empty((2, repeats)) for _ in field]
    for r in range(-2, repeats):  # two rounds to warm up
        for contender, times in zip(field, seconds, strict=True):
            wall, cpu = time.perf_counter(), time.thread_time()
            contender.call()
            spent = time.perf_counter() - wall, time.thread_time() - cpu
            if r >= 0:
                times[:, r] = spent
    return seconds


def rows_of(field: list[Contender], seconds: list[np.ndarray], size: int) -> list[dict[str, Any]]:
    """One row per contender; ratios are of medians, per weight, to the first contender (the copy)."""
    per_weight = [times / int(size * c.share) for c, times in zip(field, seconds, strict=True)]
    base_wall, base_cpu = np.median(per_weight[0], axis=1)
    rows = []
    for contender, times in zip(field, per_weight, strict=True):
        (low, middle, high), cpu = np.percentile(times[0], [10, 50, 90]), np.median(times[1])
        rows.append({
            "name": contender.name, "library": contender.library, "version": version(contender.library),
            "format": f"{contender.element}/absmax/block={BLOCK}", "size": int(size * contender.share),
            "draws": contender.draws, "ns_per_value": 1e9 * middle, "p10": 1e9 * low, "p90": 1e9 * high,
            "cpu_ns_per_value": 1e9 * cpu, "gigabytes_per_second": 1e-9 * contender.moved / middle,
            "ratio": middle / base_wall, "cpu_ratio": cpu / base_cpu,
        })  # fmt: skip
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def machine(core: int | None, repeats: int, date: str) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    return {
        "date": date, "cpu": processor(), "cores": os.cpu_count(), "pinned_to": core, "system": platform.system(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None, "repeats": repeats,
        "python": platform.python_version(), "numpy": np.__version__, "numba": version("numba"),
    }  # fmt: skip


def show(rows: list[dict[str, Any]], where: dict[str, Any]) -> None:
    print(", ".join(f"{k} {v}" for k, v in where.items()))
    titles = ("weights", "draws", "ns/value", "p10", "p90", "GB/s", "x copy", "CPU")
    print(" " * 36 + "".join(f"{title:>{width}s}" for title, width in zip(titles, WIDTHS, strict=True)))
    for row in rows:
        element = "" if row["format"].startswith("int4") else f" {row['format'].partition('/')[0]}"
        cells = (
            str(row["size"]), "yes" if row["draws"] else "", *(f"{row[k]:.3f}" for k in ("ns_per_value", "p10", "p90")),
            *(f"{row[k]:.2f}" for k in ("gigabytes_per_second", "ratio", "cpu_ratio")),
        )  # fmt: skip
        name = f"{row['library']}: {row['name']}{element}"
        print(f"{name:36s}" + "".join(f"{cell:>{width}s}" for cell, width in zip(cells, WIDTHS, strict=True)))
    print("x copy: median time over that of np.copyto, wall clock; CPU: the same in processor time")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=10_000_000, help="number of weights")
    parser.add_argument("--repeats", type=int, default=15, help="rounds to take medians over")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date to note in the file")
    options = parser.parse_args(arguments)
    size = options.size // (64 * BLOCK) * 64 * BLOCK
    if size <= 0 or options.repeats < 1:
        parser.error(f"--size must be at least {64 * BLOCK} and --repeats at least 1")

    core = pin()
    rng = np.random.default_rng(1)
    w, u = rng.standard_normal(size, dtype=np.float32), rng.random(size, dtype=np.float32)
    field = list(contenders(w, u))
    for contender in field:
        check(contender, w)
    where = machine(core, options.repeats, options.date)
    rows = rows_of(field, measure(field, options.repeats), size)
    show(rows, where)
    if options.json:
        write_text(options.json, json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
