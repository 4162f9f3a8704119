"""Cost of one training step on a diagonal quadratic: compiled loops, the plain numpy step, and torch in eager mode.

    python benchmarks/descent.py [--repeats 15] [--json results/benchmarks/descent.json]

LOTION with the full gradient and QAT, INT4 with one scale for all weights, Adam, float64 throughout. Contenders take
turns in one process on one core; medians of processor time per step are compared. The compiled and the plain step give
the same bits, the torch step the same weights up to rounding, which is checked before anything is timed. A second table
gives the compiled step's cost against the number of weights.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402

from lotion_theory.files import write_text  # noqa: E402
from lotion_theory.methods import method as training_method  # noqa: E402
from testbeds.descent import Optimizer, train  # noqa: E402
from testbeds.machine import machine  # noqa: E402
from testbeds.problems import linear_regression  # noqa: E402

SIZE, STEPS, FORMAT, LR = 12_000, 50, "int4", 1e-2
SIZES = (1_500, 3_000, 6_000, 12_000, 24_000, 48_000, 96_000)


def torch_steps(problem: Any, method: str, steps: int) -> tuple[np.ndarray, Callable[[], float]]:
    """Weights after ``steps`` steps of the same training in eager torch with its own Adam, and a function that times
    such a run: seconds of processor time per step."""
    import torch

    h, center = torch.from_numpy(problem.spectrum.copy()), torch.from_numpy(problem.optimum.copy())

    def run() -> tuple[torch.Tensor, float]:
        w = torch.from_numpy(problem.start.copy()).requires_grad_()
        optimizer = torch.optim.Adam([w], lr=LR, foreach=True)
        begin = time.process_time()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LR * (1 + np.cos(np.pi * step / steps)) / 2
            optimizer.zero_grad(set_to_none=True)
            scale = w.abs().max() / 7
            if method == "lotion":
                below = scale * torch.floor((w / scale).detach())
                variance = (below + scale - w) * (w - below)
                loss = 0.5 * (h * (w - center) ** 2).sum() + 0.5 * (h * variance).sum()
            else:
                rounded = (scale * torch.round(w / scale)).detach()
                loss = 0.5 * (h * (w + (rounded - w).detach() - center) ** 2).sum()
            loss.backward()
            optimizer.step()
        return w.detach(), (time.process_time() - begin) / steps

    weights, _ = run()
    return weights.numpy(), lambda: run()[1]


def own_steps(problem: Any, method: str, engine: str, steps: int) -> tuple[np.ndarray, Callable[[], float]]:
    """The same for this package's compiled or plain engine."""
    rule = training_method(method)()

    def run() -> Any:
        return train(problem, rule, FORMAT, Optimizer(lr=LR), steps, engine=engine, checkpoints=2)

    return run().state.w, lambda: (lambda r: r.seconds / r.steps)(run())


def compare(repeats: int) -> list[dict[str, Any]]:
    """One row per method and contender, times in turns."""
    problem = linear_regression(SIZE, 0)
    rows = []
    for method in ("lotion", "qat"):
        contenders = {
            "compiled": own_steps(problem, method, "compiled", 20 * STEPS),
            "plain numpy": own_steps(problem, method, "plain", STEPS),
            "torch eager": torch_steps(problem, method, STEPS),
        }
        reference = own_steps(problem, method, "compiled", STEPS)[0]
        assert np.array_equal(reference, contenders["plain numpy"][0]), "compiled and plain differ"
        gap = np.abs(reference - contenders["torch eager"][0]).max()
        assert gap < 1e-9, f"torch's weights differ by {gap}"
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, (_, timed) in contenders.items():
                seconds[name].append(timed())
        base = statistics.median(seconds["compiled"])
        for name, values in seconds.items():
            middle = statistics.median(values)
            rows.append(
                {"method": method, "contender": name, "weights": SIZE, "microseconds_per_step": middle * 1e6,
                 "ratio": middle / base, "low": min(values) * 1e6, "high": max(values) * 1e6}
            )  # fmt: skip
    return rows


def scaling(repeats: int) -> list[dict[str, Any]]:
    """Cost of the compiled step against the number of weights."""
    problems = {d: linear_regression(d, 0) for d in SIZES}
    timed = {d: own_steps(p, "lotion", "compiled", max(50, 6_000_000 // d))[1] for d, p in problems.items()}
    seconds: dict[int, list[float]] = {d: [] for d in SIZES}
    for _ in range(repeats):
        for d, run in timed.items():
            seconds[d].append(run())
    return [
        {"method": "lotion", "contender": "compiled", "weights": d,
         "microseconds_per_step": statistics.median(v) * 1e6,
         "nanoseconds_per_weight": statistics.median(v) * 1e9 / d}
        for d, v in seconds.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats: must be at least 1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    steps, sizes = compare(arguments.repeats), scaling(max(3, arguments.repeats // 3))
    for row in steps:
        print(f"{row['method']:8} {row['contender']:12} {row['microseconds_per_step']:9.1f} us  x{row['ratio']:.1f}")
    for row in sizes:
        print(
            f"{row['weights']:8} weights {row['microseconds_per_step']:9.1f} us  {row['nanoseconds_per_weight']:.2f} ns"
        )
    if arguments.json:
        about = {
            "date": str(datetime.date.today()), "machine": machine(), "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "numba", "torch")},
        }  # fmt: skip
        write_text(arguments.json, json.dumps({"about": about, "steps": steps, "sizes": sizes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
