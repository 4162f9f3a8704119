"""What other libraries do with the formats of this package, as calls to be timed by ``rounding.py``.

Each call does a whole operation on a matrix of float32 weights: it finds the scales of the blocks, rounds, and returns
the rounded weights in float32. It checks nothing of its input.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from lotion_theory import Quantizer

# Formats for which torch.compile is timed as well: it takes seconds for each.
GRAPHS = ("int4/absmax/block=32", "mxfp4", "nf4/absmax/block=64")

DIFFERS = {
    "torch": "scale times code has an error of its own, so that the largest weight may move by an ulp; under absmax7.5 "
    "that weight is a tie, which falls either way",
    "torchao": "as torch under absmax7.5; the casts to mx formats and nvfp4 are the same",
    "gguf": "codes are found with the scale before it is rounded to fp16",
    "bitsandbytes": "with dynamic8, about one weight in a thousand goes to the farther of its two levels",
    "gfloat": "stochastic rounding takes 20 random bits",
    "qtorch": "it draws its own random numbers",
    "pychop": "it draws its own random numbers",
}
"""How a library's values may differ from this package's on the same weights."""


@dataclass(frozen=True)
class Contender:
    """One thing to time. ``call()`` returns the result, as an array or tensor, or None for the copy.

    ``operation``: copy, cast, round, variance, or uniforms and round. ``part``: it gets one in so many rows of the
    weights, being slow. ``own_draws``: whether its time includes random numbers of its own.
    """

    name: str
    library: str
    operation: str
    call: Callable[[], Any]
    part: int = 1
    own_draws: bool = False


def installed(name: str) -> bool:
    """Whether a library can be imported, as far as one can tell without doing so."""
    return importlib.util.find_spec(name) is not None


def version(library: str) -> str:
    """Its version; "source" for what is not installed as a package."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def fewer(x: np.ndarray, part: int) -> np.ndarray:
    """One in ``part`` of the rows, at least one: those at the beginning."""
    return x[: max(1, len(x) // part)]


def peers(text: str, w: np.ndarray, u: np.ndarray, graphs: bool = True) -> Iterator[Contender]:
    """All that is installed and has the format ``text``, on float32 weights and uniforms (rows, columns).

    ``graphs``: whether :data:`GRAPHS` are compiled by torch.
    """
    q = Quantizer.parse(text)
    if installed("torch"):
        yield from _torch(q, w, u, graphs and text in GRAPHS)
        for library in (_torchao, _bitsandbytes, _qtorch, _pychop):
            if installed(library.__name__.removeprefix("_")):
                yield from library(q, w)
    if installed("gguf"):
        yield from _gguf(q, w)
    if installed("ml_dtypes"):
        yield from _ml_dtypes(q, w)
        if installed("gfloat"):
            yield from _gfloat(q, w, u)


# --- torch -----------------------------------------------------------------------------------------------------------


def _torch_scale(q: Quantizer) -> Callable[[Any], Any] | None:
    """From blocks (rows of a matrix) to scales, (blocks, 1), by the formulas that one would write in torch."""
    import torch

    name, high = q.scale.name, float(q.codebook.high)

    def amax(x: Any) -> Any:
        return x.abs().amax(1, keepdim=True)

    if name.startswith(("absmax", "slack")) and name != "absmean":
        number = name.removeprefix("absmax").removeprefix("slack")
        divisor = float(number) if name.startswith("absmax") and number else high / float(number or 1)
        return lambda x: amax(x) / divisor
    if name == "e8m0-floor":
        exponent = int(np.floor(np.log2(high)))
        return lambda x: torch.exp2(torch.floor(torch.log2(amax(x))) - exponent)
    stored = {"e4m3-nearest": torch.float8_e4m3fn, "fp16-nearest": torch.float16}.get(name)
    return None if stored is None else lambda x: (amax(x) / high).to(stored).to(torch.float32)


def _uniform(q: Quantizer, scale: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """The operations on levels that are all integers from lowest to highest."""
    low, high = float(q.codebook.low), float(q.codebook.high)

    def cast(x: Any) -> Any:
        s = scale(x)
        return (x / s).round_().clamp_(low, high).mul_(s)

    def rounded(x: Any, u: Any) -> Any:
        s = scale(x)
        return (x / s).add_(u).floor_().clamp_(low, high).mul_(s)

    def variance(x: Any) -> Any:
        s = scale(x)
        y = (x / s).clamp_(low, high)
        part = y - y.floor()
        return part.mul_(1 - part).mul_(s * s)

    return {"cast": cast, "round": rounded, "variance": variance}


def _looked_up(q: Quantizer, scale: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """The operations on any levels: those between which a weight lies are found by bisection."""
    import torch

    levels = torch.tensor([float(x) for x in q.codebook.levels])
    middles = torch.tensor([float(a + b) / 2 for a, b in pairwise(q.codebook.levels)])
    low, high, last = float(q.codebook.low), float(q.codebook.high), len(levels) - 1
    small = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}.get(q.codebook.name)

    def cast(x: Any) -> Any:
        s = scale(x)
        y = (x / s).clamp_(low, high)
        return (levels[torch.bucketize(y, middles)] if small is None else y.to(small).to(torch.float32)).mul_(s)

    def cell(x: Any) -> tuple[Any, Any, Any, Any]:
        s = scale(x)
        y = (x / s).clamp_(low, high)
        above = torch.bucketize(y, levels, right=True).clamp_(1, last)
        return y, levels[above - 1], levels[above], s

    def rounded(x: Any, u: Any) -> Any:
        y, lo, hi, s = cell(x)
        return torch.where(u * (hi - lo) < y - lo, hi, lo).mul_(s)

    def variance(x: Any) -> Any:
        y, lo, hi, s = cell(x)
        return (hi - y).mul_(y - lo).mul_(s * s)

    return {"cast": cast, "round": rounded, "variance": variance}


def _zero_point(q: Quantizer) -> dict[str, Callable[..., Any]]:
    """The operations on integers from 0 with a real zero point."""
    high = float(q.codebook.high)

    def ends(x: Any) -> tuple[Any, Any]:
        low = x.amin(1, keepdim=True)
        return low, (x.amax(1, keepdim=True) - low) / high

    def cast(x: Any) -> Any:
        low, s = ends(x)
        return (x - low).div_(s).round_().mul_(s).add_(low)

    def rounded(x: Any, u: Any) -> Any:
        low, s = ends(x)
        return (x - low).div_(s).add_(u).floor_().clamp_(0, high).mul_(s).add_(low)

    def variance(x: Any) -> Any:
        low, s = ends(x)
        y = (x - low).div_(s)
        part = y - y.floor()
        return part.mul_(1 - part).mul_(s * s)

    return {"cast": cast, "round": rounded, "variance": variance}


def _torch(q: Quantizer, w: np.ndarray, u: np.ndarray, compiled: bool) -> Iterator[Contender]:
    """The plain formula in torch."""
    import torch

    scale = None if q.codebook.is_complex else _torch_scale(q)
    if q.scale.name == "zp-real":
        formulas = _zero_point(q)
    elif scale is None:
        return
    else:
        formulas = _uniform(q, scale) if q.codebook.step == 1 else _looked_up(q, scale)
    length = q.partition.length(w.shape)
    x, given = (torch.from_numpy(a).reshape(-1, length) for a in (w, u))
    for operation, formula in formulas.items():
        arguments = (x, given) if operation == "round" else (x,)
        yield Contender("plain formula, eager", "torch", operation, partial(formula, *arguments))
        if not compiled:
            continue
        graph = torch.compile(formula)
        try:
            graph(*arguments)
        except Exception as error:
            print(f"left out, torch.compile does not work here: {type(error).__name__}", file=sys.stderr)
        else:
            yield Contender("plain formula, torch.compile", "torch", operation, partial(graph, *arguments))


# --- libraries on tensors --------------------------------------------------------------------------------------------


def _torchao(q: Quantizer, w: np.ndarray) -> Iterator[Contender]:
    book, _, mode = q.scale.name.partition("-")
    if q.scale.is_drawn or book not in ("e8m0", "e4m3", "absmax7.5"):
        return
    import torch
    from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor
    from torchao.quantization import quant_primitives as affine

    x = torch.from_numpy(w)
    element = {
        "e2m1": torch.float4_e2m1fn_x2, "e2m3": mx_tensor.DTYPE_FP6_E2M3, "e3m2": mx_tensor.DTYPE_FP6_E3M2,
        "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
    }.get(q.codebook.name)  # fmt: skip
    # Its "ceil" rounds the largest magnitude up; "rceil" the scale, as ours.
    theirs = {"floor": "floor", "ceil": "rceil", "even": "even"}.get(mode)
    if book == "e8m0" and element is not None and theirs is not None:
        block, how = q.partition.size, mx_tensor.ScaleCalculationMode(theirs)

        def mx() -> Any:
            return mx_tensor.MXTensor.to_mx(x, element, block, how).dequantize()

        yield Contender("MXTensor", "torchao", "cast", mx)
    if q.codebook.name == "e2m1" and q.scale.name in ("e4m3-nearest", "e4m3-nearest-2level"):

        def nvfp4() -> Any:
            whole = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().amax()) if mode == "nearest-2level" else None
            return nvfp4_tensor.NVFP4Tensor.to_nvfp4(x, 16, whole).dequantize()

        yield Contender("NVFP4Tensor", "torchao", "cast", nvfp4)
    if q.codebook.name == "int4full" and q.scale.name == "absmax7.5":
        block_size = (1, q.partition.size)

        def fake() -> Any:
            symmetric = affine.MappingType.SYMMETRIC
            scale, zero = affine.choose_qparams_affine(x, symmetric, block_size, torch.int8, -8, 7)
            codes = affine.quantize_affine(x, block_size, scale, zero, torch.int8, -8, 7)
            return affine.dequantize_affine(codes, block_size, scale, zero, torch.int8, -8, 7)

        yield Contender("quantize_affine", "torchao", "cast", fake)


def _bitsandbytes(q: Quantizer, w: np.ndarray) -> Iterator[Contender]:
    block = q.partition.size
    if q.codebook.name not in ("nf4", "dynamic8") or q.scale.name != "absmax" or block is None:
        return
    import torch
    from bitsandbytes import functional

    x = torch.from_numpy(w)
    if q.codebook.name == "nf4":

        def nf4() -> Any:
            codes, state = functional.quantize_4bit(x, blocksize=block, quant_type="nf4")
            return functional.dequantize_4bit(codes, state)

        yield Contender("quantize_4bit", "bitsandbytes", "cast", nf4)
    else:
        table = functional.create_dynamic_map()

        def dynamic() -> Any:
            codes, state = functional.quantize_blockwise(x, table, blocksize=block)
            return functional.dequantize_blockwise(codes, state)

        yield Contender("quantize_blockwise", "bitsandbytes", "cast", dynamic)


def _qtorch(q: Quantizer, w: np.ndarray) -> Iterator[Contender]:
    scale = _torch_scale(q)
    if q.codebook.name != "int4" or q.scale.name != "absmax" or scale is None:
        return
    import torch
    from qtorch.quant import fixed_point_quantize  # compiles C++ code when imported first

    x = torch.from_numpy(w).reshape(-1, q.partition.length(w.shape))
    for operation, mode in (("cast", "nearest"), ("round", "stochastic")):

        def rounded(mode: str = mode) -> Any:
            s = scale(x)
            return fixed_point_quantize(x / s, wl=4, fl=0, symmetric=True, rounding=mode) * s

        yield Contender("fixed_point_quantize", "qtorch", operation, rounded, own_draws=operation == "round")


def _pychop(q: Quantizer, w: np.ndarray) -> Iterator[Contender]:
    scale = _torch_scale(q)
    if q.codebook.name != "int4" or q.scale.name != "absmax" or scale is None:
        return
    import torch
    from pychop import Chopf

    part = 4
    x = torch.from_numpy(fewer(w, part)).reshape(-1, q.partition.length(w.shape))
    for operation, mode in (("cast", 1), ("round", 5)):
        chop = Chopf(ibits=4, fbits=0, rmode=mode)

        def rounded(chop: Any = chop) -> Any:
            s = scale(x)
            return chop(x / s).clamp(-7, 7) * s

        yield Contender("Chopf", "pychop", operation, rounded, part, operation == "round")


# --- libraries on arrays of numpy ------------------------------------------------------------------------------------


def _gguf(q: Quantizer, w: np.ndarray) -> Iterator[Contender]:
    from gguf import GGMLQuantizationType as Kind
    from gguf import quants

    names = {
        "int4full/q4_0/block=32": "Q4_0",
        "int8/fp16-nearest/block=32": "Q8_0",
        "e2m1/e8m0-floor/block=32": "MXFP4",
    }
    name = names.get(q.canonical)
    if name is None or not hasattr(Kind, name):
        return
    kind = Kind[name]
    part = 16 if name == "MXFP4" else 1
    x = fewer(w, part)
    yield Contender(name, "gguf", "cast", lambda: quants.dequantize(quants.quantize(x, kind), kind), part)


def _numpy_scale(q: Quantizer) -> Callable[[np.ndarray], np.ndarray] | None:
    """From blocks to scales as :func:`_torch_scale`, in numpy."""
    import ml_dtypes

    high = np.float32(float(q.codebook.high))
    exponent = int(np.floor(np.log2(high)))

    def amax(x: np.ndarray) -> np.ndarray:
        return np.abs(x).max(1, keepdims=True)

    if q.scale.name == "absmax":
        return lambda x: amax(x) / high
    if q.scale.name == "e8m0-floor":
        return lambda x: np.ldexp(np.float32(1), np.frexp(amax(x))[1] - 1 - exponent)
    if q.scale.name == "e4m3-nearest":
        return lambda x: (amax(x) / high).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return None


def _ml_dtypes(q: Quantizer, w: np.ndarray) -> Iterator[Contender]:
    import ml_dtypes

    kinds = {
        "e2m1": "float4_e2m1fn", "e2m3": "float6_e2m3fn", "e3m2": "float6_e3m2fn", "e4m3": "float8_e4m3fn",
        "e5m2": "float8_e5m2",
    }  # fmt: skip
    kind = getattr(ml_dtypes, kinds.get(q.codebook.name, ""), None)
    scale = _numpy_scale(q)
    if kind is None or scale is None:
        return
    high, clips = float(q.codebook.high), q.scale.name != "absmax"
    x = w.reshape(-1, q.partition.length(w.shape))

    def cast() -> np.ndarray:
        s = scale(x)
        y = x / s
        if clips:
            np.clip(y, -high, high, out=y)
        out: np.ndarray = y.astype(kind).astype(np.float32)
        out *= s
        return out

    yield Contender("astype", "ml_dtypes", "cast", cast)


def _gfloat(q: Quantizer, w: np.ndarray, u: np.ndarray) -> Iterator[Contender]:
    import gfloat
    from gfloat import formats

    info = getattr(formats, f"format_info_ocp_{q.codebook.name}", None)
    scale = _numpy_scale(q)
    if info is None or scale is None or q.codebook.step == 1:
        return
    part = 16
    length = q.partition.length(w.shape)
    x = fewer(w, part).reshape(-1, length)
    bits = (fewer(u, part).reshape(-1, length) * 2**20).astype(np.int64)

    def cast() -> np.ndarray:
        s = scale(x)
        out: np.ndarray = gfloat.round_ndarray(info, x / s, gfloat.RoundMode.TiesToEven, True) * s
        return out

    def rounded() -> np.ndarray:
        s = scale(x)
        out: np.ndarray = gfloat.round_ndarray(info, x / s, gfloat.RoundMode.Stochastic, True, bits, 20) * s
        return out

    yield Contender("round_ndarray", "gfloat", "cast", cast, part)
    yield Contender("round_ndarray", "gfloat", "round", rounded, part)
