"""Tuning of the learning rate and of LOTION's λ (or another method's weight), with repeats by seed, resumable.

The search is Optuna's: a tree-structured Parzen estimator over the logarithms, its trials kept in a SQLite file. A
trial's value is the mean RTN loss over ``seeds`` runs that differ in initial weights, data order and rounding noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lotion_theory import Stream

from .config import TrainConfig
from .results import locked
from .settings import changed, to_dict

if TYPE_CHECKING:
    from optuna import Study, Trial

STUDY = "study.sqlite"
FIRST_SEED = 1000
"""Seeds of tuning runs count from here; those of runs that are compared count from 0."""
RANDOM = 5
"""Trials drawn at random before the estimator has enough to go by."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Tuned:
    """``best``: settings of the trial with the lowest mean RTN loss, ``value``: that loss; ``trials``: of each finished
    one its settings, value, and losses by seed, best first; ``config``: the run with the best settings."""

    best: Mapping[str, float]
    value: float
    trials: list[dict[str, Any]]
    config: TrainConfig


class Stopped(Exception):
    """A signal ended a run; everything finished is stored."""


def tune(
    config: TrainConfig,
    out: Path,
    trials: int,
    seeds: int = 2,
    lr: Range = (3e-4, 3e-2),
    weight: Range | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Tuned:
    """Tune ``config`` until ``out`` holds ``trials`` finished trials of ``seeds`` runs each.

    ``lr``, ``weight``: lowest and highest value; ``weight`` only for methods with a setting of that name (λ of lotion
    and of cage), None to leave it. A run that diverges counts as the loss of guessing evenly. Started again with the
    same settings and folder, it goes on with the trial that was interrupted, from that run's checkpoint. ``progress``
    is called with finished trials, all, and a few words.

    Raises ValueError for a range or method that does not fit, or a folder with another search; :class:`Stopped`
    where a signal ended a run; ImportError without Optuna.
    """
    _check(config, trials, seeds, lr, weight)
    import optuna

    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name="tune", storage=f"sqlite:///{out / STUDY}", load_if_exists=True,
        )  # fmt: skip
        _same_search(study, {"config": to_dict(config), "seeds": seeds, "lr": list(lr),
                             "weight": None if weight is None else list(weight)}, out)  # fmt: skip
        _take_back(study)
        while (done := len(_finished(study))) < trials:
            # Seeded by the number of finished trials, so that an interruption changes no later suggestion.
            seed = int(Stream(config.seed, "lm/tune").numpy_generator(done).integers(2**31))
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM)
            trial = study.ask()
            chosen = {"lr": trial.suggest_float("lr", *lr, log=True)}
            if weight is not None:
                chosen["weight"] = trial.suggest_float("weight", *weight, log=True)
            if progress is not None:
                progress(done, trials, ", ".join(f"{name}={value:.3g}" for name, value in chosen.items()))
            study.tell(trial, _value(with_settings(config, chosen), out, trial, seeds))
        if progress is not None:
            progress(trials, trials, "done")
        return _result(study, config)


def with_settings(config: TrainConfig, chosen: Mapping[str, float]) -> TrainConfig:
    """``config`` with this learning rate and, if given, this weight."""
    changes: dict[str, Any] = {"optimizer": {"lr": chosen["lr"]}}
    if "weight" in chosen:
        changes["method"] = {"settings": {**config.method.settings, "weight": chosen["weight"]}}
    return changed(config, changes, "tuning")


def _check(config: TrainConfig, trials: int, seeds: int, lr: Range, weight: Range | None) -> None:
    from .quantized import defaults

    for name, count in (("trials", trials), ("seeds", seeds)):
        if count < 1:
            raise ValueError(f"{name} = {count}: must be at least 1")
    for name, bounds in (("lr", lr), ("weight", weight)):
        if bounds is not None and not 0 < bounds[0] < bounds[1]:
            raise ValueError(f"{name} = {bounds[0]:g} ... {bounds[1]:g}: expected the lowest and the highest, positive")
    if config.method.name == "none":
        raise ValueError("method = 'none' has no quantized loss to tune by; valid: ptq and the training methods")
    if weight is not None and "weight" not in defaults(config.method.name):
        raise ValueError(f"weight: {config.method.name} has no setting of that name; tune its lr alone")


def _value(config: TrainConfig, out: Path, trial: Trial, seeds: int) -> float:
    """Mean RTN loss over the seeds; the losses are kept with the trial."""
    from .train import train

    guess = math.log(config.model.vocabulary)
    losses: dict[str, list[float | None]] = {"float": [], "rtn": [], "rr": []}
    for k in range(seeds):
        run = replace(config, seed=FIRST_SEED + k)
        result = train(run, out / f"{_folder(config)}-seed{run.seed}")
        if result["status"] == "stopped":
            raise Stopped
        for name, found in losses.items():
            found.append(result["metrics"].get(f"{name}_loss"))
    trial.set_user_attr("losses", losses)
    return fmean(guess if loss is None else loss for loss in losses["rtn"])


def _folder(config: TrainConfig) -> str:
    """By its settings, so that an interrupted trial finds its runs again."""
    weight = config.method.settings.get("weight")
    return f"lr{config.optimizer.lr!r}" + ("" if weight is None else f"-weight{weight!r}")


def _same_search(study: Study, wanted: Mapping[str, Any], out: Path) -> None:
    from .settings import differences

    stored = study.user_attrs.get("search")
    if stored is None:
        study.set_user_attr("search", dict(wanted))
        return
    unlike = differences(stored, wanted)
    if unlike:
        raise ValueError(f"{out} holds another search ({'; '.join(unlike)}): choose another folder")


def _take_back(study: Study) -> None:
    """Try again what an interruption left unfinished; the lock on the folder says that nobody works on it."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if trial.params:
            study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def _finished(study: Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=(TrialState.COMPLETE,))


def _result(study: Study, config: TrainConfig) -> Tuned:
    found = sorted(_finished(study), key=lambda trial: trial.value)
    trials = [{**trial.params, "value": trial.value, **trial.user_attrs["losses"]} for trial in found]
    best = dict(found[0].params)
    return Tuned(best, found[0].value, trials, with_settings(config, best))
