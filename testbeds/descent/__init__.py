"""Training on test problems: one step written once per method, run by numpy or by numba with the same bits."""

from .rule import LearnedTop, Place, Rule, Trainer
from .run import Losses, Run, evaluate, prepare, train
from .state import Optimizer, State, block_starts

__all__ = [
    "LearnedTop", "Losses", "Optimizer", "Place", "Rule", "Run", "State", "Trainer", "block_starts", "evaluate",
    "prepare", "train",
]  # fmt: skip
