"""DGM: DSQ's tanh segments with slope 1."""

from .dsq import with_slope
from .rule import Method, Rule


def rule(settings) -> Rule:
    """``beta``: the slope. The paper's formula, printed for any β, joins the levels only at β = 1; this is the family
    of the same values there that joins them for all."""
    if not settings["beta"] > 0:
        raise ValueError(f"beta = {settings['beta']!r}; must be positive")
    return with_slope(settings["beta"])


METHOD = Method(
    "dgm",
    rule=rule,
    information="gradient at RTN(w)",
    grid="absmax",
    source="Bao et al., arXiv 2511.07903, eq. 6 at β = 1; absmax grid",
    settings={"beta": 1.0},
)
