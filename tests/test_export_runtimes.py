"""GGUF files and torchao tensors: what those libraries dequantize is our cast, bit for bit, or the export is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer
from lotion_theory.export import encode, representable, to_torchao, write_gguf
from tests.oracles import library
from tests.strategies import as_torch, assemble, examples, leads, numpy_type
from tests.test_export_codes import bits

EXACT = {
    "Q4_0": ("q4_0", "int4/fp16-nearest/block=64", "int3/fp16-up/row", "int2/fp16-sr/tensor", "ternary/fp16-sr/row",
             "binary/fp16-nearest/block=32"),
    "Q8_0": ("q8_0", "q4_0", "int8/fp16-sr/row", "int5/fp16-up/block=96", "e2m1/fp16-nearest/row", "e2m3/fp16-sr/tensor",
             "mxfp4", "mxfp6", "mxint8"),
}  # fmt: skip
PAIRS = [(kind, text) for kind, formats in EXACT.items() for text in formats]


def weights(seed: int = 0, shape: tuple[int, ...] = (6, 192), dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(numpy_type(dtype))


def dequantized(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a GGUF file as its own library reads them."""
    reader, quants = library("gguf").GGUFReader(path), library("gguf.quants")
    return {t.name: quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}


@pytest.mark.parametrize(("kind", "text"), PAIRS)
def test_gguf_dequantizes_to_the_cast_bit_for_bit(tmp_path: Path, kind: str, text: str) -> None:
    library("gguf")
    q = Quantizer.parse(text)
    w = weights() * np.exp(2 * weights(1)).astype(np.float32)
    w[2, 32:96] = 0
    for tensor in (q.cast(w), as_torch(q.cast(w)), encode(w, q), q.cast(w.reshape(3, 2, 192))):
        assert write_gguf(tmp_path / "w.gguf", {"w": tensor}, kind) == {"w": 0.0}
        found = dequantized(tmp_path / "w.gguf")["w"]
        np.testing.assert_array_equal(bits(found), bits(q.cast(w)).reshape(found.shape))
    assert list(tmp_path.iterdir()) == [tmp_path / "w.gguf"]


@given(data=st.data(), seed=st.integers(0, 2**20))
@examples(40)
@pytest.mark.parametrize(("kind", "text"), [("Q4_0", "int4full/q4_0"), ("Q8_0", "int8/fp16-nearest")])
def test_directed_blocks_have_an_exact_form(kind: str, text: str, data: st.DataObject, seed: int) -> None:
    """Leaders at every scale breakpoint that fp16 reaches, blocks of levels, ties, zeros of both signs and ulps."""
    table = leads(text, "float32")
    table = table[table < 2.0**15 * float(-Quantizer.parse(text).codebook.low)]
    lead = table[data.draw(st.lists(st.integers(0, table.size - 1), min_size=1, max_size=4))]
    lead = np.where(np.random.default_rng(seed).random(lead.size) < 0.5, -lead, lead)
    rng = np.random.default_rng(seed)
    shape = (lead.size, 31)
    w = assemble(text, lead, rng.integers(8, size=shape), rng.random(shape), rng.integers(-1, 2, shape))
    assert representable(encode(w, f"{text}/block=32"), kind).all()


@pytest.mark.parametrize(
    ("kind", "text", "dtype"),
    [
        ("Q4_0", "int4/absmax/block=32", "float32"), ("Q4_0", "int4full/gauge/block=32", "float32"),
        ("Q4_0", "int4/fp16-nearest/block=16", "float32"), ("Q4_0", "q4_0", "bfloat16"), ("Q4_0", "q8_0", "float32"),
        ("Q4_0", "e2m1/fp16-nearest/row", "float32"), ("Q8_0", "int8/absmax/row", "float32"),
        ("Q8_0", "q8_0", "float16"), ("Q8_0", "nf4/absmax/block=32", "float32"),
    ],
)  # fmt: skip
def test_gguf_refuses_what_it_cannot_hold_or_rounds_when_asked(
    tmp_path: Path, kind: str, text: str, dtype: str
) -> None:
    library("gguf")
    encoded = encode(weights(dtype=dtype), text)
    path = tmp_path / "w.gguf"
    with pytest.raises(
        ValueError, match=f"layer.*{encoded.format}.*{kind} cannot hold them exactly. Exact .*{kind.lower()}"
    ):
        write_gguf(path, {"layer": encoded}, kind)
    assert not path.exists() and not representable(encoded, kind).all()
    error = write_gguf(path, {"layer": encoded}, kind, requantize=True)["layer"]
    point = Quantizer.parse(text).cast(weights(dtype=dtype)).astype(np.float64)
    found = dequantized(path)["layer"]
    assert error == np.abs(found - point).max() / np.abs(point).max()
    # Q4_0 cuts the side away from its leader by one of 8 steps; Q8_0 rounds to half of one of 127. Scales are fp16.
    assert 0 < error <= (1 / 8 if kind == "Q4_0" else 0.5 / 127) + 2.0**-10


