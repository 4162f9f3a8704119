"""The formats this toolkit checks by default, with what their scale rules promise."""

from __future__ import annotations

from dataclasses import dataclass

from .quantizer import Quantizer

FORMATS = (
    "int2/absmax/block=32", "int3/absmax/block=32", "int4/absmax/block=32", "int5/absmax/block=32",
    "int6/absmax/block=32", "int7/absmax/block=32", "int8/absmax/block=32",
    "int4full/gauge/block=32", "int4full/absmax7.5/block=32", "int4full/absmax8/block=32",
    "int4full/signed-absmax/block=32",
    "q4_0", "q8_0", "int8/fp16-up/block=32", "int8/fp16-sr/block=32", "int4/slack1.1/block=32", "int4/frozen",
    "uint4/zp-real/block=32", "uint4/zp-int/block=32", "uint2/zp-int/block=32",
    "ternary/absmax", "bitnet", "ternary/l2l1", "binary/absmax",
    "e2m1/absmax/block=32", "e2m3/absmax/block=32", "e3m2/absmax/block=32", "e4m3/absmax/block=32",
    "e5m2/absmax/block=32",
    "mxfp4", "mxfp4/ceil", "mxfp4/even", "mxfp4/sr", "mxfp6", "mxfp8", "mxint8", "int4/e8m0-sr/block=32",
    "nvfp4", "nvfp4/up", "nvfp4/sr", "nvfp4/e4m3-nearest-2level", "nvfp4/e4m3-up-2level",
    "e2m1/ue5m3-nearest/block=16", "e2m1/ue5m3-up/block=16", "e2m1/ue5m3-sr/block=16",
    "nf4/absmax/block=64", "nf4/e4m3-sr/block=64", "pot4/absmax/block=32",
    "dynamic8/gauge/block=32", "dynamic8/absmax/block=32",
    "fairy", "fairy/modulus",
)  # fmt: skip


@dataclass(frozen=True)
class FormatRow:
    """One line of ``lotion formats``: the declared promises, and storage in bits per weight without scales."""

    format: str
    canonical: str
    bits: float
    levels: int
    unbiased: bool
    continuous: bool
    support_fixed: bool
    scale: str


def formats(names: tuple[str, ...] | list[str] | None = None) -> list[FormatRow]:
    """The catalogue (or the given format strings) with the promises that ``verify`` checks."""
    rows = []
    for name in FORMATS if names is None else names:
        q = Quantizer.parse(name)
        promise = q.scale.promise(q.codebook)
        # A complex weight has a level of the two-level book on each of its two axes.
        levels = len(q.codebook.levels) ** (2 if q.codebook.is_complex else 1)
        rows.append(FormatRow(str(q), q.canonical, q.codebook.bits, levels, *promise, scale=q.scale.summary))
    return rows
