"""The claims on trained weights and on the reconstruction loss of real layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from lotion_theory import Quantizer, Stream
from lotion_theory.theory.claims import CLAIMS
from lotion_theory.theory.verification import Row
from lotion_theory.workers import Call, answers

from .problems.minilm import LAYERS, weight
from .problems.real_layer import RealLayer, layer_rows, real_layers

FORMATS = (
    "int8/absmax/row", "int4/absmax/row", "int4/absmax/block=32", "int3/absmax/block=32", "int2/absmax/block=32",
    "int4full/gauge/block=32", "nf4/absmax/block=64", "e2m1/absmax/block=32", "ternary/absmax/row", "bitnet",
    "uint4/zp-real/block=32", "mxfp4", "mxfp4/sr", "nvfp4", "nvfp4/sr", "q4_0", "q8_0",
)  # fmt: skip
LAYERS_USED = ("0.query", "2.mix", "3.up", "5.down")
FALSE_ALARM = 1e-6
"""Probability that a true sampled claim fails here, per row."""
_EPS = 2.0**-23


def real_claim_rows(
    formats: Sequence[str] = FORMATS,
    layers: Sequence[str] = LAYERS_USED,
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
    processes: int = 1,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows of claims C1, C4, C8, C12 and C16 on trained layers, and the loss table behind the last three.

    Weights are float32, as trained. ``processes``: worker processes, each on a layer at a time. Raises
    FileNotFoundError with the install command where the weights are absent, ValueError for an unknown layer or format.
    """
    for layer in layers:
        if layer not in LAYERS:
            raise ValueError(f"unknown layer {layer!r}; valid: {', '.join(LAYERS)}")
    texts = [str(Quantizer.parse(text)) for text in formats]
    calls: list[Call] = []
    for layer, problem in zip(layers, real_layers(layers, folder=folder), strict=True):
        calls.append((layer, _layer, (problem, layer, texts)))
    # The largest first, for the processes to end together.
    calls.sort(key=lambda call: -call[2][0].center.size)
    found: dict[str, tuple[list[list[Row]], list[dict[str, Any]]]] = {}
    with closing(answers(calls, processes)) as fresh:
        for layer, result in fresh:
            found[layer] = result
            if progress:
                progress(f"claims on {layer}: {len(found)} of {len(calls)} layers")
    rows = [row for k in range(len(texts)) for layer in layers for row in found[layer][0][k]]
    losses = [line for layer in layers for line in found[layer][1]]
    for line in losses:
        rows += _loss_claims(Quantizer.parse(line["format"]), line)
    return rows, losses


class _Found(NamedTuple):
    """What a check found: ``bad`` says what is wrong, empty where nothing is; ``expected``: other than the claim's own
    expectation of the format."""

    measured: float
    theory: float
    tolerance: float
    bad: str
    checked: int
    note: str = ""
    expected: bool | None = None


def _layer(problem: RealLayer, layer: str, formats: list[str]) -> tuple[list[list[Row]], list[dict[str, Any]]]:
    """Per format the rows of the claims on one layer's weights, and the layer's lines of the loss table."""
    w = np.asarray(weight(layer), dtype=np.float32)
    rows = []
    for text in formats:
        q = Quantizer.parse(text)
        rows.append([_unbiased(q, layer, w), _support_fixed(q, layer, w)])
    return rows, layer_rows(problem, layer, formats, samples=6)


def _row(q: Quantizer, claim: str, layer: str, found: _Found, start: float) -> Row:
    c = CLAIMS[claim]
    verdict = {True: "holds", False: "fails", None: "open"}[c.expected(q) if found.expected is None else found.expected]
    # A predicted failure need not show on one trained layer: only promises are expectations here.
    return Row(
        str(q), claim, c.title, c.kind, "property", f"MiniLM {layer}", found.measured, found.theory, found.tolerance,
        "fails" if found.bad else "holds", "holds" if verdict == "holds" else "open", found.bad, found.checked,
        found.note, round(time.perf_counter() - start, 3),
    )  # fmt: skip


def _unbiased(q: Quantizer, layer: str, w: np.ndarray) -> Row:
    start = time.perf_counter()
    mean = np.asarray(q.mean(w), dtype=np.float64)
    gap = np.abs(mean - w)
    allowed = 8 * _EPS * float(np.abs(w).max()) if q.scale.is_drawn else 0.0
    at = np.unravel_index(int(np.argmax(gap)), gap.shape)
    share = float((gap > allowed).mean())
    bad = f"weight {w[at]:.6g} → {mean[at]:.6g} on average; {share:.3%} of weights are clipped" if share else ""
    return _row(q, "C1", layer, _Found(float(mean[at]), float(w[at]), allowed, bad, w.size), start)


def _support_fixed(q: Quantizer, layer: str, w: np.ndarray) -> Row:
    start = time.perf_counter()
    u = Stream(0, f"real_claims/{layer}").uniforms(w.shape)
    v = Stream(0, f"real_claims/{layer}/scale").uniforms(len(q.partition.to_blocks(w))) if q.scale.is_drawn else None
    point = q.round(w, u, v)
    moved = int(np.count_nonzero(np.asarray(q.variance(point)))) + int(
        np.count_nonzero(np.asarray(q.mean(point)) != point)
    )
    bad = f"{moved} of {w.size} weights of one rounding can move again" if moved else ""
    return _row(q, "C4", layer, _Found(float(moved), 0.0, 0.0, bad, w.size), start)


def _loss_claims(q: Quantizer, line: dict[str, Any]) -> list[Row]:
    start = time.perf_counter()
    layer, out = line["layer"], []
    # Known deviation where there is one lattice; a mean over independent roundings of a million weights is near normal.
    if line["rr_deviation"] is not None:
        error = line["rr_deviation"] / line["samples"] ** 0.5
        allowed = float(norm.isf(FALSE_ALARM / 2)) * error
        off = abs(line["rr_sampled"] - line["rr"]) > allowed
        note = f"two-sided false-alarm rate {FALSE_ALARM:g}, {line['samples']} roundings"
        bad = "closed form off" if off else ""
        found = _Found(line["rr_sampled"], line["rr"], allowed, bad, line["samples"], note, True)
        out.append(_row(q, "C8b", layer, found, start))
    if line["conditional"] is not None:
        worse = line["conditional"] > line["rr"] * (1 + 1e-9)
        note = f"round-to-nearest has {line['rtn']:.6g}"
        bad = "above the smoothed loss" if worse else ""
        out.append(_row(q, "C12", layer, _Found(line["conditional"], line["rr"], 0.0, bad, 1, note, True), start))
    ratio = line["rr_over_rtn_diagonal"]
    # Per weight (hi-w)(w-lo) >= min(...)²: on one lattice RR's noise is never below RTN's; 2 is the mean over phases.
    below = not q.scale.is_drawn and ratio < 1 - 1e-9
    note = "noise ratio RR / RTN through diag(H); 2 if phases were uniform"
    out.append(_row(q, "C16", layer, _Found(ratio, 2.0, 1.0, "below 1" if below else "", 1, note, True), start))
    return out
