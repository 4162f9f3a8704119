"""Made-up sources of a report: rows of every kind, written as ``lotion reproduce`` and ``lotion sweep`` write them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lotion_theory.theory import verification
from testbeds.report.sources import Sources
from testbeds.sweep.archive import write_archive
from tests import synthetic_rows as made
from tests.test_verification import example

COUNTEREXAMPLE = "1 → 14/15 on average <b>&</b>"


def verdicts() -> list[verification.Row]:
    """Three formats, three claims: one predicted failure, one surprise, one claim that involves no format."""
    rows = [
        example(format=f, claim=c, title=t, evidence=e, measured=1 / 3, theoretical=1 / 3)
        for f in ("int4/absmax/block=32", "mxfp4", "nf4")
        for c, t in (("C1", "unbiased"), ("C4", "support points are fixed"), ("C7", "global minima kept"))
        for e in ("proved", "exhaustive")
    ]
    failing = {"verdict": "fails", "measured": 14 / 15, "theoretical": 1.0, "counterexample": COUNTEREXAMPLE}
    rows = [r for r in rows if (r.format, r.claim) != ("mxfp4", "C1")]
    rows.append(example(format="mxfp4", claim="C1", expected="fails", evidence="property", checked=77, **failing))
    rows.append(example(format="nf4", claim="C7", expected="holds", evidence="property", note="a note", **failing))
    rows.append(example(format="any", claim="C20", title="Adam's second moment", measured=float("inf")))
    return rows


def language() -> list[dict]:
    """Two methods on a small decoder, two seeds."""
    rows = []
    for method, rtn in (({"name": "qat"}, 1.55), ({"name": "lotion", "scale": "attached"}, 1.51)):
        for seed in (0, 1):
            row = made.train(method, seed, rtn + 0.01 * seed, 1.46, problem={"name": "decoder", "layers": 2},
                             format="int4/absmax/block=32", experiment="lm-int4")  # fmt: skip
            rows.append(row)
    return rows


def sweep() -> list[dict]:
    """Every kind of run but language models."""
    regression = [
        {**r, "experiment": "linear-regression-quick"} for r in made.contest(formats=("int4", "int8"), seeds=3)
    ]
    studies = {
        "two-layer": made.widths(ks=(1, 4, 16), seeds=3), "lambda": made.lambdas(seeds=3, formats=("int4",)),
        "rounding": made.rounding(instances=4), "estimators": made.estimators(), "minima": made.minima(seeds=3),
    }  # fmt: skip
    return regression + [{**r, "experiment": name} for name, rows in studies.items() for r in rows]


def write_sources(folder: Path, with_language: bool = True) -> Sources:
    """All of it under ``folder``; the stores are archives."""
    theory, benchmarks = folder / "theory", folder / "benchmarks"
    theory.mkdir(parents=True)
    benchmarks.mkdir()
    (theory / "verify.csv").write_text(verification.to_csv(verdicts()), encoding="utf-8")
    real = [example(format="int4/absmax/row", claim="C4", check="layer 0")]
    (theory / "real.csv").write_text(verification.to_csv(real), encoding="utf-8")
    (theory / "real_losses.csv").write_text(
        "format,layer,rtn_relative,rr_relative,conditional_relative,rr_over_rtn_diagonal\n"
        "int4/absmax/row,0,0.02,0.04,,2.0\nint4/absmax/row,1,0.08,0.16,,2.0\n"
    )
    about = {"date": "2025-01-02", "machine": "m1", "python": "3.12.0", "numpy": "2.0.0"}
    (theory / "summary.json").write_text(json.dumps(about))
    (benchmarks / "descent.json").write_text(
        json.dumps({"about": {"cpu": "m1"}, "steps": [{"method": "lotion", "microseconds": 30.125}]})
    )
    stores = [folder / "quick.jsonl.xz"]
    write_archive(sweep(), stores[0])
    if with_language:
        stores.append(folder / "lm.jsonl.xz")
        write_archive(language(), stores[1])
    return dataclasses.replace(Sources(), theory=theory, stores=tuple(stores), benchmarks=benchmarks)
