"""Curvature along random mixtures of ``w`` and ``RR(w)``: the one that makes LOTION's penalty exact (claim C21)."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np

from .._arrays import is_exact, wide
from ..formats.quantizer import Quantizer
from .exact import LIMIT, law
from .losses import Loss, curvatures_of
from .sampling import prepared


def mixtures(w: Any, q: Quantizer | str, limit: int = LIMIT) -> tuple[np.ndarray, np.ndarray]:
    """Every mixture of ``w`` and ``RR(w)`` for ``t`` uniform on [0, 1]: points (n, *w.shape) and probabilities (n,).

    A mixture that takes ``k`` of ``d`` weights from ``RR(w)`` has the weight ``∫ t^k (1 - t)^(d - k) dt``. Points
    repeat. Raises ValueError for more than ``limit`` of them.
    """
    q, w = prepared(w, q)
    found = law(w, q, limit)
    d, n = w.size, len(found.probs)
    if n << d > limit:
        raise ValueError(f"{n << d} mixtures exceed the limit of {limit}: draw some of them")
    taken = np.array(list(itertools.product((False, True), repeat=d))).reshape(-1, 1, *w.shape)
    points = np.where(taken, found.points[None], wide(w)[None, None]).reshape(-1, *w.shape)
    counts = taken.reshape(len(taken), -1).sum(axis=1)
    shares = np.array([Fraction(1, (d + 1) * comb(d, int(k))) for k in counts], dtype=object)
    shares = shares if is_exact(found.probs) else shares.astype(np.float64)
    return points, (shares[:, None] * found.probs[None, :]).reshape(-1)


def path_curvature(loss: Loss, w: Any, q: Quantizer | str, limit: int = LIMIT) -> np.ndarray:
    """Mean curvature over all mixtures of ``w`` and ``RR(w)``, in ``w``'s shape, by enumeration.

    With it ``L(w) + ½ Σ g_i Var_i`` is the smoothed loss, exactly, for losses that are quadratic in each single weight
    (:func:`~lotion_theory.smoothing.closed_form.second_order_loss` takes it as its ``curvature``). ``loss`` needs
    ``curvature_at(w)``. Raises ValueError as :func:`mixtures` does.
    """
    points, probs = mixtures(w, q, limit)
    return np.tensordot(probs, curvatures_of(loss, points), axes=1)
