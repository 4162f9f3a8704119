"""Linear regression on correlated Gaussian inputs: quadratic losses of any size with everything known about them.

>>> problem = linear_regression(12000, seed=0)  # H diagonal, H_ii = i^-1.1
>>> problem = linear_regression(512, seed=0, rotation="dense", noise=0.1, batch=32)
>>> problem = linear_regression(512, seed=0, samples=300)  # 300 data points; problem.population is what they stand for
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from scipy.linalg import lapack

from lotion_theory import Stream
from lotion_theory.rounders import Case
from lotion_theory.smoothing import Quadratic

from .base import Part
from .descriptor import Config, Descriptor
from .rotations import LARGEST_DENSE, Dense, Hadamard, Identity, Mixing, Rotation, blockwise

LARGEST_HESSIAN = 4096
LARGEST_DATA = 30_000_000
"""Most entries (samples times weights) of a fixed data set: 240 MB of float64."""

STARTS = ("normal", "zero", "optimum")
_ROTATIONS: dict[str, Callable[[int, int, Stream], Rotation]] = {
    "none": lambda d, block, stream: Identity(d),
    "hadamard": lambda d, block, stream: Hadamard(d, block),
    "mixing": lambda d, block, stream: Mixing(d, stream),
    "dense": lambda d, block, stream: Dense.haar(d, stream),
    "blocks": lambda d, block, stream: Dense.haar(d, stream, block),
}
ROTATIONS = tuple(_ROTATIONS)
_BLOCKS_AT_A_TIME = 16


class LinearRegression(Quadratic):
    """``L(w) = ½ E (w·x - y)²`` with ``x = R Λ^½ z``, z ~ N(0, I), and ``y = w*·x + noise ε``: a TrainingProblem.

    That is ``½ (w - w*)ᵀ H (w - w*) + ½ noise²`` with ``H = R Λ Rᵀ``, which is never formed for large d. Made by
    :func:`linear_regression`. ``spectrum``: Λ (d,), in the order of R's columns. ``population``: the problem itself
    (of a :class:`SampledRegression`, the law its data are drawn from). ``batch``: samples per stochastic gradient, or
    None; they are drawn from ``batches``, by default a stream of the problem's name. All shapes are (d,); everything is
    computed in float64.
    """

    def __init__(
        self,
        name: str,
        provenance: str,
        spectrum: np.ndarray,
        rotation: Rotation,
        optimum: np.ndarray,
        start: np.ndarray,
        noise: float = 0.0,
        batch: int | None = None,
        batches: Stream | None = None,
    ) -> None:
        self.name, self.provenance = name, provenance
        self.spectrum, self.rotation, self.center, self.start = spectrum, rotation, optimum, start
        self.noise, self.offset, self.batch = noise, noise**2 / 2, batch
        self.batches = Stream(0, name) if batches is None else batches
        self._root = np.sqrt(spectrum)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.center.shape

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part("w", self.shape),)

    @property
    def optimum(self) -> np.ndarray:
        return self.center

    @property
    def floor(self) -> float:
        """The smallest loss of any weights, that of ``optimum``: ½ noise² for the population."""
        return float(self.offset)

    @property
    def population(self) -> LinearRegression:
        return self

    @property
    def hessian_diagonal(self) -> np.ndarray | None:
        """H (d,) where it is diagonal, else None."""
        return self.spectrum if isinstance(self.rotation, Identity) else None

    @property
    def hessian(self) -> np.ndarray:
        """H (d, d), exactly symmetric; ValueError beyond 4096 weights."""
        d = self.center.size
        if d > LARGEST_HESSIAN:
            raise ValueError(f"d = {d} is too large for a Hessian (limit {LARGEST_HESSIAN}); use product and curvature")
        h = self.product(np.eye(d))
        return (h + h.T) / 2

    @cached_property
    def curvature(self) -> np.ndarray:
        """Exact diagonal (d,) of H, computed at the first use; with "mixing" in seconds, see ``Mixing.diagonal``."""
        return self.rotation.diagonal(self.spectrum)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return (self._factor(self.centred(points)) ** 2).sum(axis=1) / 2 + self.offset

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """``H v`` for rows ``v`` of (n, d)."""
        if self._blocks is not None:
            return blockwise(self._blocks, vectors)
        return self.rotation.apply(self.rotation.transpose(vectors) * self.spectrum)

    def block_products(self, blocks: np.ndarray) -> np.ndarray:
        """``H_BB δ_B`` for each block of a (blocks, n) array that tiles the weights; a product with H per block."""
        count = len(blocks)
        if isinstance(self.rotation, Identity):
            return self.spectrum.reshape(blocks.shape) * blocks
        out = np.empty(blocks.shape)
        for begin in range(0, count, _BLOCKS_AT_A_TIME):
            chosen = np.arange(begin, min(begin + _BLOCKS_AT_A_TIME, count))
            alone = np.zeros((len(chosen), *blocks.shape))
            alone[chosen - begin, chosen] = blocks[chosen]
            product = self.product(alone.reshape(len(chosen), -1)).reshape(alone.shape)
            out[chosen] = product[chosen - begin, chosen]
        return out

    def curvature_at(self, w: np.ndarray) -> np.ndarray:
        """The diagonal of H, at any ``w``."""
        return self.curvature

    def expected_loss(self, w: np.ndarray, variance: np.ndarray) -> float:
        """``E L(w + ε) = L(w) + ½ Σ H_ii variance_i``, exact for all independent errors of mean zero (claim C8)."""
        return float(self(w[None])[0] + self.curvature @ variance / 2)

    def expected_parts(self, w: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(H (w - w*), diag H)``."""
        return self.gradient(w[None])[0], self.curvature

    def batch_gradient(self, x: np.ndarray, step: int) -> np.ndarray:
        """Mean of ``(x·v - y) v`` over the samples v of the batch of ``step``; the full gradient where batch is None.

        The population draws ``batch`` new samples at each step, O(batch d) in all. A gradient coordinate has variance
        ``(H_ii (eᵀHe + noise²) + (He)_i²) / batch``, e = x - w*. Of fixed data, ``batch`` different rows are taken.
        """
        if self.batch is None:
            return self.gradient(x[None])[0]
        return self._sampled_gradient(x, self.batch, self.batches.numpy_generator(step))

    def inputs_and_targets(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """``count`` samples: inputs (count, d) and targets (count,)."""
        z = rng.standard_normal((count, self.center.size))
        z *= self._root
        x = self.rotation.apply(z)
        return x, x @ self.population.center + self.noise * rng.standard_normal(count)

    def _sampled_gradient(self, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        # With samples R Λ^½ z the rotation is needed once for the error and once for the mean, not once a sample.
        z = rng.standard_normal((count, self.center.size))
        residuals = z @ self._factor(x - self.center) - self.noise * rng.standard_normal(count)
        return self.rotation.apply((residuals @ z) * self._root) / count

    def _factor(self, vectors: np.ndarray) -> np.ndarray:
        """``A v`` for rows ``v`` of ``vectors``, where ``H = Aᵀ A``: half the work of a product, and L >= floor."""
        return self.rotation.transpose(vectors) * self._root

    @cached_property
    def _blocks(self) -> np.ndarray | None:
        """H's diagonal blocks where H is made of dense ones: one product with them replaces two with R's."""
        if not isinstance(self.rotation, Dense):
            return None
        r = self.rotation.matrices
        h = (r * self.spectrum.reshape(len(r), 1, -1)) @ np.swapaxes(r, 1, 2)
        return (h + np.swapaxes(h, 1, 2)) / 2


class SampledRegression(LinearRegression):
    """Mean loss ``½ (w·x - y)²`` over N fixed samples: H = XᵀX / N, at the optimum of least norm among all of them.

    ``inputs``: X (N, d); ``targets``: (N,). ``floor`` is the training loss of the optimum, zero where N <= d. The
    spectrum and the rotation are the population's, as are ``start`` and ``noise``.
    """

    def __init__(
        self, name: str, population: LinearRegression, inputs: np.ndarray, targets: np.ndarray, batch: int | None
    ) -> None:
        p = population
        optimum = _least_squares(inputs, targets, p.center)
        super().__init__(name, p.provenance, p.spectrum, p.rotation, optimum, p.start, p.noise, batch, p.batches)
        self.inputs, self.targets, self._population = inputs, targets, population
        self.offset = float(np.mean((inputs @ optimum - targets) ** 2) / 2)

    @property
    def population(self) -> LinearRegression:
        return self._population

    @property
    def hessian_diagonal(self) -> None:
        return None

    @cached_property
    def curvature(self) -> np.ndarray:
        """Diagonal (d,) of XᵀX / N: the mean squares of the inputs."""
        return np.einsum("ni,ni->i", self.inputs, self.inputs) / len(self.inputs)

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """``H v`` for rows ``v`` of (n, d)."""
        return (vectors @ self.inputs.T) @ self.inputs / len(self.inputs)

    def block_products(self, blocks: np.ndarray) -> np.ndarray:
        x = self.inputs.reshape(len(self.inputs), *blocks.shape)
        return np.einsum("nbi,nb->bi", x, np.einsum("nbi,bi->nb", x, blocks)) / len(x)

    def _factor(self, vectors: np.ndarray) -> np.ndarray:
        return vectors @ self.inputs.T / math.sqrt(len(self.inputs))

    def _sampled_gradient(self, x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        rows = rng.choice(len(self.inputs), count, replace=False)
        inputs = self.inputs[rows]
        return (inputs @ x - self.targets[rows]) @ inputs / count


def linear_regression(
    d: int,
    seed: int,
    *,
    exponent: float = 1.1,
    rotation: str = "none",
    block: int = 128,
    noise: float = 0.0,
    tail: float | None = None,
    start: str = "normal",
    batch: int | None = None,
    samples: int | None = None,
) -> LinearRegression:
    """The regression of ``d`` weights whose inputs have covariance ``H = R Λ Rᵀ``, ``Λ_i = i^-exponent``.

    Instances of one seed share w*, start and the z of all samples, whatever the rotation; w* and start are drawn in the
    coordinates of the weights, after the rotation.

    Args:
        rotation: R. "none": H is diagonal. "hadamard": Walsh-Hadamard in runs of ``block``, a power of two dividing d,
            of the diagonal problem (random signs would cancel in H): H's diagonal is the mean of Λ over each run.
            "blocks": independent Haar rotations of runs of ``block``, any divisor of d up to 2048; Λ is first dealt
            to the runs, one of each consecutive d / block values to each at random, so that they look alike.
            "dense": one Haar rotation, d <= 2048. "mixing": a dense one of any d in O(d log d),
            :class:`~testbeds.problems.rotations.Mixing`.
        noise: standard deviation of the targets given the inputs.
        tail: w* is Student-t with this many degrees of freedom, scaled to variance 1 where it has one (tail > 2), as it
            is otherwise; by default standard normal.
        start: initial weights. "normal": N(0, 1), independent of w*; "zero"; "optimum": the problem's own.
        batch: samples per stochastic gradient; by default gradients are full ones.
        samples: train on this many fixed data points, a :class:`SampledRegression`; by default on the population.

    Raises ValueError naming the argument, its value and the valid ones.
    """
    _check_law(d, exponent, noise, tail, start)
    _check_samples(d, batch, samples)
    _check_rotation(d, rotation, block)
    root = Stream(seed, "linear_regression")
    options = f"i^-{exponent:g}, {rotation}" + (f" {block}" if rotation in ("hadamard", "blocks") else "")
    options += f", noise {noise:g}, w* {f't({tail:g})' if tail is not None else 'N(0, 1)'}"
    optimum = _optimum(d, tail, root.spawn("optimum").numpy_generator())
    population = LinearRegression(
        name=f"linear regression, d={d}, {options}, seed {seed}",
        provenance=f"drawn: Gaussian inputs with covariance spectrum {options}; seed {seed}",
        spectrum=_spectrum(d, exponent, block if rotation == "blocks" else None, root.spawn("deal")),
        rotation=_ROTATIONS[rotation](d, block, root.spawn("rotation")),
        optimum=optimum,
        start=optimum.copy() if start == "optimum" else np.zeros(d),
        noise=float(noise),
        batch=batch if samples is None else None,
        batches=root.spawn("batches"),
    )
    if start == "normal":
        population.start = root.spawn("start").numpy_generator().standard_normal(d)
    if samples is None:
        return population
    problem = _sampled(population, samples, batch, root.spawn("samples"))
    if start == "optimum":
        problem.start = problem.center.copy()
    return problem


def _sampled(population: LinearRegression, samples: int, batch: int | None, stream: Stream) -> SampledRegression:
    inputs, targets = population.inputs_and_targets(samples, stream.numpy_generator())
    return SampledRegression(f"{population.name}, {samples} samples", population, inputs, targets, batch)


def _spectrum(d: int, exponent: float, block: int | None, stream: Stream) -> np.ndarray:
    """``i^-exponent``; for runs of ``block`` dealt to them, one of each consecutive d / block values to each."""
    spectrum = np.arange(1, d + 1, dtype=np.float64) ** -exponent
    if block is None:
        return spectrum
    dealt = np.arange(d).reshape(block, d // block)
    return spectrum[stream.numpy_generator().permuted(dealt, axis=1).T.ravel()]


def _optimum(d: int, tail: float | None, rng: np.random.Generator) -> np.ndarray:
    if tail is None:
        return rng.standard_normal(d)
    return rng.standard_t(tail, d) * (math.sqrt((tail - 2) / tail) if tail > 2 else 1.0)


def _least_squares(inputs: np.ndarray, targets: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The w of least norm among those of least ``‖X w - y‖``, by QR of X or of its transpose, whichever is tall."""
    count, d = inputs.shape
    wide = count < d
    tall, trans = (inputs.T, "T") if wide else (inputs, "N")
    # With N >= d solved for the distance from w*, so that w* itself comes out where there is no noise.
    base = np.zeros(d) if wide else truth
    right = np.zeros((len(tall), 1))
    right[:count, 0] = targets - inputs @ base
    work, _ = lapack.dgels_lwork(*tall.shape, 1, trans=trans)
    _, solution, singular = lapack.dgels(tall, right, trans=trans, lwork=int(work))
    if singular:
        raise ValueError("the samples' inputs do not have full rank; valid: a smaller exponent, or fewer samples")
    return base + solution[:d, 0]


def _check_law(d: int, exponent: float, noise: float, tail: float | None, start: str) -> None:
    if d < 1:
        raise ValueError(f"d = {d}; valid: at least 1")
    if start not in STARTS:
        raise ValueError(f"start = {start!r}; valid: {', '.join(STARTS)}")
    for name, number in (("exponent", exponent), ("noise", noise)):
        if not 0 <= number < math.inf:
            raise ValueError(f"{name} = {number}; valid: finite and at least 0")
    if tail is not None and not 0 < tail < math.inf:
        raise ValueError(f"tail = {tail}; valid: positive and finite, or None")


def _check_samples(d: int, batch: int | None, samples: int | None) -> None:
    for name, count in (("batch", batch), ("samples", samples)):
        if count is not None and count < 1:
            raise ValueError(f"{name} = {count}; valid: at least 1, or None")
    if batch is not None and samples is not None and batch > samples:
        raise ValueError(f"batch = {batch}; valid: at most the {samples} samples")
    if samples is not None and samples * d > LARGEST_DATA:
        raise ValueError(f"samples = {samples}; valid for d = {d}: at most {LARGEST_DATA // d}, for memory")


def _check_rotation(d: int, rotation: str, block: int) -> None:
    if rotation not in ROTATIONS:
        raise ValueError(f"rotation = {rotation!r}; valid: {', '.join(ROTATIONS)}")
    if rotation == "dense" and d > LARGEST_DENSE:
        raise ValueError(f"d = {d}; valid for rotation 'dense': at most {LARGEST_DENSE}; beyond, use 'mixing'")
    if rotation == "blocks" and (block < 1 or d % block or block > LARGEST_DENSE):
        divisors = (k for k in range(1, min(d, LARGEST_DENSE) + 1) if d % k == 0)
        nearest = ", ".join(map(str, sorted(sorted(divisors, key=lambda k: abs(k - block))[:4])))
        raise ValueError(f"block = {block}; valid: divisors of d = {d} up to {LARGEST_DENSE}, nearest: {nearest}")


def _rounding_case(settings: Config, text: str, seed: int) -> Case:
    """The optimum of a dense instance, to be rounded; ``settings`` are those of :func:`linear_regression`."""
    made = linear_regression(**{"rotation": "dense", **settings}, seed=seed)
    return Case.make(made.hessian, made.optimum, text)


PROBLEMS = (Descriptor("linear_regression", make=linear_regression), Descriptor("power_law", case=_rounding_case))
