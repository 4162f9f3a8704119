"""PACT: STE with a learned clip per block, whose gradient comes from the clipped weights alone.

That is LSQ without the term of the weights inside the range.
"""

from functools import partial

import numpy as np

from lotion_theory.grids import Codebook

from ...descent.rule import LearnedTop, Place, Rule, Trainer, at_nearest
from .lsq import inside_range


def through_clip(p: Place, g, h, a):
    """``g sign(w)`` for clipped weights, 0 for the others."""
    return g * (p.unit_near * (abs(p.w) >= p.top))


def first_clip(ratio: float, w: np.ndarray, book: Codebook) -> float:
    """``ratio`` times the root mean square of a block; 1 for a block of zeros."""
    return ratio * float(np.sqrt(np.mean(w * w))) or 1.0


def clip_itself(book: Codebook) -> float:
    """The parameter is the clip."""
    return 1.0


def gradient_itself(n: int, book: Codebook) -> float:
    """Its gradient is not rescaled."""
    return 1.0


def rule(settings) -> Rule:
    """``start``: the first clip over the block's root mean square (1 for a block of zeros). With a clip at the largest
    weight or beyond no loss gradient reaches it. ``decay``: λ of the penalty ``½ λ α²`` on each clip α."""
    ratio, decay = settings["start"], settings["decay"]
    if not ratio > 0:
        raise ValueError(f"start = {ratio!r}; must be positive")
    if not decay >= 0:
        raise ValueError(f"decay = {decay!r}; must not be negative")
    clip = LearnedTop(partial(first_clip, ratio), clip_itself, gradient_itself, decay)
    return Rule(at_nearest, inside_range, through_clip, top="learned", learned=clip)


TRAINER = Trainer(
    "pact",
    rule=rule,
    information="gradient at RTN(w)",
    grid="learned",
    source="Choi et al., arXiv 1805.06085, for weights (clip at ±α), a clip per block",
    settings={"start": 3.0, "decay": 0.0},
    tuning={"start": (2.0, 3.0), "decay": (0.0, 1e-3)},
)
