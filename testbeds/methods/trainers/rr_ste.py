"""RR-STE ("RAT"): the loss gradient at randomly rounded weights, passed straight through.

On quadratics its expectation is the gradient at the weights themselves: no smoothing reaches the weights (claim C14).
"""

from lotion_theory import _kernels

from ...descent.rule import Place, Rule, Trainer, straight_through


def at_rounded(p: Place, a):
    """Evaluate the loss at one randomized rounding."""
    return _kernels.pick(_kernels.select(p.w, p.lo, p.w < p.lo), p.lo, p.hi, p.u)


def rule(settings) -> Rule:
    """One uniform per weight and step."""
    return Rule(at_rounded, straight_through, noise=1)


TRAINER = Trainer(
    "rr_ste",
    rule=rule,
    information="gradient at RR(w)",
    grid="absmax",
    source="randomized-rounding QAT, the paper's RAT baseline (arXiv 2510.08757)",
)
