"""The text of ``summary.md``: verdicts, counterexamples and losses of real layers as Markdown."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import numpy as np

from lotion_theory.theory.verification import Row, summary, surprises

PROMISES = ("unbiased", "continuous", "support fixed")


def summary_text(
    rows: list[Row], real: list[Row], losses: list[dict[str, Any]], figures: list[str], absent: str, name: str
) -> str:
    """The summary of a run into a folder called ``name``.

    ``rows``: the claims on formats; ``real``: those on trained weights, with ``losses`` the table behind them, or
    ``absent``, the reason why they were not run; ``figures``: paths relative to the folder, of which PNGs are shown.
    """
    wrong = surprises(rows) + surprises(real)
    lines = [
        "# Verdicts",
        "",
        f"Made by `lotion reproduce --preset quick --out {name}`: {len(rows)} rows of evidence over the formats, "
        f"{sum(r.checked for r in rows):,} cases; {len(wrong)} against expectation. "
        f"Python {platform.python_version()}, numpy {version('numpy')}, scipy {version('scipy')}, "
        f"sympy {version('sympy')}, {platform.machine()}.",
        "",
    ]
    if wrong:
        lines += ["## Against expectation", ""]
        lines += [
            f"- {r.format} {r.claim} {r.title}: {r.verdict}, expected {r.expected}. {r.counterexample}" for r in wrong
        ]
        lines.append("")
    lines += _promises(rows)
    lines += ["", "## Trained weights", ""]
    if absent:
        lines += [f"Not run: {absent}", ""]
    if real:
        lines += _trained(real, losses)
    lines += ["", "## Figures", "", *(f"![{path}]({path})" for path in figures if path.endswith(".png")), ""]
    return "\n".join(lines)


def _promises(rows: list[Row]) -> list[str]:
    lines = [
        "## Which formats keep the promises",
        "",
        "| format | unbiased | continuous | support fixed | simplest counterexample |",
        "|---|---|---|---|---|",
    ]
    for line in summary(rows):
        shown = "; ".join(f"{c}: {line[f'{c}: counterexample']}" for c in PROMISES if f"{c}: counterexample" in line)
        lines.append(f"| {' | '.join([line['format'], *(line.get(c, '') for c in PROMISES), shown])} |")
    return lines


def _trained(real: list[Row], losses: list[dict[str, Any]]) -> list[str]:
    failed = [r for r in real if r.verdict == "fails"]
    weights = sum(r.checked for r in real if r.claim in ("C1", "C4"))
    wrong = surprises(real)
    found = (
        f"{len(wrong)} against expectation."
        if wrong
        else f"{weights:,} weights; {len(failed)} rows fail, all in formats that make no such promise."
    )
    return [
        f"{len(real)} rows on all-MiniLM-L6-v2, {found}",
        "",
        "Reconstruction loss over the layer's output power, geometric mean over layers:",
        "",
        "| format | RTN | RR | conditional expectation | noise ratio RR/RTN |",
        "|---|---|---|---|---|",
        *(
            f"| {n} | {a:.3g} | {b:.3g} | {'' if c is None else f'{c:.3g}'} | {d:.2f} |"
            for n, a, b, c, d in layer_means(losses)
        ),
    ]


def layer_means(losses: list[dict[str, Any]]) -> list[tuple[str, float, float, float | None, float]]:
    """Per format: relative losses of RTN, RR and conditional expectation, and the noise ratio; geometric means.

    The third is None where a format has no conditional-expectation rounding.
    """
    table = []
    for name in dict.fromkeys(r["format"] for r in losses):
        found = [r for r in losses if r["format"] == name]
        partial = any(r["conditional_relative"] is None for r in found)
        table.append(
            (
                name,
                _geometric_mean(found, "rtn_relative"),
                _geometric_mean(found, "rr_relative"),
                None if partial else _geometric_mean(found, "conditional_relative"),
                _geometric_mean(found, "rr_over_rtn_diagonal"),
            )
        )
    return table


def _geometric_mean(lines: list[dict[str, Any]], key: str) -> float:
    return float(np.exp(np.mean(np.log([line[key] for line in lines]))))
