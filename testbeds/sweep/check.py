"""Refuse an experiment that cannot run before any of its runs does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lotion_theory import Quantizer
from lotion_theory.methods import method as training_method
from lotion_theory.rounders import rounder

from ..descent import Optimizer, block_starts
from ..descent.cbo import resolve
from ..lm import runs as language
from ..problems import training_problem
from ..problems.minilm import LAYERS
from .config import Experiment
from .kinds import SETTINGS, method_of, rounding_case
from .plan import base_config, candidates


def check(experiments: Iterable[Experiment]) -> None:
    """ValueError naming the experiment and what is wrong with its problem, formats, methods or settings.

    Instance 0 of every problem is made, so that its sizes are known to fit the formats' blocks.
    """
    for e in experiments:
        try:
            _experiment(e)
        except (ValueError, TypeError, LookupError, ArithmeticError, FileNotFoundError) as error:
            raise ValueError(f"experiment {e.name}: {error}") from None


def _settings(e: Experiment) -> None:
    known = SETTINGS[e.kind]
    for name, value in e.settings.items():
        if name not in known:
            raise ValueError(f"kind {e.kind} has no setting {name!r}; valid: {', '.join(known) or 'none'}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        if not number or (known[name] is int and not isinstance(value, int)):
            raise ValueError(
                f"settings.{name} = {value!r}: must be a positive {'integer' if known[name] is int else 'number'}"
            )
    for name in ("draws", "spread") if e.kind == "estimator" else ():
        if name not in e.settings:
            raise ValueError(f"settings.{name} is missing: kind estimator needs it")


def _real_layer(problem: Mapping[str, Any]) -> None:
    if set(problem) != {"name", "layer", "rows"}:
        raise ValueError(f"problem real_layer has the settings layer and rows, not {', '.join(problem)}")
    if problem["layer"] not in LAYERS:
        raise ValueError(f"layer = {problem['layer']!r}; valid: {', '.join(LAYERS)}")
    if type(problem["rows"]) is not int or problem["rows"] < 1:
        raise ValueError(f"rows = {problem['rows']!r}: must be a positive integer")


def _experiment(e: Experiment) -> None:
    names = [method["name"] for method in e.methods]
    if e.reference and e.reference not in names:
        raise ValueError(f"reference {e.reference!r} is none of its methods: {', '.join(names)}")
    if e.problem.get("name") == language.NAME and e.kind != "train":
        raise ValueError(f"problem {language.NAME} is for kind train, not {e.kind}")
    _settings(e)
    if e.problem.get("name") == language.NAME:
        _language(e)
    elif e.kind in ("train", "estimator"):
        for problem in e.problems():
            made = training_problem(problem, 0)
            for text in e.formats:
                block_starts(Quantizer.parse(text), made.parts)
        for method, text in itertools.product(e.methods, e.formats):
            _trainer(e, method, text)
        if e.kind == "train":
            Optimizer(e.optimizer, 1.0, e.schedule)
    else:
        real = e.problem.get("name") == "real_layer"
        for problem, text in itertools.product(e.problems(), e.formats):
            if real or problem.get("name") == "power_law":
                Quantizer.parse(text)
            if real:
                _real_layer(problem)
            else:
                rounding_case({"problem": problem, "format": text}, 0)
        for method in e.methods:
            name, settings = method_of(method)
            scheme = rounder(name)
            for key in settings:
                if key not in scheme.settings:
                    valid = ", ".join(scheme.settings) or "none"
                    raise ValueError(f"{name} has no setting {key!r}; valid: {valid}")


def _language(e: Experiment) -> None:
    for problem, text, method in itertools.product(e.problems(), e.formats, e.methods):
        base = base_config(e, problem, text)
        grid = [{**base, "method": method, "lr": e.lr}] if e.tuning is None else candidates(e, base, method)
        language.check(grid[0])


def _trainer(e: Experiment, method: Mapping[str, Any], text: str) -> None:
    name, settings = method_of(method)
    if name == "cbo":
        resolve(settings)
        return
    rule, _ = training_method(name)(**settings).on(Quantizer.parse(text).codebook)
    rule.parameters(np.zeros(1))
    if e.tuning is not None:
        candidates(e, {"problem": dict(e.problem), "format": text}, method)