def test_gguf_metadata_and_plain_tensors(tmp_path: Path) -> None:
    gguf = library("gguf")
    plain = {
        "norm": weights(1, (5,)), "half": weights(2, (3, 4), "float16"), "brain": weights(3, (2, 8), "bfloat16"),
        "torch": as_torch(weights(4, (3,), "bfloat16")),
    }  # fmt: skip
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "a.s": "text",
        "a.f": 0.5,
        "a.b": True,
        "a.l": [1, 2],
    }
    point = Quantizer.parse("q8_0").cast(weights())
    write_gguf(tmp_path / "w.gguf", {"w": point}, "Q8_0", metadata, plain)
    reader = gguf.GGUFReader(tmp_path / "w.gguf")
    for key, value in metadata.items():
        assert reader.fields[key].contents() == value
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    found = dequantized(tmp_path / "w.gguf")
    assert set(found) == {"w", *plain}
    for name, tensor in plain.items():
        expected = tensor.float().numpy() if name == "torch" else tensor.astype(np.float32)
        assert np.array_equal(found[name].astype(np.float32), expected), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "Q5_0"}, "Q4_0, Q8_0"), ({"tensors": {}}, "empty"), ({"tensors": {"w": np.ones((2, 33))}}, "multiple of 32"),
        ({"tensors": {"w": np.full((1, 32), np.nan)}}, "^w: .*NaN"), ({"tensors": {"w" * 64: np.ones(32)}}, "63 bytes"),
        ({"plain": {"w": np.ones(3)}}, "both"), ({"metadata": {"k": None}}, "k"),
        ({"tensors": {"w": np.full((1, 32), 1e9 / 3, np.float32)}, "requantize": True}, "^w: .*exceed"),
    ],
)  # fmt: skip
def test_gguf_refuses_wrong_arguments_and_leaves_no_file(tmp_path: Path, arguments: dict, message: str) -> None:
    library("gguf")
    keywords = {"tensors": {"w": np.ones((2, 32), np.float32)}, "kind": "Q4_0", **arguments}
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "w.gguf", **keywords)
    assert list(tmp_path.iterdir()) == []


INTEGER = ("int4/absmax/block=32", "int8/absmax/row", "int3/absmax/tensor", "ternary/absmax/row", "q4_0", "q8_0",
           "int4/e8m0-sr/block=32", "binary/absmax/row", "uint4/zp-int/block=32")  # fmt: skip
