"""Proofs by computer algebra that call the very functions of ``lotion_theory.kernels``.

``PROOFS`` maps a claim to its proofs; each :class:`Proof` rebuilds its expressions when run, reduces a difference to
the zero function, and on failure returns a rational point where the difference is not zero. ``run_all`` runs them.
"""

from . import gradients, laws, losses, paths, training  # noqa: F401  (importing them registers their proofs)
from ._lift import registry
from ._proof import SCOPES, Proof, Result

PROOFS = registry.proofs
run_all = registry.run_all

__all__ = ["PROOFS", "SCOPES", "Proof", "Result", "run_all"]
