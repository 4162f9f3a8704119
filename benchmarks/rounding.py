"""Speed of cast, randomized rounding and its variance over formats, sizes and types, beside other libraries.

    python benchmarks/rounding.py [--large] [--quick] [--formats F ...] [--json results/benchmarks/rounding.json]

Contenders of one format run in turns on the same weights in one process bound to one core, and medians over the rounds
are compared with ``np.copyto`` of the same weights: machines differ and drift, ratios much less. Times are processor
time with one thread, wall clock with more. First calls are timed in processes of their own. Rounding gets its uniforms,
except where the operation is "uniforms and round".
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from rounding_peers import DIFFERS, Contender, fewer, peers, version

from lotion_theory import Quantizer, streams
from lotion_theory.files import write_text
from lotion_theory.formats import fast
from lotion_theory.formats.catalog import FORMATS
from testbeds.machine import machine

OURS = "lotion-theory"
OPERATIONS = ("cast", "round", "variance")
CATALOGUE = tuple(text for text in FORMATS if text != "int4/frozen")
PARTITIONS = ("int4/absmax/row", "int4/absmax/tensor", "nf4/absmax/row", "e2m1/absmax/row", "uint4/zp-real/row")
FEW = ("int4/absmax/block=32", "uint4/zp-real/block=32", "nf4/absmax/block=64", "mxfp4", "nvfp4", "nvfp4/sr")
KINDS = (("numpy", "float64"), ("numpy", "float16"), ("torch", "float32"), ("torch", "float64"), ("torch", "bfloat16"))
COLUMNS = 1024
THREADS = ("LOTION_THREADS", "OMP_NUM_THREADS")
PLAIN_PART = 4
# Weights after which compiled code surely serves a call, one of which counts for at least so many.
ENOUGH, FEWEST = 1 << 19, 1 << 11


@dataclass(frozen=True)
class Case:
    """Which contenders take turns: one format on one kind of array. ``size``: weights, a multiple of COLUMNS."""

    text: str
    size: int
    arrays: str = "numpy"
    dtype: str = "float32"
    threads: int = 1
    beside: bool = False  # with other libraries, the plain path and ``out=``
    draws: bool = False  # with the toolkit's own uniforms


@dataclass(frozen=True)
class Data:
    """Weights, uniforms of their shape and, for drawn scales, one more uniform per block."""

    w: Any
    drawn: tuple[Any, ...]


# --- contenders ------------------------------------------------------------------------------------------------------


def data(q: Quantizer, case: Case) -> Data:
    """Standard normal weights, (rows, COLUMNS), as the case wants them."""
    rng, shape = np.random.default_rng(1), (case.size // COLUMNS, COLUMNS)
    real = np.dtype("float64" if case.dtype == "float64" else "float32")
    w = rng.standard_normal(shape, dtype=real.type)
    if q.codebook.is_complex:
        w = (w + 1j * rng.standard_normal(shape, dtype=real.type)).astype(np.complex64)
    drawn = [rng.random((*shape, 2) if q.codebook.is_complex else shape, dtype=real.type)]
    if q.scale.is_drawn:
        drawn.append(rng.random(case.size // q.partition.length(shape), dtype=real.type))
    if case.arrays == "numpy":
        return Data(w if q.codebook.is_complex else w.astype(case.dtype), tuple(drawn))
    import torch

    return Data(torch.from_numpy(w).to(getattr(torch, case.dtype)), tuple(map(torch.from_numpy, drawn)))


def copying(w: Any) -> Contender:
    """The copy that all is compared with, into memory that is there."""
    if isinstance(w, np.ndarray):
        return Contender("np.copyto", "numpy", "copy", functools.partial(np.copyto, np.empty_like(w), w))
    into = w.clone()
    return Contender("Tensor.copy_", "torch", "copy", lambda: into.copy_(w) is None)


def ours(q: Quantizer, case: Case, given: Data) -> Iterator[Contender]:
    """This package, compiled; then, where the case wants them, into ``out``, with its own uniforms, and plain."""
    w, drawn = given.w, given.drawn
    calls = operations(q, given)
    for operation, call in calls.items():
        if is_compiled(call, case.size):
            yield Contender("compiled", OURS, operation, call)
    if case.beside and is_compiled(calls["cast"], case.size):
        out = np.empty_like(w) if isinstance(w, np.ndarray) else w.clone()
        per_block = drawn[1] if q.scale.is_drawn else None
        yield Contender("compiled, out=", OURS, "cast", lambda: q.cast(w, out=out))
        yield Contender("compiled, out=", OURS, "round", lambda: q.round(w, drawn[0], per_block, out=out))
    if case.draws:
        stream = streams.Stream(0, "benchmark")
        streams._demand = streams._COMPILE_AFTER  # its loop waits for many numbers otherwise

        def both() -> Any:
            return q.round(w, *(stream.uniforms(tuple(u.shape), dtype="float32") for u in drawn))

        yield Contender("compiled", OURS, "uniforms and round", both)
    if case.beside:
        few = Data(fewer(w, PLAIN_PART), (fewer(drawn[0], PLAIN_PART), *drawn[1:]))
        if q.scale.is_drawn:
            few = Data(few.w, (few.drawn[0], drawn[1][: few.w.size // q.partition.length(few.w.shape)]))
        for operation, call in operations(q, few).items():
            plain = functools.partial(plainly, call)
            if not same_bits(plain(), call()):
                raise RuntimeError(f"{q}: {operation} compiled and plain do not give the same bits")
            yield Contender("plain path", OURS, operation, plain, PLAIN_PART)


def operations(q: Quantizer, given: Data) -> dict[str, Callable[[], Any]]:
    """The calls to be timed, by operation."""
    return {
        "cast": lambda: q.cast(given.w),
        "round": lambda: q.round(given.w, *given.drawn),
        "variance": lambda: q.variance(given.w),
    }


def plainly(call: Callable[[], Any]) -> Any:
    """The call without compiled code."""
    with mock.patch.object(fast, "compute", lambda *_, **__: None):
        return call()


def is_compiled(call: Callable[[], Any], size: int) -> bool:
    """Whether compiled code serves the call, after as many calls as it takes to compile it."""
    answers, compute = [], fast.compute

    def told(*arguments: Any, **options: Any) -> Any:
        answers.append(compute(*arguments, **options))
        return answers[-1]

    with mock.patch.object(fast, "compute", told):
        for _ in range(2 + ENOUGH // max(size, FEWEST)):
            call()
            if answers and answers[-1] is not None:
                return True
    return False


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal, signs of zeros included."""
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


