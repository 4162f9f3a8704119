"""Proofs by z3 that call the very functions of ``lotion_theory.kernels``: inequalities over the reals, blocks of any
length, and facts of half-precision arithmetic.

``PROOFS`` maps a claim to its proofs and ``run_all`` runs them. z3 is optional: ``ImportError`` says what to install.
"""

from importlib.util import find_spec

if find_spec("z3") is None:
    raise ImportError("lotion_theory.theory.smt needs z3: pip install 'lotion-theory[proofs]'")

from ..symbolic._proof import SCOPES, Proof, Result
from . import floats, laws, losses  # noqa: F401  (importing them registers their proofs)
from ._lift import registry

PROOFS = registry.proofs
run_all = registry.run_all

__all__ = ["PROOFS", "SCOPES", "Proof", "Result", "run_all"]
