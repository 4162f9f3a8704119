"""The theory as executable claims: each returns what it measured, what it should be, and a simplest counterexample."""

from . import floats, laws, losses, minima, paths, training  # noqa: F401  (importing them registers their claims)
from ._base import CLAIMS, EVIDENCE, Claim, Outcome, in_order

in_order(CLAIMS)

__all__ = ["CLAIMS", "EVIDENCE", "Claim", "Outcome"]
