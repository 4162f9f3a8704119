"""Runs as a small compressed file that can be kept beside the code: one JSON object per line, packed with xz."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lotion_theory.files import whole_file

SUFFIX = ".jsonl.xz"
_DIGITS = 6


def write_archive(rows: Iterable[dict[str, Any]], path: Path | str) -> None:
    """Write rows in their order. Curves are kept for final runs only, and rounded to six digits."""
    lines = (json.dumps(_lean(row), sort_keys=True, ensure_ascii=False) + "\n" for row in rows)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as part:
        part.write_bytes(lzma.compress("".join(lines).encode(), preset=6))


def read_archive(path: Path | str) -> list[dict[str, Any]]:
    """Rows written by :func:`write_archive`; ValueError naming a file that is none."""
    try:
        text = lzma.decompress(Path(path).read_bytes()).decode()
        return [json.loads(line) for line in text.splitlines()]
    except (lzma.LZMAError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not an archive of runs ({error})") from None


def _lean(row: dict[str, Any]) -> dict[str, Any]:
    metrics = dict(row["metrics"])
    curve = metrics.pop("curve", None)
    if curve is not None and row["phase"] == "final":
        metrics["curve"] = {name: [_rounded(v) for v in values] for name, values in curve.items()}
    return {**row, "metrics": metrics}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
