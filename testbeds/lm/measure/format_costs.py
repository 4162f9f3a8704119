"""What rounding and the penalty of every number format cost on a device: time, waits of the host, graphs."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lotion_theory import Quantizer, Stream
from lotion_theory.training import LotionPenalty

from .stepcost import graphs

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")
"""Operations after which the host knows what a device computed: it has waited for all before."""


class Operations(TorchDispatchMode):
    """Counts the operations done to tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))

    @property
    def waits(self) -> dict[str, int]:
        """Those of :data:`WAITS` that were done, and how often."""
        return {name: self.counts[name] for name in WAITS if self.counts[name]}


def costs(
    device: torch.device, formats: Sequence[str], shape: tuple[int, int], rounds: int, backend: str | None
) -> Iterator[dict[str, Any]]:
    """One row per format and operation: ``operations`` and ``waits`` of a call, ``ns`` a weight (the median of
    ``rounds``), and ``unequal``, the share of weights that the CPU gives another value. ``backend``: of
    ``torch.compile``, None for eager calls; with one, ``graphs`` of calls on three tensors."""
    for text in formats:
        q = Quantizer.parse(text)
        if q.scale.is_frozen:
            q = q.with_scale(0.25)
        for name, make in (("cast", _cast), ("round", _round), ("penalty gradient", _penalty)):
            if name == "penalty gradient" and q.codebook.is_complex:
                continue
            expected = make(q, shape, torch.device("cpu"))().cpu()
            call = make(q, shape, device)
            row: dict[str, Any] = {"format": text, "operation": name, "weights": expected.numel(), "backend": backend}
            if backend is not None:
                torch.compiler.reset()
                before = graphs()
                call = torch.compile(call, backend=backend, fullgraph=True, dynamic=False)
                for _ in range(3):
                    call()
                row["graphs"] = graphs() - before
            else:
                with Operations() as seen:
                    call()
                row |= {"operations": sum(seen.counts.values()), "waits": sum(seen.waits.values())}
            row["unequal"] = float((call().cpu() != expected).double().mean())
            yield row | {"ns": _seconds(call, device, rounds) / expected.numel() * 1e9}


def _weights(q: Quantizer, shape: tuple[int, int], device: torch.device) -> Tensor:
    dtype = torch.complex64 if q.codebook.is_complex else torch.float32
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=dtype).to(device)


def _cast(q: Quantizer, shape: tuple[int, int], device: torch.device) -> Callable[[], Tensor]:
    w = _weights(q, shape, device)
    return lambda: q.cast(w)


def _round(q: Quantizer, shape: tuple[int, int], device: torch.device) -> Callable[[], Tensor]:
    w = _weights(q, shape, device)
    like = torch.empty(0, device=device)
    u = Stream(0, "format-costs").uniforms((*shape, 2) if q.codebook.is_complex else shape, like=like)
    blocks = w.numel() // q.partition.length(shape)
    v = (Stream(1, "format-costs").uniforms((blocks,), like=like),) if q.scale.is_drawn else ()
    return lambda: q.round(w, u, *v)


def _penalty(q: Quantizer, shape: tuple[int, int], device: torch.device) -> Callable[[], Tensor]:
    """The gradient alone."""
    parameter = nn.Parameter(_weights(q, shape, device))
    parameter.grad = torch.zeros_like(parameter)
    penalty = LotionPenalty([("w", parameter)], q, curvature={"w": torch.ones(shape, device=device)})

    def call() -> Tensor:
        assert parameter.grad is not None, "made above"
        parameter.grad.zero_()
        penalty.add_gradient_()
        return parameter.grad

    return call


def _seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    found = []
    for _ in range(rounds):
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
