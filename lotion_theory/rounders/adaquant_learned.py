"""AdaQuant with scales learned beside the weights: what it gains over frozen ones is a gain of the lattice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream
from .._arrays import Array
from ._adam import check
from .adaquant import checked, learn
from .base import Case, Rounder
from .grid import Grid


def _search(case: Case, settings: Mapping[str, Any], stream: Stream) -> tuple[Array, Grid]:
    checked(settings)
    check("scale_lr", settings["scale_lr"], settings["scale_lr"] > 0, "a positive number")
    return learn(case, settings["steps"], settings["lr"], settings["scale_lr"])


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    return _search(case, settings, stream)[0]


ROUNDER = Rounder(
    name="adaquant_learned",
    run=_run,
    information="H",
    grid="searched",
    source="AdaQuant, arXiv 2006.10518, layer by layer",
    evaluations="steps",
    settings={"steps": 1000, "lr": 0.003, "scale_lr": 0.003},
    tuning={"lr": (0.001, 0.003, 0.01, 0.03, 0.1), "scale_lr": (0.0003, 0.001, 0.003, 0.01)},
    by_rows=False,
    search=_search,
)
