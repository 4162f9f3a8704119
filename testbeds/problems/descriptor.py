"""What a problem tells of itself to those who run experiments on it: its descriptor, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lotion_theory.rounders import Case

    from ..quantizing.networks import Network
    from .base import TrainingProblem

Config = Mapping[str, Any]
"""A run's configuration, plain data: problem, format, method, and what else its kind needs."""


class Diverged(Exception):
    """Raised by a run whose numbers left the finite range: an answer about the method, not an error of the program.

    ``metrics``: what is known nevertheless, kept with the run.
    """

    def __init__(self, message: str = "", metrics: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.metrics = dict(metrics or {})


@dataclass(frozen=True)
class Trainer:
    """How a problem is trained in experiments.

    ``train(config, seed)``: the metrics of one run; raises :class:`Diverged`. ``seconds_per_step(config, seed)``: over
    ``config["steps"]`` steps. ``tuning(method)``: settings of a method that are tuned, with the values to try.
    ``rated(method)``: whether it has a learning rate. ``check(configs)``: ValueError for the first of an experiment's
    configurations that cannot run. ``timed_steps``: as many tell what a step costs.
    """

    train: Callable[[Config, int], dict[str, Any]]
    seconds_per_step: Callable[[Config, int], float]
    tuning: Callable[[str], Mapping[str, Sequence[Any]]]
    check: Callable[[Sequence[Config]], None]
    rated: Callable[[str], bool] = lambda method: True
    timed_steps: int = 300


@dataclass(frozen=True)
class Descriptor:
    """What a problem offers to experiments; None for what it does not.

    ``make(**settings, seed=seed)``: an instance to train by :mod:`testbeds.descent` and to study. ``trainer``: how it
    is trained where that is not descent on an instance. ``case(settings, format, seed)``: an instance to round, with
    ``check_case(settings)``, ValueError, in place of making one where that takes files or long. ``network(settings,
    seed)``: a trained network to quantize as a whole, with ``check_network(settings)``. ``language``: its losses are
    nats per token of text. ``pretrained``: it reads published weights. ``needs``: modules that a run imports, each with
    what to ask pip for.
    """

    name: str
    make: Callable[..., TrainingProblem] | None = None
    trainer: Trainer | None = None
    case: Callable[[Config, str, int], Case] | None = None
    check_case: Callable[[Config], None] | None = None
    network: Callable[[Config, int], Network] | None = None
    check_network: Callable[[Config], Any] | None = None
    language: bool = False
    pretrained: bool = False
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether it can be trained."""
        return self.make is not None or self.trainer is not None
