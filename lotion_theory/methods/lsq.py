"""LSQ: STE with a learned step per block.

The step's range is symmetric here, ``Q_N = Q_P``. On levels that are not uniform the step is the highest level over the
number of positive ones. The parameter is ``√Q_P`` steps, which starts at twice the mean magnitude of the weights, so
that Adam moves step and weights at a like pace relative to their size: what the paper's factor on the step's gradient
is for, and Adam does not see. Plain gradient descent moves the step as the paper says.
"""

import math

from ..formats.codebooks import Codebook
from .rule import LearnedTop, Method, Place, Rule, at_nearest, inside_range


def through_step(p: Place, g, h, a):
    """``g (near/top - w/top)`` inside the range and ``± g`` beyond it: ``Q_P`` times this is the paper's eq. 3."""
    return g * (p.unit_near - (abs(p.w) < p.top) * (p.w / (p.top + (p.top == 0))))


def positive_levels(book: Codebook) -> int:
    """``Q_P``: how many levels are above 0."""
    return sum(level > 0 for level in book.levels)


def first_top(w, book: Codebook):
    """``Q_P s`` with ``s = 2 mean|w| / √Q_P``; 1 for a block of zeros, which has no size of its own."""
    top = 2 * abs(w).mean(-1) * math.sqrt(positive_levels(book))
    return top + (top == 0)


def gradient_scale(n: int, book: Codebook) -> float:
    """``1 / √(n Q_P)`` for the step of a block of ``n`` weights."""
    return 1 / math.sqrt(n * positive_levels(book))


def parameter_span(book: Codebook) -> float:
    """``√Q_P``: the highest level, ``Q_P`` steps, over the parameter, ``√Q_P`` steps."""
    return math.sqrt(positive_levels(book))


def parameter_factor(n: int, book: Codebook) -> float:
    """``Q_P`` times :func:`gradient_scale`, so that plain gradient descent moves the step by that times its gradient:
    once for the step in units of the parameter, once for its gradient."""
    return positive_levels(book) * gradient_scale(n, book)


STEP = LearnedTop(first_top, parameter_span, parameter_factor)

METHOD = Method(
    "lsq",
    rule=lambda settings: Rule(at_nearest, inside_range, through_step, top="learned", learned=STEP),
    information="gradient at RTN(w)",
    grid="learned",
    source="Esser et al., arXiv 1902.08153, eqs. 1-3; a symmetric range and a step per block",
)
