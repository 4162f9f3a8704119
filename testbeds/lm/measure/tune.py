"""Tuning of the learning rate and of LOTION's λ (or another method's weight), with repeats by seed, resumable.

The search is Optuna's: a tree-structured Parzen estimator over the logarithms, its trials kept in a SQLite file. A
trial's value is the mean RTN loss over ``seeds`` runs that differ in initial weights, data order and rounding noise.
"""

from __future__ import annotations

import errno
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lotion_theory import Stream

from ...documents import regular_file
from ...settings import LARGEST_FLOAT, changed, to_dict
from ..loop.config import TrainConfig
from ..loop.folder import locked

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

STUDY = "study.sqlite"
FIRST_SEED = 1000
"""Seeds of tuning runs count from here; those of runs that are compared count from 0."""
LOSSES = ("float", "rtn", "rr")
RANDOM = 5
"""Trials drawn at random before the estimator has enough to go by."""

MOST = 100_000
"""Trials, and seeds of each."""

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

    from ..loop.train import check

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check(replace(config, data=replace(config.data, verify=False)))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), _damage_named(out / STUDY):
        study = _opened(out / STUDY)
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


def _opened(path: Path) -> Study:
    """The search in a file that is made if it is not there; ValueError naming a file that is none."""
    import optuna

    if path.exists():
        regular_file(path)
    try:
        # Optuna wants an address; in a path, percent and question marks would mean something there.
        storage = optuna.storages.RDBStorage(
            "sqlite:///study", engine_kwargs={"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
        )
        study = optuna.create_study(study_name="tune", storage=storage, load_if_exists=True)
        if not isinstance(study.user_attrs.get("search", {}), dict):
            raise LookupError("it lacks the settings of the search")
        for trial in _finished(study):
            _check_trial(trial)
    except Exception as error:  # damage shows as an error of any library below, down to JSON
        if _is_full(error):
            raise OSError(errno.ENOSPC, f"cannot write {path}: the disk is full") from error
        raise ValueError(f"{path} is damaged ({_first_line(error)}): choose another folder") from error
    return study


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """In the block, ValueError or OSError naming ``path`` for what the libraries raise over its file."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OptunaError, SQLAlchemyError, sqlite3.Error) as error:
        if _is_full(error):
            raise OSError(errno.ENOSPC, f"cannot write {path}: the disk is full") from error
        raise ValueError(f"{path} is damaged ({_first_line(error)}): choose another folder") from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
        error = error.__cause__
    return error is not None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _check_trial(trial: FrozenTrial) -> None:
    """LookupError for a finished trial without settings, value, or losses of every seed."""
    losses = trial.user_attrs.get("losses")
    rows = [losses.get(name) for name in LOSSES] if isinstance(losses, dict) else [None]
    fits = all(isinstance(row, list) and row and _numbers(row) for row in rows)
    if not fits or trial.value is None or not math.isfinite(trial.value) or "lr" not in trial.params:
        raise LookupError(f"trial {trial.number} lacks its settings or losses")


def _numbers(values: list[Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in values)


def with_settings(config: TrainConfig, chosen: Mapping[str, float]) -> TrainConfig:
    """``config`` with this learning rate and, if given, this weight."""
    changes: dict[str, Any] = {"optimizer": {"lr": chosen["lr"]}}
    if "weight" in chosen:
        changes["method"] = {"settings": {**config.method.settings, "weight": chosen["weight"]}}
    return changed(config, changes, "tuning")


def _check(config: TrainConfig, trials: int, seeds: int, lr: Range, weight: Range | None) -> None:
    from ..model.quantized import defaults

    for name, count in (("trials", trials), ("seeds", seeds)):
        if not 1 <= count <= MOST:
            raise ValueError(f"{name} = {count}: must lie in 1 to {MOST}")
    for name, bounds in (("lr", lr), ("weight", weight)):
        if bounds is not None and not 0 < bounds[0] < bounds[1] <= LARGEST_FLOAT:
            valid = f"expected the lowest and the highest, positive and at most {LARGEST_FLOAT}"
            raise ValueError(f"{name} = {bounds[0]:g} ... {bounds[1]:g}: {valid}")
    if config.method.name == "none":
        raise ValueError("method = 'none' has no quantized loss to tune by; valid: ptq and the training methods")
    if weight is not None and "weight" not in defaults(config.method.name):
        raise ValueError(f"weight: {config.method.name} has no setting of that name; tune its lr alone")


def _value(config: TrainConfig, out: Path, trial: Trial, seeds: int) -> float:
    """Mean RTN loss over the seeds; the losses are kept with the trial."""
    from ..loop.train import train

    guess = math.log(config.model.vocabulary)
    losses: dict[str, list[float | None]] = {name: [] for name in LOSSES}
    for k in range(seeds):
        run = replace(config, seed=FIRST_SEED + k)
        result = train(run, out / f"{_folder(config)}-seed{run.seed}")
        if result["status"] == "stopped":
            raise Stopped
        for name, values in losses.items():
            values.append(result["metrics"].get(f"{name}_loss"))
    trial.set_user_attr("losses", losses)
    return fmean(guess if loss is None else loss for loss in losses["rtn"])


def _folder(config: TrainConfig) -> str:
    """By its settings, so that an interrupted trial finds its runs again."""
    weight = config.method.settings.get("weight")
    return f"lr{config.optimizer.lr!r}" + ("" if weight is None else f"-weight{weight!r}")


def _same_search(study: Study, wanted: Mapping[str, Any], out: Path) -> None:
    from ...settings import differences

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
    finished = sorted(_finished(study), key=lambda trial: trial.value)
    trials = [{**trial.params, "value": trial.value, **trial.user_attrs["losses"]} for trial in finished]
    best = dict(finished[0].params)
    return Tuned(best, finished[0].value, trials, with_settings(config, best))
