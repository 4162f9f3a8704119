"""Codes and anchors give a cast back bit for bit, in every format, type, library and partition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer, Stream
from lotion_theory.export import decode, encode, integers
from lotion_theory.export.loader import anchor_table
from lotion_theory.formats.scale_formats import SCALE_FORMATS
from tests.strategies import FLOATS, FORMATS, as_torch, cases, examples, numpy_type, probes, promising, same

_WORDS = {"float64": np.uint64, "float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}


def bits(x: Any) -> np.ndarray:
    """The bit patterns of a numpy array or tensor, zeros of both signs told apart."""
    if not isinstance(x, np.ndarray):
        import torch

        words = {8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()]
        return x.detach().contiguous().view(words).numpy().view(f"uint{8 * x.element_size()}")
    return np.ascontiguousarray(x).view(_WORDS[str(x.dtype)])


def cast(q: Quantizer, w: Any) -> Any:
    with np.errstate(all="ignore"):
        return q.cast(w)


@pytest.mark.filterwarnings("ignore:.*one weight")
@given(case=cases(), torch_too=st.booleans())
@examples(80)
def test_decode_of_encode_is_the_cast_bit_for_bit(case: tuple[Quantizer, np.ndarray], torch_too: bool) -> None:
    q, w = case
    weights = as_torch(w) if torch_too else w
    encoded = encode(weights, q)
    result = decode(encoded)
    assert type(result) is type(weights) and result.dtype == weights.dtype and tuple(result.shape) == w.shape
    np.testing.assert_array_equal(bits(result), bits(cast(q, weights)))
    assert encoded.codes.shape == weights.shape and str(encoded.codes.dtype).endswith("uint8")
    assert int(encoded.codes.max()) < len(q.codebook.levels) <= 2**encoded.bits


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("partition", ["tensor", "row", "block=4", "channel", "channel-block=4"])
def test_probes_of_every_kind_of_format(dtype: str, partition: str) -> None:
    for text in FORMATS:
        w = probes(text, dtype, rows=12, size=8, seed=7)
        q = Quantizer.parse(f"{text}/{partition}")
        np.testing.assert_array_equal(bits(decode(encode(w, q))), bits(cast(q, w)), err_msg=text)


@pytest.mark.parametrize(
    "text", ["q4_0", "q8_0", "mxfp4", "mxfp4/ceil", "nvfp4", "nvfp4/e4m3-nearest-2level", "mxint8"]
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_named_formats_on_ordinary_weights_of_three_axes(text: str, dtype: str) -> None:
    w = np.random.default_rng(3).standard_normal((3, 2, 64)).astype(numpy_type(dtype))
    for weights in (w, as_torch(w), as_torch(w).transpose(0, 1)):
        np.testing.assert_array_equal(bits(decode(encode(weights, text))), bits(Quantizer.parse(text).cast(weights)))


# The scale of signed-absmax is rounded among subnormals, and the promise is of exact arithmetic.
@given(case=cases(formats=tuple(f for f in promising("fixed") if "signed-absmax" not in f)))
@examples(60)
def test_quantized_points_decode_to_themselves(case: tuple[Quantizer, np.ndarray]) -> None:
    q, w = case
    point = cast(q, w)
    assert same(decode(encode(point, q)), point)


@pytest.mark.parametrize(
    "text",
    ["int4/absmax/block=8", "nvfp4", "mxfp4/sr", "nvfp4/sr", "q8_0", "int4full/gauge/block=8", "uint4/zp-int/row"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_point_on_the_lattice_of_w_can_be_encoded(text: str, dtype: str) -> None:
    w = np.random.default_rng(5).standard_normal((4, 64)).astype(numpy_type(dtype))
    q, stream = Quantizer.parse(text), Stream(0, "export")
    blocks = q.partition.to_blocks(w).shape[0]
    draws = stream.spawn("scale").uniforms((blocks,), 0) if q.scale.is_drawn else None
    point = q.round(w, stream.uniforms(w.shape, 0), draws)
    assert not np.array_equal(point, q.cast(w))
    assert np.array_equal(decode(encode(w, q, point)), point)
    if q.scale.name != "zp-int":
        # No lattice reaches twice the largest weight.
        with pytest.raises(ValueError, match="not on the lattice"):
            encode(w, q, (2 * np.abs(w).max() + 0 * w).astype(w.dtype))
        # One weight of the last block.
        point[-1, -1] = 2 * np.abs(w).max()
        with pytest.raises(ValueError, match=f"the first such block is number {blocks - 1}$"):
            encode(w, q, point)


def test_lattices_that_are_frozen_or_given_a_scale() -> None:
    w = np.random.default_rng(1).standard_normal((4, 32)).astype(np.float32)
    for text in ("int4/absmax/block=32", "mxfp4/sr", "q4_0", "uint4/zp-int/row"):
        frozen = Quantizer.parse(text).freeze(w)
        np.testing.assert_array_equal(bits(decode(encode(w * 1.1, frozen))), bits(frozen.cast(w * 1.1)))
    given_scale = Quantizer.parse("int3/absmax/row").with_scale(np.array([[0.1], [0.2], [0.3], [0.7]]))
    np.testing.assert_array_equal(bits(decode(encode(w, given_scale))), bits(given_scale.cast(w)))


@pytest.mark.parametrize(
    ("text", "dtype", "anchor", "storage"),
    [
        ("int4/absmax/block=32", "float32", "float32", 4 + 32 / 32),
        ("int4/absmax/block=32", "bfloat16", "bfloat16", 4 + 16 / 32),
        ("int8/absmax/row", "float16", "float16", 8 + 16 / 64),
        ("q4_0", "float32", "fp16", 4.5), ("q8_0", "float32", "fp16", 8.5), ("mxfp4", "float32", "e8m0", 4.25),
        ("mxfp4/sr", "bfloat16", "e8m0", 4.25), ("nvfp4", "float32", "e4m3", 4.5), ("nvfp4/sr", "float16", "e4m3", 4.5),
        ("nvfp4/e4m3-nearest-2level", "float32", "e4m3", 4.5), ("e2m1/ue5m3-up/block=16", "float32", "ue5m3", 4.5),
        ("int3/absmax/tensor", "float32", "float32", 3 + 32 / 256), ("ternary/absmax/row", "float32", "float32", 2.5),
        ("uint4/zp-int/row", "float32", "float32", 4 + 40 / 64),
    ],
)  # fmt: skip
def test_anchors_take_the_narrowest_type_that_is_exact(text: str, dtype: str, anchor: str, storage: float) -> None:
    w = np.random.default_rng(2).standard_normal((4, 64)).astype(numpy_type(dtype))
    w[0] = 0
    encoded = encode(w, text)
    assert (encoded.anchor, encoded.bits_per_weight) == (anchor, storage)


def test_blocks_of_zeros_have_a_scale_that_e8m0_has() -> None:
    # E8M0 has no zero: to other readers, the byte that stands for it here is NaN.
    w = np.zeros((2, 64), np.float32)
    w[1] = 3.0
    for text in ("mxfp4", "mxfp4/sr", "mxint8"):
        encoded = encode(w, text)
        assert encoded.top.min() == 2.0**-127 and not decode(encoded)[0].any()


def test_one_byte_anchor_tables_are_the_scale_formats() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    byte = np.arange(255, dtype=np.uint8)
    assert np.array_equal(anchor_table("e4m3")[:127], byte[:127].view(ml_dtypes.float8_e4m3fn).astype(float))
    assert np.array_equal(anchor_table("e8m0")[:255], byte.view(ml_dtypes.float8_e8m0fnu).astype(float))
    ue5m3 = anchor_table("ue5m3")[:255]
    assert np.array_equal(SCALE_FORMATS["ue5m3"].nearest(ue5m3), ue5m3) and ue5m3[-1] == SCALE_FORMATS["ue5m3"].largest
    assert np.all(np.diff(ue5m3) > 0) and anchor_table("fp16") is None


def test_integers_are_the_codes_of_integer_codebooks() -> None:
    w = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    encoded = encode(w, "int4/absmax/row")
    codes = integers(encoded)
    assert codes.dtype == np.int8 and np.array_equal(codes, np.rint(7 * w / np.abs(w).max(axis=1, keepdims=True)))
    assert np.array_equal(integers(encode(as_torch(w), "int4/absmax/row")).numpy(), codes)
    with pytest.raises(ValueError, match="e2m1"):
        integers(encode(w, "mxfp4"))


def test_gradients_and_parameters_stay_behind() -> None:
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    for text in ("int4/absmax/row", "nvfp4/e4m3-up-2level", "mxfp4/sr"):
        encoded = encode(w, text)
        assert type(encoded.codes) is torch.Tensor and not encoded.top.requires_grad
        assert not decode(encoded).requires_grad


def test_what_is_no_array_of_real_floats_is_refused() -> None:
    w = np.ones((2, 4), np.float32)
    with pytest.raises(TypeError, match="complex"):
        encode(w.astype(np.complex64), "fairy")
    with pytest.raises(TypeError, match="int64"):
        encode(np.ones((2, 4), int), "int4")
    with pytest.raises(ValueError, match="NaN"):
        encode(w * np.nan, "int4")
    for point in (w[:1], w.astype(np.float64), as_torch(w)):
        with pytest.raises(ValueError, match="point has"):
            encode(w, "int4", point)