# --- agreement -------------------------------------------------------------------------------------------------------


def agreement(q: Quantizer, contender: Contender, w: np.ndarray, wanted: dict[str, Any]) -> float | None:
    """Share of a peer's results that are this package's: of a cast its value, of rounding one of the two levels around
    a weight, of a variance that, each within 1e-4 of the largest magnitude in the block (its square). None for what is
    not compared.

    Raises RuntimeError where less than nine in ten are: then it is another format.
    """
    result = contender.call()
    if result is None or contender.operation not in wanted:
        return None
    y = np.asarray(result, np.float32).reshape(-1, q.partition.length(w.shape))
    x = w.reshape(-1, y.shape[1])[: len(y)]
    unit = np.abs(x).max(1, keepdims=True)
    if contender.operation == "variance":
        unit = unit**2
    levels = [np.asarray(a).reshape(-1, y.shape[1])[: len(y)] for a in wanted[contender.operation]]
    share = float(np.mean(np.min([np.abs(y - level) for level in levels], axis=0) <= 1e-4 * unit))
    if share < 0.9:
        raise RuntimeError(
            f"{q}: {contender.library}: {contender.name} agrees on {share:.0%} of {contender.operation}: another format"
        )
    return share


def wanted(q: Quantizer, w: np.ndarray) -> dict[str, Any]:
    """What :func:`agreement` compares with."""
    around = () if q.scale.is_drawn or q.codebook.is_complex else q.bracket(w)
    return {"cast": (q.cast(w),), "variance": (q.variance(w),)} | ({"round": around} if around else {})


# --- running ---------------------------------------------------------------------------------------------------------


