"""Which weights share a scale: by rows, by channels, and what is said where a block is a single weight."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lotion_theory import Partition, Quantizer, Stream, codebook
from lotion_theory.export import decode, encode, load_packed, save_packed, to_torchao
from lotion_theory.formats.partition import GRAMMAR
from lotion_theory.training import LotionPenalty, Monitor, StraightThrough, quantized, select
from testbeds.commands.options import FORMAT_HELP
from tests import strategies
from tests.fast_cases import check, needs_compiler
from tests.strategies import as_torch
from tests.torch_models import second_of_two

CONV = (8, 6, 3, 2)


def conv(shape=CONV, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(strategies.numpy_type(dtype))


def flat(w):
    """The inputs of each channel as a row."""
    return w.reshape(w.shape[0], -1)


def pair(text, partition):
    """A quantizer by channel, and the one by row that does the same on flattened channels."""
    by_row = "row" if partition == "channel" else partition.removeprefix("channel-")
    return Quantizer.parse(f"{text}/{partition}"), Quantizer.parse(f"{text}/{by_row}")


# --- the quantizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["channel", "channel-block=12"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_channels_are_rows_of_the_flattened_inputs(partition, library):
    for text in strategies.FORMATS:
        q, by_row = pair(text, partition)
        w = conv()
        u, v = Stream(0, "u").uniforms(w.shape), None
        if q.scale.is_drawn:
            v = Stream(0, "v").uniforms(len(q.partition.to_blocks(w)))
        if library == "torch":
            w, u, v = as_torch(w), as_torch(u), None if v is None else as_torch(v)
        pairs = [(q.cast(w), by_row.cast(flat(w))), (q.mean(w), by_row.mean(flat(w)))]
        pairs += [(q.round(w, u, v), by_row.round(flat(w), flat(u), v)), (q.variance(w), by_row.variance(flat(w)))]
        pairs += [(q.freeze(w).cast(w), by_row.freeze(flat(w)).cast(flat(w)))]
        for ours, theirs in pairs:
            assert ours.shape == w.shape and strategies.same(flat(ours), theirs), text


@given(
    shape=st.lists(st.integers(1, 4), max_size=4).map(tuple), kind=st.sampled_from(["row", "channel"]), data=st.data()
)
def test_blocks_tile_the_memory_in_order(shape, kind, data):
    w = np.arange(np.prod(shape, dtype=int), dtype=float).reshape(shape)
    whole = Partition(kind).length(shape)
    divisor = data.draw(st.sampled_from([n for n in range(1, whole + 1) if whole % n == 0]))
    cut = Partition("block" if kind == "row" else "channel-block", divisor)
    for partition, n in ((Partition(), w.size), (Partition(kind), whole), (cut, divisor)):
        blocks = partition.to_blocks(w)
        assert partition.fits(shape) and partition.length(shape) == n and blocks.shape == (w.size // n, n)
        assert np.array_equal(blocks.ravel(), w.ravel())
    if len(shape) > 1:
        # Of a matrix and more: as many channels as outputs; a row is one when all inputs lie along one axis.
        assert len(Partition("channel").to_blocks(w)) == shape[0]
        assert np.array_equal(Partition("channel").to_blocks(w), Partition("row").to_blocks(w.reshape(shape[0], -1)))
    else:
        assert len(Partition("channel").to_blocks(w)) == 1


@pytest.mark.parametrize("partition", ["channel", "channel-block=3"])
def test_complex_weights_by_channel(partition):
    w = conv((4, 3, 2)) + 1j * conv((4, 3, 2), seed=1)
    for scale in ("l1", "modulus"):
        q, by_row = pair(f"fairy/{scale}", partition)
        assert np.array_equal(flat(q.cast(w)), by_row.cast(flat(w)))
    exact = np.empty((2, 3, 1, 2), dtype=object)
    exact.reshape(-1)[:] = [Fraction(k * k - 5, 3) for k in range(12)]
    q, by_row = pair("fairy/l1", partition)
    assert (q.variance(exact).reshape(2, 3) == by_row.variance(exact.reshape(2, 3, 2))).all()


@needs_compiler
def test_compiled_passes_know_channels():
    for partition in ("channel", "channel-block=32"):
        check(Quantizer.parse(f"int4/{partition}"), conv((4, 8, 4, 4)), np.random.default_rng(0))


def test_what_is_no_partition():
    for text in ("channel=4", "channels", "channel-block", "channel-block=0", "channel-block=-1", "channel-block=²"):
        with pytest.raises(ValueError, match=r"unknown partition .*channel, channel-block=N with N >= 1"):
            Quantizer.parse(f"int4/{text}")
    for kind, size in (("blok", 4), ("block", None), ("block", 0), ("channel", 4), ("channel-block", None)):
        with pytest.raises(ValueError, match="no partition has kind"):
            Partition(kind, size)
    with pytest.raises(ValueError, match=r"channel-block=5 does not divide the inputs of a channel, 36 \(shape"):
        Quantizer.parse("int4/channel-block=5").cast(conv())
    assert GRAMMAR in FORMAT_HELP
    for part in GRAMMAR.replace("N", "4").split("|"):
        assert str(Partition.parse(part)) == part


def test_no_entries_make_no_blocks():
    for shape in ((0, 4), (4, 0), (0,), (2, 0, 3)):
        for text in ("tensor", "row", "channel", "block=2", "channel-block=1"):
            if Partition.parse(text).fits(shape):
                for x in (np.empty(shape), torch.empty(shape)):
                    assert Partition.parse(text).to_blocks(x).shape[0] == 0


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["channel", "channel-block=9"])
def test_training_by_channel_is_training_the_flattened_matrix(partition):
    by_row = pair("int3", partition)[1]
    w, g = (torch.from_numpy(np.abs(conv((4, 3, 3, 3), seed=s)) if s else conv((4, 3, 3, 3))) for s in (0, 1))
    shaped, matrix = nn.Parameter(w.clone()), nn.Parameter(flat(w).clone())
    penalties = [
        LotionPenalty([("w", p)], f, curvature={"w": h})
        for p, f, h in ((shaped, f"int3/{partition}", g), (matrix, by_row, flat(g)))
    ]
    for penalty in penalties:
        penalty.add_gradient_()
    assert torch.equal(penalties[0](), penalties[1]()) and torch.equal(flat(shaped.grad), matrix.grad)
    for method in ("qat", "lsq", "diffq"):
        ours = StraightThrough([("w", shaped)], f"int3/{partition}", method=method).points()["w"]
        theirs = StraightThrough([("w", matrix)], by_row, method=method).points()["w"]
        assert torch.equal(flat(ours), theirs)
    ours, theirs = (Monitor(penalty) for penalty in penalties)
    ours.measure(), theirs.measure()  # the drift of the scale is known from the second time on
    assert ours.measure() == theirs.measure()


def test_a_pointwise_convolution_is_quantized_by_channel():
    m = nn.Conv2d(16, 8, 1, bias=False)
    with torch.no_grad(), quantized(m, "int2/channel"):
        # Three levels a channel.
        assert all(len(channel.unique()) <= 3 for channel in m.weight)
    assert float(LotionPenalty(m, "int2/channel", curvature={"weight": torch.ones(8, 16, 1, 1)})().detach()) > 0


def test_shards_hold_whole_channels():
    from torch.distributed.tensor import DTensor, Shard

    with second_of_two() as mesh:
        model = nn.Conv1d(2, 4, 3, bias=False)
        model.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 2, 3), mesh, [Shard(0)]))
        (item,) = select(model, "int4/channel")
        assert item.start == 12 and item.blocks(item.local).shape == (2, 6)


def test_layers_whose_first_axis_is_the_inputs_are_refused(tmp_path):
    pytest.importorskip("safetensors")
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 2, 3))
    for text in ("int4/channel", "int4/channel-block=9"):
        with pytest.raises(ValueError, match=r"1\.weight: the first axis of ConvTranspose2d's weight is its inputs"):
            select(model, text)
        with pytest.raises(ValueError, match=r"1\.weight: the first axis of ConvTranspose2d's weight is its inputs"):
            save_packed(tmp_path / "w.safetensors", model, text)
        assert [item.name for item in select(model, text, exclude=("1.*",))] == ["0.weight"]
        save_packed(tmp_path / "w.safetensors", model, text, exclude=("1.*",))
    assert len(select(model, "int4/row")) == 2


def test_gpt2_layers_have_their_inputs_first():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    with pytest.raises(ValueError, match="the first axis of Conv1D's weight is its inputs"):
        select(Conv1D(4, 8), "int4/channel")


# --- blocks of one weight --------------------------------------------------------------------------------------------


SINGLE = r"in shape \(8, 16, 1, 1\) each row is one weight .*; use the partition channel .* or tensor, or leave it out"


def test_blocks_of_one_weight_are_named(tmp_path):
    pytest.importorskip("safetensors")
    pointwise = nn.Conv2d(16, 8, 1, bias=False)
    given = {"weight": torch.ones(8, 16, 1, 1)}
    uses = {
        "penalty": lambda: LotionPenalty(pointwise, "int4/row", curvature=given),
        "straight-through": lambda: StraightThrough(pointwise, "int4/row"),
        "quantized": lambda: quantized(pointwise, "int4/row").__enter__(),
        "monitor": lambda: Monitor(pointwise, "int4/row"),
        "encode": lambda: encode(pointwise.weight, "int4/row"),
        "save_packed": lambda: save_packed(tmp_path / "w.safetensors", pointwise, "int4/row"),
    }
    for use, call in uses.items():
        with pytest.warns(UserWarning, match=SINGLE) as said:
            call()
        # It points to the code that called, whatever lies between.
        assert {w.filename for w in said} == {__file__}, use


@pytest.mark.parametrize(
    ("shape", "text", "advice"),
    [((16, 1), "int4/row", "use the partition tensor, or leave it out"), ((4, 8), "int4/block=1", "channel"),
     ((16, 1, 1), "int4/channel", "use the partition tensor, or leave it out"), ((1, 1), "int4", "scale of its own")],
)  # fmt: skip
def test_the_advice_fits_the_shape(shape, text, advice):
    with pytest.warns(UserWarning, match=advice):
        select([("w", nn.Parameter(torch.ones(shape)))], text)


def test_nothing_is_said_where_it_makes_sense():
    pointwise = nn.Conv2d(16, 8, 1, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in ("int4/channel", "int4/tensor", "int4/channel-block=4"):
            select(pointwise, text)
        # A lattice given from outside does not follow the single weight.
        select(pointwise, Quantizer.parse("int4/row").with_scale(0.1))
        Quantizer.parse("int4/block=1").cast(np.ones(4))


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", ["channel", "channel-block=12"])
def test_files_by_channel(tmp_path, partition):
    pytest.importorskip("safetensors")
    for text in ("int4", "nf4/absmax", "uint4/zp-int", "e2m1/e4m3-nearest-2level", "int8/fp16-sr"):
        q, w = Quantizer.parse(f"{text}/{partition}"), conv()
        assert np.array_equal(decode(encode(w, q)), q.cast(w))
        report = save_packed(tmp_path / "w.safetensors", {"w": w}, q)
        assert np.array_equal(load_packed(tmp_path / "w.safetensors")["w"], q.cast(w))
        blocks = w.size / q.partition.length(w.shape)
        anchors = 8 * sum({"fp16": 2, "float32": 4, "e4m3": 1, "uint8": 1}[a] for a in encode(w, q).anchors)
        assert report.bits["w"] == pytest.approx(np.ceil(np.log2(len(q.codebook.levels))) + anchors * blocks / w.size)


@pytest.mark.parametrize("text", ["int8/fp16-nearest", "int4/fp16-up"])
def test_torchao_by_channel(text):
    pytest.importorskip("torchao")
    w = as_torch(conv())
    for partition in ("tensor", "row", "block=2", "channel", "channel-block=6", "channel-block=12", "channel-block=3"):
        encoded = encode(w, f"{text}/{partition}")
        if partition == "channel-block=3":  # one kernel's row and a half
            with pytest.raises(ValueError, match="blocks of 3 are no boxes"):
                to_torchao(encoded)
        else:
            assert torch.equal(to_torchao(encoded).dequantize(), Quantizer.parse(f"{text}/{partition}").cast(w))


def test_an_own_codebook_goes_to_torchao_by_channel():
    pytest.importorskip("torchao")
    from lotion_theory import Codebook
    from lotion_theory.formats.scaling import scale_rule

    book = Codebook("five", codebook("int3").levels[1:-1], codebook("int3").even[1:-1], 3, "-2 to 2")
    q = Quantizer(book, scale_rule("fp16-nearest"), Partition("channel"))
    w = as_torch(conv())
    assert torch.equal(to_torchao(encode(w, q)).dequantize(), q.cast(w))
