"""LSQ: STE with a learned step per block.

The step's range is symmetric here, ``Q_N = Q_P``: the formats of the test problems have no ``-2^(b-1)``.
"""

import math

import numpy as np

from lotion_theory.grids import Codebook

from ...descent.rule import LearnedTop, Place, Rule, Trainer, at_nearest


def inside_range(p: Place, g, h, a):
    """``g`` for weights inside the range, 0 for clipped ones."""
    return g * (abs(p.w) < p.top)


def through_step(p: Place, g, h, a):
    """``g (near/top - w/top)`` inside the range and ``± g`` beyond it: ``Q_P`` times this is the paper's eq. 3."""
    return g * (p.unit_near - (abs(p.w) < p.top) * (p.w / (p.top + (p.top == 0))))


def positive_levels(book: Codebook) -> int:
    """``Q_P``: how many levels are above 0."""
    return sum(level > 0 for level in book.levels)


def first_top(w: np.ndarray, book: Codebook) -> float:
    """``Q_P s`` with ``s = 2 mean|w| / √Q_P``; 1 for a block of zeros, which has no size of its own."""
    return 2 * float(np.abs(w).mean()) * math.sqrt(positive_levels(book)) or 1.0


def gradient_scale(n: int, book: Codebook) -> float:
    """``1 / √(n Q_P)`` for the step of a block of ``n`` weights."""
    return 1 / math.sqrt(n * positive_levels(book))


STEP = LearnedTop(first_top, positive_levels, gradient_scale)


def rule(settings) -> Rule:
    """A step per block."""
    return Rule(at_nearest, inside_range, through_step, top="learned", learned=STEP)


TRAINER = Trainer(
    "lsq",
    rule=rule,
    information="gradient at RTN(w)",
    grid="learned",
    source="Esser et al., arXiv 1902.08153, eqs. 1-3; a symmetric range and a step per block",
)
