"""Format strings: parsed, printed and parsed again; defaults, aliases and short forms."""

import pytest

from lotion_theory import Quantizer
from lotion_theory.formats import codebooks
from lotion_theory.formats.quantizer import ALIASES
from tests import strategies


@pytest.mark.parametrize("partition", ["tensor", "row", "block=1", "block=32", "channel", "channel-block=32"])
def test_every_format_string_comes_back(partition):
    for text in strategies.every_format():
        full = f"{text}/{partition}"
        q = Quantizer.parse(full)
        assert str(q) == q.canonical == full
        assert Quantizer.parse(str(q)) == q
        assert Quantizer.parse(q.canonical) == q
        assert Quantizer.parse(q) is q
        assert q.with_partition("row").canonical == f"{text}/row"


def test_defaults_case_and_spaces():
    assert Quantizer.parse(" INT4 ").canonical == "int4/absmax/tensor"
    assert Quantizer.parse("uint4").canonical == "uint4/zp-real/tensor"
    assert Quantizer.parse("int4/block=8").canonical == "int4/absmax/block=8"
    assert Quantizer.parse("fp4/row").canonical == "e2m1/absmax/row"
    assert str(Quantizer.parse("fp4/row")) == "fp4/row"
    assert Quantizer.parse("fairy").codebook.is_complex


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_expand_and_can_be_modified(alias):
    q = Quantizer.parse(alias)
    assert q.canonical == ALIASES[alias]
    assert str(q) == alias and Quantizer.parse(str(q)) == q
    book, scale, _ = ALIASES[alias].split("/")
    assert Quantizer.parse(f"{alias}/row").canonical == f"{book}/{scale}/row"
    if scale.startswith("e8m0"):
        assert Quantizer.parse(f"{alias}/sr").canonical.split("/")[1] == "e8m0-sr"
        assert Quantizer.parse(f"{alias}/ceil/block=16").canonical == f"{book}/e8m0-ceil/block=16"


def test_short_scale_names_of_aliases():
    assert Quantizer.parse("nvfp4/up").canonical == "e2m1/e4m3-up/block=16"
    assert Quantizer.parse("nvfp4/nearest-2level").canonical == "e2m1/e4m3-nearest-2level/block=16"
    assert Quantizer.parse("q8_0/sr").canonical == "int8/fp16-sr/block=32"
    assert Quantizer.parse("mxfp4/e8m0-even/row").canonical == "e2m1/e8m0-even/row"


def test_every_codebook_has_a_default_scale():
    for name in codebooks.names():
        q = Quantizer.parse(name)
        assert Quantizer.parse(q.canonical) == q
