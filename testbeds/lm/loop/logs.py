"""The log of a run: one JSON object per line, and the same numbers to TensorBoard or W&B where asked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lotion_theory.files import write_text

from ...documents import regular_file
from .config import RunConfig

NAME = "log.jsonl"


class Tracker(Protocol):
    """Takes numbers by name at a step."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Store them."""
        ...

    def close(self) -> None:
        """Bring them to the disk."""
        ...


class Log:
    """``log.jsonl`` in ``folder`` (nowhere if None), resumed after ``step``: what an interrupted run wrote beyond its
    last checkpoint is dropped, as those steps are done again. ``entries`` holds all lines."""

    def __init__(self, folder: Path | None, config: RunConfig, step: int = 0) -> None:
        self.entries: list[dict[str, Any]] = []
        self._file, self._path = None, None
        self._trackers: list[Tracker] = []
        if folder is None:
            return
        self._path = folder / NAME
        self.entries = [one for one in read(self._path) if _before(one, step)]
        write_text(self._path, "".join(json.dumps(one) + "\n" for one in self.entries))
        self._file = self._path.open("a", encoding="utf-8")
        if config.tensorboard:
            self._trackers.append(TensorBoard(folder / "tensorboard", step))
        if config.wandb is not None:
            self._trackers.append(Wandb(folder, config.wandb))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line; OSError naming the file if it cannot be written."""
        # JSON has no word for what is not finite.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        entry = {"kind": kind, "step": step, **plain}
        self.entries.append(entry)
        if self._file is not None:
            try:
                self._file.write(json.dumps(entry) + "\n")
                self._file.flush()
            except OSError as error:
                self._abandon()
                raise OSError(error.errno, f"cannot write {self._path}: {error.strerror}") from error
        numbers = {f"{kind}/{k}": float(v) for k, v in values.items() if isinstance(v, int | float)}
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def _abandon(self) -> None:
        """Close the file without its unwritten rest, which closing would try to write again, and fail again."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file and the trackers."""
        for tracker in self._trackers:
            tracker.close()
        if self._file is not None:
            self._file.close()


def _before(entry: Mapping[str, Any], step: int) -> bool:
    # At the step itself only the training line is older than the checkpoint.
    return entry["step"] < step or (entry["step"] == step and entry["kind"] == "train")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off by a crash is left out. Empty without a file.

    Raises ValueError naming file and line for one that no log has.
    """
    try:
        lines = regular_file(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    out = []
    for number, line in enumerate(lines, 1):
        if not line and number == len(lines):
            continue
        try:
            out.append(_entry(line))
        except (ValueError, RecursionError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is damaged ({error}): remove the line") from None
    return out


def _entry(line: bytes) -> dict[str, Any]:
    """A line's object; ValueError for other things."""
    entry = json.loads(line.decode())
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str) or type(entry.get("step")) is not int:
        raise ValueError("no object with a kind and a step")
    return entry


def check_trackers(config: RunConfig) -> None:
    """ImportError saying what to install if a tracker that ``config`` asks for is not there."""
    if config.tensorboard:
        _summary_writer()
    if config.wandb is not None:
        _wandb()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("run.tensorboard needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise ImportError("run.wandb needs Weights & Biases: pip install wandb") from None
    return wandb


class TensorBoard:
    """Event files for TensorBoard; ``step``: earlier values from then on are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = _summary_writer()(str(folder), purge_step=step or None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases; offline unless WANDB_MODE says otherwise, so that nothing leaves the machine unasked."""

    def __init__(self, folder: Path, project: str) -> None:
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = _wandb().init(project=project, dir=str(folder), name=folder.name, mode=mode)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