def pin(cores: set[int] | None) -> None:
    """Bind the process to these cores, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def allowed() -> set[int] | None:
    """The cores that the process may run on; None where the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def use_threads(count: int, cores: set[int] | None) -> None:
    """Let the package and torch use ``count`` threads, one thread on the last core only."""
    for name in THREADS:
        os.environ[name] = str(count)
    pin(cores and ({max(cores)} if count == 1 else cores))
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(count)


def measure(field: Sequence[Contender], sizes: Sequence[int], repeats: int) -> list[np.ndarray]:
    """Seconds per call, wall and processor time: an array (2, repeats) per contender, all run in turn in each round."""
    seconds = [np.empty((2, repeats)) for _ in field]
    calls = [max(1, (1 << 17) // size) for size in sizes]
    for r in range(-1, repeats):  # one round to warm up
        for contender, times, many in zip(field, seconds, calls, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(many):
                contender.call()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if r >= 0:
                times[:, r] = np.array(spent) / many
    return seconds


def compare(case: Case, repeats: int, graphs: bool) -> list[dict[str, Any]]:
    """The rows of one case, the first of them the copy's. ``size``: how many of the ``weights`` a contender got."""
    q = Quantizer.parse(case.text)
    given = data(q, case)
    field = [copying(given.w), *ours(q, case, given)]
    shares: list[float | None] = [None] * len(field)
    if case.beside and not q.codebook.is_complex:
        reference = wanted(q, given.w)
        for contender in peers(case.text, given.w, given.drawn[0], graphs):
            shares.append(agreement(q, contender, given.w, reference))
            field.append(contender)
    sizes = [max(1, case.size // COLUMNS // c.part) * COLUMNS for c in field]
    per = [t / size for t, size in zip(measure(field, sizes, repeats), sizes, strict=True)]
    own = 1 if case.threads == 1 else 0  # processor time, or that on the wall
    base = np.median(per[0], axis=1)
    rows = []
    for contender, share, times, size in zip(field, shares, per, sizes, strict=True):
        middle = np.median(times, axis=1)
        low, high = np.percentile(times[own], [10, 90])
        rows.append({
            **labels(case, contender), "weights": case.size, "size": size, "state": "warm", "threads": case.threads,
            "ns_per_weight": 1e9 * middle[own], "p10": 1e9 * low, "p90": 1e9 * high,
            "wall_ns_per_weight": 1e9 * middle[0], "ratio": middle[own] / base[own], "agrees": share,
        })  # fmt: skip
    return rows


def labels(case: Case, contender: Contender) -> dict[str, Any]:
    """What was timed."""
    return {
        "contender": contender.name, "library": contender.library, "version": version(contender.library),
        "format": case.text, "operation": contender.operation, "arrays": case.arrays, "dtype": case.dtype,
        "own_draws": contender.own_draws,
    }  # fmt: skip


def first_calls(text: str, operation: str, size: int, kept: int) -> list[dict[str, Any]]:
    """First calls of new processes: one with an empty folder for code, then ``kept`` with what it left there."""
    case, contender = Case(text, size), Contender("compiled", OURS, operation, lambda: None)
    script = Path(__file__).with_name("first_call.py")
    states: dict[str, list[dict[str, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(1 + kept):
            done = subprocess.run(
                [sys.executable, str(script), text, operation, str(size)],
                # Bytecode is kept, as Python does unless it is told otherwise.
                env={**os.environ, "LOTION_CACHE": folder, "PYTHONDONTWRITEBYTECODE": ""},
                capture_output=True, encoding="utf-8", check=True,
            )  # fmt: skip
            states.setdefault("first, kept code" if k else "first, empty folder", []).append(json.loads(done.stdout))
    rows = []
    for state, found in states.items():
        first = np.median([f["first"] for f in found], axis=0)
        more = np.median([np.subtract(f["first"], f["warm"]) for f in found], axis=0)
        rows.append({
            **labels(case, contender), "weights": size, "size": size, "state": state, "threads": 1,
            "ns_per_weight": 1e9 * first[1] / size, "wall_ns_per_weight": 1e9 * first[0] / size,
            "more_ms": 1e3 * more[1], "wall_more_ms": 1e3 * more[0],
        })  # fmt: skip
    return rows


# --- plan ------------------------------------------------------------------------------------------------------------


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """What is compared, in order."""
    few = tuple(text for text in FEW if text in options.formats)
    for text in options.formats:
        yield Case(text, options.size, beside=True, draws=text in few and not options.quick)
    for text in options.formats:
        yield Case(text, options.small, beside=text in few)
    for text in few:
        for arrays, dtype in KINDS[-1:] if options.quick else KINDS:
            yield Case(text, options.size, arrays, dtype)
    for text in few:
        yield Case(text, options.size, threads=2)
    for times in (10, 100) if options.large else (10,):
        for text in few:
            for threads in (1, 2):
                yield Case(text, times * options.size, threads=threads)


def firsts(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Formats and operations whose first calls are timed."""
    for text in options.formats:
        yield text, "cast"
        if text in FEW and not options.quick:
            yield from ((text, operation) for operation in OPERATIONS[1:])


def tidy(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to four digits, without what is not there."""
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
    return {k: v for k, v in short.items() if v is not None and v is not False}


def where(repeats: int, date: str) -> dict[str, Any]:
    """With what the numbers were taken."""
    names = ("numpy", "llvmlite", "torch")
    return {
        "date": date, "machine": machine(), "system": platform.system(), "python": platform.python_version(),
        **{name: version(name) for name in names}, "repeats": repeats,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }  # fmt: skip


def note(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Add rows to what was found, and show them."""
    for row in map(tidy, rows):
        found.append(row)
        show(row)


def show(row: dict[str, Any]) -> None:
    """One line of a row."""
    name = f"{row['library']}: {row['contender']}"
    more = f"{row['more_ms']:8.1f} ms more" if "more_ms" in row else f"{row['ratio']:8.2f} x copy"
    kind = "" if row["dtype"] == "float32" and row["arrays"] == "numpy" else f", {row['arrays']} {row['dtype']}"
    threads = "" if row["threads"] == 1 else f", {row['threads']} threads"
    agrees = f"  same {row['agrees']:.2%}" if "agrees" in row else ""
    print(
        f"{row['format']:28s}{row['operation']:19s}{name:42s}{row['size']:>10d} {row['ns_per_weight']:9.2f} ns{more}"
        f"  {row['state']}{kind}{threads}{agrees}",
        flush=True,
    )


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with sizes in whole rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000, help="weights of the main comparison")
    parser.add_argument("--small", type=int, default=10_000, help="weights of the small one")
    parser.add_argument("--repeats", type=int, default=7, help="rounds to take medians over")
    parser.add_argument("--formats", nargs="+", default=[*CATALOGUE, *PARTITIONS], help="format strings")
    parser.add_argument("--large", action="store_true", help="also a hundred times as many weights, 400 MB an array")
    parser.add_argument("--quick", action="store_true", help="few weights and rounds, to see that everything runs")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date to note in the file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.small, options.repeats = 16 * COLUMNS, COLUMNS, 1
    if min(options.size, options.small, options.repeats) < 1:
        parser.error("--size, --small and --repeats must be at least 1")
    options.size, options.small = (-(-n // COLUMNS) * COLUMNS for n in (options.size, options.small))
    for text in options.formats:
        Quantizer.parse(text)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Time everything, and write the rows."""
    options, cores = parsed(arguments), allowed()
    found: list[dict[str, Any]] = []
    about = where(options.repeats, options.date)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, LOTION_CACHE=folder):
        for case in cases(options):
            use_threads(case.threads, cores)
            note(found, compare(case, options.repeats, not options.quick and case.size == options.size))
        use_threads(1, cores)
        for text, operation in firsts(options):
            note(found, first_calls(text, operation, options.size, 1 if options.quick else 3))
    if options.json:
        lines = ",\n".join(f"  {json.dumps(row)}" for row in found)
        timed = {row["library"] for row in found}
        differs = json.dumps([{"library": k, "differs": v} for k, v in DIFFERS.items() if k in timed])
        head = f'"machine": {json.dumps(about)},\n "libraries": {differs}'
        write_text(options.json, f'{{\n {head},\n "rows": [\n{lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
