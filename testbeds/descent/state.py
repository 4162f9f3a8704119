"""Weights in blocks, and the state of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lotion_theory import Quantizer
from lotion_theory.formats.codebooks import Codebook
from lotion_theory.methods import Rule

from ..problems.base import Part


def block_starts(q: Quantizer, parts: tuple[Part, ...]) -> np.ndarray:
    """Where each block of the flat weights starts, and at the end their number; (blocks + 1,) int64.

    The quantizer's partition is applied to each part by itself. Raises ValueError for other than absmax scales, for
    codebooks that are not balanced, and for blocks that do not divide a part's rows or channels.
    """
    if not q.is_absmax:
        raise ValueError(
            f"format {q}: training needs an absmax scale and a codebook from -c to c, e.g. int4, e2m1, nf4"
        )
    starts, base = [], 0
    for part in parts:
        size = q.partition.length(part.shape)
        starts.append(base + np.arange(0, part.size, size))
        base += part.size
    return np.concatenate([*starts, [base]]).astype(np.int64)


@dataclass
class Optimizer:
    """``kind``: "adam" (Kingma & Ba, bias-corrected) or "gd"; ``lr``: peak learning rate; ``schedule``: "constant",
    "cosine" or "linear" (the last two end at 0)."""

    kind: str = "adam"
    lr: float = 1e-2
    schedule: str = "cosine"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.kind not in ("adam", "gd"):
            raise ValueError(f"unknown optimizer {self.kind!r}; valid: adam, gd")
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"unknown schedule {self.schedule!r}; valid: constant, cosine, linear")
        if not self.lr > 0:
            raise ValueError(f"lr = {self.lr}; must be positive")

    def rates(self, progress: np.ndarray) -> np.ndarray:
        """Learning rates at progress (steps,) in [0, 1)."""
        if self.schedule == "cosine":
            return self.lr * (1 + np.cos(np.pi * progress)) / 2
        if self.schedule == "linear":
            return self.lr * (1 - progress)
        return np.full(len(progress), self.lr)


@dataclass
class State:
    """All that changes: weights, optimizer moments, learned tops with theirs, curvature, and the step number.

    Arrays are float64: ``w``, ``m``, ``v``, ``h`` (P,); ``top``, ``top_m``, ``top_v`` (blocks,), the parameter of a
    learned top in units of its span. ``powers``: running products of the betas, (2,).
    """

    w: np.ndarray
    starts: np.ndarray
    book: Codebook
    rule: Rule
    h: np.ndarray
    m: np.ndarray = field(init=False)
    v: np.ndarray = field(init=False)
    top: np.ndarray = field(init=False)
    top_m: np.ndarray = field(init=False)
    top_v: np.ndarray = field(init=False)
    top_factor: np.ndarray = field(init=False)
    powers: np.ndarray = field(init=False)
    span: float = 1.0
    step: int = 0

    def __post_init__(self) -> None:
        blocks = len(self.starts) - 1
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)
        self.top, self.top_m, self.top_v = np.ones(blocks), np.zeros(blocks), np.zeros(blocks)
        self.top_factor, self.powers = np.ones(blocks), np.ones(2)
        learned = self.rule.learned
        if self.rule.top == "learned":
            assert learned is not None, "a learned top has a LearnedTop"
            self.span = float(learned.span(self.book))
            for b, (first, last) in enumerate(pairwise(self.starts)):
                self.top[b] = learned.start(self.w[first:last], self.book) / self.span
                # Chain rule into the parameter, and the method's own scaling of that gradient.
                self.top_factor[b] = self.span * learned.factor(int(last - first), self.book)
