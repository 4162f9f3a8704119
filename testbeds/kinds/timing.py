"""What a step of each method costs, measured in turns within one process."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..descent.runs import trainer_of
from ..problems.descriptor import Config
from .base import Kind


def timing_run(config: Config, seed: int) -> dict[str, Any]:
    """Median seconds per step of several methods on one problem, measured in turns within one process."""
    measured, rounds = trainer_of(config["problem"]).seconds_per_step, config["rounds"]
    seconds: dict[str, list[float]] = {str(i): [] for i in range(len(config["methods"]))}
    # The first round is not counted: it compiles, and brings the data into the cache.
    for turn in range(rounds + 1):
        for i, method in enumerate(config["methods"]):
            per_step = measured({**config, "method": method, "lr": 1e-4}, seed)
            if turn:
                seconds[str(i)].append(per_step)
    return {"seconds_per_step": [float(np.median(seconds[str(i)])) for i in range(len(config["methods"]))]}


KIND = Kind("timing", timing_run)
