"""Every figure that a store's rows allow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lotion_theory.files import file_name, write_text

from ..results.curves import readable
from ..results.rows import Row, at_best, grouped, instance
from ..results.sensitivity import is_swept
from ..results.widths import compared, varies
from .curves import CAPTION as CURVES
from .curves import figure_curves
from .estimators import CAPTION as ESTIMATORS
from .estimators import figure_estimators
from .minima import CAPTION as MINIMA
from .minima import figure_minima
from .rounders import CAPTION as ROUNDERS
from .rounders import figure_rounders
from .sensitivity import CAPTION as SENSITIVITY
from .sensitivity import figure_lambda
from .style import save
from .widths import CAPTION as WIDTHS
from .widths import figure_widths

CAPTIONS = "captions.json"


def draw_all(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw what the rows of each experiment allow into ``out``; returns the paths, ``captions.json`` last.

    Training: curves per problem and format, or, where a width or the weight λ takes several values, the figure against
    it. Rounding schemes, estimators and minima have one figure each. Raises ValueError where there is nothing to draw.
    """
    paths: list[Path] = []
    captions: dict[str, str] = {}

    def keep(figure: Any, stem: str, caption: str) -> None:
        from matplotlib import pyplot

        name = file_name(stem)
        if name in captions:  # Other labels that differ in signs which file names do not have.
            name = next(other for k in itertools.count(2) if (other := f"{name}-{k}") not in captions)
        paths.extend(save(figure, out / name))
        captions[name] = caption
        pyplot.close(figure)

    for experiment, mine in grouped(rows, lambda r: r["experiment"]).items():
        final = [r for r in mine if r["phase"] == "final" and r["status"] == "ok"]
        kinds = {r["kind"] for r in final}
        if "train" in kinds:
            _training(experiment, final, keep)
        rounded = [r for r in mine if r["kind"] == "round" and r["metrics"].get("optimum") is not None]
        for format, part in grouped(rounded, lambda r: str(r["config"]["format"])).items():
            several = len({r["config"]["format"] for r in rounded}) > 1
            keep(figure_rounders(part), _stem(experiment, *([format] if several else [])), ROUNDERS)
        if "estimator" in kinds:
            keep(figure_estimators(final), experiment, ESTIMATORS)
        if "minima" in kinds:
            keep(figure_minima(final), experiment, MINIMA)
    if not paths:
        raise ValueError("the store has no finished runs to draw")
    write_text(out / CAPTIONS, json.dumps(captions, indent=1, ensure_ascii=False) + "\n")
    return [*paths, out / CAPTIONS]


def _training(experiment: str, final: Sequence[Row], keep: Any) -> None:
    runs = [r for r in final if r["kind"] == "train"]
    if is_swept(runs):
        keep(figure_lambda(runs), experiment, SENSITIVITY)
    elif varies(runs):
        keep(figure_widths(runs, *compared(runs)), experiment, WIDTHS)
    else:
        places = list(grouped(runs, instance))
        for problem, format in places:
            stem = _stem(experiment, *(part for part in (problem, format) if len(places) > 1))
            mine = [r for r in runs if instance(r) == (problem, format)]
            methods = at_best(mine)
            shown = [r for label in readable(methods) for r in methods[label]]
            keep(figure_curves(shown, experiment, format, problem), stem, CURVES)


def _stem(*parts: str) -> str:
    """A file name from labels, as far as their letters go."""
    return "".join(c if c.isalnum() or c in "-." else "-" for c in "-".join(parts)).replace("--", "-")
