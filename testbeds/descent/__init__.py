"""Training on test problems: one step written once per method, run by numpy or by numba with the same bits."""

from .run import Losses, Run, evaluate, prepare, train
from .state import Optimizer, State, block_starts

__all__ = [
    "Losses",
    "Optimizer",
    "Run",
    "State",
    "block_starts",
    "evaluate",
    "prepare",
    "train",
]
