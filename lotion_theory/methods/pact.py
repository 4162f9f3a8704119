"""PACT: STE with a learned clip per block, whose gradient comes from the clipped weights alone.

That is LSQ without the term of the weights inside the range.
"""

from ..formats.codebooks import Codebook
from ..functions import square_root
from .rule import LearnedTop, Method, Place, Rule, at_nearest, inside_range


def through_clip(p: Place, g, h, a):
    """``g sign(w)`` for clipped weights, 0 for the others."""
    return g * (p.unit_near * (abs(p.w) >= p.top))


def rule(settings) -> Rule:
    """``start``: the first clip over the block's root mean square (1 for a block of zeros). Clipped weights get no
    gradient, so a clip that cuts off many holds them there; with one at the largest weight or beyond, some 4 to 5 root
    mean squares of normal weights, no loss gradient reaches the clip. ``decay``: λ of the penalty ``½ λ α²`` on each
    clip α."""
    ratio, decay = settings["start"], settings["decay"]
    if not ratio > 0:
        raise ValueError(f"start = {ratio!r}; the first clip over the root mean square must be positive")
    if not decay >= 0:
        raise ValueError(f"decay = {decay!r}; must not be negative")

    def first_clip(w, book: Codebook):
        clip = ratio * square_root((w * w).mean(-1))
        return clip + (clip == 0)

    clip = LearnedTop(first_clip, lambda book: 1.0, lambda n, book: 1.0, decay)
    return Rule(at_nearest, inside_range, through_clip, top="learned", learned=clip, linear=not decay)


METHOD = Method(
    "pact",
    rule=rule,
    information="gradient at RTN(w)",
    grid="learned",
    source="Choi et al., arXiv 1805.06085, for weights (clip at ±α), a clip per block",
    settings={"start": 3.0, "decay": 0.0},
    tuning={"start": (2.0, 3.0, 5.0)},
    spelled={"start": "clip"},
)
