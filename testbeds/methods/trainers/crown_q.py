"""CROWN-Q: a penalty ``λ Σ h s²/12``, the loss that uniform rounding noise of step ``s`` adds.

As published ``h = w²`` and s is detached, so that the penalty is weight decay of strength ``λ s²/6``. With the true
curvature and s attached it is LOTION's penalty averaged over a uniform phase (claim C16).
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from lotion_theory import _kernels
from lotion_theory.grids import Codebook

from ...descent.rule import Place, Rule, Trainer, straight_through
from ._uniform import gap

VARIANTS = ("published", "true")


def weight_then_nearest(p: Place, a):
    """The loss at the weight, and late in training, ``a[2] = 1``, at the nearest level (late STE)."""
    return _kernels.select(p.w, p.near, a[2])


def shrinking(p: Place, g, h, a):
    """``g + λ w s²/6``; ``a = (λ, s/top, late)``."""
    step = p.top * a[1]
    return g + a[0] * p.w * (step * step) / 6


def through_step(p: Place, g, h, a):
    """``d/dtop`` of ``λ h s²/12``."""
    return a[0] * h * (p.top * (a[1] * a[1])) / 6


def step_of(weight: float, levels: float | None, late: float, book: Codebook) -> dict[str, Callable]:
    """The step of ``book``'s grid, or that of ``levels``, in the parameters."""
    step = gap(book, "crown_q") if levels is None else 1 / levels
    return {"parameters": partial(_rows, weight, step, late)}


def _rows(weight: float, step: float, late: float, progress: np.ndarray) -> np.ndarray:
    ones = np.ones(len(progress))
    return np.column_stack([weight * ones, step * ones, 1.0 * (progress >= late)])


def rule(settings) -> Rule:
    """``weight``: λ. ``variant``: "published" (h = w², detached) or "true" (h the diagonal curvature, attached).
    ``levels``: ``s = top / levels`` in the penalty, by default the step of the grid. ``late``: progress from which the
    loss is taken at the nearest levels; 1 for never. ``refresh``: steps between curvatures."""
    late, levels = settings["late"], settings["levels"]
    if settings["variant"] not in VARIANTS:
        raise ValueError(f"variant = {settings['variant']!r}; valid: {', '.join(VARIANTS)}")
    if not 0 <= late <= 1:
        raise ValueError(f"late = {late!r}; must lie in [0, 1]")
    if levels is not None and not levels > 0:
        raise ValueError(f"levels = {levels!r}; must be positive, or None for the grid's own")
    with_book = partial(step_of, settings["weight"], levels, late)
    if settings["variant"] == "published":
        return Rule(weight_then_nearest, shrinking, with_book=with_book)
    return Rule(
        weight_then_nearest,
        straight_through,
        through_step,
        curvature="gauss_newton",
        refresh=settings["refresh"],
        with_book=with_book,
    )


TRAINER = Trainer(
    "crown_q",
    rule=rule,
    information="gradient at w, late at RTN(w); diagonal curvature in the variant 'true'",
    grid="absmax",
    source="'CROWN-Q + Full GPTQ + SWA/EMA Blend', a record of the parameter-golf competition; no paper",
    settings={"weight": 0.01, "variant": "published", "levels": None, "late": 0.85, "refresh": 10},
    tuning={"weight": (0.01, 0.1, 1.0)},
)
