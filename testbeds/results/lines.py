"""Lines of leaderboards picked by what they are, and numbers as the findings write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .leaderboard import Line
from .statistics import Interval, format_interval, format_signed, paired

REGRESSION = ("linear-regression", "linear-regression-quick")
LANGUAGE = ("lm-int4", "lm-quick")

Boards = Mapping[str, Sequence[Any]]
"""Lines of leaderboards by experiment."""


def language(boards: Boards) -> list[Line]:
    """Final lines of the language models, the larger experiment where both are stored; empty without either."""
    return next((final for name in LANGUAGE if (final := final_lines(boards, name))), [])


def regression(boards: Boards) -> list[Line]:
    """Final lines of the linear regression, the larger one where both are stored; empty without either."""
    return next((final for name in REGRESSION if (final := final_lines(boards, name))), [])


def final_lines(boards: Boards, experiment: str) -> list[Line]:
    """Lines of an experiment's final runs, empty where it has none."""
    return [line for line in boards.get(experiment, ()) if isinstance(line, Line) and line.phase == "final"]


def lotion_line(lines: Sequence[Line], format: str, scale: str) -> Line | None:
    """LOTION with this scale and the loss's own curvature: ramped over half of training where that was run."""
    wanted = (f"lotion (ramp=0.5, {scale})", f"lotion (ramp=0, {scale})", f"lotion ({scale})")
    return named(lines, format, *wanted)


def named(lines: Sequence[Line], format: str, *labels: str) -> Line | None:
    """The first of these labels on a format."""
    found = {x.method: x for x in lines if x.format == format}
    return next((found[label] for label in labels if label in found), None)


def command(line: Line) -> str:
    """What makes the rows behind a line."""
    if line.experiment in LANGUAGE:
        return "lotion sweep lm-quick" if line.experiment == "lm-quick" else f"lotion sweep lm --only {line.experiment}"
    preset = "quick" if line.experiment.endswith("-quick") else "paper"
    return f"lotion sweep {preset} --only {line.experiment}"


def three(line: Line) -> str:
    """The three losses, which belong together."""
    return (
        f"RTN {format_interval(line.rtn_loss)}, RR {format_interval(line.rr_loss)}, "
        f"float {format_interval(line.float_loss)}"
    )


def span(found: Interval | None) -> str:
    """A ratio with the ends of its interval, to two places."""
    if found is None:
        return ""
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """Mean of a - b over common seeds with its interval, to three places."""
    return format_signed(paired(a, b).difference)


def ramp_words(line: Line) -> str:
    """Whether a variant of LOTION is ramped, in words."""
    return "ramped over half of training" if "ramp=0.5" in line.method else "no ramp"
