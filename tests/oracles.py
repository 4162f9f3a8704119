"""Independent implementations of number formats, as plain functions on numpy arrays.

Each function imports its library itself and skips the calling test when the library is absent; a library that is
present but broken fails loudly. Inputs must already be exact in the type the library computes in, or ``ValueError`` is
raised: an oracle that rounds its input answers another question. Results are float64 copies of what the library
returns. The docstrings say what the sources of ml_dtypes 0.6, gfloat 0.5, torchao 0.18, bitsandbytes 0.50 and gguf 0.19
do, deviations from their formats' specifications included; ``test_oracles.py`` holds them to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_ML_DTYPES = {
    "e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e8m0": "float8_e8m0fnu",
}
ML_DTYPES_NAMES = (*_ML_DTYPES, "int2", "int2full", "uint2", "int4", "int4full", "uint4")
GFLOAT_NAMES = (*_ML_DTYPES, "ue4m3", "ue5m3", *(f"{k}{b}{e}" for b in range(2, 9) for k, e in
                (("int", ""), ("int", "full"), ("uint", ""))))  # fmt: skip
MX_ELEMENTS = ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")
MX_RULES = ("floor", "ceil", "rceil", "even")


def library(name: str) -> ModuleType:
    """Import ``name`` (dotted), skipping the calling test when its top-level package is not installed."""
    root = name.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        pytest.skip(f"oracle needs the package {root}, which is not installed")
    with warnings.catch_warnings():  # deprecations inside other libraries are not this project's to fix
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def exact(x: ArrayLike, dtype: str = "float32") -> NDArray[Any]:
    """``x`` as float32, checked to be finite and unchanged by the cast to ``dtype`` ("float32" or "bfloat16")."""
    wide = np.asarray(x, dtype=np.float64)
    narrow = wide.astype(np.float32)
    kept = narrow.astype(np.float64) == wide
    if dtype == "bfloat16":
        kept &= narrow.view(np.uint32) & 0xFFFF == 0
    elif dtype != "float32":
        raise ValueError(f"dtype must be 'float32' or 'bfloat16', not {dtype!r}")
    if not np.all(kept & np.isfinite(wide)):
        raise ValueError(f"every input must be finite and exact in {dtype}")
    return narrow


def _integer_range(name: str) -> tuple[int, int]:
    """Lowest and highest code of intN (symmetric), intNfull (two's complement), uintN."""
    bits = int(name.removeprefix("u").removeprefix("int").removesuffix("full"))
    if name.startswith("u"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)) + (not name.endswith("full")), 2 ** (bits - 1) - 1


def format_info(name: str) -> Any:
    """gfloat ``FormatInfo`` of one of ``GFLOAT_NAMES``.

    ``ue4m3`` is the non-negative half of OCP E4M3 (bias 7, top 448, one NaN). ``ue5m3`` spends the sign bit on the
    exponent: 5 exponent bits, 3 mantissa bits, **bias 15**, subnormals, one NaN at the highest code, no infinity;
    smallest value 2**-17, top 1.75 * 2**16 = 114688. Both have a zero. ``intN`` and ``intNfull`` share a format.
    """
    gfloat = library("gfloat")
    if name in _ML_DTYPES:
        return getattr(library("gfloat.formats"), f"format_info_ocp_{name}")
    if name not in GFLOAT_NAMES:
        raise ValueError(f"unknown format {name!r}; known: {', '.join(GFLOAT_NAMES)}")
    plain: dict[str, Any] = {"domain": gfloat.Domain.Finite, "has_nz": False, "has_subnormals": True}
    if name.startswith("ue"):
        k, bias = (7, 7) if name == "ue4m3" else (8, 15)
        return gfloat.FormatInfo(
            name, k, 4, bias=bias, is_signed=False, num_high_nans=1, is_twos_complement=False, **plain
        )
    signed = name.startswith("int")
    bits = int(name.removeprefix("u").removeprefix("int").removesuffix("full"))
    # An integer is a subnormal of a format without exponent bits; this bias gives the last place the weight 1.
    precision = bits if signed else bits + 1
    return gfloat.FormatInfo(
        name, bits, precision, bias=2 - precision, is_signed=signed, num_high_nans=0, is_twos_complement=signed, **plain
    )


