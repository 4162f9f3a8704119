"""Layers of a trained network as quadratic problems: change a weight matrix, measure how the layer's output changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import Quantizer, Stream, kernels
from lotion_theory.rounders import Case
from lotion_theory.smoothing import Quadratic, smoothed_loss

from . import minilm
from .descriptor import Config, Descriptor

DEFAULT_LAYERS = ("0.query", "2.mix", "3.up", "5.down")
DEFAULT_FORMATS = (
    "int8/absmax/row",
    "int4/absmax/row",
    "int4/absmax/block=32",
    "int3/absmax/block=32",
    "int2/absmax/block=32",
    "nf4/absmax/block=64",
    "e2m1/absmax/block=32",
    "mxfp4",
    "nvfp4",
    "nvfp4/sr",
    "q4_0",
)
LARGEST_HESSIAN = 4096
_COLUMNS = 64


class RoundingLaw(NamedTuple):
    """Moments of the loss after randomized rounding. ``mean``: the smoothed loss. ``bias``: its part without noise, the
    loss at ``E RR(w)``. ``deviation``: standard deviation of the loss of one rounding, None for SR scales."""

    mean: float
    bias: float
    deviation: float | None


class _Moments(NamedTuple):
    """Mean and variance of ``RR(w)`` in float64 and, on one lattice, the levels around every weight."""

    mean: np.ndarray
    variance: np.ndarray
    bracket: tuple[np.ndarray, np.ndarray] | None


def _moments(q: Quantizer, w: np.ndarray) -> _Moments:
    if q.scale.is_drawn:
        return _Moments(np.asarray(q.mean(w), np.float64), np.asarray(q.variance(w), np.float64), None)
    lo, hi = (np.asarray(level, np.float64) for level in q.bracket(w))
    mean = np.clip(np.asarray(w, np.float64), lo, hi)
    return _Moments(mean, kernels.variance(mean, lo, hi), (lo, hi))


class RealLayer(Quadratic):
    """``L(W) = ½ tr((W - W*) H (W - W*)ᵀ)``: half the mean squared output error of a linear layer, a :class:`Problem`.

    ``weights``: trained matrix W* (rows, inputs); ``moment``: ``H = XᵀX/n`` (inputs, inputs) of the layer's inputs, so
    that L is the mean over tokens of ``½ ‖(W - W*) x‖²``. W* is the optimum. Everything is computed in float64. The
    full Hessian is block diagonal with ``H`` once per row; only ``H`` is stored, and the closed forms of
    ``lotion_theory`` work on matrices of any size.
    """

    def __init__(self, name: str, weights: np.ndarray, moment: np.ndarray, provenance: str) -> None:
        self.name, self.provenance, self.offset = name, provenance, 0.0
        self.center, self.moment = np.asarray(weights, dtype=np.float64), np.asarray(moment, dtype=np.float64)
        if self.center.ndim != 2 or self.moment.shape != 2 * self.center.shape[1:]:
            raise ValueError(
                f"weights have shape {self.center.shape} and the moment {self.moment.shape}; "
                "expected (rows, inputs) and (inputs, inputs)"
            )
        if not bool((self.moment == self.moment.T).all()):
            raise ValueError("the moment is not symmetric")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.center.shape

    @property
    def optimum(self) -> np.ndarray:
        return self.center

    @property
    def curvature(self) -> np.ndarray:
        """Diagonal of the Hessian, (rows, inputs): the diagonal of H in every row; read-only."""
        return np.broadcast_to(np.diagonal(self.moment), self.shape)

    @property
    def hessian(self) -> np.ndarray:
        """The full Hessian, (rows · inputs) squared; ValueError beyond 4096 weights."""
        if self.center.size > LARGEST_HESSIAN:
            raise ValueError(f"{self.center.size} weights are too many for a Hessian (limit {LARGEST_HESSIAN})")
        return np.kron(np.eye(self.shape[0]), self.moment)

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """Full Hessian times rows ``v`` of (n, weights)."""
        return (vectors.reshape(-1, self.shape[1]) @ self.moment).reshape(vectors.shape)

    def block_products(self, blocks: np.ndarray) -> np.ndarray:
        """``H_BB δ_B`` for (blocks, size) arrays tiling the flattened weights; a block is whole rows or divides one."""
        size, inputs = blocks.shape[1], self.shape[1]
        if size % inputs == 0:
            return self.product(blocks)
        if inputs % size:
            raise ValueError(f"blocks of {size} weights neither divide nor fill rows of {inputs}")
        k = inputs // size
        diagonal_blocks = self.moment.reshape(k, size, k, size)[np.arange(k), :, np.arange(k), :]  # (k, size, size)
        return (blocks.reshape(-1, k, 1, size) @ diagonal_blocks).reshape(blocks.shape)

    @property
    def output_power(self) -> float:
        """``½ tr(W* H W*ᵀ)``: the loss of all-zero weights, the scale on which losses of different layers compare."""
        return float((self.center * (self.center @ self.moment)).sum() / 2)

    def rounding_law(self, q: Quantizer | str, w: np.ndarray | None = None) -> RoundingLaw:
        """Exact mean and standard deviation of ``L(RR(w))``, ``w`` being W* by default.

        Independent errors ε with variance v = ab (a = w - lo, b = hi - w) see only the diagonal of H in the mean,
        ``E L = L(E RR) + ½ Σ H_jj v_ij``, which at W* without clipping is the last sum alone (claim C8). In the
        variance they see all of it: with g the gradient at ``E RR``,

            ``Var L = Σ v (g + ½ H_jj (b - a))² + ½ Σ_{j≠k} H_jk² v_j v_k``,

        since E ε³ = v (b - a), E ε⁴ - v² = v (b - a)², and products of distinct errors are uncorrelated.
        """
        q = Quantizer.parse(q)
        w = self.center if w is None else np.asarray(w)
        return self._rounding_law(q, w, _moments(q, w))

    def _rounding_law(self, q: Quantizer, w: np.ndarray, moments: _Moments) -> RoundingLaw:
        mean = smoothed_loss(self, w, q, "closed_form").value
        centre, v = moments.mean, moments.variance
        bias = float(self(centre[None])[0])
        if moments.bracket is None:
            return RoundingLaw(mean, bias, None)
        lo, hi = moments.bracket
        skew = hi + lo - 2 * centre
        g, h = self.gradient(centre[None])[0], self.curvature
        single = v * (g + h * skew / 2) ** 2
        squared = self.moment**2
        np.fill_diagonal(squared, 0)
        return RoundingLaw(mean, bias, math.sqrt(float(single.sum() + (v * (v @ squared)).sum() / 2)))

    def conditional_rounding(
        self, q: Quantizer | str, w: np.ndarray | None = None, order: Sequence[int] | None = None
    ) -> np.ndarray:
        """``lotion_theory.rounding.conditional_expectation`` for a whole matrix, all rows at a time (claim C12).

        The result, float64, has ``L <= E L(RR(w))``. ``order``: permutation of the inputs, by default as they are.
        Raises ValueError for a wrong order and for formats without a single bracket.
        """
        q = Quantizer.parse(q)
        w = self.center if w is None else np.asarray(w)
        inputs = self.shape[1]
        turn = np.arange(inputs) if order is None else np.asarray(order)
        if sorted(turn.tolist()) != list(range(inputs)):
            raise ValueError(f"order must be a permutation of 0 ... {inputs - 1}")
        return self._conditional_rounding(w, q.bracket(w), turn)

    def _conditional_rounding(
        self, w: np.ndarray, bracket: tuple[np.ndarray, np.ndarray], turn: np.ndarray
    ) -> np.ndarray:
        inputs = self.shape[1]
        lo, hi = (np.asarray(part, dtype=np.float64)[:, turn] for part in bracket)
        x = np.clip(np.asarray(w, dtype=np.float64)[:, turn], lo, hi)
        moment = self.moment[np.ix_(turn, turn)]
        slope = (x - self.center[:, turn]) @ moment
        for start in range(0, inputs, _COLUMNS):
            # Within a strip slopes are updated at every column; the rest of the matrix hears of the strip once, by a
            # matrix product. The order of the decisions, and so the result, is that of the plain loop.
            stop = min(start + _COLUMNS, inputs)
            moves = np.zeros((len(x), stop - start))
            for j in range(start, stop):
                down, up = lo[:, j] - x[:, j], hi[:, j] - x[:, j]
                rise = slope[:, j] * (up - down) + moment[j, j] / 2 * (up**2 - down**2)
                moves[:, j - start] = np.where(rise <= 0, up, down)
                slope[:, j:stop] += moves[:, j - start, None] * moment[j, j:stop]
            slope[:, stop:] += moves @ moment[start:stop, stop:]
            strip = slice(start, stop)
            x[:, strip] = np.where(moves > 0, hi[:, strip], np.where(moves < 0, lo[:, strip], x[:, strip]))
        out = np.empty_like(x)
        out[:, turn] = x
        return out


def real_layer(
    layer: str, rows: Sequence[int] | None = None, sequences: int = 32, folder: Path | None = None
) -> RealLayer:
    """The problem of one trained matrix of all-MiniLM-L6-v2, e.g. ``real_layer("0.query")``; names: ``minilm.LAYERS``.

    ``rows``: only these outputs; a ``tensor`` partition then scales by them alone. ``sequences`` of 128 tokens of the
    embedded corpus give the moment; ``folder`` keeps it between runs (see :func:`minilm.input_moments`). Raises
    FileNotFoundError with the install command where the weights are absent.
    """
    return next(real_layers([layer], rows, sequences, folder))


def real_layers(
    layers: Sequence[str], rows: Sequence[int] | None = None, sequences: int = 32, folder: Path | None = None
) -> Iterator[RealLayer]:
    """:func:`real_layer` for several matrices with a single pass of the network."""
    moments = minilm.input_moments(layers, sequences, folder)
    for layer in layers:
        matrix = minilm.weight(layer)
        chosen = matrix if rows is None else matrix[np.asarray(rows)]
        yield RealLayer(
            f"MiniLM {layer}" + ("" if rows is None else f" ({len(chosen)} of {len(matrix)} rows)"),
            chosen,
            moments[layer],
            f"all-MiniLM-L6-v2 ({minilm.DISTRIBUTION}), {minilm.tensor_name(layer)}; inputs from {sequences} x "
            f"{minilm.LENGTH} tokens of State of the Union addresses",
        )


def real_layer_rows(
    formats: Sequence[str] = DEFAULT_FORMATS,
    layers: Sequence[str] = DEFAULT_LAYERS,
    rows: Sequence[int] | None = None,
    samples: int = 4,
    seed: int = 0,
    sequences: int = 32,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """What each rounding rule costs in each format on real layers, one dictionary per layer and format.

    Losses are those of :class:`RealLayer` for quantized W*: ``rtn`` (nearest), ``rr`` (randomized, exact mean),
    ``rr_bias`` and ``rr_deviation`` (see :class:`RoundingLaw`), ``rr_sampled`` with ``rr_standard_error`` over
    ``samples`` roundings (None for ``samples=0``), and ``conditional`` (conditional expectation, never more than
    ``rr``; None for SR scales). ``*_relative``: the same over ``output_power``. ``rr_over_rtn`` compares the losses,
    ``rr_over_rtn_diagonal`` only their noise through H's diagonal: 2 where weights are spread evenly within their
    cells (claim C16), never below 1 on a single lattice.
    """
    if samples == 1:
        raise ValueError("samples=1 gives no standard error; valid: 0, or at least 2")
    out = []
    for layer, problem in zip(layers, real_layers(layers, rows, sequences, folder), strict=True):
        out += layer_rows(problem, layer, formats, samples, seed, sequences)
    return out


def layer_rows(
    problem: RealLayer, layer: str, formats: Sequence[str], samples: int, seed: int = 0, sequences: int = 32
) -> list[dict[str, Any]]:
    """The rows of :func:`real_layer_rows` for one layer whose ``problem`` was made from so many ``sequences``."""
    quantizers, out = [Quantizer.parse(text) for text in formats], []
    sampled = _sampled(problem, quantizers, layer, samples, seed)
    for q, values in zip(quantizers, sampled, strict=True):
        row = {"layer": layer, "format": str(q), **_measure(problem, q, values), "samples": samples, "seed": seed}
        out.append({**row, "tokens": sequences * minilm.LENGTH, "source": problem.provenance})
    return out


def _measure(problem: RealLayer, q: Quantizer, values: np.ndarray) -> dict[str, Any]:
    w = problem.center
    cast, moments = q.cast(w), _moments(q, w)
    law = problem._rounding_law(q, w, moments)
    power, rtn = problem.output_power, float(problem(cast[None])[0])
    conditional = None
    if moments.bracket is not None:
        rounded = problem._conditional_rounding(w, moments.bracket, np.arange(w.shape[1]))
        conditional = float(problem(rounded[None])[0])
    noise = float((problem.curvature * moments.variance).sum())
    nearest = float((problem.curvature * (cast - moments.mean) ** 2).sum())
    return {
        "rows": w.shape[0], "inputs": w.shape[1], "output_power": power, "rtn": rtn, "rr": law.mean,
        "rr_bias": law.bias, "rr_deviation": law.deviation,
        "rr_sampled": float(values.mean()) if len(values) else None,
        "rr_standard_error": float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) else None,
        "conditional": conditional,
        "rtn_relative": rtn / power, "rr_relative": law.mean / power,
        "conditional_relative": None if conditional is None else conditional / power,
        "rr_over_rtn": law.mean / rtn if rtn else math.nan,
        "rr_over_rtn_diagonal": noise / nearest if nearest else math.nan,
        "conditional_over_rtn": conditional / rtn if conditional is not None and rtn else math.nan,
    }  # fmt: skip


def _sampled(problem: RealLayer, quantizers: list[Quantizer], layer: str, samples: int, seed: int) -> np.ndarray:
    """Losses of roundings, (formats, samples). All formats see the same uniforms: their differences are less noisy."""
    out = np.empty((len(quantizers), samples))
    w = problem.center
    weights, scales = Stream(seed, f"real_layer/{layer}/weights"), Stream(seed, f"real_layer/{layer}/scales")
    for k in range(samples):
        u = weights.uniforms(w.shape, step=k, dtype="float64")
        for i, q in enumerate(quantizers):
            v = scales.uniforms(len(q.partition.to_blocks(w)), step=k, dtype="float64") if q.scale.is_drawn else None
            out[i, k] = problem(q.round(w, u, v)[None])[0]
    return out


def _rounding_case(settings: Config, text: str, seed: int) -> Case:
    """So many ``rows`` of a ``layer``, drawn by the seed, under the layer's whole second moment."""
    matrix, moment = _matrix_and_moment(settings["layer"])
    chosen = Stream(seed, "rounding/rows").numpy_generator().permutation(len(matrix))[: settings["rows"]]
    return Case.make(moment, matrix[np.sort(chosen)], text)


@lru_cache(maxsize=2)
def _matrix_and_moment(name: str) -> tuple[np.ndarray, np.ndarray]:
    layer = real_layer(name, folder=minilm.user_cache())
    return layer.center, layer.moment


def _check_case(settings: Config) -> None:
    if set(settings) != {"layer", "rows"}:
        raise ValueError(f"problem real_layer has the settings layer and rows, not {', '.join(settings) or 'none'}")
    if settings["layer"] not in minilm.LAYERS:
        raise ValueError(f"layer = {settings['layer']!r}; valid: {', '.join(minilm.LAYERS)}")
    if type(settings["rows"]) is not int or settings["rows"] < 1:
        raise ValueError(f"rows = {settings['rows']!r}: must be a positive integer")


PROBLEMS = (Descriptor("real_layer", case=_rounding_case, check_case=_check_case, pretrained=True),)
