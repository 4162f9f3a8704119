"""Rows of a store as the tables and figures read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .archive import SUFFIX, read_archive
from .store import Store
from .task import canonical

# A loss is that of the optimum if it differs by no more than rounding errors of a few thousand operations.
SAME_LOSS = 1e-9


def stored_rows(path: Path | str) -> list[dict[str, Any]]:
    """All runs of a store or an archive, rounding runs joined with the exact optima of their instances.

    Raises FileNotFoundError for a path that is not there and ValueError for a file that is neither.
    """
    if str(path).endswith(SUFFIX):
        return with_optima(read_archive(path))
    with Store(path, readonly=True) as store:
        return with_optima(store.rows())


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
