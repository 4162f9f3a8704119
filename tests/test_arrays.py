"""The array layer: types in and out, exact exponents and powers, places in the last digit, and what is refused."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lotion_theory as lt
from lotion_theory import _arrays, _tables, arguments, functions, landscape
from lotion_theory.training import LotionPenalty, Monitor
from tests import strategies
from tests.strategies import FLOATS, LARGEST, SMALLEST, examples

RNG_SEED = 20251


def edge_values(dtype):
    """Positive values of a type: every power of two with both neighbours, subnormals, the ends."""
    powers = 2.0 ** np.arange(-1074, 1024)
    powers = powers[(powers >= SMALLEST[dtype]) & (powers <= LARGEST[dtype])].astype(strategies.numpy_type(dtype))
    ends = np.array([SMALLEST[dtype], 3 * SMALLEST[dtype], LARGEST[dtype]]).astype(powers.dtype)
    found = np.concatenate([powers, strategies.shifted(powers, -1), strategies.shifted(powers, 1), ends])
    return found[found > 0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_exponent_is_exact_everywhere(dtype):
    """numpy, torch and Fractions agree with the definition, just below powers of two and among subnormals."""
    x = edge_values(dtype)
    e = _tables.exponent(x)
    exact = strategies.as_fractions(x)
    assert all(Fraction(2) ** int(k) <= v < Fraction(2) ** int(k + 1) for k, v in zip(e, exact, strict=True))
    assert np.array_equal(_tables.exponent(torch.from_numpy(x)).numpy(), e)
    assert np.array_equal(_tables.exponent(exact), e)
    assert np.array_equal(_tables.exponent(-exact), e)


def test_floor_of_log2_would_be_wrong_just_below_a_power_of_two():
    """The reason for frexp: in float32 the logarithm of the number below 2^k rounds to k."""
    below = np.nextafter(np.float32(8), np.float32(0))
    assert np.floor(np.log2(below)) == 3
    assert _tables.exponent(np.array([below]))[0] == 2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_power_of_two_inverts_exponent(dtype):
    x = edge_values(dtype)
    e = _tables.exponent(x)
    power = _tables.power_of_two(e, x)
    assert power.dtype == x.dtype
    assert np.array_equal(power.astype(np.float64), 2.0 ** e.astype(np.float64))
    assert np.array_equal(_tables.power_of_two(torch.from_numpy(e), torch.from_numpy(x)).numpy(), power)
    exact = _tables.power_of_two(e[:50], strategies.as_fractions(x[:50]))
    assert [float(v) for v in exact] == list(power[:50].astype(np.float64))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("ulps", [-1, 1])
def test_nudge_moves_one_place_in_the_storage_type(dtype, ulps):
    stored = edge_values(dtype)
    stored = stored[stored.astype(np.float64) < LARGEST[dtype]]
    x = _arrays.working(stored)
    expected = strategies.shifted(stored, ulps).astype(x.dtype)
    assert np.array_equal(_arrays.nudge(x, dtype, ulps), expected)
    assert np.array_equal(_arrays.nudge(torch.from_numpy(x), dtype, ulps).numpy(), expected)


def test_nudge_stops_at_zero_and_leaves_exact_arrays_alone():
    assert _arrays.nudge(np.zeros(2, np.float32), "float32", -1).tolist() == [0, 0]
    exact = np.array([Fraction(1, 3)], dtype=object)
    assert _arrays.nudge(exact, "object", 1) is exact


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_store_rounds_to_nearest_even_in_both_libraries(dtype):
    """Every value is kept, every midpoint goes to the even neighbour, and one float32 ulp beside it decides."""
    codes = np.arange(1, 0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16)
    values = codes.view(strategies.numpy_type(dtype)).astype(np.float32)
    assert np.array_equal(_arrays.store(values, dtype), values)
    middle = (values[1:].astype(np.float64) + values[:-1]) / 2
    exact = middle.astype(np.float32)
    assert np.array_equal(exact, middle)
    even = np.where(codes[:-1] % 2 == 0, values[:-1], values[1:])
    for x, expected in (
        (exact, even),
        (np.nextafter(exact, np.float32(0)), values[:-1]),
        (np.nextafter(exact, np.float32(np.inf)), values[1:]),
    ):
        assert np.array_equal(_arrays.store(x, dtype), expected)
        assert np.array_equal(_arrays.store(torch.from_numpy(x), dtype).numpy(), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_store_level_never_overflows(dtype):
    top = LARGEST[dtype]
    x = np.array([top, -top], dtype=_arrays.working(np.zeros(1, strategies.numpy_type(dtype))).dtype)
    with np.errstate(over="ignore"):
        beyond = x * x.dtype.type(1.5)
    for given_, library in ((beyond, np.asarray), (torch.from_numpy(beyond), lambda t: t.numpy())):
        assert library(_arrays.store_level(given_, dtype)).tolist() == [top, -top]


@pytest.mark.parametrize("dtype", FLOATS)
def test_largest_and_precision_describe_the_type(dtype):
    info = ml_dtypes.finfo(strategies.numpy_type(dtype))
    assert _arrays.largest(dtype) == float(info.max)
    assert _arrays.precision(dtype) == info.nmant + 1
    assert _arrays.largest("object") is None


@examples(100)
@given(
    st.lists(st.fractions(min_value=-8, max_value=8, max_denominator=999), min_size=2, max_size=8, unique=True),
    st.data(),
)
def test_no_entry_lies_between_a_number_and_the_one_beside_it(values, data):
    table = _tables.Values(sorted(values))
    x = data.draw(
        st.lists(st.one_of(st.sampled_from(table), st.fractions(-9, 9, max_denominator=99)), min_size=1, max_size=9)
    )
    exact = np.empty(len(x), dtype=object)
    exact[:] = x
    wide = np.array([float(v) for v in x])
    for array in (exact, wide, torch.from_numpy(wide)):
        for v, place in zip(x, _tables.beside(table, array).tolist(), strict=True):
            assert not any(min(v, table[place]) < other < max(v, table[place]) for other in table)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_constants_are_correctly_rounded(dtype):
    """Through float64, which cannot round twice for quotients of integers below 2^24."""
    values = tuple(sorted({Fraction(n, d) for n in range(-260, 260) for d in (1, 7, 15, 127, 255, 448, 57344)}))
    like = np.zeros(1, dtype=dtype)
    table = _tables.constants(values, like)
    gap = [Fraction(float(g)) for g in np.spacing(np.abs(table)).astype(np.float64)]
    exact = strategies.as_fractions(table)
    assert all(abs(a - v) * 2 <= g for a, v, g in zip(exact, values, gap, strict=True))
    assert np.array_equal(_tables.constants(values, torch.from_numpy(like)).numpy(), table)


def test_square_root_of_fractions_is_rational_or_refused():
    x = np.array([Fraction(9, 4), Fraction(0), Fraction(25)], dtype=object)
    assert functions.square_root(x).tolist() == [Fraction(3, 2), 0, 5]
    with pytest.raises(ValueError, match="irrational"):
        functions.square_root(np.array([Fraction(1, 2)], dtype=object))


def test_replace_value_keeps_the_derivative():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    out = _arrays.replace_value(x * x, torch.tensor([5.0, 7.0]))
    out.sum().backward()
    assert out.tolist() == [5, 7]
    assert x.grad.tolist() == [4, 6]
    assert _arrays.replace_value(np.ones(1), np.zeros(1)).tolist() == [0]


def test_block_max_shares_the_derivative_among_ties():
    x = torch.tensor([[1.0, 3.0, 3.0, -4.0]], requires_grad=True)
    _arrays.block_max(x).sum().backward()
    assert x.grad.tolist() == [[0, 0.5, 0.5, 0]]


def test_lists_scalars_and_fractions_become_arrays():
    assert _arrays.as_array([0.5, 1.0]).dtype == np.float64
    assert _arrays.as_array(0.5).shape == ()
    assert _arrays.is_exact(_arrays.as_array([Fraction(1, 2), Fraction(3)]))
    tensor = torch.zeros(2, dtype=torch.bfloat16)
    assert _arrays.as_array(tensor) is tensor


def test_floor_index_rounds_down_below_zero():
    x = np.array([-1.5, -1.0, -0.5, 0.0, 0.5, 2.0])
    assert _tables.floor_index(x).tolist() == [-2, -1, -1, 0, 0, 2]
    assert _tables.floor_index(torch.from_numpy(x)).tolist() == [-2, -1, -1, 0, 0, 2]
    assert _tables.floor_index(np.array([Fraction(-3, 2), Fraction(7, 2)], dtype=object)).tolist() == [-2, 3]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_integers_of_every_library(value):
    assert arguments.is_integer(value) and arguments.count("n", value) == 3 and type(arguments.count("n", value)) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float32(3), "3", None, [3]])
def test_what_is_no_integer(value):
    assert not arguments.is_integer(value)
    with pytest.raises(ValueError, match=r"n = .*valid: a positive integer"):
        arguments.count("n", value)


def test_real_numbers():
    for value in (1, 1.5, np.float32(1.5), np.int8(1), Fraction(3, 2)):
        assert arguments.is_real(value) and arguments.real("x", value) == float(value)
    for value in (True, np.False_, "1", b"1", None, 1j, [1.0, 2.0]):
        assert not arguments.is_real(value)
        with pytest.raises(TypeError, match=r"x = .*valid: a real number"):
            arguments.real("x", value)
    assert arguments.real("x", 10**400) == math.inf and arguments.real("x", Fraction(-(10**400))) == -math.inf


def test_integers_of_numpy_are_taken_where_integers_are():
    loss, w, three = lt.Quadratic(np.ones(3), np.zeros(3)), np.array([0.1, 0.2, 0.3]), np.int64(64)
    for method in ("monte_carlo", "antithetic", "quasi_monte_carlo"):
        expected = lt.smoothed_loss(loss, w, "int4", method, samples=64, seed=1)
        assert lt.smoothed_loss(loss, w, "int4", method, samples=three, seed=np.uint8(1)) == expected
        with pytest.raises(ValueError, match=r"samples = 64\.0; valid"):
            lt.smoothed_loss(loss, w, "int4", method, samples=64.0)
    model = torch.nn.Linear(4, 2)
    penalty = LotionPenalty(model, "int4/absmax/row", ramp=(np.int64(0), np.float32(0.5)), total_steps=np.int64(10))
    model(torch.ones(2, 4)).sum().backward()
    penalty.observe(np.int32(2))
    assert penalty.ramp.end == 5
    assert Monitor(model, "int4/absmax/row").losses(lambda: 1.0, samples=np.int64(2))["rr"] == 1
    starts = landscape.local_minima_smoothed(loss, "int2", -np.ones(3), np.ones(3), starts=np.int64(4), iterations=2)
    assert starts.points.shape[1:] == (3,)
