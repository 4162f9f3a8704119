"""RR-STE ("RAT"): the loss gradient at randomly rounded weights, passed straight through.

On quadratics its expectation is the gradient at the weights themselves: no smoothing reaches the weights (claim C14).
"""

from .rule import Method, Rule, at_rounded, straight_through

METHOD = Method(
    "rr_ste",
    rule=lambda settings: Rule(at_rounded, straight_through, noise=1),
    information="gradient at RR(w)",
    grid="absmax",
    source="randomized-rounding QAT, the paper's RAT baseline (arXiv 2510.08757)",
    any_format=True,
)
