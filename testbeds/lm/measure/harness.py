"""Downstream metrics by lm-evaluation-harness: one model as floats, cast to nearest (RTN), and randomly rounded (RR).

Tasks are YAML files of the harness. Every task is asked with the same documents and the same order for each of the
weights, so differences to the float model are paired by document.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...documents import regular_file
from ...machine import code_version, machine
from ..loop.distributed import device_named
from ..loop.evaluate import estimate, estimate_crossed
from ..loop.opened import Opened, open_run
from ..text.tokenizer import Bytes, Tokenizer, tokenizer
from .harness_model import language_model
from .task_files import check_task_file, sandboxed

TASKS = Path(__file__).with_name("tasks")
PACKAGED = ("sotu_words", "sotu_perplexity")
"""Tasks that come with the package."""
SEED = 1234
"""Of the examples that a task puts before its questions; the harness's own default."""
WEIGHTED = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics of the harness made of sums of log-likelihoods over sums of words or bytes."""


def evaluate_run(
    run: Path,
    tasks: Sequence[str] = PACKAGED,
    samples: int = 2,
    limit: int | None = None,
    tokenizer_file: str | None = None,
    batch: int = 16,
    device: str = "auto",
    fall_back: bool = False,
    progress: Callable[[str], None] | None = None,
    allow_code: bool = False,
) -> dict[str, Any]:
    """The metrics of a run's newest checkpoint, as plain data.

    Args:
        run: folder made by ``lotion train``.
        tasks: YAML files of the harness, whose relative ``data_files`` start from their own folder; names of packaged
            tasks; or names of the harness's own tasks, whose data it downloads.
        samples: randomized roundings, at least 2, of the seed and streams of the trainer's evaluation.
        limit: the first so many documents of each task only.
        tokenizer_file: where the run's tokenizer is; needed unless it is bytes or lies beside the token files.
        batch: sequences at a time.
        progress: is called with a few words before each of the weights.
        allow_code: whether task files may run Python code (``!function``, and templates that reach for it).

    Returns ``tasks``: by task ``documents``, ``samples``, and ``metrics``: by name ``float``, ``rtn``, ``rr`` (the mean
    over roundings), their ``rtn_difference`` and ``rr_difference`` to float, each with ``..._standard_error`` (None
    where a metric is no mean over documents and no perplexity; those of perplexities are linearized). RTN and RR are
    left out for plain training. Beside it ``run``, ``step``, ``method``, ``format``, ``harness`` (version), ``machine``
    and ``version``.

    Raises ImportError without the harness, FileNotFoundError and ValueError naming the task, run or file at fault.
    """
    if samples < 2:
        raise ValueError(f"samples = {samples}: must be at least 2")
    version = _harness()
    opened = open_run(run, fall_back)
    encoder = tokenizer_of(opened, tokenizer_file)
    loaded = load_tasks(tasks, allow_code)
    place = device_named(device)
    opened.model.to(place).eval()
    narrow = opened.config.run.precision == "bfloat16"
    model = language_model(
        opened.model, encoder, batch, (lambda: torch.autocast(place.type, torch.bfloat16)) if narrow else None
    )
    answers: dict[str, list[Any]] = {}
    casts = _casts(opened, samples)
    for number, (kind, weights) in enumerate(casts, 1):
        if progress is not None:
            progress(f"{kind} weights, {number} of {len(casts)}")
        with weights:
            answers.setdefault(kind, []).append(_asked(model, loaded, limit, allow_code))
    return {
        "run": str(run), "step": opened.step, "method": opened.config.method.name,
        "format": opened.config.method.format if opened.casting is not None else None,
        "tasks": {task: _compared(task, answers) for task in answers["float"][0]},
        "harness": version, "machine": machine(), "version": code_version(),
    }  # fmt: skip


def tokenizer_of(opened: Opened, file: str | None = None) -> Tokenizer:
    """The tokenizer that made the run's tokens: bytes, ``file``, or ``tokenizer.json`` beside the token files.

    Raises FileNotFoundError if it is not there, and ValueError for another one.
    """
    name = opened.facts.get("tokenizer", Bytes.name)
    if name == Bytes.name:
        return Bytes()
    beside = Path(opened.config.data.tokens) / "tokenizer.json"
    if file is None and not beside.is_file():
        raise FileNotFoundError(f"the run's tokens were made by tokenizer {name}, not at {beside}: give --tokenizer")
    made = tokenizer(file or str(beside))
    if made.name != name:
        raise ValueError(f"{file or beside} is tokenizer {made.name}, but the run's tokens were made by {name}")
    return made


def load_tasks(tasks: Sequence[str], allow_code: bool = False) -> dict[str, dict[str, Any]]:
    """What the harness's task manager makes of tasks: ``tasks``, ``groups`` and ``group_map``.

    Raises FileNotFoundError or ValueError naming a task that there is not, is broken, or would run code of its own
    without ``allow_code``.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    if not tasks:
        raise ValueError(f"no tasks; valid: YAML files, {', '.join(PACKAGED)}, and names of the harness")
    files = {name: _file(name) for name in tasks}
    # Looking for the harness's own tasks takes seconds.
    manager = TaskManager(include_defaults=any(file is None for file in files.values()))
    out: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name, file in files.items():
        try:
            if file is not None and not allow_code:
                check_task_file(file, (TASKS, Path(lm_eval.__file__).parent))
            # Paths of data are relative to the task's file.
            with contextlib.chdir(file.parent if file is not None else "."), sandboxed(not allow_code):
                loaded = manager.load([name if file is None else str(file)])
            for part, known in out.items():
                known.update(loaded[part])
        except KeyError:
            valid = f"a YAML file, {', '.join(PACKAGED)}, or a name that lm-evaluation-harness knows"
            raise ValueError(f"task {name!r} is not known; valid: {valid}") from None
        except Exception as error:  # YAML, templates and data sets raise errors of many kinds
            raise ValueError(f"task {name!r} cannot be loaded: {error}") from error
    return out


