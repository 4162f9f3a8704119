"""Stored types: their bytes are what gguf reads, their lattices give its numbers, and what they hold comes back."""

from fractions import Fraction

import numpy as np
import pytest

from lotion_theory import Quantizer
from lotion_theory.export import encode, load_packed, save_packed
from lotion_theory.stored import Parameters, StoredTensor, names, stored_type
from lotion_theory.stored.base import nearest_level
from lotion_theory.stored.layout import Bits, planes
from lotion_theory.theory.claims import CLAIMS
from lotion_theory.theory.verification import check
from tests.stored_cases import SHAPE, TYPES, any_bytes, same_bits, weights

# Several stored numbers have one level (zeros of both signs), or several bytes one meaning.
NOT_CANONICAL = {"mxfp4", "nvfp4", "tq1_0"}
SPECIAL = np.array([0.0, -0.0, 6e-8, -6e-8, 6e-5, 1.0, -3.0, 65504.0, np.inf, -np.inf, np.nan], "<f2")


def gguf():
    return pytest.importorskip("gguf")


def dequantized(stored, data):
    library = gguf()
    with np.errstate(all="ignore"):
        return library.quants.dequantize(data, library.GGMLQuantizationType[stored.ggml])


def test_names_and_what_is_unknown():
    assert names() == TYPES and len(TYPES) == 15
    assert stored_type("Q4_K") is stored_type("q4_k")
    with pytest.raises(ValueError, match=r"unknown stored type 'q4_2'; valid: q4_0, q4_1, .*tq2_0"):
        stored_type("q4_2")


@pytest.mark.parametrize("name", TYPES)
def test_sizes_are_those_of_gguf(name):
    stored, library = stored_type(name), gguf()
    assert library.GGML_QUANT_SIZES[library.GGMLQuantizationType[stored.ggml]] == (stored.block, stored.size)
    assert stored.bits == 8 * stored.size / stored.block
    assert (np.diff(stored.units) > 0).all() and stored.block % stored.group == 0


@pytest.mark.parametrize("name", TYPES)
def test_every_bit_of_a_block_belongs_to_one_bit_of_one_number(name):
    stored = stored_type(name)
    used = np.zeros((stored.size, 8), int)
    for field in (stored.codes, *stored.fields):
        held = np.zeros((field.raw, 8), int)
        for part in field.parts:
            if isinstance(part, Bits):
                numbers = range(part.first, part.first + part.count * part.stride, part.stride)
                for byte, number in zip(range(part.at, part.at + part.count), numbers, strict=True):
                    used[byte, part.shift : part.shift + part.width] += 1
                    held[number, part.bit : part.bit + part.width] += 1
            else:
                used[part.at : part.at + part.count] += 1
                held[part.first : part.first + part.digits * part.count, 0] += 1
        assert held.max() == 1 and (held == held[0]).all(), field.name
    assert (used == 1).all()


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_are_read_as_gguf_reads_them_and_come_back(name):
    stored = stored_type(name)
    data = any_bytes(stored)
    shape = (len(data), data.shape[1] // stored.size * stored.block)
    parameters, codes = stored.unpack(data, shape)
    values = stored.values(parameters, codes)
    assert same_bits(values, dequantized(stored, data))
    step, shift = stored.lattice(parameters)
    with np.errstate(all="ignore"):
        level = step * stored.units.astype(np.float32)[codes]
        assert same_bits(level if shift is None else level + shift, values)
    assert (shift is not None) == stored.has_shift
    back = stored.pack(parameters, codes)
    assert (back == data).all() == (name not in NOT_CANONICAL)
    again, same = stored.unpack(back, shape)
    assert (same == codes).all() and (stored.pack(again, same) == back).all()
    assert all(same_bits(again.fields[key], parameters.fields[key]) for key in parameters.fields)
    assert same_bits(dequantized(stored, back), values)


@pytest.mark.parametrize("name", [n for n in TYPES if n not in ("mxfp4", "nvfp4")])
def test_special_fp16_scales_are_read_as_gguf_reads_them(name):
    stored = stored_type(name)
    data = any_bytes(stored, len(SPECIAL), 1)
    parameters, codes = stored.unpack(data, (len(data), stored.block))
    fields = dict(parameters.fields)
    for field in stored.fields:
        if field.dtype == "<f2":
            fields[field.name] = SPECIAL.reshape(-1, 1, 1)
    parameters = Parameters(fields)
    assert same_bits(stored.values(parameters, codes), dequantized(stored, stored.pack(parameters, codes)))


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_every_byte_of_a_small_scale_is_read_as_gguf_reads_it(name):
    stored = stored_type(name)
    data = any_bytes(stored, 256, 1)
    data[:, : stored.fields[0].raw] = np.arange(256)[:, None]
    parameters, codes = stored.unpack(data, (256, stored.block))
    assert same_bits(stored.values(parameters, codes), dequantized(stored, data))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "tq1_0", "tq2_0"])