CODEBOOK = ("int4/absmax/block=32", "int8/absmax/row", "int3/absmax/tensor", "q4_0", "mxfp4", "nvfp4/sr",
            "nf4/absmax/block=64", "nvfp4/e4m3-up-2level")  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "dtype", "text"),
    [
        *(("integer", dtype, text) for dtype in ("float16", "bfloat16") for text in INTEGER),
        *(("integer", "float32", text) for text in ("q4_0", "q8_0", "int4/e8m0-sr/block=32", "ternary/absmax/row")),
        *(("codebook", dtype, text) for dtype in ("float32", "bfloat16") for text in CODEBOOK),
    ],
)
def test_torchao_dequantizes_to_the_cast_and_a_linear_layer_agrees(layout: str, dtype: str, text: str) -> None:
    library("torchao")
    import torch
    from torch import nn

    w = as_torch(weights(dtype=dtype))
    w[1, :64] = 0
    q = Quantizer.parse(text)
    expected = q.cast(w)
    tensor = to_torchao(encode(w, q), layout)
    assert tensor.dtype == w.dtype and tuple(tensor.shape) == tuple(w.shape)
    np.testing.assert_array_equal(bits(tensor.dequantize()), bits(expected))
    x = as_torch(weights(9, (5, 192), dtype))
    ours, theirs = nn.Linear(192, 6, bias=False, dtype=w.dtype), nn.Linear(192, 6, bias=False, dtype=w.dtype)
    ours.weight = nn.Parameter(expected)
    theirs.weight = nn.Parameter(tensor, requires_grad=False)
    with torch.no_grad():
        a, b = ours(x).double(), theirs(x).double()
        # Either sum of 192 products is off by at most 192 roundings of the sum of magnitudes, whatever its order,
        # and once more by the rounding to the output's type.
        magnitude = x.double().abs() @ expected.double().abs().T
    unit = torch.finfo(torch.float32).eps * 192 + torch.finfo(w.dtype).eps
    assert ((a - b).abs() <= 2 * unit * magnitude).all()


def test_torchao_refuses_what_would_not_be_exact() -> None:
    library("torchao")
    w = as_torch(weights())
    for text, layout, message in (
        ("int4/absmax/block=32", "integer", "would differ from the cast"),
        ("int8/absmax/row", "integer", "would differ from the cast"),
        ("nf4/absmax/row", "integer", "not one of integers"), ("uint4/zp-real/row", "integer", "real zero point"),
        ("int4full/gauge/row", "codebook", "two anchors"), ("int4", "plain", "integer, codebook"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            to_torchao(encode(w, text), layout)
    for encoded in (encode(weights(), "int4"), encode(w.double(), "int4")):
        with pytest.raises(ValueError, match="encode a torch tensor"):
            to_torchao(encoded)
    with pytest.raises(ValueError, match="two dimensions"):
        to_torchao(encode(w[0], "int4"), "codebook")


def test_a_model_on_torchao_weights_has_the_loss_of_the_cast() -> None:
    library("torchao")
    import torch

    from tests.torch_models import mlp

    model, other = mlp((32, 64, 32), torch.bfloat16), mlp((32, 64, 32), torch.bfloat16)
    q = Quantizer.parse("int4/absmax/block=32")
    for ours, theirs in zip(model[::2], other[::2], strict=True):
        theirs.weight = torch.nn.Parameter(to_torchao(encode(ours.weight, q)), requires_grad=False)
        ours.weight = torch.nn.Parameter(q.cast(ours.weight.detach()))
    x = as_torch(weights(0, (16, 32), "bfloat16"))
    with torch.no_grad():
        # Both layers dequantize first, and then call the same product on the same bits.
        assert torch.equal(other(x), model(x))


def test_absent_libraries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from lotion_theory import files

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"writing GGUF needs gguf.*lotion-theory\[lm\]"):
        write_gguf(tmp_path / "w", {"w": np.ones((1, 32), np.float32)}, "Q4_0")
    with pytest.raises(ImportError, match=r"reading needs nothing_like_it: pip install 'lotion-theory\[lm\]'"):
        files.library("nothing_like_it", "reading")


def test_torchao_takes_blocks_that_are_boxes_of_any_shape() -> None:
    library("torchao")
    from dataclasses import replace

    from lotion_theory.formats.codebooks import codebook

    w = as_torch(weights(shape=(2, 3, 32), dtype="bfloat16"))
    named = replace(codebook("int4"), name="own")
    for text in ("int4/absmax/tensor", "int4/absmax/row", "int4/absmax/block=8"):
        q = Quantizer.parse(text)
        for quantizer in (q, q.freeze(w), replace(q, codebook=named, text="")):
            np.testing.assert_array_equal(bits(to_torchao(encode(w, quantizer)).dequantize()), bits(q.cast(w)))
    for shape in ((), (1,)):
        with pytest.raises(ValueError, match=r"no boxes|would differ|two dimensions"):
            to_torchao(encode(w[:1, 0, 0].reshape(shape), "int4/absmax/tensor"), "codebook")