def _file(name: str) -> Path | None:
    """The YAML file behind a task; None for a name of the harness."""
    if name in PACKAGED:
        return TASKS / f"{name}.yaml"
    if not name.endswith((".yaml", ".yml")):
        return None
    try:
        return regular_file(Path(name).resolve())
    except FileNotFoundError:
        raise FileNotFoundError(f"task {name!r}: no such file") from None


def _harness() -> str:
    """The harness's version, and silence about what is not wrong."""
    try:
        import lm_eval
    except ImportError as error:
        raise ImportError(f"downstream tasks need {error.name}: pip install 'lotion-theory[harness]'") from None
    from importlib.metadata import version

    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)
    return version("lm_eval")


def _casts(opened: Opened, samples: int) -> list[tuple[str, AbstractContextManager[None]]]:
    """What each of the weights are called, and the block within which the model holds them."""
    casting, seed = opened.casting, opened.config.evaluation.seed
    plain = ("float", contextlib.nullcontext())
    if casting is None:
        return [plain]
    changes = [("rtn", casting.nearest), *(("rr", casting.rounding(seed, sample)) for sample in range(samples))]
    return [plain, *((kind, casting.cast(opened.model, change)) for kind, change in changes)]


class Answers(NamedTuple):
    """Of one task and metric: ``value`` as the harness reports it, and ``parts``, one per document, whose mean's
    standard error is that of the value; None where it is no such metric."""

    value: float
    parts: np.ndarray | None


def _asked(
    model: Any, tasks: dict[str, dict[str, Any]], limit: int | None, allow_code: bool
) -> dict[str, dict[str, Answers]]:
    """Answers by task and metric; ValueError for tasks that cannot be asked."""
    from lm_eval.evaluator import evaluate

    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        # The same examples for each of the weights.
        task.set_fewshot_seed(seed=SEED)
    try:
        with sandboxed(not allow_code):
            reported = evaluate(model, tasks, limit=limit, bootstrap_iters=0)
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # templates and metrics of tasks raise errors of many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"the tasks cannot be asked: {type(error).__name__}: {reason}") from error
    assert reported is not None, "of one process the harness returns results"
    out: dict[str, dict[str, Answers]] = {}
    for task, values in reported["results"].items():
        documents = reported["samples"].get(task, [])
        out[task] = {}
        for key, value in values.items():
            name, _, filter_name = key.partition(",")
            if not filter_name or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            chosen = [one for one in documents if one.get("filter", "none") == filter_name and name in one]
            label = name if filter_name == "none" else f"{name} ({filter_name})"
            out[task][label] = Answers(float(value), parts(name, float(value), [one[name] for one in chosen]))
    return out


def parts(metric: str, value: float, answers: Sequence[Any]) -> np.ndarray | None:
    """One number per document with mean ``value``, whose spread gives the metric's standard error.

    For means the documents' own values. For ``exp(-Σ log-likelihood / Σ weight)`` and ``bits_per_byte`` the
    linearization in the two sums. None for other metrics, and for fewer than two documents.
    """
    if len(answers) < 2:
        return None
    array = np.array(answers, float) if all(np.ndim(a) == np.ndim(answers[0]) for a in answers) else np.zeros(0)
    if metric in WEIGHTED and array.ndim == 2 and array.shape[1] == 2:
        weight = array[:, 1].mean()
        loss = -array[:, 0].sum() / array[:, 1].sum()
        slope = 1 / math.log(2) if metric == "bits_per_byte" else value
        return value + slope * (-array[:, 0] - loss * array[:, 1]) / weight
    if array.ndim == 1 and len(array) and math.isclose(array.mean(), value, rel_tol=1e-9, abs_tol=1e-12):
        return array
    return None


def _compared(task: str, by_weights: dict[str, list[dict[str, dict[str, Answers]]]]) -> dict[str, Any]:
    """The metrics of one task side by side."""
    plain = by_weights["float"][0][task]
    rows: dict[str, dict[str, float | None]] = {}
    size = 0
    for metric, one in plain.items():
        row: dict[str, float | None] = {}
        rows[metric] = row
        for kind, results in by_weights.items():
            answers = [result[task][metric] for result in results]
            values = np.array([answer.value for answer in answers])
            every = [answer.parts for answer in answers]
            row |= {kind: float(values.mean()), f"{kind}_standard_error": _standard_error(every)}
            if kind != "float":
                difference = f"{kind}_difference"
                row |= {difference: float(values.mean() - one.value)}
                row |= {f"{difference}_standard_error": _standard_error(every, one.parts)}
        size = size if one.parts is None else len(one.parts)
    return {"documents": size, "samples": len(by_weights.get("rr", ())), "metrics": rows}


def _standard_error(every: list[np.ndarray | None], base: np.ndarray | None = None) -> float | None:
    """Of the mean over roundings and documents of ``every`` (minus ``base``)."""
    known = [one for one in every if one is not None]
    if len(known) < len(every):
        return None
    table = np.stack(known) - (0 if base is None else base)
    return (estimate_crossed(table) if len(table) > 1 else estimate(table[0])).standard_error
