"""What the quantizer refuses, with which error, and that the message says what is wrong."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import lotion_theory as lt
from lotion_theory import Partition, Quantizer, _arrays
from lotion_theory.export.codes import encode
from lotion_theory.rounding import conditional_expectation
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


# --- arrays that are more, or less, than values ------------------------------------------------------------------------


def _nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def _quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


ODD = {
    "masked": (lambda: np.ma.masked_greater(W, 0), "masked array, whose mask would be lost"),
    "unmasked": (lambda: np.ma.array(W), "masked array"),
    "matrix": (lambda: np.matrix(W), r"np\.matrix; give np\.asarray\(w\)"),
    "structured": (lambda: np.zeros(3, [("a", "f8")]), "has type .*valid types"),
    "byte order": (lambda: W.astype(">f8"), "in this machine's byte order"),
    "dates": (lambda: np.zeros(3, "M8[s]"), "has type datetime64"),
    "meta": (lambda: torch.ones(2, 3, device="meta"), "meta device, which holds no values"),
    "coo": (lambda: torch.ones(2, 3).to_sparse(), r"layout torch\.sparse_coo.*to_dense"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), r"layout torch\.sparse_csr.*to_dense"),
    "nested": (_nested, "nested"),
    "quantized": (_quantized, "type qint8"),
    "float8": (lambda: torch.ones(2, 3).to(torch.float8_e5m2), "type float8_e5m2"),
}
ENTRIES = {
    **METHODS,
    "round": lambda q, w: q.round(w, W),
    "freeze": lambda q, w: q.freeze(w),
    "law": lambda q, w: lt.law(w, q),
    "smoothed_loss": lambda q, w: lt.smoothed_loss(lt.Quadratic(np.ones(6), W), w, q, "monte_carlo"),
    "closed_form": lambda q, w: lt.smoothed_loss(lt.Quadratic(np.ones(6), W), w, q, "closed_form"),
    "smoothed_gradient": lambda q, w: lt.smoothed_gradient(lt.Quadratic(np.ones(6), W), w, q),
    "conditional_expectation": lambda q, w: conditional_expectation(lt.Quadratic(np.ones(6), W), w, q),
    "encode": lambda q, w: encode(w, q),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
@pytest.mark.filterwarnings("ignore:the matrix subclass", "ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor.*", "ignore:.*TypedStorage.*")
def test_odd_arrays_are_refused_by_name(entry, make, message):
    with pytest.raises(TypeError, match=f"w .*{message}"):
        entry(INT4, make())


@pytest.mark.parametrize("what", ["masked", "meta", "coo"])
@pytest.mark.filterwarnings("ignore:.*TypedStorage.*")
def test_odd_arrays_in_other_places(what):
    make, message = ODD[what]
    odd = make()
    w = torch.ones(2, 3) if isinstance(odd, torch.Tensor) else W
    places = {
        "uniforms": lambda: INT4.round(w, odd), "scale": lambda: INT4.with_scale(odd),
        "top": lambda: INT4.with_top(odd), "scale_uniforms": lambda: DRAWN.round(w, 0 * w, odd),
        "hessian": lambda: lt.Quadratic(odd, W), "center": lambda: lt.Quadratic(np.ones(6), odd),
        "curvature": lambda: lt.smoothed_loss(
            lt.Quadratic(np.ones(6), W), W, INT4, "second_order", curvature=odd
        ),
    }  # fmt: skip
    for name, call in places.items():
        with pytest.raises(TypeError, match=f"{name} .*{message}"):
            call()


def test_kinds_of_number_and_array_that_are_taken():
    expected = INT4.cast(np.array([0.5, 0.25]))
    assert np.array_equal(INT4.cast([np.float64(0.5), 0.25]), expected)
    assert INT4.cast(np.float32(0.5)).shape == () and INT4.cast(np.array(0.5)) == 0.5
    mapped = np.array([0.5, 0.25]).view(np.recarray)
    assert np.array_equal(INT4.cast(mapped), expected) and type(INT4.cast(mapped)) is np.ndarray
    conjugate = torch.tensor([1 + 2j, 0.3 - 1j]).conj()
    plain = torch.tensor([1 - 2j, 0.3 + 1j])
    assert torch.equal(Quantizer.parse("fairy").cast(conjugate).resolve_conj(), Quantizer.parse("fairy").cast(plain))
    assert lt.law(conjugate, "fairy").points.shape == lt.law(plain, "fairy").points.shape
    for scale in (np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5).item(), Fraction(1, 2)):
        assert np.array_equal(INT4.with_scale(scale).cast(W), INT4.with_scale(0.5).cast(W))


@pytest.mark.parametrize(
    "scale", ["0.5", b"1", True, np.True_, None, 1j, [0.5], np.array([1, 2]), torch.ones(2, 1).int()]
)
def test_scales_are_real_numbers(scale):
    with pytest.raises(TypeError, match="scale "):
        INT4.with_scale(scale)


# --- what belongs together, and what belongs to the caller -------------------------------------------------------------


def test_lattices_of_the_other_library_say_what_to_do():
    w = torch.from_numpy(W)
    with pytest.raises(TypeError, match=r"frozen lattice is of numpy, w of torch.*freeze the quantizer on an array"):
        INT4.freeze(W).cast(w)
    with pytest.raises(TypeError, match=r"frozen lattice is of torch, w of numpy.*freeze the quantizer on an array"):
        INT4.freeze(w).cast(W)
    learned = INT4.with_scale(torch.full((2, 1), 0.5, dtype=torch.float64))
    for call in (
        lambda: lt.law(w, learned), lambda: lt.smoothed_loss(lt.Quadratic(np.ones(6), W), w, learned, "monte_carlo"),
        lambda: learned.cast(W),
    ):  # fmt: skip
        with pytest.raises(
            TypeError, match=r"is of torch, w of numpy.*detach\(\)\.cpu\(\)\.numpy\(\).*computed in numpy"
        ):
            call()
    with pytest.raises(TypeError, match=r"uniforms is of numpy, w of torch.*give torch\.as_tensor\(uniforms\)"):
        INT4.round(w, W)


def test_tensors_on_two_devices():
    """The meta device stands in for a second one: tensors on it are told apart by where they are."""
    here, there = torch.ones(2, 1), torch.ones(2, 1, device="meta")
    with pytest.raises(ValueError, match="u is on cpu and w on meta; they must be on one device"):
        _arrays.need_together(here, there, "u")
    _arrays.need_together(torch.tensor(0.5), there, "u")  # torch takes a number on the CPU anywhere


def test_later_changes_of_an_array_change_nothing():
    scale, top = np.full((2, 1), 0.5), np.full((2, 1), 0.7)
    given = {"scale": INT4.with_scale(scale), "top": INT4.with_top(top)}
    frozen = {name: q.freeze(W) for name, q in given.items()}
    before = {name: (q.cast(W), frozen[name].cast(W)) for name, q in given.items()}
    scale *= 3
    top *= 3
    for name, q in given.items():
        assert np.array_equal(q.cast(W), before[name][0]) and np.array_equal(frozen[name].cast(W), before[name][1])
    hessian, center = np.eye(6), W.copy()
    loss = lt.Quadratic(hessian, center)
    value = loss(np.ones((1, 2, 3)))
    hessian[0, 1] = center[0, 0] = 5
    assert np.array_equal(loss(np.ones((1, 2, 3))), value)


def test_a_learned_scale_is_read_at_each_use_but_a_frozen_lattice_stays():
    scale = torch.full((2, 1), 0.7, dtype=torch.float64, requires_grad=True)
    w = torch.from_numpy(W)
    for q in (INT4.with_scale(scale), INT4.with_top(scale)):
        kept = q.freeze(w)
        before, frozen = q.cast(w), kept.cast(w)
        with torch.no_grad():
            scale *= 1.5
        assert not torch.equal(q.cast(w), before) and torch.equal(kept.cast(w), frozen)
    fixed = scale.detach()
    q = INT4.with_scale(fixed)
    before = q.cast(w)
    fixed *= 2
    assert torch.equal(q.cast(w), before)
