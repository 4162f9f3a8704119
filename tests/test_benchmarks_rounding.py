"""The rounding benchmark runs on few weights, tells other formats apart, and its rows become tables."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lotion_theory import Quantizer
from testbeds.report import benchmarks, speeds

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def rounding(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import rounding

    yield rounding
    for name in ("rounding", "rounding_peers"):
        sys.modules.pop(name, None)


def test_a_quick_run_fills_the_tables(tmp_path):
    """One format that others have, one with a drawn scale."""
    texts, file = ["e4m3/absmax/block=32", "nvfp4/sr"], tmp_path / "rounding.json"
    command = [sys.executable, str(FOLDER / "rounding.py"), "--quick", "--formats", *texts, "--json", str(file)]
    path = os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    stored = json.loads(file.read_text(encoding="utf-8"))
    rows = stored["rows"]
    assert {row["state"] for row in rows} == {"warm", "first, empty folder", "first, kept code"}
    assert {row["operation"] for row in rows} == {"copy", *speeds.OPERATIONS}
    assert {row["threads"] for row in rows} == {1, 2} and len({row["weights"] for row in rows}) == 3
    assert {(row["arrays"], row["dtype"]) for row in rows} == {("torch", "bfloat16"), ("numpy", "float32")}
    assert all(row["ratio"] == 1 for row in rows if row["operation"] == "copy")
    assert all(row["ns_per_weight"] > 0 for row in rows)

    assert [record["format"] for record in speeds.by_format(rows)] == texts
    (about,) = benchmarks.tables({"rounding": stored})
    assert [table["title"] for table in about["tables"]] == ["libraries", *speeds.TABLES]
    assert all(table["rows"] for table in about["tables"])
    own = {record["library"] for record in speeds.by_library(rows)}
    assert {"torch"} <= own and all(record["same, least"] > 0.9 for record in speeds.by_library(rows))


def test_another_format_is_told_apart(rounding):
    q, other = (Quantizer.parse(f"{book}/absmax/block=32") for book in ("int4", "int3"))
    w = np.random.default_rng(0).standard_normal((2, 1024), dtype=np.float32)
    right = rounding.Contender("own", "own", "cast", lambda: q.cast(w))
    reference = rounding.wanted(q, w)
    assert rounding.agreement(q, right, w, reference) == 1
    assert rounding.agreement(q, replace(right, call=lambda: None), w, reference) is None
    for operation in speeds.OPERATIONS:
        wrong = replace(right, operation=operation, call=lambda: other.cast(w))
        with pytest.raises(RuntimeError, match=f"own agrees on .* of {operation}: another format"):
            rounding.agreement(q, wrong, w, reference)


ROW = {
    "contender": "compiled", "library": "lotion-theory", "version": "1", "format": "int4", "operation": "cast",
    "arrays": "numpy", "dtype": "float32", "weights": 1000, "size": 1000, "state": "warm", "threads": 1,
    "ns_per_weight": 2.0, "ratio": 4.0,
}  # fmt: skip
PEER = {**ROW, "contender": "f", "library": "torch", "ns_per_weight": 6.0, "agrees": 0.99}


def test_tables_of_speeds():
    """The main size only, the fastest of the others, first calls by state."""
    rows = [
        ROW,
        {**ROW, "contender": "plain path", "size": 250, "ns_per_weight": 60.0},
        PEER,
        {**PEER, "contender": "g", "ns_per_weight": 5.0, "agrees": 1.0},
        {**PEER, "weights": 10, "ns_per_weight": 1.0},
        {**ROW, "weights": 10, "ns_per_weight": 3.0},
        {**ROW, "arrays": "torch", "ns_per_weight": 2.5},
        {**ROW, "threads": 2, "ns_per_weight": 1.5},
        {**ROW, "state": "first, kept code", "more_ms": 30.0},
        {**ROW, "state": "first, empty folder", "more_ms": 50.0},
    ]
    (record,) = speeds.by_format(rows)
    assert {k: v for k, v in record.items() if v is not None} == {
        "format": "int4", "cast, ns": 2.0, "cast, copies": 4.0, "plain cast, ns": 60.0, "first call, ms": 30.0,
        "first call compiling, ms": 50.0, "fastest other cast": "torch", "its cast, ns": 5.0,
    }  # fmt: skip
    kinds = {(r["arrays"], r["weights"], r["threads"]): r["cast, ns"] for r in speeds.by_kind(rows)}
    assert kinds == {("numpy", 1000, 1): 2.0, ("numpy", 10, 1): 3.0, ("torch", 1000, 1): 2.5, ("numpy", 1000, 2): 1.5}
    f, g = speeds.by_library(rows)
    assert (f["function"], f["least, times ours"], f["same, least"]) == ("f", 3.0, 0.99)
    assert (g["function"], g["most, times ours"], g["formats"]) == ("g", 2.5, 1)
