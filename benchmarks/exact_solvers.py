"""Time to a proven optimum of rounding: our closest-vector search against general solvers, on the same instances.

    python benchmarks/exact_solvers.py [--seeds 5] [--limit 10] [--out results/benchmarks/exact_solvers.json]

``min ½ (q - w)ᵀ H (q - w)`` with H of eigenvalues i^-1.1 in a random (Haar) basis, w ~ N(0, I), q on the symmetric INT4
lattice of w with one absmax scale: 15 levels per weight. All solvers run on one thread, without a starting point from
outside. Both general solvers get the form that was fastest for them among those tried, with H = Rᵀ R and one variable
per row of R; the expanded quadratic took SCIP 4 and 20 times longer at 8 and 12 weights, and CP-SAT over 80 times.

SCIP (pyscipopt): levels are integers k in -7..7, y = R (q - w), objective t >= ½ Σ y², gap 0: mixed-integer convex
quadratic programming.

CP-SAT (ortools) knows integers only: R times the lattice step, and R w, are multiplied by 10^4 and rounded, and the sum
of squares of what they give is minimised. Its proof is for that objective; ``objective_error`` of a row bounds how far
that is from the loss at the point found.

Both are optional: pip install pyscipopt ortools.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lotion_theory import Stream
from lotion_theory.files import write_text
from lotion_theory.rounders.base import Case
from testbeds.machine import processor
from testbeds.oracles.closest_vector import closest_vector

EXPONENT, TOP, FORMAT = 1.1, 7, "int4"
PRECISION = 10_000
"""CP-SAT's integers per unit of R (q - w)."""


def instance(d: int, seed: int) -> Case:
    """One row of ``d`` weights."""
    rng = Stream(seed, f"exact solvers/{d}").numpy_generator()
    basis, triangle = np.linalg.qr(rng.normal(size=(d, d)))
    basis *= np.sign(np.diagonal(triangle))  # Haar measure
    h = (basis * np.arange(1.0, d + 1) ** -EXPONENT) @ basis.T
    return Case.make((h + h.T) / 2, rng.normal(size=d), FORMAT)


def parts(case: Case) -> tuple[np.ndarray, np.ndarray, float]:
    """``(R, w, step)``: the loss is ``½ |R (step k - w)|²`` with integers k in -7..7."""
    return np.linalg.cholesky(case.hessian).T, case.weights[0], float(case.grid.step[0, 0]) / TOP


def loss_of(case: Case, k: list[int]) -> float:
    point = case.grid.levels[0, np.arange(len(k)), np.array(k) + TOP]
    return float(case.loss(point[None, None])[0])


# --- solvers: (case, limit in seconds) -> fields of a row ------------------------------------------------------------


def ours(case: Case, limit: float) -> dict[str, Any]:
    found = closest_vector(case, seconds=limit)
    return {"seconds": found.seconds, "loss": found.loss, "proven": found.proven, "nodes": found.nodes}


def with_scip(case: Case, limit: float) -> dict[str, Any]:
    import pyscipopt

    root, w, step = parts(case)
    d = len(w)
    model = pyscipopt.Model()
    model.hideOutput()
    model.setParams({"limits/time": limit, "limits/gap": 0.0, "lp/threads": 1})
    k = [model.addVar(vtype="I", lb=-TOP, ub=TOP) for _ in range(d)]
    y, t = [model.addVar(lb=None) for _ in range(d)], model.addVar(lb=0)
    for i in range(d):
        model.addCons(y[i] == pyscipopt.quicksum(root[i, j] * (step * k[j] - w[j]) for j in range(i, d)))
    model.addCons(pyscipopt.quicksum(0.5 * v * v for v in y) <= t)
    model.setObjective(t, "minimize")
    began = time.perf_counter()
    model.optimize()
    seconds = time.perf_counter() - began
    found = [round(model.getVal(v)) for v in k] if model.getNSols() else None
    return {
        "seconds": seconds, "loss": None if found is None else loss_of(case, found),
        "proven": model.getStatus() == "optimal", "nodes": int(model.getNTotalNodes()),
    }  # fmt: skip


