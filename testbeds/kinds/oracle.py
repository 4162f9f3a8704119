"""The exact optimum of rounding one instance, which goes with what schemes found for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..documents import canonical
from ..problems.descriptor import Config
from ..values import BOOLEAN, NAME, NUMBER, PROBLEM
from .base import Kind
from .round import rounding_case

# A loss is that of the optimum if it differs by no more than rounding errors of a few thousand operations.
SAME_LOSS = 1e-9


def oracle_run(config: Config, seed: int) -> dict[str, Any]:
    """The exact optimum of one instance over the whole grid, and over the cell of the weights."""
    from ..oracles.closest_vector import closest_vector
    from ..oracles.enumeration import best_in_cell

    case = rounding_case(config, seed)
    found = closest_vector(case, seconds=config.get("limit", 60.0))
    metrics = {"loss": found.loss, "proven": found.proven, "nodes": found.nodes, "seconds": found.seconds}
    if case.weights.shape[1] <= 16:
        metrics["in_cell"] = best_in_cell(case).loss
    return metrics


def with_optima(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with ``optimum``, ``ratio`` and ``optimal`` added to rounding runs of instances whose optimum is proven.

    Instances without one get ``ratio`` over the lowest loss that any scheme with a fixed grid found, and no
    ``optimal``: then 1 is the best known.
    """
    proven: dict[tuple[str, str, int], float] = {}
    best: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if row["status"] != "ok" or row["kind"] not in ("oracle", "round"):
            continue
        place = _instance(row)
        loss = row["metrics"]["loss"]
        if row["kind"] == "oracle" and row["metrics"]["proven"]:
            proven[place] = loss
        if row["kind"] == "oracle" or row["metrics"].get("grid") == "fixed":
            best[place] = min(loss, best.get(place, loss))
    out = []
    for row in rows:
        joined = row["kind"] == "round" and row["status"] == "ok"
        if joined and best.get(place := _instance(row)):
            loss, optimum = row["metrics"]["loss"], proven.get(place)
            optimal = None if optimum is None else bool(loss <= optimum * (1 + SAME_LOSS))
            found = {"optimum": optimum, "ratio": loss / best[place], "optimal": optimal}
            row = {**row, "metrics": {**row["metrics"], **found}}
        out.append(row)
    return out


def _instance(row: dict[str, Any]) -> tuple[str, str, int]:
    return canonical(row["config"]["problem"]), row["config"]["format"], row["seed"]


KIND = Kind(
    "oracle",
    oracle_run,
    config={"problem": PROBLEM, "format": NAME},
    metrics={"loss": NUMBER, "proven": BOOLEAN},
    joined=with_optima,
)
