"""Codebooks against the code tables of other libraries, and their own arithmetic."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from lotion_theory import Codebook, codebook
from lotion_theory.formats import codebooks
from tests import oracles
from tests.tolerances import ulp

MINIFLOATS = ("e2m1", "e2m3", "e3m2", "e4m3", "e5m2")


@pytest.mark.parametrize("name", oracles.ML_DTYPES_NAMES[:5] + oracles.ML_DTYPES_NAMES[6:])
def test_every_code_point_of_ml_dtypes(name):
    np.testing.assert_array_equal(codebook(name).values, oracles.code_values(name, "ml_dtypes"))


@pytest.mark.parametrize("name", [n for n in oracles.GFLOAT_NAMES if n not in ("e8m0", "ue4m3", "ue5m3")])
def test_every_code_point_of_gfloat(name):
    np.testing.assert_array_equal(codebook(name).values, oracles.code_values(name, "gfloat"))


@pytest.mark.parametrize("name", codebooks.names())
def test_levels_are_exact_in_float64(name):
    """But for dynamic8, whose levels are decimal, no level is rounded on its way to ``values``."""
    book = codebook(name)
    exact = [Fraction(float(v)) == level for v, level in zip(book.values, book.levels, strict=True)]
    assert all(exact) or name == "dynamic8"
    assert not book.values.flags.writeable
    assert 2 ** np.ceil(book.bits) >= len(book.levels) * (2 if book.is_complex else 1)


def test_nf4_is_the_table_of_bitsandbytes():
    np.testing.assert_array_equal(codebook("nf4").values, oracles.nf4_table())


def test_dynamic8_is_the_map_of_bitsandbytes_before_its_float32_roundings():
    """The library computes end points, their mean and a product in float32: a rounding each, up to two in linspace."""
    theirs, ours = oracles.dynamic_map_8bit(), codebook("dynamic8").values
    assert theirs.shape == ours.shape
    assert (np.abs(theirs - ours) <= 3 * ulp(ours, "float32")).all()
    assert ours[-1] == theirs[-1] == 1


def test_pot_levels_are_signed_powers_of_two():
    for bits in (2, 3, 4):
        powers = [Fraction(2) ** i for i in range(2 ** (bits - 1))]
        assert list(codebook(f"pot{bits}").levels) == [-p for p in reversed(powers)] + powers


@pytest.mark.parametrize("name", MINIFLOATS)
def test_even_is_the_last_bit_of_the_code(name):
    """Parity from ml_dtypes' encoding: of every level's code, the lowest mantissa bit."""
    ml_dtypes = oracles.library("ml_dtypes")
    dtype = getattr(ml_dtypes, oracles._ML_DTYPES[name])
    book = codebook(name)
    codes = book.values.astype(dtype).view(np.uint8)
    assert list(book.even) == [c % 2 == 0 for c in codes]


@pytest.mark.parametrize("name", [*MINIFLOATS, "int3", "int8", "int4full", "uint4"])
def test_even_decides_midpoints_as_gfloat_does(name):
    book = codebook(name)
    middles = (book.values[1:] + book.values[:-1]) / 2  # exact: few significant bits
    pairs = zip(book.levels, book.levels[1:], book.even, strict=False)
    ours = [float(a if even else b) for a, b, even in pairs]
    np.testing.assert_array_equal(oracles.nearest_elementwise(name, middles), ours)


@pytest.mark.parametrize("name", codebooks.names())
def test_derived_properties_match_their_definitions(name):
    book = codebook(name)
    levels = book.levels
    assert (book.low, book.high) == (min(levels), max(levels))
    assert book.symmetric == (sorted(-v for v in levels) == list(levels))
    assert book.balanced == (min(levels) + max(levels) == 0)
    assert book.has_zero == (0 in levels)
    gaps = {b - a for a, b in pairwise(levels)}
    assert book.step == (min(gaps) if len(gaps) == 1 else None)
    assert book.nested() == all(2 * v in levels or not book.low <= 2 * v <= book.high for v in levels)
    assert all(a != b for a, b in pairwise(book.even))


def test_facts_that_scale_rules_rest_on():
    assert {n for n in codebooks.names() if not codebook(n).nested()} == {"nf4", "iq4nl", "dynamic8"}
    assert [n for n in codebooks.names() if codebook(n).balanced and not codebook(n).symmetric] == ["nf4"]
    assert [n for n in codebooks.names() if codebook(n).is_complex] == ["fairy"]
    assert all(codebook(n).unsigned == n.startswith("uint") for n in codebooks.names())


def test_aliases_and_cache():
    assert codebook("fp4") == codebook("e2m1")
    assert codebook("fp6") == codebook("e2m3")
    assert codebook("fp8") == codebook("e4m3")
    assert codebook("int4") is codebook("int4")


@pytest.mark.parametrize("name", ["int1", "int9", "int04", "e9m9", "", "INT4", "pot5", "int4 ", "fairy2"])
def test_unknown_names_list_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown codebook") as caught:
        codebook(name)
    assert all(known in str(caught.value) for known in (*codebooks.names(), "fp4", "fp6", "fp8"))


def test_malformed_codebooks_are_refused():
    half = Fraction(1, 2)
    for levels, even in [((half,), (True,)), ((half, half), (True, False)), ((Fraction(1), half), (True, False))]:
        with pytest.raises(ValueError, match="increasing"):
            Codebook("odd", levels, even, 1, "")
    with pytest.raises(ValueError, match="even"):
        Codebook("odd", (half, Fraction(1)), (True, True), 1, "")