def with_cp_sat(case: Case, limit: float) -> dict[str, Any]:
    from ortools.sat.python import cp_model

    root, w, step = parts(case)
    d = len(w)
    rows, shift = np.rint(PRECISION * step * root).astype(int), np.rint(PRECISION * root @ w).astype(int)
    model = cp_model.CpModel()
    k = [model.new_int_var(-TOP, TOP, "") for _ in range(d)]
    squares = []
    for i in range(d):
        reach = int(TOP * np.abs(rows[i]).sum() + abs(shift[i]))
        y, square = model.new_int_var(-reach, reach, ""), model.new_int_var(0, reach**2, "")
        model.add(y == sum(int(rows[i, j]) * k[j] for j in range(i, d)) - int(shift[i]))
        model.add_multiplication_equality(square, [y, y])
        squares.append(square)
    model.minimize(sum(squares))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit
    solver.parameters.num_workers = 1
    began = time.perf_counter()
    status = solver.solve(model)
    seconds = time.perf_counter() - began
    found = [solver.value(v) for v in k] if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    loss = None if found is None else loss_of(case, found)
    # Every entry is off by at most half a unit: |δ_i| <= (7 entries + 1) / 2 units, and ½ |y + δ|² - ½ |y|² follows.
    off = np.linalg.norm((TOP * (d - np.arange(d)) + 1) / 2) / PRECISION
    error = None if loss is None else float(off * np.sqrt(2 * loss) + off**2 / 2)
    return {
        "seconds": seconds, "loss": loss, "proven": status == cp_model.OPTIMAL, "nodes": solver.num_branches,
        "objective_error": error,
    }  # fmt: skip


# name: (distribution, solver, largest size it is given)
SOLVERS: dict[str, tuple[str, Callable[[Case, float], dict[str, Any]], int]] = {
    "closest_vector": ("lotion-theory", ours, 10**6),
    "scip": ("pyscipopt", with_scip, 40),
    "cp-sat": ("ortools", with_cp_sat, 20),
}


def installed() -> list[str]:
    """Solvers that can run; the others are named on standard error."""
    names = []
    for name, (distribution, _, _) in SOLVERS.items():
        if name == "closest_vector" or importlib.util.find_spec(distribution):
            names.append(name)
        else:
            print(f"left out: {name} needs {distribution} (pip install {distribution})", file=sys.stderr)
    return names


def version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def measure(names: list[str], sizes: list[int], seeds: int, limit: float) -> list[dict[str, Any]]:
    """One row per instance and solver, a solver's column ending at its largest size."""
    closest_vector(instance(2, 0))  # compiles
    rows = []
    for d in sizes:
        for seed in range(seeds):
            case = instance(d, seed)
            for name in names:
                distribution, solve, largest = SOLVERS[name]
                if d <= largest:
                    found = solve(case, limit)
                    rows.append({"solver": name, "version": version(distribution), "d": d, "seed": seed, **found})
    return rows


def show(rows: list[dict[str, Any]], names: list[str], limit: float) -> None:
    """Medians per solver and size; "best": on how many instances no solver's point has a lower loss."""
    print(f"{'d':>4} {'solver':16} {'median s':>10} {'max s':>9} {'x ours':>9} {'proven':>7} {'best':>6}")
    least: dict[tuple[int, int], float] = {}
    for row in rows:
        if row["loss"] is not None:
            key = row["d"], row["seed"]
            least[key] = min(least.get(key, np.inf), row["loss"])
    for d in sorted({row["d"] for row in rows}):
        base = np.median([row["seconds"] for row in rows if row["d"] == d and row["solver"] == names[0]])
        for name in names:
            mine = [row for row in rows if row["d"] == d and row["solver"] == name]
            if not mine:
                continue
            seconds = [row["seconds"] for row in mine]
            best = [row["loss"] is not None and row["loss"] <= least[d, row["seed"]] * (1 + 1e-9) for row in mine]
            proven = sum(row["proven"] for row in mine)
            print(
                f"{d:4d} {name:16} {np.median(seconds):10.4g} {max(seconds):9.3g} {np.median(seconds) / base:9.3g} "
                f"{proven:4d}/{len(mine)} {sum(best):4d}/{len(mine)}"
            )
    print(f"limit: {limit:g} s; where the median is the limit, the ratio is a lower bound")


def machine(date: str) -> dict[str, Any]:
    """Where and with what the numbers were taken."""
    return {
        "date": date, "cpu": processor(), "cores": os.cpu_count(), "system": platform.system(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None, "python": platform.python_version(),
        "numpy": np.__version__, "numba": version("numba"),
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 12, 16, 20, 40, 60, 80], help="numbers of weights")
    parser.add_argument("--seeds", type=int, default=5, help="instances per size")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds per instance and solver")
    parser.add_argument("--out", type=Path, help="file to write the rows to")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="date to note in the file")
    options = parser.parse_args(arguments)
    if min(options.sizes) < 1 or options.seeds < 1 or options.limit <= 0:
        parser.error("--sizes and --seeds must be at least 1, --limit positive")
    names = installed()
    where = {**machine(options.date), "limit": options.limit}
    rows = measure(names, options.sizes, options.seeds, options.limit)
    show(rows, names, options.limit)
    if options.out:
        short = [{k: float(f"{v:.10g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        write_text(options.out, json.dumps({"machine": where, "rows": short}, indent=1) + "\n")


if __name__ == "__main__":
    main()
