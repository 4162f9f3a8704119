"""What the quantizer refuses, with which error, and that the message says what is wrong."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from lotion_theory import Partition, Quantizer
from tests.strategies import FORMATS, as_torch, numpy_type

METHODS = {
    "cast": lambda q, w: q.cast(w),
    "bracket": lambda q, w: q.bracket(w),
    "round": lambda q, w: q.round(w, torch.zeros(w.shape) if isinstance(w, torch.Tensor) else np.zeros(np.shape(w))),
    "mean": lambda q, w: q.mean(w),
    "variance": lambda q, w: q.variance(w),
    "branches": lambda q, w: q.branches(w),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
INT4 = Quantizer.parse("int4/absmax/row")


@every_method
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_nan_and_infinity(method, bad, dtype):
    w = np.ones((2, 3))
    w[1, 1] = bad
    w = w.astype(numpy_type(dtype))
    for x in (w, as_torch(w)):
        with pytest.raises(ValueError, match=r"1 NaN or infinite value\(s\), the first at flat index 4"):
            method(INT4, x)


def test_several_bad_values_are_counted():
    with pytest.raises(ValueError, match="2 NaN or infinite"):
        INT4.cast(np.array([np.inf, 1, np.nan]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        Quantizer.parse("fairy").cast(np.array([1 + 1j, complex(0, np.inf)]))


def test_sums_of_complex_parts_that_overflow_are_refused():
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"Re \+ Im"):
        Quantizer.parse("fairy").cast(np.array([3e38 + 3e38j], np.complex64))


@every_method
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_empty(method, shape):
    for w in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(ValueError, match="empty"):
            method(INT4, w)


@every_method
@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool"])
def test_integers_and_booleans(method, dtype):
    for w in (np.ones((2, 3), dtype), torch.ones(2, 3, dtype=getattr(torch, dtype))):
        with pytest.raises(TypeError, match=f"type {dtype}"):
            method(INT4, w)


@pytest.mark.parametrize("w", [[1, 2, 3], 3, True, [True, False]])
def test_lists_of_integers_say_what_to_do(w):
    with pytest.raises(TypeError, match=r"type (int64|bool)"):
        INT4.cast(w)


@pytest.mark.parametrize("w", ["text", ["a", "b"], None, [None, 1.0], {}, [[1.0], [1.0, 2.0]]])
def test_things_that_are_not_numbers(w):
    with pytest.raises((TypeError, ValueError)):
        INT4.cast(w)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "complex64"])
def test_other_torch_types(dtype):
    with pytest.raises(TypeError, match=r"float8|complex"):
        INT4.cast(torch.zeros(4).to(getattr(torch, dtype)))


def test_long_double_is_refused():
    if np.dtype(np.longdouble) != np.dtype(np.float64):
        with pytest.raises(TypeError, match="valid types"):
            INT4.cast(np.ones(3, np.longdouble))


@pytest.mark.parametrize(
    "values", [[0.5, Fraction(1, 2)], [Fraction(1), float("nan")], ["1/2", Fraction(1)], [1j, Fraction(1)]]
)
def test_exact_arrays_hold_fractions_only(values):
    w = np.empty(2, dtype=object)
    w[:] = values
    with pytest.raises(TypeError, match="Fraction"):
        INT4.cast(w)


@every_method
def test_complex_weights_need_a_complex_codebook(method):
    for w in (np.ones(3, complex), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="only fairy is complex"):
            method(INT4, w)


def test_complex_codebook_needs_complex_weights():
    q = Quantizer.parse("fairy/l1")
    for w in (np.ones(4), torch.ones(4)):
        with pytest.raises(TypeError, match="needs complex weights"):
            q.cast(w)
    with pytest.raises(ValueError, match="no order"):
        q.bracket(np.array([1 + 1j]))


# --- blocks ----------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("shape", [(6,), (2, 6), (8, 2, 5)])
def test_blocks_must_divide_a_row(method, shape):
    with pytest.raises(ValueError, match=rf"block=4 does not divide the row length {shape[-1]}.*pad"):
        method(Quantizer.parse("int4/absmax/block=4"), np.ones(shape))


def test_blocks_never_run_across_rows():
    with pytest.raises(ValueError, match="does not divide"):
        Quantizer.parse("int4/absmax/block=4").cast(np.ones((4, 2)))
    with pytest.raises(ValueError, match="block=4 does not divide the row length 6"):
        Quantizer.parse("fairy/l1/block=4").cast(np.ones((2, 6), complex))
    with pytest.raises(ValueError, match="does not divide the row length 1"):
        Quantizer.parse("int4/absmax/block=2").cast(0.5)


@pytest.mark.parametrize(
    "text",
    ["block", "block=", "block=0", "block=-4", "block=4.0", "block=²", "column", "", "Tensor", "block=1e3", "block= 4"],
)
def test_unknown_partitions(text):
    with pytest.raises(ValueError, match=r"unknown partition.*tensor, row, block=N"):
        Partition.parse(text)


# --- uniforms --------------------------------------------------------------------------------------------------------


W = np.linspace(-1, 1, 6).reshape(2, 3)
DRAWN = Quantizer.parse("e2m1/e8m0-sr/row")


@pytest.mark.parametrize("bad", [1.0, -1e-9, 2.0, np.nan, np.inf])
def test_uniforms_outside_the_unit_interval(bad):
    u = np.full(W.shape, 0.5)
    u[0, 1] = bad
    with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\)"):
        INT4.round(W, u)
    with pytest.raises(ValueError, match=r"uniforms must lie in \[0, 1\)"):
        INT4.round(torch.from_numpy(W), torch.from_numpy(u))
    with pytest.raises(ValueError, match=r"scale_uniforms must lie in \[0, 1\)"):
        DRAWN.round(W, np.full(W.shape, 0.5), np.array([0.5, bad]))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 1), (1,), (), (2, 3, 1)])
def test_uniforms_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"uniforms has shape .* expected \(2, 3\)"):
        INT4.round(W, np.full(shape, 0.5))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_scale_uniforms_are_one_per_block(shape):
    with pytest.raises(ValueError, match=r"scale_uniforms has shape .* expected \(2,\)"):
        DRAWN.round(W, np.full(W.shape, 0.5), np.full(shape, 0.5))


def test_uniforms_from_the_other_library():
    with pytest.raises(TypeError, match="same library"):
        INT4.round(W, torch.full(W.shape, 0.5))
    with pytest.raises(TypeError, match="same library"):
        INT4.round(torch.from_numpy(W), np.full(W.shape, 0.5))
    with pytest.raises(TypeError, match="same library"):
        DRAWN.round(W, np.full(W.shape, 0.5), torch.full((2,), 0.5))


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128"])
def test_uniforms_of_a_wrong_type(dtype):
    with pytest.raises(TypeError, match=f"uniforms .*{dtype}"):
        INT4.round(W, np.zeros(W.shape, dtype))


def test_complex_weights_need_two_uniforms_each():
    q = Quantizer.parse("fairy/l1")
    with pytest.raises(ValueError, match=r"expected \(3, 2\)"):
        q.round(np.ones(3, complex), np.zeros(3))


@pytest.mark.parametrize("text", FORMATS)
def test_scale_uniforms_are_needed_or_refused(text):
    q = Quantizer.parse(text)
    w, u = np.array([0.5, -0.25]), np.array([0.5, 0.5])
    if q.scale.is_drawn:
        with pytest.raises(ValueError, match=r"needs scale_uniforms \(one per block, 1 here\)"):
            q.round(w, u)
        with pytest.raises(ValueError, match=r"no single bracket.*branches"):
            q.bracket(w)
    else:
        with pytest.raises(ValueError, match="takes no scale_uniforms"):
            q.round(w, u, np.array([0.5]))


# --- frozen scales ---------------------------------------------------------------------------------------------------


@every_method
def test_frozen_without_a_scale(method):
    with pytest.raises(ValueError, match=r"not set yet.*freeze.*with_scale"):
        method(Quantizer.parse("int4/frozen"), W)


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, np.nan, np.inf, np.array([[1.0], [0.0]])])
def test_scales_must_be_positive_and_finite(scale):
    with pytest.raises(ValueError, match=r"positive|NaN or infinite"):
        INT4.with_scale(scale)


@pytest.mark.parametrize("shape", [(2,), (3,), (1, 3), (3, 1), (2, 3)])
def test_scales_are_one_number_or_one_per_block(shape):
    """A row of scales would silently spread over the columns."""
    with pytest.raises(ValueError, match=r"scale has shape .*\(2, 1\)"):
        INT4.with_scale(np.full(shape, 0.5)).cast(W)


def test_scales_from_the_other_library():
    with pytest.raises(TypeError, match="same library"):
        INT4.with_scale(torch.full((2, 1), 0.5)).cast(W)


def test_one_scale_per_block():
    scale = np.array([[0.1], [1.0]])
    out = INT4.with_scale(scale).cast(np.array([[0.33, 2.0], [3.4, 9.0]]))
    np.testing.assert_array_equal(out, [[0.1 * 3, 0.1 * 7], [3, 7]])
    again = INT4.with_scale(torch.from_numpy(scale)).cast(torch.tensor([[0.33, 2.0], [3.4, 9.0]], dtype=torch.float64))
    assert np.array_equal(again.numpy(), out)


def test_frozen_lattices_fit_one_shape_and_type():
    frozen = INT4.freeze(W)
    with pytest.raises(ValueError, match=r"frozen for \(2, 3\) blocks of float64, not \(3, 2\)"):
        frozen.cast(W.reshape(3, 2))
    with pytest.raises(ValueError, match=r"not .* of float32"):
        frozen.cast(W.astype(np.float32))


# --- format strings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int44", "unknown codebook 'int44'; valid: int2, .*fairy.*aliases: mxfp4"),
        ("int4/absmx", "unknown scale 'absmx'; valid: absmax, gauge"),
        ("int4//row", "unknown scale ''"),
        ("int4/absmax/col", "'col' is no partition; valid: tensor, row, block=N"),
        ("int4/absmax/block=x", "unknown partition 'block=x'"),
        ("int4/row/absmax", "the partition 'row' comes last"),
        ("int4/row/row", "comes last"),
        ("int4/absmax/absmax", "is no partition"),
        ("int4/absmax/row/row", "too many parts"),
        ("nvfp4/floor", "unknown scale"),
        ("", "a format is a string such as"),
        ("   ", "a format is a string such as"),
        ("/absmax", "unknown codebook ''"),
        ("uint4/absmax", "zp-real or zp-int"),
    ],
)
def test_format_strings_say_which_part_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        Quantizer.parse(text)


@pytest.mark.parametrize("text", [None, 4, 4.0, b"int4", ["int4"]])
def test_formats_are_strings(text):
    with pytest.raises(ValueError, match="a format is a string"):
        Quantizer.parse(text)
