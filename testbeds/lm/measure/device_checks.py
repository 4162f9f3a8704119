"""Whether an accelerator computes what a CPU does: streams and casts to the bit, penalties within rounding errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lotion_theory import Quantizer, Stream
from lotion_theory.training import LotionPenalty, StraightThrough

FORMATS = ("int4/absmax/block=32", "int4/absmax", "int8/absmax/row", "e2m1/absmax/block=32", "nf4/absmax/row")
GENERAL = ("mxfp4", "nvfp4", "int4full/gauge/row")
DTYPES = (torch.float32, torch.bfloat16)
SHAPE = (96, 128)


def checks(device: torch.device, compiled: bool = False) -> Iterator[dict[str, Any]]:
    """One row per check: ``check``, ``format``, ``dtype``, ``error`` (the largest, relative to ``bound``'s scale),
    ``bound`` (0: equal bits), ``holds``. ``compiled``: also by generated code, which takes a minute or two."""
    yield from _streams(device)
    for dtype in DTYPES:
        for text in (*FORMATS, *GENERAL):
            yield from _rounding(device, text, dtype)
        for text in FORMATS:
            yield from _straight_through(device, text, dtype, False)
            yield from _penalty(device, text, dtype, False)
            if compiled:
                yield from _straight_through(device, text, dtype, True)
                yield from _penalty(device, text, dtype, True)


def _row(check: str, text: str, dtype: torch.dtype, error: float, bound: float) -> dict[str, Any]:
    name = str(dtype).removeprefix("torch.")
    return {"check": check, "format": text, "dtype": name, "error": error, "bound": bound, "holds": error <= bound}


def _unequal(a: Tensor, b: Tensor) -> float:
    """Share of unequal values; 0 and -0 are equal."""
    return float((a.cpu() != b.cpu()).double().mean())


def _weights(dtype: torch.dtype) -> Tensor:
    """Normal weights, a block of zeros, ties for the largest one, and weights that are levels already."""
    w = torch.from_numpy(Stream(0, "device-checks").numpy_generator().standard_normal(SHAPE, dtype="float32"))
    w[0, :32], w[1, 3] = 0, -w[1].abs().max()
    w[2] = torch.from_numpy(np.asarray(Quantizer.parse("int4/absmax/block=32").cast(w[2].numpy())))
    return w.to(dtype)


def _streams(device: torch.device) -> Iterator[dict[str, Any]]:
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(0, device=device, dtype=dtype)
        found = Stream(4, "device").uniforms(1001, 2**40, like=like, start=2**34 - 501)
        expected = Stream(4, "device").uniforms(1001, 2**40, like=like.cpu(), start=2**34 - 501)
        yield _row("stream", "", dtype, _unequal(found, expected), 0.0)


def _rounding(device: torch.device, text: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    q, w = Quantizer.parse(text), _weights(dtype)
    u = Stream(1, "device-checks").uniforms(SHAPE, like=w)
    yield _row("cast", text, dtype, _unequal(q.cast(w.to(device)), q.cast(w)), 0.0)
    yield _row("round", text, dtype, _unequal(q.round(w.to(device), u.to(device)), q.round(w, u)), 0.0)


def _straight_through(device: torch.device, text: str, dtype: torch.dtype, compiled: bool) -> Iterator[dict[str, Any]]:
    for method in ("qat",) if compiled else ("qat", "rr_ste"):
        points = []
        for place in (torch.device("cpu"), device):
            st = StraightThrough([("w", nn.Parameter(_weights(dtype).to(place)))], text, method, seed=3)
            if compiled and place == device:
                st.compile()
            with st:
                points.append(st.items[0].local.detach().clone())
        label = f"{method} points{', compiled' if compiled else ''}"
        yield _row(label, text, dtype, _unequal(points[1], points[0]), 0.0)


def _penalty(device: torch.device, text: str, dtype: torch.dtype, compiled: bool) -> Iterator[dict[str, Any]]:
    """Errors relative to the block sums of absolute terms, as a sum may be taken in any order."""
    results = []
    loss_gradient = Stream(2, "device-checks").numpy_generator().standard_normal(SHAPE, dtype="float32")
    for place in (torch.device("cpu"), device):
        parameter = nn.Parameter(_weights(dtype).to(place))
        penalty = LotionPenalty([("w", parameter)], text)
        if compiled and place == device:
            penalty.compile()
        parameter.grad = torch.from_numpy(loss_gradient).to(dtype).to(place)
        penalty.observe(8)
        parameter.grad = torch.zeros_like(parameter)
        penalty.add_gradient_()
        with torch.no_grad():
            results.append((float(penalty()), parameter.grad.double().cpu(), penalty))
    (value, gradient, penalty), (other, found, _) = results
    item = penalty.items[0]
    # The sum of |w_i| h_i over a block bounds what reaches its largest weight; in it n terms round once each, and the
    # gradient is stored in the type of the weights.
    sizes = item.blocks(item.local.detach().double().abs() * penalty.curvature_of("w").double())
    scale = sizes.sum(dim=1, keepdim=True).expand(sizes.shape).reshape(SHAPE)
    eps = torch.finfo(torch.float32).eps
    error = float(((gradient - found).abs() / scale.clamp(min=1e-30)).max())
    label = ", compiled" if compiled else ""
    yield _row(f"penalty gradient{label}", text, dtype, error, 4 * torch.finfo(dtype).eps + 2 * sizes.shape[1] * eps)
    if not compiled:
        yield _row("penalty value", text, dtype, abs(other - value) / value, 2 * sizes.numel() * eps)


def failed(rows: list[dict[str, Any]], limit: int = 5) -> str:
    """The first checks that do not hold, in words; empty if all do."""
    bad = [row for row in rows if not row["holds"]]
    return "; ".join(
        f"{r['check']} {r['format']} {r['dtype']}: {r['error']:.3g} > {r['bound']:.3g}" for r in bad[:limit]
    )
