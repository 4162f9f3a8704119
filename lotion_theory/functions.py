"""Functions of numbers beside operators, for numpy arrays and torch tensors; compiled loops know them as well."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from ._arrays import Array, Deferred, is_exact, is_torch


def number(value: Fraction | int, like: Array) -> Any:
    """A scalar constant for arithmetic with ``like``: a Fraction for exact arrays, else a Python float."""
    return Fraction(value) if is_exact(like) else float(value)


def square_root(x: Array) -> Array:
    """``√x``; for exact arrays the rational root, ValueError where it is irrational."""
    if isinstance(x, Deferred):
        return x.square_root()
    if is_exact(x):
        return np.vectorize(_rational_root, otypes=[object])(x)
    return x**0.5 if is_torch(x) else np.sqrt(x)


def exp(x: Array) -> Array:
    """``e^x`` of floats."""
    return x.exp() if is_torch(x) else np.exp(x)


def log(x: Array) -> Array:
    """The natural logarithm of positive floats."""
    return x.log() if is_torch(x) else np.log(x)


def sigmoid(x: Array) -> Array:
    """``1 / (1 + e^-x)`` of floats."""
    if is_torch(x):
        return x.sigmoid()
    from scipy.special import expit

    return expit(x)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent of floats."""
    return x.tanh() if is_torch(x) else np.tanh(x)


def cos(x: Array) -> Array:
    """The cosine of floats."""
    return x.cos() if is_torch(x) else np.cos(x)


def _rational_root(x: Fraction) -> Fraction:
    root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
    if root * root != x:
        raise ValueError(f"the square root of {x} is irrational: this law has no exact rational form")
    return root
