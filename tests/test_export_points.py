"""Rounded points keep the lattice they were rounded on: as codes, in a module, in packed files and in GGUF."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory import Quantizer, Stream
from lotion_theory.export import Encoded, decode, encode, load_packed, save_packed, write_gguf
from lotion_theory.formats.codebooks import Codebook
from lotion_theory.rounders import Case, names, rounder
from lotion_theory.rounders.points import rounded
from tests.oracles import library
from tests.strategies import as_torch, examples, numpy_type, wide
from tests.test_export_codes import bits
from tests.tolerances import ulp

FORMATS = ("int4/absmax/row", "int3/absmax/row", "int4/absmax/block=32", "nf4/absmax/block=32", "e2m1/absmax/block=32",
           "mxfp4", "nvfp4", "q8_0", "binary/absmax/row", "int4/fp16-nearest/block=32")  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")
SHORT = {"steps": 4, "count": 5}


def problem(dtype: str, rows: int = 3, n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Weights with a block of zeros, and the Hessian of correlated inputs."""
    rng = np.random.default_rng(8)
    w = rng.standard_normal((rows, n)).astype(numpy_type(dtype))
    w[0, : n // 2] = 0
    x = rng.standard_normal((2 * n, n)) @ rng.standard_normal((n, n))
    return w, x.T @ x / len(x)


def run(name: str, w: Any, hessian: np.ndarray, q: Quantizer | str) -> Encoded:
    scheme = rounder(name)
    settings = {key: value for key, value in SHORT.items() if key in scheme.settings}
    return rounded(scheme, hessian, w, q, Stream(0, "points"), **settings)


@pytest.mark.parametrize("name", [name for name in names() if name != "matgptq"])  # which needs 2^b levels
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_schemes_point_is_encoded_as_it_is(name: str, dtype: str) -> None:
    w, hessian = problem(dtype)
    for text in FORMATS:
        if rounder(name).grid == "searched" and Quantizer.parse(text).scale.name != "absmax":
            with pytest.raises(ValueError, match=f"{name} searches real scales.*{text}"):
                run(name, w, hessian, text)
            continue
        weights = as_torch(w) if dtype in ("float32", "bfloat16") else w
        found = run(name, weights, hessian, text)
        point = decode(found)
        assert type(point) is type(weights) and point.dtype == weights.dtype
        assert not wide(point)[0, :32].any() or Quantizer.parse(text).partition.kind == "row"
        for q in (found.frozen, *([text] if rounder(name).grid == "fixed" else [])):
            again = encode(weights, q, point)
            np.testing.assert_array_equal(bits(decode(again)), bits(point), err_msg=text)
            assert again.bits_per_weight == found.bits_per_weight
        assert np.array_equal(wide(found.frozen.cast(point)), wide(point))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("text", ["int4/absmax/row", "int8/absmax/row", "int4/absmax/block=32", "nf4/absmax/block=32"])
def test_a_point_made_in_float64_and_cast_to_the_weights_type_is_on_their_lattice(text: str, dtype: str) -> None:
    w, hessian = problem(dtype)
    case = Case.make(hessian, w.astype(np.float64), text)
    exact = rounder("gptq")(case, Stream(0, "gptq"))
    point = exact.astype(w.dtype)
    found = encode(w, text, point)
    live = w != 0
    assert np.array_equal(found.codes[live], case.grid.index(exact)[0][live])
    # Two roundings to the type, and the level's own few in float32.
    level = decode(found).astype(np.float64)
    assert (abs(level - point.astype(np.float64)) <= ulp(exact, dtype) + 8 * ulp(exact, "float32")).all()
    assert np.array_equal(bits(decode(encode(w, text, decode(found)))), bits(decode(found)))


@given(data=st.data(), seed=st.integers(0, 2**20))
@examples(40)
@pytest.mark.parametrize("text", ["int8/absmax/row", "int4full/gauge/row", "uint4/zp-real/row", "dynamic8/absmax/row",
                                  "int4full/absmax7.5/row", "q4_0/row", "uint4/zp-int/row", "mxfp4/row"])  # fmt: skip
def test_levels_computed_in_other_digits_find_their_code(text: str, data: st.DataObject, seed: int) -> None:
    dtype = data.draw(st.sampled_from(FLOATS[:2] if "uint" in text else FLOATS))
    size = 2.0 ** data.draw(st.integers(-4, 4))
    rng = np.random.default_rng(seed)
    w = (size * rng.standard_normal((3, 32))).astype(numpy_type(dtype))
    q = Quantizer.parse(text)
    codes = rng.integers(0, len(q.codebook.levels), w.shape)
    lattice = q.branches(w)[0].draw.lattice
    top, bottom = (None if a is None else a.astype(np.float64) for a in (lattice.top, lattice.bottom))
    exact = type(lattice)(q.codebook, "float64", top, bottom).level(codes)
    found = encode(w, q, exact.astype(w.dtype))
    assert np.array_equal(decode(found), decode(encode(w, q, codes=codes)))
    # A third of the way from the lowest level to the next is no level, where the type tells them apart.
    low, after = (type(lattice)(q.codebook, "float64", top, bottom).level(0 * codes + k) for k in (0, 1))
    if (abs(after - low) > 3 * ulp(low, dtype) + 3 * ulp(after, dtype)).all():
        with pytest.raises(ValueError, match="not on the lattice"):
            encode(w, q, (low + (after - low) / 3).astype(w.dtype))


def test_what_may_be_either_of_two_levels_is_refused() -> None:
    # 255 gaps of four units in the last place: less than what roundings at this height may come to.
    w = np.array([[1, 1 + 2.0**-13]], np.float32)
    q = Quantizer.parse("uint8/zp-real/row")
    level = decode(encode(w, q, codes=np.array([[100, 200]])))
    assert np.array_equal(decode(encode(w, q, level)), level)
    with pytest.raises(ValueError, match="not on the lattice"):
        encode(w, q, np.nextafter(level, np.float32(2)))


def test_codes_that_cannot_be_placed_are_refused() -> None:
    w = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    good = encode(w, "mxfp4").codes
    for codes, message in (
        (good[:1], "shape"), (good.astype(float), "float64"), (good + 20, "0 ... 14"), (-good.astype(int), "0 ... 14"),
        (as_torch(good), "library"), ([1], "library"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            encode(w, "mxfp4", codes=codes)
    with pytest.raises(ValueError, match="one of them"):
        encode(w, "mxfp4", w, good)
    with pytest.raises(ValueError, match="freeze"):
        encode(w, "mxfp4/sr", codes=good)
    holed = w.copy()
    holed[1, 3] = np.nan
    with pytest.raises(ValueError, match="point holds 1 NaN"):
        encode(w, "mxfp4", holed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("text", ["int4/absmax/row", "nf4/absmax/block=32", "mxfp4", "int4/fp16-nearest/block=32"])
def test_a_rounded_model_is_stored_evaluated_and_loaded_as_it_is(tmp_path: Path, text: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from lotion_theory.training import quantized

    w, hessian = problem(dtype)
    model = torch.nn.Sequential(torch.nn.Linear(64, 3), torch.nn.Linear(3, 3)).to(getattr(torch, dtype))
    found = run("gptq", as_torch(w), hessian, text)
    point = decode(found)
    with torch.no_grad():
        model[0].weight.copy_(point)
    # What a moving lattice makes of it is not asked for.
    for frozen in (found.frozen, Quantizer.parse(text).freeze(as_torch(w))):
        with quantized(model, {"0.weight": frozen, "1.*": "int8/absmax/row"}) as items:
            assert torch.equal(model[0].weight, point) and [item.name for item in items] == ["0.weight", "1.weight"]
        with quantized(model, {"0.weight": frozen}, kind="randomized", stream=Stream(0, "r")):
            assert torch.equal(model[0].weight, point)
        report = save_packed(tmp_path / "m", model, {"0.weight": frozen, "*": "int8/absmax/row"})
        loaded = load_packed(tmp_path / "m", like="torch")
        np.testing.assert_array_equal(bits(loaded["0.weight"]), bits(point))
        assert torch.equal(loaded["1.weight"], Quantizer.parse("int8/absmax/row").cast(model[1].weight.detach()))
        assert report.bits["0.weight"] == found.bits_per_weight
    save_packed(tmp_path / "m", dict(model.state_dict()) | {"0.weight": found}, "int8/absmax/row")
    np.testing.assert_array_equal(bits(load_packed(tmp_path / "m", like="torch")["0.weight"]), bits(point))
    if "fp16" in text and dtype == "float32":
        gguf = library("gguf")
        for tensor in (found, point):
            assert write_gguf(tmp_path / "m.gguf", {"w": tensor}, "Q4_0") == {"w": 0.0}
            (stored,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
            assert np.array_equal(gguf.dequantize(stored.data, stored.tensor_type), wide(point))


@pytest.mark.parametrize("text", ["int4/absmax/row", "int4full/gauge/block=8", "uint4/zp-real/row", "uint4/zp-int/row",
                                  "q4_0", "mxfp4/sr", "nvfp4/e4m3-nearest-2level", "nf4/e4m3-sr/block=8"])  # fmt: skip
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_frozen_encoding_moves_no_point_of_it(text: str, dtype: str) -> None:
    w = np.random.default_rng(4).standard_normal((4, 64)).astype(numpy_type(dtype))
    for weights in (w, as_torch(w)):
        found = encode(weights, text)
        point, frozen = decode(found), found.frozen
        assert np.array_equal(wide(frozen.cast(point)), wide(point))
        np.testing.assert_array_equal(bits(decode(encode(point, frozen))), bits(point))
        assert np.array_equal(wide(frozen.freeze(weights).cast(weights)), wide(frozen.cast(weights)))
    with pytest.raises(ValueError, match=r"lattice is one of \d+ blocks of"):
        frozen.cast(weights[:2])
    with pytest.raises(ValueError, match="of torch, not"):
        frozen.cast(w)


def test_quantized_takes_formats_by_pattern() -> None:
    torch = pytest.importorskip("torch")
    from lotion_theory.training import quantized

    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    before = [p.detach().clone() for p in model.parameters()]
    coarse, fine = Quantizer.parse("int2/absmax/row"), Quantizer.parse("int8/absmax/row")
    for source in (model, list(model.named_parameters()), iter(model.named_parameters())):
        with quantized(source, {"1.*": coarse, "*": fine, "0.bias": fine}, exclude=("2.*",)) as items:
            assert torch.equal(model[1].weight, coarse.cast(before[2])) and torch.equal(model[2].weight, before[4])
            assert torch.equal(model[0].weight, fine.cast(before[0])) and torch.equal(
                model[0].bias, fine.cast(before[1])
            )
            assert len(items) == 3
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    for formats, keywords, message in (
        ({}, {}, "at least one"), ({"*": fine}, {"include": ("*",)}, "leave include out"),
        ({"3.*": fine}, {}, "3.*"), ({"*": fine, "1.*": coarse}, {}, "nothing"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message), quantized(model, formats, **keywords):
            pass


def test_codebooks_of_their_own_are_told_from_named_ones_and_from_each_other(tmp_path: Path) -> None:
    def book(*levels: int) -> Quantizer:
        own = Codebook("int4", tuple(map(Fraction, levels)), tuple(k % 2 == 0 for k in range(len(levels))), 3, "")
        return replace(Quantizer.parse("int4/absmax/row"), codebook=own, text="")

    w = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    one, other = book(-4, -1, 0, 1, 4), book(-8, -1, 0, 1, 8)
    for q in (one, other):
        encoded = encode(w, q)
        assert np.array_equal(decode(encoded), q.cast(w)) and encoded.book == q.codebook
        assert np.array_equal(encoded.frozen.cast(decode(encoded)), q.cast(w))
        with pytest.raises(ValueError, match="of its own"):
            _ = encoded.quantizer
    weights = {name: w.copy() for name in "abc"}
    save_packed(tmp_path / "w", weights, {"a": one, "b": other, "c": "int4/absmax/row"})
    loaded = load_packed(tmp_path / "w")
    for name, q in (("a", one), ("b", other), ("c", Quantizer.parse("int4/absmax/row"))):
        assert np.array_equal(loaded[name], q.cast(w))