def code_values(name: str, source: str = "ml_dtypes") -> Floats:
    """All distinct finite values of a codebook, sorted, by decoding every code.

    ``name``: one of ``ML_DTYPES_NAMES`` or ``GFLOAT_NAMES``; ``source``: "ml_dtypes" or "gfloat". The symmetric
    integers ``intN`` are the two's complement codes without the most negative one. -0 and 0 count once.
    """
    if source == "ml_dtypes":
        ml_dtypes = library("ml_dtypes")
        if name not in ML_DTYPES_NAMES:
            raise ValueError(f"unknown format {name!r}; known: {', '.join(ML_DTYPES_NAMES)}")
        dtype = getattr(ml_dtypes, _ML_DTYPES.get(name, name.removesuffix("full")))
        info = ml_dtypes.finfo(dtype) if name in _ML_DTYPES else ml_dtypes.iinfo(dtype)
        values = np.arange(2**info.bits, dtype=np.uint8).view(dtype).astype(np.float64)
    elif source == "gfloat":
        info = format_info(name)
        values = library("gfloat").decode_ndarray(info, np.arange(2**info.k, dtype=np.int64))
    else:
        raise ValueError(f"source must be 'ml_dtypes' or 'gfloat', not {source!r}")
    values = np.unique(values[np.isfinite(values)]) + 0.0
    if "int" in name:
        values = values[values >= _integer_range(name)[0]]
    return values


def nearest_elementwise(name: str, x: ArrayLike) -> Floats:
    """Nearest value of a codebook to each finite float64, ties to the even code, beyond the range to the end.

    Minifloats and the scale grids ``ue4m3``, ``ue5m3``: ``gfloat.round_ndarray(..., TiesToEven, sat=True)``, which
    works in float64 throughout, so nothing is rounded twice. Integer formats: ``clip(rint(x))`` is its own definition,
    hence no independent oracle. ``e8m0`` is refused: it has no zero and its rule is part of the block format.
    """
    x = np.asarray(x, dtype=np.float64)
    if "int" in name:
        return np.clip(np.rint(x), *_integer_range(name))
    if name == "e8m0":
        raise ValueError("e8m0 holds scales; see mx_scales for how they are chosen")
    gfloat = library("gfloat")
    return gfloat.round_ndarray(format_info(name), x, gfloat.RoundMode.TiesToEven, sat=True)


