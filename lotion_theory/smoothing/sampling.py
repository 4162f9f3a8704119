"""Sampled estimates of the smoothed loss: Monte Carlo, antithetic pairs, scrambled Sobol' points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .._arrays import as_array, finite, to_numpy, wide
from ..arguments import count
from ..formats.quantizer import Quantizer
from ..streams import Stream
from .losses import Loss, values_of

_CHUNK = 2**22


@dataclass(frozen=True)
class Estimate:
    """A sampled value with its standard error, the number of loss evaluations, and the method that made it."""

    value: float
    standard_error: float
    evaluations: int
    method: str


def randomized_points(q: Quantizer, w: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Support points of ``RR(w)`` from rows of uniforms.

    ``uniforms``: (n, coordinates) in [0, 1), the first ones for the weights in C order (two per complex weight), then,
    for SR scales, one per block. Returns (n, *w.shape), in float64 for 16-bit weights.
    """
    law = q.block_law(w)
    size = law.x.size
    out = law.pick(uniforms[:, :size].reshape(-1, *law.x.shape), uniforms[:, size:, None])
    if q.codebook.is_complex:
        return np.stack([q.unblock(v, w) for v in out])
    return wide(out.astype(w.dtype)).reshape(-1, *w.shape)


def coordinates(q: Quantizer, w: np.ndarray) -> int:
    """How many uniforms one rounding of ``w`` takes."""
    x, _ = q.blocks(w)
    return x.size + (len(x) if q.scale.is_drawn else 0)


def prepared(w, q: Quantizer | str) -> tuple[Quantizer, np.ndarray]:
    """Parsed quantizer and checked numpy weights."""
    q = Quantizer.parse(q)
    return q, finite(to_numpy(as_array(w)))


def monte_carlo(
    loss: Loss, w, q: Quantizer | str, samples: int = 1024, seed: int = 0, antithetic: bool = False
) -> Estimate:
    """Plain or antithetic (``u`` and ``1 - u``) Monte Carlo; the standard error is over independent draws or pairs."""
    q, w = prepared(w, q)
    samples = count("samples", samples)
    if samples < (4 if antithetic else 2):
        raise ValueError(f"samples={samples} is too few for a standard error")
    if antithetic and samples % 2:
        raise ValueError(f"samples={samples} must be even for antithetic pairs")
    draws = samples // 2 if antithetic else samples
    values = np.concatenate([_evaluate(loss, q, w, u, antithetic) for u in uniform_rows(q, w, draws, seed)])
    method = "antithetic" if antithetic else "monte_carlo"
    return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), samples, method)


def uniform_rows(
    q: Quantizer, w: np.ndarray, rows: int, seed: int, purpose: str = "smoothing/monte_carlo", group: int | None = None
) -> Iterator[np.ndarray]:
    """Rows of uniforms in chunks of ``group`` rows, or of as many as fit in memory; the same rows either way."""
    d = coordinates(q, w)
    stream = Stream(seed, purpose)
    step = group or max(1, _CHUNK // d)
    for start in range(0, rows, step):
        n = min(step, rows - start)
        yield stream.uniforms((n, d), dtype="float64", start=start * d)


def _evaluate(loss: Loss, q: Quantizer, w: np.ndarray, u: np.ndarray, antithetic: bool) -> np.ndarray:
    values = values_of(loss, randomized_points(q, w, u)).astype(np.float64)
    if not antithetic:
        return values
    other = values_of(loss, randomized_points(q, w, mirrored(u))).astype(np.float64)
    return (values + other) / 2


def mirrored(u: np.ndarray) -> np.ndarray:
    """The other half of an antithetic pair. Uniforms are multiples of 2^-53, so this reflection stays in [0, 1) and
    maps the lattice of uniforms to itself."""
    return (1 - 2.0**-53) - u


Points = Callable[[int, int, int], np.ndarray]
"""``points(d, power, seed)``: ``2**power`` randomized points of [0, 1), (points, d), of equal law each."""


def sobol_points(d: int, power: int, seed: int) -> np.ndarray:
    """Scrambled Sobol' points (scipy's; Joe and Kuo's numbers). ValueError beyond 21201 dimensions."""
    from scipy.stats import qmc

    if d > qmc.Sobol.MAXDIM:
        raise ValueError(
            f"{d} coordinates exceed the {qmc.Sobol.MAXDIM} dimensions of Sobol' points; use 'monte_carlo'"
        )
    return qmc.Sobol(d, scramble=True, rng=seed).random_base2(power)


def quasi_monte_carlo(
    loss: Loss,
    w,
    q: Quantizer | str,
    samples: int = 1024,
    seed: int = 0,
    randomizations: int = 8,
    points: Points = sobol_points,
) -> Estimate:
    """Evenly spread points: ``randomizations`` independent sets of equal size, whose spread is the error.

    ``samples / randomizations`` is rounded down to a power of two; ValueError where that leaves less than 2 points.
    ``points``: where they come from, scrambled Sobol' points or any others, as shifted lattices and digital nets of
    another library: ``lambda d, power, seed: qmcpy.Lattice(d, seed=seed).gen_samples(2**power)``.
    """
    q, w = prepared(w, q)
    d = coordinates(q, w)
    samples, randomizations = count("samples", samples), count("randomizations", randomizations)
    if randomizations < 2 or samples // randomizations < 2:
        raise ValueError(
            f"samples={samples} and randomizations={randomizations}: need at least 2 of each per scrambling"
        )
    power = int(math.log2(samples // randomizations))
    means = []
    for r in range(randomizations):
        # Sobol' spawns from its seed, which a counter-based generator without a seed sequence cannot; an integer can.
        scramble_seed = int(Stream(seed, "smoothing/sobol").numpy_generator(r).integers(2**62))
        spread = np.asarray(points(d, power, scramble_seed), dtype=np.float64)
        if spread.shape != (2**power, d) or not ((spread >= 0) & (spread <= 1)).all():
            raise ValueError(f"points gave shape {spread.shape} or numbers outside of [0, 1]: needs {(2**power, d)}")
        means.append(_evaluate(loss, q, w, np.minimum(spread, 1 - 2.0**-53), False).mean())
    error = float(np.std(means, ddof=1) / math.sqrt(randomizations))
    return Estimate(float(np.mean(means)), error, randomizations * 2**power, "quasi_monte_carlo")
