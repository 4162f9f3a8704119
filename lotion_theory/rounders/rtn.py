"""Round to nearest (RTN): every weight by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream
from .._arrays import Array
from .base import Case, Rounder


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    return case.grid.nearest(case.weights)


ROUNDER = Rounder(
    name="rtn",
    run=_run,
    information="none",
    grid="fixed",
    source="standard; ties to even",
    evaluations="none",
    settings={},
    tuning={},
)
