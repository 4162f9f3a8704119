"""Experiment files: YAML read into frozen dataclasses; an unknown key is an error that names it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lotion_theory.files import library

from .. import kinds
from ..descent.runs import TUNING_SEEDS
from ..documents import read_text, yaml_value
from ..settings import made

CONFIGS = Path(__file__).parent.parent / "configs"
MOST_SEEDS = TUNING_SEEDS
"""Instances of the final runs; tuning uses those from this number on."""
MOST_RUNS = 1_000_000
"""Runs of one experiment, far more than are ever done: beyond it a number was mistyped."""
MOST_STEPS = 10**9


@dataclass(frozen=True)
class Tuning:
    """How learning rates and settings are chosen: ``budget`` configurations per method, each on ``seeds`` instances
    that the final runs do not use. Learning rates are spread evenly in the logarithm over ``lr`` (for kinds that have
    some); a method with settings of its own to tune gets fewer rates, so that all methods get the same number of runs.
    ``extend``: up to so many configurations more where the best lies at an edge of those tried."""

    lr: tuple[float, float] | None = None
    budget: int = 12
    seeds: int = 2
    extend: int = 0

    @property
    def rates(self) -> tuple[float, float]:
        """The lowest and the highest learning rate; ValueError where none are given."""
        if self.lr is None:
            raise ValueError("tuning.lr is missing: methods with a learning rate need the lowest and the highest")
        return self.lr

    def __post_init__(self) -> None:
        low, high = (1.0, 2.0) if self.lr is None else self.lr
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"tuning.lr = [{low:g}, {high:g}]: expected the lowest and the highest, positive and finite"
            )
        _in_range("tuning.budget", self.budget, MOST_RUNS)
        _in_range("tuning.seeds", self.seeds, MOST_SEEDS)
        if not 0 <= self.extend <= MOST_RUNS:
            raise ValueError(f"tuning.extend = {self.extend}: must be at least 0 and at most {MOST_RUNS:,}")


@dataclass(frozen=True)
class Experiment:
    """One table: problems x formats x methods x seeds.

    ``kind``: one of :mod:`testbeds.kinds` that has a check. ``problem``: its name and settings; ``vary``: settings that
    take several values, every combination being a problem. ``methods``: each a name with settings; a setting given as a
    list makes a line of the table for each value. ``lr``: instead of tuning. ``equal_time``: train again with as many
    steps as the ``reference`` method's time allows. ``oracle``: find the exact optimum of every rounding instance too.
    ``settings``: the rest of a run's configuration.
    """

    name: str
    kind: str
    title: str
    problem: Mapping[str, Any]
    formats: tuple[str, ...]
    methods: tuple[Mapping[str, Any], ...] = ()
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    seeds: int = 10
    steps: int = 1000
    optimizer: str = "adam"
    schedule: str = "cosine"
    lr: float | None = None
    tuning: Tuning | None = None
    equal_time: bool = False
    oracle: bool = False
    reference: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = kinds.kind(self.kind, _for_experiments)
        if kind.tuned and (self.lr is None) == (self.tuning is None):
            raise ValueError("give either lr or tuning")
        if not kind.tuned and self.lr is not None:
            raise ValueError(f"lr and equal_time belong to kind {_those(lambda k: k.tuned)}")
        if kind.tuning is None and self.tuning is not None:
            raise ValueError(f"tuning belongs to kind {_those(lambda k: k.tuning)}")
        if self.tuning is not None and (self.tuning.lr is None) == kind.tuned:
            need = "tuning.lr is missing: kind" if kind.tuned else "tuning.lr is given, but there is none in kind"
            raise ValueError(f"{need} {self.kind}")
        if self.equal_time and kind.cost is None:
            raise ValueError(f"equal_time belongs to kind {_those(lambda k: k.cost)}")
        if self.oracle and kind.oracle is None:
            raise ValueError(f"oracle belongs to kind {_those(lambda k: k.oracle)}")
        if kind.methods and not self.methods:
            raise ValueError("no methods")
        if not self.name:
            raise ValueError("name: must not be empty")
        _in_range("seeds", self.seeds, MOST_SEEDS)
        _in_range("steps", self.steps, MOST_STEPS)
        if not self.formats:
            raise ValueError("formats: name at least one")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr = {self.lr:g}: must be positive and finite")
        if self.equal_time and not self.reference:
            raise ValueError("equal_time needs a reference method")
        tried = 0 if self.tuning is None else (self.tuning.budget + self.tuning.extend) * self.tuning.seeds
        each = self.seeds + tried
        runs = math.prod(map(len, self.vary.values())) * len(self.formats) * max(1, len(self.methods)) * each
        if runs > MOST_RUNS:
            raise ValueError(f"{runs:,} runs; valid: up to {MOST_RUNS:,}")

    def problems(self) -> Iterator[dict[str, Any]]:
        """Every combination of the varied settings."""
        for values in itertools.product(*self.vary.values()):
            yield {**self.problem, **dict(zip(self.vary, values, strict=True))}


def load(source: str | Path) -> list[Experiment]:
    """The experiments of a file, or of the preset of that name.

    Raises FileNotFoundError naming the presets, and ValueError naming the file and the key for content that does not
    fit.
    """
    path = Path(source)
    if not path.exists():
        path = CONFIGS / f"{source}.yaml"
    if not path.exists():
        raise FileNotFoundError(f"no such file or preset: {source}; presets: {', '.join(presets())}")
    return parse(read_text(path), str(path))


def presets() -> list[str]:
    """Names of the experiment files that come with the package."""
    return sorted(p.stem for p in CONFIGS.glob("*.yaml"))


def parse(text: str, where: str = "configuration") -> list[Experiment]:
    """The experiments of a YAML text: a list under ``experiments``."""
    library("yaml", "a sweep", "sweep")
    data = yaml_value(text, where)
    if not isinstance(data, dict) or set(data) != {"experiments"} or not isinstance(data["experiments"], list):
        raise ValueError(f"{where}: expected a list under the key 'experiments' and nothing else")
    out = []
    for number, item in enumerate(data["experiments"]):
        name = item.get("name", number) if isinstance(item, dict) else number
        place = f"{where}: experiment {name}"
        found = made(Experiment, item, place)
        try:
            out.append(replace(found, methods=tuple(m for entry in found.methods for m in _expanded(entry))))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    names = [e.name for e in out]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: experiment names repeat: {', '.join(n for n in names if names.count(n) > 1)}")
    return out


def _for_experiments(kind: kinds.Kind) -> bool:
    return kind.check is not None


def _those(having: Callable[[kinds.Kind], Any]) -> str:
    return ", ".join(kinds.names(having))


def _in_range(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} = {value}: must be at least 1 and at most {most:,}")


def _expanded(method: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One method per combination of its settings that are lists."""
    if "name" not in method:
        raise ValueError(f"method {dict(method)!r} has no name")
    lists = {k: v for k, v in method.items() if isinstance(v, list)}
    if (lines := math.prod(map(len, lists.values()))) > MOST_RUNS:
        raise ValueError(f"method {method['name']}: {lines:,} combinations of settings; valid: up to {MOST_RUNS:,}")
    for values in itertools.product(*lists.values()):
        yield {**method, **dict(zip(lists, values, strict=True))}