def test_blocks_of_another_quantizer_come_back_to_the_byte(name):
    stored, library = stored_type(name), gguf()
    with np.errstate(all="ignore"):
        data = library.quants.quantize(weights(), library.GGMLQuantizationType[stored.ggml])
    tensor = StoredTensor.from_bytes(stored, data, SHAPE)
    assert same_bits(tensor.values(), dequantized(stored, data))
    assert (tensor.to_bytes() == data).all()


def test_a_number_that_is_no_level_is_refused():
    stored = stored_type("tq2_0")
    with pytest.raises(ValueError, match="256 weights of tq2_0 hold the number 3, which is no level; valid: 0 to 2"):
        stored.unpack(np.full((1, 66), 255, np.uint8), (1, 256))


@pytest.mark.parametrize("name", TYPES)
def test_the_nearest_level_is_found_among_all(name):
    stored = stored_type(name)
    parameters = stored.fit(weights())
    w = weights("other")
    codes = stored.nearest(parameters, w)
    every = np.stack([stored.values(parameters, np.full(SHAPE, k, np.uint8)) for k in range(len(stored.units))])
    away = np.abs(every.astype(np.float64) - w)
    # Distances are compared as float32 has them: each within half a unit in its last place.
    assert (np.take_along_axis(away, codes[None], axis=0)[0] <= away.min(axis=0) * (1 + 2.0**-22)).all()
    step, _ = stored.lattice(parameters)
    assert (codes[step == 0] == np.searchsorted(stored.units, 0)).all()
    # Levels are their own nearest ones.
    points = stored.values(parameters, codes)
    assert same_bits(stored.values(parameters, stored.nearest(parameters, points)) + 0.0, points + 0.0)


def test_ties_go_to_even_places_for_steps_of_either_sign():
    units = np.arange(-3.0, 4.0)
    x = np.array([[-0.75, -0.25, 0.25, 0.75]], np.float32)
    for step in (0.5, -0.5):
        codes, away = nearest_level(units, x, np.array([[step]], np.float32), None)
        assert (codes % 2 == 0).all() and (np.abs(away) == 0.25).all()
        assert (x - away == units[codes] * step).all()


@pytest.mark.parametrize(("shape", "rows"), [((512,), 1), ((2, 3, 256), 6), ((1, 256), 1)])
def test_tensors_of_any_number_of_axes(shape, rows):
    w = weights()[:, : shape[-1]].reshape(-1)[: int(np.prod(shape))].reshape(shape)
    for stored in map(stored_type, ("q4_k", "mxfp4", "tq1_0")):
        tensor = stored.quantize(w)
        assert tensor.values().shape == shape and tensor.codes.shape == (rows, shape[-1])
        data = tensor.to_bytes()
        assert data.shape == (*shape[:-1], shape[-1] // stored.block * stored.size) and data.dtype == np.uint8
        assert same_bits(StoredTensor.from_bytes(stored, data, shape).values(), tensor.values())
        assert tensor.bits_per_weight == 8 * data.size / w.size


def test_the_factor_of_a_tensor_is_a_tensor_beside_it():
    stored = stored_type("nvfp4")
    found = stored.quantize(weights(), search="error")
    factor = found.parameters.factor
    assert 0 < factor < 1 and found.companions["scale"].tolist() == [factor]
    assert found.bits_per_weight == stored.bits + 32 / weights().size
    plain = StoredTensor.from_bytes(stored, found.to_bytes(), SHAPE)
    assert same_bits(plain.values(), dequantized(stored, found.to_bytes()))
    assert same_bits(plain.values() * factor, found.values())
    assert same_bits(StoredTensor.from_bytes(stored, found.to_bytes(), SHAPE, factor).values(), found.values())
    step, shift = stored.lattice(found.parameters)
    level = step * stored.units.astype(np.float32)[found.codes]
    assert shift is None and np.abs(level - found.values()).max() <= 2.0**-22 * np.abs(level).max()
    assert stored_type("mxfp4").quantize(weights()).companions == {}


def test_rows_of_parameters_are_those_of_the_rows():
    for stored in map(stored_type, TYPES):
        parameters = stored.fit(weights())
        part = stored.fit(weights()[2:5])
        for key, numbers in parameters.rows(slice(2, 5)).fields.items():
            assert same_bits(np.ascontiguousarray(numbers), part.fields[key])


def test_planes_read_what_a_loop_reads():
    """Chunk by chunk, from the lowest bits on."""
    block = np.arange(40, dtype=np.uint8).reshape(1, 40) * 7
    numbers = np.zeros((1, 64), np.uint8)
    for part in planes(4, 16, 2, 8):
        part.read(block, numbers)
    expected = [
        block[0, 4 + 8 * chunk + byte] >> (2 * place) & 3
        for chunk in range(2)
        for place in range(4)
        for byte in range(8)
    ]
    assert numbers[0].tolist() == expected


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4", "nvfp4", "tq1_0", "tq2_0"])
def test_formats_of_the_same_name_are_the_same_rounding(name):
    """Where a scale rule is a function of a block of weights there is a format: its cast has the values that are
    stored. (NVFP4 for scales of ordinary size: ggml rounds small ones and ties in a way of its own.)"""
    w = weights() * np.float32(64)
    tensor = stored_type(name).quantize(w)
    assert same_bits(Quantizer.parse(name).cast(w) + 0.0, tensor.values() + 0.0)


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("q4_1", "C1"),
        ("q4_1", "C15"),
        ("q5_0", "C4"),
        ("iq4_nl", "C1"),
        ("iq4_nl", "C15"),
        ("tq2_0", "C1"),
        ("tq2_0", "C4"),
    ],
)
def test_formats_of_stored_types_keep_the_promises_that_they_make(name, claim):
    for row in check(CLAIMS[claim], Quantizer.parse(name), ["exhaustive"]):
        assert row.verdict == row.expected, row


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "tq2_0", "mxfp4"])
def test_packed_files_take_the_bits_of_the_type_and_give_the_cast_back(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    layer = torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False)
    layer.weight.data = torch.from_numpy(weights().copy())
    save_packed(tmp_path / "w.safetensors", layer, name)
    point = Quantizer.parse(name).cast(weights())
    assert same_bits(load_packed(tmp_path / "w.safetensors")["weight"] + 0.0, point + 0.0)
    assert encode(weights(), name).bits_per_weight == stored_type(name).bits


