"""Training methods: one file each, with its functions of one weight and its descriptor ``METHOD``.

Numba loops and numpy (``testbeds.descent``) and torch (``lotion_theory.training``) run the same functions.
"""

from .rule import NAMES, LearnedTop, Method, Place, Rule, method, names

__all__ = ["NAMES", "LearnedTop", "Method", "Place", "Rule", "method", "names"]
