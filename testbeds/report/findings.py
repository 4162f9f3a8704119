"""What the rows say, in sentences: every number in them is computed from the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lotion_theory.verification import NO_FORMAT, Row, summary, surprises

from ..results.leaderboard import Line
from ..results.statistics import format_ends, format_interval
from ..text.summary import PROMISES
from .boards import Boards
from .studies import formats

Finding = dict[str, str]
REGRESSION = ("linear-regression", "linear-regression-quick")


LANGUAGE = ("lm-int4", "lm-quick")


def findings(verify: Sequence[Row], rows: Sequence[dict[str, Any]], boards: Boards, spoken: Boards) -> list[Finding]:
    """``text`` and the ``command`` that makes its rows; only what is stored is said. ``spoken``: of language models."""
    out = []
    if verify:
        out += _theory(list(verify))
    board = regression(boards)
    if board:
        out += _training(board)
    out += _int2(rows)
    out += _spoken(language(spoken))
    return out


def language(boards: Boards) -> list[Line]:
    """Final lines of the language models, the larger experiment where both are stored; empty without either."""
    return next((final for name in LANGUAGE if (final := final_lines(boards, name))), [])


def regression(boards: Boards) -> list[Line]:
    """Final lines of the linear regression, the larger one where both are stored; empty without either."""
    return next((final for name in REGRESSION if (final := final_lines(boards, name))), [])


def final_lines(boards: Boards, experiment: str) -> list[Line]:
    """Lines of an experiment's final runs, empty where it has none."""
    lines, _ = boards.get(experiment, ([], []))
    return [line for line in lines if isinstance(line, Line) and line.phase == "final"]


def lotion_line(lines: Sequence[Line], format: str, scale: str) -> Line | None:
    """LOTION with this scale, without a ramp and with the loss's own curvature, as labels have it."""
    wanted = (f"lotion (ramp=0, {scale})", f"lotion ({scale})")
    return next((x for x in lines if x.format == format and x.method in wanted), None)


def named(lines: Sequence[Line], format: str, *labels: str) -> Line | None:
    """The first of these labels on a format."""
    found = {x.method: x for x in lines if x.format == format}
    return next((found[label] for label in labels if label in found), None)


def command(line: Line) -> str:
    if line.experiment in LANGUAGE:
        return "lotion sweep lm-quick" if line.experiment == "lm-quick" else f"lotion sweep lm --only {line.experiment}"
    preset = "quick" if line.experiment.endswith("-quick") else "paper"
    return f"lotion sweep {preset} --only {line.experiment}"


def _theory(verify: list[Row]) -> list[Finding]:
    wrong = len(surprises(verify))
    table = summary(verify)
    kept = sum(all(line.get(p) == "yes" for p in PROMISES) for line in table)
    count = len({r.format for r in verify} - {NO_FORMAT})
    out = [{
        "text": f"{len(verify):,} rows of evidence from {sum(r.checked for r in verify):,} cases: {wrong} against "
        "what the theory predicts, predicted failures included.",
        "command": "lotion verify",
    }]  # fmt: skip
    if any(p in line for line in table for p in PROMISES):
        out.append({
            "text": f"{kept} of {count} number formats keep all three promises: rounding is unbiased, its law "
            "continuous, and quantized points stay where they are. For the others a counterexample is stored.",
            "command": "lotion verify --claims C1 C4 C6",
        })  # fmt: skip
    return out


def _training(board: Sequence[Line]) -> list[Finding]:
    out = []
    attached, detached = (lotion_line(board, "int4", scale) for scale in ("attached", "detached"))
    ptq = named(board, "int4", "ptq")
    if attached is not None and attached.over_reference is not None:
        out.append({
            "text": f"Linear regression at INT4 ({attached.problem}, {attached.seeds} seeds): LOTION with the gradient "
            f"through the moving scale, no ramp, ends at {format_ends(attached.over_reference)} times the RTN loss of "
            f"quantization-aware training. Losses: {_three(attached)}.",
            "command": command(attached),
        })  # fmt: skip
    if detached is not None and detached.over_reference is not None and ptq is not None:
        out.append({
            "text": f"Without that gradient (detached scale) it ends at {format_ends(detached.over_reference)} times "
            f"that of quantization-aware training, rounding the float optimum (PTQ) at "
            f"{format_ends(ptq.over_reference)}. Losses: {_three(detached)}.",
            "command": command(detached),
        })  # fmt: skip
    ours = {x.method for x in (attached, detached) if x is not None}
    rivals = [x for x in board if x.format == "int4" and not x.method.startswith("lotion") and x.rtn_loss is not None]
    if attached is not None and attached.rtn_loss is not None and rivals and ours:
        best = min(rivals, key=lambda x: x.rtn_loss.value if x.rtn_loss else 0.0)
        out.append({
            "text": f"The best other method there is {best.method}: {_three(best)}.",
            "command": command(best),
        })  # fmt: skip
    return out


def _spoken(board: Sequence[Line]) -> list[Finding]:
    format = board[0].format if board else ""
    attached = lotion_line(board, format, "attached")
    qat, ptq = named(board, format, "qat"), named(board, format, "ptq")
    if attached is None or qat is None or ptq is None:
        return []
    lines = "; ".join(f"{name} {_three(line)}" for name, line in (("LOTION", attached), ("QAT", qat), ("PTQ", ptq)))
    return [{
        "text": f"Small language model at {format.upper()}, equal steps, {attached.seeds} seeds, attached scale, no "
        f"ramp: {lines}.",
        "command": command(attached),
    }]  # fmt: skip


def _int2(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    if not any(r["experiment"] == "formats" and r["phase"] == "final" for r in rows):
        return []
    table = {f: (best, found) for f, best, found in formats(
        rows, "formats", "lotion (attached)", lambda label: not label.startswith("lotion"))}  # fmt: skip
    if "int2" not in table or table["int2"][1] is None:
        return []
    best, found = table["int2"]
    better = sum(f is not None and f.high is not None and f.high < 1 for _, f in table.values())
    worse = [name for name, (_, f) in table.items() if f is not None and f.low is not None and f.low > 1]
    return [{
        "text": f"Over {len(table)} formats and block sizes LOTION (attached, no ramp) has a lower RTN loss than the "
        f"best other method on {better}, by intervals that exclude 1; a higher one on {len(worse)}"
        + (f" ({', '.join(worse)})" if worse else "")
        + f". At INT2 with one scale it is {format_ends(found)} times that of {best}.",
        "command": "lotion sweep paper --only formats",
    }]  # fmt: skip


def _three(line: Line) -> str:
    return (
        f"RTN {format_interval(line.rtn_loss)}, RR {format_interval(line.rr_loss)}, "
        f"float {format_interval(line.float_loss)}"
    )
