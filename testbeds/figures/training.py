"""Which figures the training runs of an experiment have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..results.curves import readable
from ..results.rows import Row, at_best, grouped, instance
from ..results.sensitivity import is_swept
from ..results.widths import compared, varies
from .curves import CAPTION as CURVES
from .curves import figure_curves
from .sensitivity import CAPTION as SENSITIVITY
from .sensitivity import figure_lambda
from .series import Picture
from .widths import CAPTION as WIDTHS
from .widths import figure_widths


def pictures(experiment: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """Curves per problem and format, or, where the weight λ or a width takes several values, the figure against it."""
    runs = [r for r in rows if (r["kind"], r["phase"], r["status"]) == ("train", "final", "ok")]
    if is_swept(runs):
        yield Picture(figure_lambda(runs), (experiment,), SENSITIVITY)
    elif varies(runs):
        yield Picture(figure_widths(runs, *compared(runs)), (experiment,), WIDTHS)
    else:
        places = grouped(runs, instance)
        for (problem, format), mine in places.items():
            methods = at_best(mine)
            shown = [r for label in readable(methods) for r in methods[label]]
            name = (experiment, *((problem, format) if len(places) > 1 else ()))
            yield Picture(figure_curves(shown, experiment, format, problem), name, CURVES)
