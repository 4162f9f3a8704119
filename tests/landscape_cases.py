"""Losses and lattices that the landscape tests share."""

from __future__ import annotations

import numpy as np

import lotion_theory as lt


def quadratic(d: int, seed: int, condition: float = 20.0) -> lt.Quadratic:
    """A rotated quadratic with curvatures from 1 to ``condition`` and a normal optimum."""
    generator = lt.Stream(seed, f"tests/landscape/{d}").numpy_generator()
    turn = np.linalg.qr(generator.normal(size=(d, d)))[0]
    hessian = turn @ np.diag(np.geomspace(1, condition, d)) @ turn.T
    return lt.Quadratic((hessian + hessian.T) / 2, generator.normal(size=d))


class Bumps:
    """A smooth loss that is not quadratic: ``Σ a_k cos(⟨b_k, w⟩ + c_k)``."""

    def __init__(self, d: int, seed: int) -> None:
        generator = lt.Stream(seed, "tests/bumps").numpy_generator()
        self.a, self.b, self.c = (
            generator.normal(size=5),
            generator.normal(size=(5, d)),
            generator.uniform(0, 6, size=5),
        )

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return np.cos(points.reshape(len(points), -1) @ self.b.T + self.c) @ self.a

    def gradient(self, points: np.ndarray) -> np.ndarray:
        flat = points.reshape(len(points), -1)
        return (-(np.sin(flat @ self.b.T + self.c) * self.a) @ self.b).reshape(points.shape)


def on_step(step: float, book: str = "int4") -> lt.Quantizer:
    return lt.Quantizer.parse(book).with_scale(step)
