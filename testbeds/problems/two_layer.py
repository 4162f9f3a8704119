"""Two-layer linear regression: the smallest net whose Gauss-Newton penalty is not the whole smoothing."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lotion_theory import Stream

from .base import Part
from .descriptor import Descriptor
from .tensors import FlatWeights, in_chunks, join, join_batch, non_negative, whole

STARTS = ("balanced", "optimum")


class TwoLayer(FlatWeights):
    """``L(W1, W2) = E ‖W2 W1 x - T x - noise‖² / m`` over Gaussian inputs, a :class:`TrainingProblem`.

    ``teacher``: T (m, d). ``spectrum``: variances λ (d,) of the independent inputs x. ``noise``: standard deviation of
    independent label noise, ``noise²`` of the loss. Weights: W1 (k, d), then W2 (m, k). With ``c = 2/m`` and
    ``A = W2 W1 - T``, everything below is exact:

        ``L = Σ_oj λ_j A_oj² / m + noise²``,  ``∂L/∂W1 = c W2ᵀ A Λ``,  ``∂L/∂W2 = c A Λ W1ᵀ``,
        ``g1[i,j] = c ‖W2[:,i]‖² λ_j``,  ``g2[o,i] = c Σ_j λ_j W1[i,j]²``

    (the diagonal of the Gauss-Newton matrix, and of the Hessian as well, L being quadratic in each single weight), and
    for independent errors of mean zero and variances S1, S2

        ``E L = L + ½⟨g1, S1⟩ + ½⟨g2, S2⟩ + (c/2) Σ_i (Σ_o S2[o,i]) (Σ_j λ_j S1[i,j])``.

    The last sum is quartic in the lattice spacing, does not depend on the weights, and is all that a Gauss-Newton
    penalty misses (claim C17). ``floor``: the smallest loss of unquantized weights.
    """

    def __init__(
        self,
        name: str,
        provenance: str,
        teacher: np.ndarray,
        spectrum: np.ndarray,
        k: int,
        batches: Stream,
        noise: float = 0.0,
        batch: int | None = None,
        start: np.ndarray | None = None,
    ) -> None:
        """``k``: hidden units. ``batch``: fresh samples a step, by ``batches``. ``start``: the optimum if None."""
        self.name, self.provenance = name, provenance
        self.teacher, self.spectrum = np.asarray(teacher, dtype=np.float64), np.asarray(spectrum, dtype=np.float64)
        if self.teacher.ndim != 2 or self.spectrum.shape != self.teacher.shape[1:]:
            raise ValueError(
                f"teacher has shape {self.teacher.shape} and spectrum {self.spectrum.shape}; expected (m, d) and (d,)"
            )
        if not bool((self.spectrum > 0).all()):
            raise ValueError(f"spectrum has the entry {self.spectrum.min()}; valid: positive variances")
        m, d = self.teacher.shape
        self.k, self.noise = whole("k", k), non_negative("noise", noise)
        self.batch = None if batch is None else whole("batch", batch)
        self.parts = (Part("W1", (self.k, d)), Part("W2", (m, self.k)))
        self._c, self._batches = 2 / m, batches
        self.start = self.optimum if start is None else join(self.single("start", start))

    @cached_property
    def _svd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Singular value decomposition of ``T Λ^½``, in which the loss is a plain squared distance (times 1/m)."""
        u, s, vt = np.linalg.svd(self.teacher * np.sqrt(self.spectrum), full_matrices=False)
        # Signs are the library's choice: fixed here so that the optimum is the same everywhere.
        signs = np.where(u[np.abs(u).argmax(axis=0), np.arange(len(s))] < 0, -1.0, 1.0)
        return u * signs, s, vt * signs[:, None]

    @cached_property
    def optimum(self) -> np.ndarray:
        """Best rank-k approximation of T in the metric Λ (Eckart and Young), its factors balanced in that metric.

        ``W2ᵀ W2 = W1 Λ W1ᵀ = diag(singular values)``, strongest unit first; units beyond the rank of T are zero.
        """
        u, s, vt = self._svd
        used = min(self.k, len(s))
        roots = np.sqrt(s[:used])
        w1, w2 = (np.zeros(part.shape) for part in self.parts)
        w1[:used] = roots[:, None] * vt[:used] / np.sqrt(self.spectrum)
        w2[:, :used] = u[:, :used] * roots
        return join([w1, w2])

    @cached_property
    def floor(self) -> float:
        """Smallest loss of unquantized weights: the singular values beyond the k-th, and the label noise."""
        return float((self._svd[1][self.k :] ** 2).sum()) / len(self.teacher) + self.noise**2

    @property
    def curvature(self) -> np.ndarray:
        return self.curvature_at(self.optimum)

    def __call__(self, points: Any) -> np.ndarray:
        return in_chunks(self._values, points, self.teacher.size)

    def gradient(self, points: Any) -> np.ndarray:
        return in_chunks(self._slopes, points, self.teacher.size)

    def _values(self, points: np.ndarray) -> np.ndarray:
        w1, w2 = self.tensors(points)
        error = w2 @ w1 - self.teacher
        return (error**2 @ self.spectrum).sum(axis=1) / len(self.teacher) + self.noise**2

    def _slopes(self, points: np.ndarray) -> np.ndarray:
        w1, w2 = self.tensors(points)
        weighted = self._c * (w2 @ w1 - self.teacher) * self.spectrum
        return join_batch([w2.swapaxes(1, 2) @ weighted, weighted @ w1.swapaxes(1, 2)])

    def curvature_at(self, w: np.ndarray) -> np.ndarray:
        """Diagonal of the Gauss-Newton matrix at ``w`` (P,), which here is that of the Hessian."""
        w1, w2 = self.single("w", w)
        g1 = np.outer((w2**2).sum(axis=0), self.spectrum)
        g2 = np.broadcast_to(w1**2 @ self.spectrum, w2.shape)
        return self._c * join([g1, g2])

    def second_order_gap(self, w: np.ndarray, variance: np.ndarray) -> float:
        """The quartic term: expected loss minus ``L + ½ ⟨curvature_at(w), variance⟩``, the same for every ``w``."""
        self.single("w", w)
        s1, s2 = self.single("variance", variance)
        return self._c / 2 * float(s2.sum(axis=0) @ (s1 @ self.spectrum))

    def expected_loss(self, w: np.ndarray, variance: np.ndarray) -> float:
        """``E L(w + ε)`` for independent ε of mean zero and ``variance`` (P,), the quartic term included."""
        gap = self.second_order_gap(w, variance)
        return float(self(np.asarray(w)[None])[0]) + float(self.curvature_at(w) @ np.asarray(variance)) / 2 + gap

    def expected_parts(self, w: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(∂E/∂w at fixed variance, 2 ∂E/∂variance)`` of :meth:`expected_loss`, each (P,).

        They are ``∇L`` and the curvature averaged over the errors, ``E ∇L(w + ε)`` and ``E curvature_at(w + ε)``.
        """
        (w1, w2), (s1, s2) = self.single("w", w), self.single("variance", variance)
        # What the errors add to the expectations of ‖Λ^½ W1[i]‖² and of ‖W2[:,i]‖², each (k,).
        spread1, spread2 = s1 @ self.spectrum, s2.sum(axis=0)
        slope = self._slopes(np.asarray(w)[None])[0]
        slope += self._c * join([spread2[:, None] * w1 * self.spectrum, w2 * spread1])
        added = join([np.outer(spread2, self.spectrum), np.broadcast_to(spread1, w2.shape)])
        return slope, self.curvature_at(w) + self._c * added

    def batch_gradient(self, x: np.ndarray, step: int) -> np.ndarray:
        """Gradient (P,) on ``batch`` fresh samples of ``step``; the exact one where ``batch`` is None."""
        w1, w2 = self.single("x", x)
        if self.batch is None:
            return self._slopes(np.asarray(x)[None])[0]
        rng = self._batches.numpy_generator(step)
        inputs = rng.standard_normal((self.batch, len(self.spectrum))) * np.sqrt(self.spectrum)
        noise = self.noise * rng.standard_normal((self.batch, len(self.teacher)))
        hidden = inputs @ w1.T
        residual = self._c / self.batch * (hidden @ w2.T - inputs @ self.teacher.T - noise)
        return join([(residual @ w2).T @ inputs, residual.T @ hidden])


def two_layer(
    d: int,
    k: int,
    m: int,
    seed: int,
    exponent: float = 1.1,
    noise: float = 0.0,
    batch: int | None = None,
    start: str = "balanced",
) -> TwoLayer:
    """Two-layer linear regression on ``d`` inputs with ``k`` hidden units and ``m`` outputs, see :class:`TwoLayer`.

    Inputs have variances ``j^-exponent``; the teacher's entries are standard normal. ``noise``: standard deviation of
    the labels' noise. ``batch``: fresh samples a step, None for exact gradients. ``start``: ``balanced`` draws normal
    weights whose two layers have equal expected size, ``E tr(W1 Λ W1ᵀ) = E tr(W2ᵀ W2)``, and whose output has the
    teacher's expected power: variances ``√(m / (k tr Λ))`` for W1 and ``√(tr Λ / (k m))`` for W2; ``optimum`` starts
    at the unquantized optimum. Raises ValueError naming a bad argument.
    """
    d, k, m = whole("d", d), whole("k", k), whole("m", m)
    if start not in STARTS:
        raise ValueError(f"start = {start!r}; valid: {', '.join(STARTS)}")
    spectrum = np.arange(1, d + 1, dtype=np.float64) ** -non_negative("exponent", exponent)
    teacher = Stream(seed, "two_layer/teacher").numpy_generator().standard_normal((m, d))
    first = None
    if start == "balanced":
        power = float(spectrum.sum())
        rng = Stream(seed, "two_layer/start").numpy_generator()
        w1 = (m / (k * power)) ** 0.25 * rng.standard_normal((k, d))
        first = join([w1, (power / (k * m)) ** 0.25 * rng.standard_normal((m, k))])
    options = {"exponent": (exponent, 1.1), "noise": (noise, 0.0), "batch": (batch, None), "start": (start, "balanced")}
    changed = "".join(f" {key}={value}" for key, (value, usual) in options.items() if value != usual)
    return TwoLayer(
        f"two_layer d={d} k={k} m={m}{changed} seed={seed}",
        f"synthetic: normal teacher ({m}, {d}), independent normal inputs of variances j^-{exponent}, seed {seed}",
        teacher,
        spectrum,
        k,
        Stream(seed, "two_layer/batch"),
        noise,
        batch,
        first,
    )


PROBLEMS = (Descriptor("two_layer", make=two_layer),)