def _mx_tensor(x: ArrayLike, elem: str, rule: str, inputs: str) -> tuple[Any, Any]:
    torch = library("torch")
    mx = library("torchao.prototype.mx_formats.mx_tensor")
    if elem not in MX_ELEMENTS or rule not in MX_RULES:
        raise ValueError(f"unknown element {elem!r} or rule {rule!r}; known: {MX_ELEMENTS}, {MX_RULES}")
    dtypes = {"e2m1": torch.float4_e2m1fn_x2, "e2m3": mx.DTYPE_FP6_E2M3, "e3m2": mx.DTYPE_FP6_E3M2,
              "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}  # fmt: skip
    data = torch.from_numpy(exact(x, inputs)).to(getattr(torch, inputs))
    return mx.MXTensor.to_mx(data, dtypes[elem], 32, mx.ScaleCalculationMode(rule)), mx


def mx_quantize_dequantize(x: ArrayLike, elem: str, rule: str, inputs: str = "float32") -> Floats:
    """torchao ``MXTensor.to_mx(...).dequantize()``: E8M0 scale per 32 entries along the last axis.

    ``x``: shape (..., 32 m), exact in ``inputs`` ("float32" or "bfloat16"; the computation is in float32 either way).
    ``elem``: one of ``MX_ELEMENTS``. With A = max |x| of the block, top value c = f * 2**E (f in [1, 2)) and M mantissa
    bits of the element, the scale s = 2**k is, before clamping k to [-127, 127],

    - "floor" (OCP):  ``k = floor(log2 A) - E``, exact, from float32's exponent field;
    - "ceil":         ``k = ceil(log2 A) - E``, exact. Not the least unclipped scale: for E2M1 and A = 5 it gives s = 2;
    - "rceil":        ``k = ceil(log2 fl(A / c))``, the least scale without clipping: the rule "rounded up";
    - "even":         floor's rule for A rounded half up to M mantissa bits: up one binade from ``(2 - 2**-(M+1)) 2**e``
      on, that is A/s = 7 (E2M1), 7.75 (E2M3), 30 (E3M2), 496 (E4M3), 61440 (E5M2).

    Elements are ``x / s`` (rceil: ``x * 2**-k``), rounded to nearest, ties to even, clamped to +-c; times s again.

    Deviations: (1) "rceil" takes ``ceil`` of a float32 ``log2``, so when A/c is a few ulp above 2**j the scale is 2**j,
    one binade too low, and A is clipped to ``c 2**j``: never for -4 <= j < 4, then up to 1, 2, 5, 11, 22 ulp from
    j = 4, 8, 16, 32, 64 on, and from -5, -9, -17, -33, -65 down (the last digits depend on the machine's log2).
    (2) At k = -127 data are divided by 2**-126 (rceil: by 1, so all become 0) but multiplied by 2**-127: such blocks
    ("floor": A < 2**(E - 126)) come back halved, or 0. Zero blocks have k = -127 and give zeros. (3) E4M3 has E = 8 and
    c = 448, not 480: "floor" clips A/s in (448, 512), "even" in (448, 496). (4) A near the float32 maximum overflows to
    inf when rounded up.
    """
    tensor, _ = _mx_tensor(x, elem, rule, inputs)
    return tensor.dequantize().double().numpy()


def mx_scales(x: ArrayLike, elem: str, rule: str, inputs: str = "float32") -> Floats:
    """The scales ``mx_quantize_dequantize`` multiplies by: shape (..., m), powers of two."""
    tensor, mx = _mx_tensor(x, elem, rule, inputs)
    return mx.get_fp_scale(tensor.scale).double().numpy()


def _nvfp4_tensor(x: ArrayLike, per_tensor_scale: float | None, inputs: str) -> Any:
    torch = library("torch")
    nvfp4 = library("torchao.prototype.mx_formats.nvfp4_tensor")
    data = torch.from_numpy(exact(x, inputs)).to(getattr(torch, inputs))
    outer = None if per_tensor_scale is None else torch.tensor(float(exact(per_tensor_scale)), dtype=torch.float32)
    return nvfp4.NVFP4Tensor.to_nvfp4(data, per_tensor_scale=outer)


def nvfp4_quantize_dequantize(x: ArrayLike, per_tensor_scale: float | None = None, inputs: str = "float32") -> Floats:
    """torchao ``NVFP4Tensor.to_nvfp4(...).dequantize(float32)``: E2M1 codes, E4M3 scale per 16 entries of a row.

    ``x``: shape (rows, 16 m), exact in ``inputs``. With A = max |x| of the block and fl = float32 rounding:

    - one level: ``s = E4M3(clamp(fl(A / 6), 2**-6, 448))``, nearest even; codes = E2M1 of
      ``clamp(fl(x * fl(1/s)), -6, 6)``; value = code * s, exact in float32.
    - two levels, t = ``per_tensor_scale`` > 0 (float32; the usual choice is ``fl(max |x| / 2688)``, 2688 = 448 * 6):
      ``s = E4M3(clamp(fl(fl(A / 6) / t), 2**-6, 448))``; codes of ``clamp(fl(x * fl(fl(1/t) / s)), -6, 6)``;
      value = ``fl(code * fl(t * s))``.

    The lower clamp is the smallest *normal* E4M3 number: subnormal scales never occur, and a zero block has s = 2**-6.
    fl(A / 6) alone never moves a rounding to E4M3. **Multiplying by the rounded reciprocal does move codes**: an x
    within two ulp of a midpoint between E2M1 levels, or on it, may go to the other neighbour than x / s would; farther
    from midpoints the one-level result equals that of exact arithmetic. t = 0 gives NaN.
    """
    torch = library("torch")
    return _nvfp4_tensor(x, per_tensor_scale, inputs).dequantize(torch.float32).double().numpy()


def nvfp4_scales(x: ArrayLike, per_tensor_scale: float | None = None, inputs: str = "float32") -> Floats:
    """The block scales ``nvfp4_quantize_dequantize`` multiplies by, outer scale included: shape (rows, m)."""
    return _nvfp4_tensor(x, per_tensor_scale, inputs).get_hp_scales().double().numpy()


class Affine(NamedTuple):
    """Result of ``int_affine``: ``values`` and ``codes`` of x's shape, ``scale`` and ``zero_point`` per block."""

    values: Floats
    codes: Floats
    scale: Floats
    zero_point: Floats


def int_affine(x: ArrayLike, bits: int, mapping: str, block: int, zero: str = "int", narrow: bool = False) -> Affine:
    """torchao ``choose_qparams_affine``, ``quantize_affine``, ``dequantize_affine`` in float32.

    ``x``: shape (..., block * m), exact in float32. Codes lie in [a, b]: signed ``[-2**(bits-1), 2**(bits-1) - 1]`` for
    the symmetric mappings (``narrow`` drops the lowest code), ``[0, 2**bits - 1]`` for the asymmetric one. With m, M
    the block's extremes and m0 = min(m, 0), M0 = max(M, 0) (the library's "preserve zero"):

    - "symmetric": ``s = max(-m0, M0) / ((b - a) / 2)``: **absmax / 7.5 for 4 bits on [-8, 7]**, absmax / 127.5 for 8,
      absmax / 7 only when narrow; z = 0. Positive extremes are clipped by half a step.
    - "no-clipping" (SYMMETRIC_NO_CLIPPING_ERR): ``s = max(m0 / a, M0 / b)``, the gauge of [a, b]; z = 0.
    - "asymmetric", ``zero`` = "int":  ``s = (M0 - m0) / (b - a)``, ``z = clamp(a - rint(m0 / s), a, b)``.
    - "asymmetric", ``zero`` = "int-any": same with m, M for m0, M0, so that 0 need not be inside the range; z is still
      clamped to [a, b], so a block on one side of 0 is clipped badly.
    - "asymmetric", ``zero`` = "float" (tinygemm): ``s = (M - m) / (b - a)``, ``z = m + s h``, h = (b + a + 1) / 2;
      ``q = clamp(rint((x - (z - s h)) / s))``, value ``(q - h) s + z``.

    Else ``q = clamp(rint(x * fl(1/s)) + z, a, b)`` (reciprocal, and z added after rounding, so ties go to even x/s and
    not to even q), value ``(q - z) s``. s is clamped below by eps, by default float32's smallest normal 2**-126 (not
    its epsilon), so a zero block gives s = 2**-126, z = a or 0, values 0. Every operation rounds to float32.
    """
    torch = library("torch")
    prim = library("torchao.quantization.quant_primitives")
    kinds = {"symmetric": "SYMMETRIC", "no-clipping": "SYMMETRIC_NO_CLIPPING_ERR", "asymmetric": "ASYMMETRIC"}
    if mapping not in kinds or zero not in ("int", "int-any", "float"):
        raise ValueError(f"unknown mapping {mapping!r} or zero {zero!r}; mappings: {', '.join(kinds)}")
    if narrow if mapping == "asymmetric" else zero != "int":
        raise ValueError("symmetric mappings take zero='int' only, and narrow applies to them alone")
    data = torch.from_numpy(exact(x)).reshape(-1, block)
    if mapping == "asymmetric":
        store, low, high = torch.uint8, 0, 2**bits - 1
    else:
        store, low, high = torch.int8, -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    choose, quantize, dequantize = {
        "int": (prim.choose_qparams_affine, prim.quantize_affine, prim.dequantize_affine),
        "int-any": (prim._choose_qparams_affine_dont_preserve_zero, prim.quantize_affine, prim.dequantize_affine),
        "float": (
            prim._choose_qparams_affine_tinygemm, prim._quantize_affine_tinygemm, prim._dequantize_affine_tinygemm
        ),
    }[zero]  # fmt: skip
    scale, offset = choose(data, prim.MappingType[kinds[mapping]], (1, block), store, low, high)
    codes = quantize(data, (1, block), scale, offset, store, low, high)
    values = dequantize(codes, (1, block), scale, offset, store, low, high)
    shape = np.shape(x)
    per_block = (*shape[:-1], shape[-1] // block)
    out = (values.reshape(shape), codes.reshape(shape), scale.reshape(per_block), offset.reshape(per_block))
    return Affine(*(part.double().numpy() for part in out))


def nf4_table() -> Floats:
    """bitsandbytes' 16 NF4 levels (float32 constants), increasing from -1 to 1, 0 among them."""
    return library("bitsandbytes.functional").get_4bit_type("nf4", device="cpu").double().numpy()


def bitsandbytes_fp4_table() -> Floats:
    """bitsandbytes' "fp4" levels, distinct and sorted, top 1. **Not E2M1**: times 12 they are 0, +-.0625, 2, 3, 4, 6,
    8, 12, where E2M1 (times 2) has 0, +-1, 2, 3, 4, 6, 8, 12: the smallest magnitude is 16 times too small."""
    return np.unique(library("bitsandbytes.functional").get_4bit_type("fp4", device="cpu").double().numpy()) + 0.0


def nf4(x: ArrayLike, block: int) -> Floats:
    """bitsandbytes ``quantize_4bit(quant_type="nf4")`` and ``dequantize_4bit`` on the CPU in float32.

    ``x``: last axis even; blocks of ``block`` (32, 64, 128, ... 1024) consecutive entries of x flattened. With
    A = max |x| of the block: ``v = clamp(fl(x * fl(1 / max(A, 1e-38))), -1, 1)``; the level between whose float32
    midpoints v lies, **a tie going to the lower level**; value ``fl(level * A)``. As for NVFP4, the rounded reciprocal
    can move an x within two ulp of a midpoint. A zero block gives zeros; A below 1e-38 is flushed towards 0.
    """
    torch = library("torch")
    functional = library("bitsandbytes.functional")
    data = torch.from_numpy(exact(x))
    if data.shape[-1] % 2 or data.numel() % block or block >= 2048:
        raise ValueError("need an even last axis, a whole number of blocks, and blocks shorter than 2048")
    packed, state = functional.quantize_4bit(data, blocksize=block, quant_type="nf4")
    return functional.dequantize_4bit(packed, state).reshape(data.shape).double().numpy()


def dynamic_map_8bit() -> Floats:
    """bitsandbytes ``create_dynamic_map(signed=True)``: 256 sorted levels of the dynamic tree map.

    +-(midpoints of 2**i equal parts of [.1, 1]) * 10**(i - 6) for i = 0..6, with 0 and 1: from -.99296875 to 1, so
    neither symmetric nor balanced. Computed in float32, hence within a few float32 ulp of the real numbers.
    """
    return library("bitsandbytes.functional").create_dynamic_map(signed=True).double().numpy()


def gguf_quantize_dequantize(x: ArrayLike, kind: str) -> Floats:
    """``gguf.quants`` (the numpy twin of ggml's reference C) for ``kind`` "Q4_0" or "Q8_0": blocks of 32 in float32.

    Q4_0: a = the entry of largest magnitude, **the first one on ties**, sign kept; ``d = fl(a / -8)``, ``r = fl(1/d)``
    (0 if d = 0); ``q = min(trunc(fl(fl(x r) + 8.5)), 15)`` in 0..15, so ties go up in x/d, which for a > 0 is down in
    x; value ``fp16(d) * (q - 8)``. a gets code -8 and -a the code +7: it is clipped by a full step.
    Q8_0: ``d = fl(max |x| / 127)``, ``r = fl(1/d)`` or 0; ``q = fl(x r)`` rounded to nearest, **ties away from 0**;
    value ``fp16(d) * q``, codes in -127..127.

    Codes are chosen with the float32 d, values use d rounded to half precision (nearest even): exact in float32, but a
    reconstructed block is not a multiple of the d that chose its codes, and |d| <= 2**-25 gives 0, |d| >= 65520 is
    refused here because it gives inf. So is |d| < 2**-126, where 1/d may overflow. -0 may appear.
    """
    quants = library("gguf.quants")
    data = exact(x)
    if kind not in ("Q4_0", "Q8_0"):
        raise ValueError(f"kind must be 'Q4_0' or 'Q8_0', not {kind!r}")
    step = np.abs(data.reshape(-1, 32)).max(axis=-1) / (8 if kind == "Q4_0" else 127)
    if np.any(step >= 65520) or np.any((step > 0) & (step < 2.0**-126)):
        raise ValueError("block scale outside what half precision and float32 reciprocals can hold")
    kind = library("gguf").GGMLQuantizationType[kind]
    return quants.dequantize(quants.quantize(data, kind), kind).astype(np.float64)
