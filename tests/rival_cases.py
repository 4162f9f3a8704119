"""Small problems on which rival training methods are held against known answers."""

import numpy as np

from lotion_theory import Stream
from testbeds.descent import Optimizer, plain, prepare, train
from testbeds.problems.linear_regression import LinearRegression
from testbeds.problems.rotations import Identity

FORMATS = ("int4", "int4/absmax/block=16")


def quadratic(spectrum, optimum, start=None):
    """``½ Σ h (w - w*)²``."""
    spectrum, optimum = np.array(spectrum, float), np.array(optimum, float)
    start = optimum if start is None else np.array(start, float)
    stream = Stream(0, "test")
    return LinearRegression("test", "", spectrum, Identity(spectrum.size), optimum, start, 0.0, None, stream)


def state_at(rule, w, q="int4"):
    """The state of ``rule`` at weights ``w`` whose curvature is 1."""
    return prepare(quadratic(np.ones(len(w)), w), rule, q)


def place_at(rule, w, q="int4", u=None):
    state = state_at(rule, w, q)
    return state, plain.place(state, np.zeros(len(w)) if u is None else np.asarray(u, float))


def parameters_at(state, progress=0.0):
    return state.rule.parameters(np.array([progress]))[0]


def train_with(problem, rule, q="int4", kind="adam", lr=0.03, steps=30, engine="plain", schedule="cosine"):
    return train(problem, rule, q, Optimizer(kind, lr, schedule), steps, engine=engine)


def midpoints(n):
    """Midpoints of n equal parts of [0, 1]."""
    return (np.arange(n) + 0.5) / n
