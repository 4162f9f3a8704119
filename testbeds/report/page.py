"""The page: data from the sources, put into one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from lotion_theory.files import write_text

from ..machine import code_version
from ..results.findings import findings
from .contents import Contents
from .section import Section
from .sources import Material, Sources, distinct, read

SECTIONS = ("verdicts", "lattices", "boards", "studies", "language", "paper", "benchmarks")
"""The files of the sections, in the order of the page."""
SCRIPTS = ("math", "dom", "export", "scales", "chart", "dots", "heat", "table", "verdicts", "line", "plane", "boards",
           "studies", "benchmarks", "blocks", "pages")  # fmt: skip
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

    def filled(template: str, **more: Any) -> str:
        source = (folder / "templates" / f"{template}.html").read_text(encoding="utf-8")
        return environment.from_string(source).render(**data, **more)

    text = filled(
        "page",
        sections=sections(),
        bodies={section.id: filled(section.template, section=section) for section in sections()},
        script_data=_script(data),
        styles="\n".join((folder / "assets" / f"{name}.css").read_text(encoding="utf-8") for name in STYLES),
        scripts="\n".join((folder / "assets" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS),
    )
    if (size := len(text.encode())) > LIMIT:
        raise ValueError(f"the page would take {size / 1e6:.1f} MB; valid: at most {LIMIT / 1e6:g}; name fewer stores")
    return text


def page_data(found: Material) -> dict[str, Any]:
    """Everything the page shows, as JSON values; missing sources have a sentence under ``missing``."""
    contents = Contents(found)
    told = findings(found.verify, found.real_losses, found.rows, contents.lines)
    data: dict[str, Any] = {
        "about": _about(found),
        "findings": [{**asdict(one), "headline": one.headline} for one in told],
    }
    missing: dict[str, str] = {}
    for section in sections():
        entries = section.entries(contents)
        if twice := data.keys() & entries.keys():
            raise ValueError(f"section {section.id!r} of the report: {', '.join(sorted(twice))} belongs to another one")
        data |= entries
        missing |= section.absent(data)
    return _clean({**data, "missing": missing})


def sections() -> list[Section]:
    """The sections between the opening and the sources."""
    return [import_module(f".{name}", __package__).SECTION for name in SECTIONS]


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
