"""Rounding schemes that learn or descend, with settings that suit small layers, and such layers."""

import numpy as np
from hypothesis import strategies as st

from lotion_theory import Stream, kernels
from lotion_theory.rounders import adaquant, adaround, discquant, lotion_cell, lotion_ramp, lotion_splitting
from lotion_theory.rounders.base import Case
from tests.strategies import examples

FORMATS = ("int4/absmax/tensor", "int3/absmax/block=4", "nf4/absmax/row", "e2m1/absmax/block=8")
# Enough for the weights of these problems to come to rest.
STEPS = 100
ROUNDERS = {
    m.ROUNDER.name: m.ROUNDER for m in (adaquant, adaround, discquant, lotion_cell, lotion_ramp, lotion_splitting)
}
IN_CELL = (
    ("adaround", {"steps": STEPS, "lr": 0.05}), ("adaround", {"steps": STEPS, "lr": 0.05, "regulariser": "lotion"}),
    ("discquant", {"steps": STEPS}), ("discquant", {"start": "weights", "steps": STEPS}),
    ("discquant", {"mode": "lp", "share": 0.5}), ("lotion_cell", {}), ("lotion_cell", {"starts": 3}),
)  # fmt: skip
ON_GRID = (
    ("lotion_ramp", {"steps": STEPS}), ("lotion_ramp", {"steps": STEPS, "polish": True}),
    ("lotion_ramp", {"steps": STEPS, "ramp": False}), ("lotion_splitting", {"steps": STEPS}),
    ("lotion_splitting", {"steps": STEPS, "relaxation": 1.0, "sweeps": 0}), ("adaquant", {"steps": STEPS}),
)  # fmt: skip
VARIANTS = IN_CELL + ON_GRID
STREAM = Stream(0, "test_rounders_learned")
seeds = st.integers(0, 2**32 - 1)
few = examples(10)
# Losses of these well-conditioned problems are sums of at most some thousand rounded terms.
ROUNDING = 1e-12


def case_of(seed: int, text: str = "int4/absmax/tensor", rows: int = 2, n: int = 8) -> Case:
    """Haar eigenvectors, eigenvalues ``i^-1.1``, normal weights."""
    rng = np.random.default_rng(seed)
    vectors, r = np.linalg.qr(rng.normal(size=(n, n)))
    vectors *= np.sign(np.diagonal(r))
    h = (vectors * np.arange(1, n + 1) ** -1.1) @ vectors.T
    return Case.make((h + h.T) / 2, rng.normal(size=(rows, n)), text)


def rounded_by(case: Case, name: str, **chosen) -> np.ndarray:
    return ROUNDERS[name](case, STREAM, **chosen)


def loss_of(case: Case, name: str, **chosen) -> float:
    return float(case.loss(rounded_by(case, name, **chosen)[None])[0])


def row_losses(case: Case, points: np.ndarray) -> np.ndarray:
    return np.array([(e @ case.hessian @ e) / 2 for e in points - case.weights])


def smoothed_at_weights(case: Case) -> np.ndarray:
    """``E L(RR(W))`` of every row: W is the optimum, so only the penalty is left."""
    lo, hi = case.grid.bracket(case.weights)
    return (case.curvature * kernels.variance(case.weights, lo, hi)).sum(axis=1) / 2
