"""What a kind of experiment tells the engine of sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..figures.series import Picture
from ..problems.descriptor import Config, Descriptor
from ..results.rows import Row
from ..results.studies import Figure
from ..values import Value


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    ``run(config, seed)``: its metrics; raises :class:`~testbeds.problems.Diverged`, and ValueError for what cannot be
    run. ``check(configs)``: ValueError for the first of an experiment's configurations that cannot run, one being given
    for each problem, format and method; None for a kind that experiments do not name and another one brings along.
    ``takes(problem)``: which problems it is for. ``settings``: what an experiment may set beside problem and methods,
    positive numbers of these types, and must if ``required``. ``methods``: whether it compares some. ``tuned``: whether
    its runs have a learning rate, fixed or tuned; then ``cost`` is the kind that times the methods together.
    ``tuning(problem, method)``: of kinds whose settings can be tuned, by the metric ``score``: those settings, with the
    values to try, and whether the method has a learning rate. ``oracle``: the kind that finds the exact optimum of an
    instance. ``config``, ``metrics``: what tables and figures need of a stored run, ``curve``: whether that is a
    training curve too. ``joined(rows)``: stored rows of all kinds, completed by what this kind knows.

    How stored runs are shown: ``words``: what they are, in a few words. ``table(rows, experiment, reference)``: lines
    of an experiment's table, of a class with a :class:`~testbeds.results.table.Table`; ``reference`` is the method that
    others are compared with, or None for the kind's own choice; ValueError where there is nothing to show.
    ``figures(rows)``: figures of an experiment with a successful run as plain data (:mod:`testbeds.results.studies`).
    ``pictures(experiment, rows)``: figures for files, by default those of ``figures``.
    """

    name: str
    run: Callable[[Config, int], dict[str, Any]]
    check: Callable[[Sequence[Config]], None] | None = None
    takes: Callable[[Descriptor], bool] = lambda problem: True
    settings: Mapping[str, type] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    methods: bool = True
    tuned: bool = False
    tuning: Callable[[Config, str], tuple[Mapping[str, Sequence[Any]], bool]] | None = None
    score: str = ""
    cost: str | None = None
    oracle: str | None = None
    config: Mapping[str, Value] = field(default_factory=dict)
    metrics: Mapping[str, Value] = field(default_factory=dict)
    curve: bool = False
    joined: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]] | None = None
    words: str = ""
    table: Callable[[Sequence[Row], str, str | None], Sequence[Any]] | None = None
    figures: Callable[[Sequence[Row]], Iterable[Figure]] | None = None
    pictures: Callable[[str, Sequence[Row]], Iterable[Picture]] | None = None
