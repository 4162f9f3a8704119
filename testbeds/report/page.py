"""The page: data from the sources, put into one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from lotion_theory.files import write_text

from ..machine import code_version
from ..results.findings import findings
from ..text.summary import layer_means
from .benchmarks import tables
from .boards import all_lines, experiments
from .curves import training_curves
from .language import split, without
from .lattices import books
from .paper import claims
from .sources import Material, Sources, distinct, read
from .studies import figures
from .verdicts import matrix

SCRIPTS = ("math", "dom", "export", "scales", "chart", "dots", "heat", "table", "verdicts", "line", "plane", "boards",
           "pages")  # fmt: skip
STYLES = ("base", "parts")
LIMIT = 8_000_000
"""Bytes above which the page is refused: browsers on phones give up on larger ones."""


def write_report(sources: Sources, out: Path) -> Path:
    """Write the page to ``out`` and return it; errors as :func:`report`, before anything is written."""
    text = report(sources)
    write_text(out, text)
    return out


def report(sources: Sources) -> str:
    """The page as text.

    Raises FileNotFoundError and ValueError for sources that cannot be read (:func:`testbeds.report.sources.read`) and
    ImportError without Jinja2.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise ImportError("the report needs Jinja2: pip install 'lotion-theory[report]'") from None
    data = page_data(read(sources))
    folder = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string((folder / "templates" / "page.html").read_text(encoding="utf-8")).render(
        **{k: data[k] for k in ("about", "findings", "paper", "missing")},
        data=_script(data),
        styles="\n".join((folder / "assets" / f"{name}.css").read_text(encoding="utf-8") for name in STYLES),
        scripts="\n".join((folder / "assets" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS),
    )
    if (size := len(text.encode())) > LIMIT:
        raise ValueError(f"the page would take {size / 1e6:.1f} MB; valid: at most {LIMIT / 1e6:g}; name fewer stores")
    return text


def page_data(found: Material) -> dict[str, Any]:
    """Everything the page shows, as JSON values; missing sources have a sentence under ``missing``."""
    language, others = split(found.rows)
    lines = all_lines(others)
    boards = experiments(without(found, others), lines)
    told = all_lines(language)
    spoken = experiments(without(found, language), told)
    tables_of = {name: lines for name, (lines, _) in {**lines, **told}.items()}
    data = {
        "about": _about(found),
        "findings": [
            {**asdict(one), "headline": one.headline}
            for one in findings(found.verify, found.real_losses, found.rows, tables_of)
        ],
        "verdicts": matrix(found.verify, "lotion verify --formats {format} --claims {claim}") if found.verify else None,
        "trained": matrix(found.real, "lotion reproduce") if found.real else None,
        "layers": [list(line) for line in layer_means(found.real_losses)] if found.real_losses else [],
        "books": books(),
        "boards": boards,
        "curves": training_curves(others),
        "figures": figures(others),
        "language": {"boards": spoken, "curves": training_curves(language, every=True)},
        "paper": claims(found.verify, tables_of),
        "benchmarks": tables(found.benchmarks),
        "missing": _missing(found, boards, spoken),
    }
    return _clean(data)


def _about(found: Material) -> dict[str, Any]:
    rows = found.rows
    dates = distinct([*(r["finished"][:10] for r in rows if r.get("finished")), found.summary.get("date")])
    return {
        "made": str(datetime.date.today()),
        "code": code_version(),
        "dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "none stored",
        "machines": distinct([*(r.get("machine") for r in rows), found.summary.get("machine")]),
        "versions": distinct(r.get("version") for r in rows),
        "libraries": {
            "Python": found.summary.get("python"), "numpy": found.summary.get("numpy"),
        } if found.summary else {},
        "runs": len(rows),
        "experiments": len({r["experiment"] for r in rows}),
        "verdicts": len(found.verify) + len(found.real),
    }  # fmt: skip


def _missing(found: Material, boards: list[Any], spoken: list[Any]) -> dict[str, str]:
    sentences = {
        "verdicts": (found.verify, "No verdicts stored: lotion verify or lotion reproduce writes them (--theory)."),
        "trained": (found.real, "No rows on trained weights stored: lotion reproduce writes them."),
        "boards": (boards, "No experiments stored: lotion sweep quick makes them (--store)."),
        "language": (spoken, "No language-model rows stored."),
        "benchmarks": (found.benchmarks, "No benchmarks stored: python3 bootstrap.py bench measures them."),
    }
    return {name: sentence for name, (value, sentence) in sentences.items() if not value}


def _script(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _clean(value: Any) -> Any:
    """Plain JSON values; what is not finite, which JSON cannot say, as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return value
