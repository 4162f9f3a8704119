"""Round to nearest (RTN): every weight by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import Stream
from .base import Case, Rounder


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
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
