"""The formulas of randomized rounding, written with operators only.

Every function here uses nothing but ``+ - * / < ==``, so the same line runs on ``fractions.Fraction`` (exact laws), on
sympy and z3 symbols (proofs, through a wrapper that counts booleans as 0 and 1), on numpy arrays, inside ``numba.njit``
and on torch tensors (training). Nothing in this file looks up a neighbour, draws a number or touches a shape: those
differ per backend and live elsewhere.

Notation: ``lo <= w <= hi`` are the two adjacent lattice levels around ``w``; ``u`` is uniform on [0, 1).
"""


def prob_up(w, lo, hi):
    """Probability that randomized rounding goes to ``hi``: ``(w - lo) / (hi - lo)``, and 0 on a level (``lo == hi``).

    This is the only probability on {lo, hi} with mean ``w``; LOTION (arXiv 2510.08757) calls it Δ on a uniform grid.
    """
    return (w - lo) / ((hi - lo) + (hi == lo))


def goes_up(w, lo, hi, u):
    """Whether the uniform ``u`` sends ``w`` up. Multiplied out, so that ``w == lo`` never moves, whatever the rounding
    of ``lo + u`` would do, and no division is needed."""
    return u * (hi - lo) < (w - lo)


def select(lo, hi, up):
    """``hi`` where ``up``, else ``lo``. In floating point this is exact, unlike ``lo + (hi - lo) * up``."""
    return lo * (up == 0) + hi * up


def pick(w, lo, hi, u):
    """One randomized rounding of ``w`` from the uniform ``u``; a point of {lo, hi}."""
    return select(lo, hi, goes_up(w, lo, hi, u))


def variance(w, lo, hi):
    """Variance of randomized rounding, ``(hi - w)(w - lo)``; ``s² Δ(1-Δ)`` on a uniform grid of step ``s``."""
    return (hi - w) * (w - lo)


def weighted_variance(h, w, lo, hi):
    """``h`` times :func:`variance`, in an order that overflows only where the product does: of weights around 1e30 the
    variance exceeds float32, and 0 times it would be no number."""
    return h * (hi - w) * (w - lo)


def variance_dw(w, lo, hi):
    """Derivative of :func:`variance` in ``w`` with the levels held fixed."""
    return (hi - w) - (w - lo)


def variance_dlo(w, lo, hi):
    """Derivative of :func:`variance` in the lower level."""
    return -(hi - w)


def variance_dhi(w, lo, hi):
    """Derivative of :func:`variance` in the upper level."""
    return w - lo


def variance_danchor(w, lo, hi, coef_lo, coef_hi):
    """Derivative of :func:`variance` in an anchor of the lattice, levels being ``anchor * coef`` (+ terms without it).

    ``coef_hi (w - lo) - coef_lo (hi - w)``: the share of the gradient that reaches the weights which set the scale, and
    which is lost where the scale is detached.
    """
    return coef_lo * variance_dlo(w, lo, hi) + coef_hi * variance_dhi(w, lo, hi)


def prob_up_dlo(w, lo, hi):
    """Derivative of :func:`prob_up` in the lower level: ``-(hi - w) / (hi - lo)²``, and 0 on a level."""
    gap = (hi - lo) + (hi == lo)
    return -(hi - w) / gap / gap


def prob_up_dhi(w, lo, hi):
    """Derivative of :func:`prob_up` in the upper level: ``-(w - lo) / (hi - lo)²``, and 0 on a level."""
    gap = (hi - lo) + (hi == lo)
    return -(w - lo) / gap / gap


def third_moment(w, lo, hi):
    """``E (RR(w) - w)³ = (hi - w)(w - lo)((hi - w) - (w - lo))``, the leading term a second-order expansion drops."""
    return variance(w, lo, hi) * ((hi - w) - (w - lo))


def mixture_target(magnitude, threshold, p):
    """Conditional mean, on the drawn coarse grid, of a magnitude above ``threshold`` when the scale itself is drawn.

    With probability ``1 - p`` the fine grid is drawn and the value is clipped to ``threshold``; unbiasedness then
    leaves ``(magnitude - (1 - p) threshold) / p`` for the coarse grid.
    """
    return (magnitude - (1 - p) * threshold) / p


def difference_error(a, b):
    """Rounding error of ``a - b`` (Knuth's TwoSum): ``a - b`` is exactly ``(a - b as computed) + difference_error``."""
    d = a - b
    b_seen = a - d
    a_seen = d + b_seen
    return (a - a_seen) + (b_seen - b)


def distances(w, lo, hi):
    """How far ``w`` is above ``lo`` and below ``hi``."""
    return w - lo, hi - w


def compare_distances(w, lo, hi):
    """Which level is nearer: the pair (``hi`` strictly nearer, exact tie).

    Rounded differences are monotone, so they decide unless equal; then their exact rounding errors decide. The verdict
    is therefore that of exact arithmetic, as long as ``hi - lo`` does not overflow.
    """
    below, above = distances(w, lo, hi)
    e_below, e_above = difference_error(w, lo), difference_error(hi, w)
    same = below == above
    return (below > above) | (same & (e_below > e_above)), same & (e_below == e_above)
