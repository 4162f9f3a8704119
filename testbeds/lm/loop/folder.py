"""The folder of a run: held by one process at a time, and its finished result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lotion_theory.files import lock

from ...documents import fault, read_json, unsealed

CONFIG, CHECKPOINTS, RESULT = "config.json", "checkpoints", "result.json"
"""Names in the folder, beside the log's."""


def finished(folder: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in ``folder`` if it is that of exactly this configuration.

    Raises ValueError naming the file if it is no result.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        result = unsealed(read_json(path))
        if result["config"] != json.loads(json.dumps(config)):
            return None
        _check_result(result)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({fault(error)}): remove it") from None
    return result


def _check_result(result: Mapping[str, Any]) -> None:
    """ValueError, KeyError or TypeError for what is no result of training."""
    if result["status"] not in ("ok", "diverged"):
        raise ValueError(f"status = {result['status']!r}")
    counts = [result[name] for name in ("step", "tokens", "quantized_parameters", "memory_bytes")]
    counts += [result["parameters"][name] for name in ("total", "blocks")]
    if any(type(count) is not int or count < 0 for count in counts):
        raise ValueError("a count is no whole number")
    speeds = [result[name] for name in ("tokens_per_second", "mfu") if result[name] is not None]
    curve = [value for values in result["curve"].values() for value in values if value is not None]
    numbers = [*speeds, result["train_seconds"], *result["metrics"].values(), *curve]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise ValueError("a measured value is no number")
    for name in ("float", "rtn", "rr"):
        if f"{name}_loss" in result["metrics"]:
            wanted = {f"{name}_{key}" for key in ("standard_error", "perplexity", "perplexity_low", "perplexity_high")}
            if not wanted <= result["metrics"].keys():
                raise ValueError(f"no {', '.join(sorted(wanted - result['metrics'].keys()))}")


def locked(folder: Path) -> AbstractContextManager[None]:
    """Hold ``folder`` for this process, see :func:`lotion_theory.files.lock`."""
    return lock(folder / "lock", f"another process is training in {folder}")
