"""Philox4x32-10: the published answers, and the same bits from every kind of integer it is written for."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import _philox

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")
needs_numba = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")

words = st.integers(0, 2**32 - 1)


def as_int(x):
    return [int(v) for v in np.asarray(x).ravel()]


def run_words(kind, counter, key):
    """philox4x32 on one counter, by each kind of number it is written for."""
    if kind == "python":
        return list(_philox.philox4x32(*counter, *key))
    if kind == "numpy":
        return [as_int(w)[0] for w in _philox.philox4x32(*(np.array([c]) for c in counter), *key)]
    if kind == "torch":
        import torch

        return [as_int(w)[0] for w in _philox.philox4x32(*(torch.tensor([c]) for c in counter), *key)]
    import numba

    return list(numba.njit(_philox.philox4x32)(*counter, *key))


KNOWN_ANSWERS = [  # the vectors that Random123 distributes for philox4x32-10
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
@pytest.mark.parametrize(
    "kind", ["python", "numpy", pytest.param("torch", marks=needs_torch), pytest.param("numba", marks=needs_numba)]
)
def test_philox_gives_the_known_answers(kind, counter, key, expected):
    assert run_words(kind, counter, key) == list(expected)


@given(counter=st.tuples(words, words, words, words), key=st.tuples(words, words))
def test_wrapping_products_keep_the_bits_of_exact_ones(counter, key):
    exact = run_words("python", counter, key)
    assert all(0 <= w < 2**32 for w in exact)
    assert run_words("numpy", counter, key) == exact
    if HAS_TORCH:
        assert run_words("torch", counter, key) == exact


def test_philox_imports_nothing():
    tree = ast.parse(Path(_philox.__file__).read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