def test_levels_are_those_of_the_codebooks():
    assert stored_type("iq4_nl").units.tolist() == Quantizer.parse("iq4_nl").codebook.values.tolist()
    doubled = [float(2 * level) for level in Quantizer.parse("mxfp4").codebook.levels]
    assert stored_type("mxfp4").units.tolist() == stored_type("nvfp4").units.tolist() == doubled
    assert Fraction(stored_type("q6_k").units[0]) == -32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.fit(np.ones((2, 300), np.float32)), ValueError, "rows of 300 weights are no multiple of .* q4_k, 256"),
        (lambda s: s.fit(np.ones((2, 256), int)), ValueError, r"weights have type int64 and shape \(2, 256\); valid"),
        (lambda s: s.fit(np.full((1, 256), np.nan)), ValueError, "weights hold NaN, infinite values"),
        (lambda s: s.fit(np.full((1, 256), 1e39)), ValueError, "values beyond float32"),
        (lambda s: s.fit(np.full((1, 256), -1e30)), ValueError, r"magnitudes up to 1e\+30 exceed .* q4_k reach"),
        (lambda s: s.fit(weights(), search="best"), ValueError, "search = 'best'; valid: own, error"),
        (lambda s: s.fit(weights(), np.ones(5)), ValueError, r"importance has type float64 and shape \(5,\); valid"),
        (lambda s: s.fit(weights(), -np.ones(512)), ValueError, "importance holds negative"),
        (lambda s: s.fit(weights(), np.full(512, np.inf)), ValueError, "NaN or infinite"),
        (lambda s: s.unpack(np.zeros(143, np.uint8), (1, 256)), ValueError, "takes 144 bytes, and 143 are given"),
        (lambda s: s.unpack(np.zeros(144, np.int8), (1, 256)), TypeError, "bytes of q4_k have type int8"),
        (lambda s: s.unpack(np.zeros(0, np.uint8), (0, 256)), ValueError, r"shape \(0, 256\) has no rows"),
        (lambda s: s.pack(s.fit(weights()), np.zeros((6, 256), np.uint8)), ValueError, r"codes .* valid: \(6, 512\)"),
        (lambda s: s.values(s.fit(weights()), np.full(SHAPE, 16)), ValueError, "codes of q4_k are 16 to 16; valid: 0 to 15"),
        (lambda s: s.values(s.fit(weights()), np.zeros(SHAPE)), TypeError, "codes have type float64; valid: integers"),
        (lambda s: s.nearest(s.fit(weights()), weights()[:2]), ValueError, r"\(2, 512\) do not belong to parameters of 96"),
        (lambda s: s.project(np.ones((1, 3))), ValueError, r"steps have shape \(1, 3\); q4_k has 8 in each block"),
        (lambda s: s.project(np.full((1, 8), np.inf)), ValueError, "NaN, infinite or beyond"),
        (lambda s: stored_type("q4_0").project(np.ones((1, 2)), np.ones((1, 2))), ValueError, "q4_0 has no shifts"),
        (lambda s: stored_type("q6_k").fit(np.full((1, 256), 1e30)), ValueError, "exceed what the scales of q6_k reach"),
        (lambda s: stored_type("q3_k").fit(np.full((1, 256), 1e30)), ValueError, "exceed what the scales of q3_k reach"),
        (lambda s: stored_type("nvfp4").fit(np.full((1, 64), 3e3)), ValueError, "exceed what the scales of nvfp4 reach"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(stored_type("q4_k"))
