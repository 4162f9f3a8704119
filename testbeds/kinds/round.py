"""Round the weights of one instance by one scheme."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lotion_theory import Quantizer, Stream
from lotion_theory.rounders import Case, rounder

from ..descent.methods import method_of
from ..figures import rounders as drawn
from ..problems import descriptor
from ..problems.descriptor import Config, Descriptor
from ..results import studies
from ..results.leaderboard import rounding_table
from ..values import METHOD, NAME, NUMBER, PROBLEM
from .base import Kind


def has_case(problem: Descriptor) -> bool:
    """Whether a problem has instances to round."""
    return problem.case is not None


def rounding_case(config: Config, seed: int) -> Case:
    """The case of ``config["problem"]``: the name of one that has such, and its settings; ValueError for others."""
    found, settings = _problem(config["problem"])
    assert found.case is not None, "such problems were asked for"
    return found.case(settings, config["format"], seed)


def _problem(config: Config) -> tuple[Descriptor, Mapping[str, Any]]:
    return descriptor(config.get("name"), has_case), {key: value for key, value in config.items() if key != "name"}


def round_run(config: Config, seed: int) -> dict[str, Any]:
    """Round one instance by one scheme: loss, seconds, and the loss over that of all-zero weights.

    ``config["tuned"]``: settings that tuning chose, beside those that ``config["method"]`` fixes.
    """
    case = rounding_case(config, seed)
    name, settings = _scheme(config)
    scheme = rounder(name)
    begin = time.perf_counter()
    point = scheme(case, Stream(seed, f"round/{name}"), **settings)
    seconds = time.perf_counter() - begin
    if scheme.grid == "fixed" and not np.array_equal(case.grid.nearest(point), point):
        raise AssertionError(f"{name} returned weights that are not on the grid")
    power = float(case.loss(np.zeros_like(point)[None])[0])
    loss = float(case.loss(point[None])[0])
    return {"loss": loss, "relative": loss / power, "seconds": seconds, "grid": scheme.grid}


def check(configs: Sequence[Config]) -> None:
    """ValueError for problems, formats, schemes and settings that do not fit."""
    known = []
    for config in configs:
        place = (config["problem"], config["format"])
        if place not in known:
            known.append(place)
            Quantizer.parse(config["format"])
            found, settings = _problem(config["problem"])
            if found.check_case is not None:
                found.check_case(settings)
            else:
                rounding_case(config, 0)
    for config in configs:
        if "method" in config:
            _check_scheme(*_scheme(config))


def _scheme(config: Config) -> tuple[str, dict[str, Any]]:
    name, settings = method_of(config["method"])
    return name, {**settings, **config.get("tuned", {})}


def _check_scheme(name: str, settings: Mapping[str, Any]) -> None:
    scheme = rounder(name)
    for key in settings:
        if key not in scheme.settings:
            raise ValueError(f"{name} has no setting {key!r}; valid: {', '.join(scheme.settings) or 'none'}")


def tuning(problem: Config, method: str) -> tuple[Mapping[str, tuple[Any, ...]], bool]:
    """The settings of a scheme that are tuned; none has a learning rate of the experiment's."""
    return rounder(method).tuning, False


KIND = Kind(
    "round",
    round_run,
    check,
    takes=has_case,
    tuning=tuning,
    score="loss",
    settings={"limit": float},
    oracle="oracle",
    config={"problem": PROBLEM, "format": NAME, "method": METHOD},
    metrics={"loss": NUMBER},
    words="rounding given weights",
    table=lambda rows, experiment, reference: rounding_table(rows, experiment),
    figures=studies.of_rounding,
    pictures=drawn.pictures,
)
