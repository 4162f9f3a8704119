"""Codebooks and scale rules of one's own, by their names; stored scales of a format of one's own."""

import pickle
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import lotion_theory as lt
from lotion_theory import register_codebook, register_scale
from lotion_theory.export import decode, encode
from lotion_theory.formats import codebooks, scale_protocol
from lotion_theory.formats.scale_formats import ScaleFormat
from lotion_theory.formats.scale_protocol import scale_rule
from lotion_theory.formats.scaling_stored import rules_of
from tests import strategies

NINE = tuple(Fraction(k, 2) for k in (-7, -4, -2, -1, 0, 1, 2, 4, 7))
WEIGHTS = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(codebooks, "_OWN", {})
    monkeypatch.setattr(scale_protocol, "_RULES", dict(scale_protocol._RULES))


def book_of(name):
    return lt.Codebook(name, NINE, (True, False) * 4 + (True,), 4, "denser at zero")


def rule_of(name):
    # A closure: such a rule travels by its name only.
    twice = lambda x, book, kind: scale_rule("absmax7.5").draws(2 * x, book, kind)  # noqa: E731
    return replace(scale_rule("absmax7.5"), name=name, draws=twice)


def test_own_names_in_format_strings():
    book, rule = register_codebook(book_of("nine")), register_scale(rule_of("absmax-twice"))
    q = lt.Quantizer.parse("Nine/absmax-twice/block=16")
    assert q.codebook is book is lt.codebook("nine") and q.scale is rule is scale_rule("absmax-twice")
    assert q.canonical == "nine/absmax-twice/block=16" and lt.Quantizer.parse(q.canonical) == q
    assert np.array_equal(q.cast(WEIGHTS), lt.Quantizer(book, rule, lt.Partition("block", 16)).cast(WEIGHTS))
    back = pickle.loads(pickle.dumps(q))
    assert back.codebook is book and back.scale is rule
    # The catalogue of the package stays what it is.
    assert "nine" not in codebooks.names() and register_codebook(book_of("nine")) is book


@pytest.mark.parametrize("name", ["Nine", "a/b", "a b", "", "row", "block", "channel-block=2"])
def test_names_that_no_format_string_can_hold(name):
    for register, made in ((register_codebook, book_of), (register_scale, rule_of)):
        with pytest.raises(ValueError, match="cannot be named in a format string; valid: lower case"):
            register(made(name))


def test_names_that_are_taken():
    register_codebook(book_of("nine"))
    register_scale(rule_of("twice"))
    for name in ("int4", "fp4", "mxfp4"):
        with pytest.raises(ValueError, match=f"codebook '{name}' is taken"):
            register_codebook(book_of(name))
    with pytest.raises(ValueError, match="codebook 'nine' is taken"):
        register_codebook(replace(book_of("nine"), bits=5))
    for name in ("absmax", "absmax7.5", "slack2", "frozen", "twice"):
        with pytest.raises(ValueError, match=f"scale '{name}' is taken"):
            register_scale(rule_of(name))


def test_unknown_names_say_where_own_ones_are_known():
    register_codebook(book_of("nine"))
    register_scale(rule_of("twice"))
    for text, own, call in (("ten", "nine", "register_codebook"), ("int4/thrice", "twice", "register_scale")):
        with pytest.raises(ValueError, match=f"unknown .*{own}.*processes that called {call}"):
            lt.Quantizer.parse(text)


def test_another_process_must_register_them_too():
    pickles = [pickle.dumps(register_codebook(book_of("nine"))), pickle.dumps(register_scale(rule_of("twice")))]
    program = f"""
import pickle
for data in {pickles}:
    try:
        pickle.loads(data)
    except ValueError as error:
        print(error)
"""
    lines = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for line, name, call in zip(lines.splitlines(), ("nine", "twice"), ("codebook", "scale"), strict=True):
        assert line.startswith(f"unknown {call} '{name}'") and f"called register_{call}" in line


def test_encoded_weights_carry_a_registered_codebook():
    register_codebook(book_of("nine"))
    encoded = encode(WEIGHTS, "nine/absmax/block=16")
    assert encoded.own == lt.codebook("nine") and encoded.quantizer == lt.Quantizer.parse("nine/absmax/block=16")
    assert np.array_equal(decode(encoded), lt.Quantizer.parse("nine/absmax/block=16").cast(WEIGHTS))


@pytest.mark.parametrize("bits", [0, 2])
def test_a_stored_scale_is_one_entry(bits):
    fmt = ScaleFormat(f"e6m{bits}", bits, -30, Fraction(2) ** 31, two_level=bits > 0)
    names = [register_scale(rule).name for rule in rules_of(fmt)]
    expected = {0: ["floor", "ceil", "even", "sr"], 2: ["nearest", "up", "nearest-2level", "up-2level", "sr"]}
    assert names == [f"e6m{bits}-{how}" for how in expected[bits]]
    exact = strategies.as_fractions(WEIGHTS[:1, :4])
    for name in names:
        q = lt.Quantizer.parse(f"e2m1/{name}/block=4")
        assert q.scale.storage is fmt
        # Biased only where the rule says so.
        assert not q.scale.promise(q.codebook).unbiased or (q.mean(exact) == exact).all()
        assert np.array_equal(decode(encode(WEIGHTS, q)), q.cast(WEIGHTS))
