"""Which parameters are quantized: patterns, ties, frozen ones, shapes, wrappers and shards."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Partial

from lotion_theory.training import LotionPenalty, StraightThrough, quantized, select
from tests.torch_models import second_of_two


class Tied(nn.Module):
    """An embedding, two layers with norms, and a head that shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2))
        self.head = nn.Linear(8, 6, bias=False)
        self.head.weight = self.embed.weight


def names(*args, **kwargs):
    return [item.name for item in select(*args, **kwargs)]


def test_matrices_only_and_tied_weights_once():
    assert names(Tied(), "int4") == ["embed.weight", "layers.0.1.weight", "layers.1.1.weight"]
    assert names(Tied().named_parameters(), "int4") == names(Tied(), "int4")


def test_patterns():
    assert names(Tied(), "int4", include=("layers.*",)) == ["layers.0.1.weight", "layers.1.1.weight"]
    assert names(Tied(), "int4", include=("layers.*",), exclude=["*.1.1.*"]) == ["layers.0.1.weight"]
    # Any name of a tied weight is good for a pattern, where all are known.
    assert names(Tied(), "int4", exclude=("head.*",)) == ["layers.0.1.weight", "layers.1.1.weight"]
    # One dimension is quantized by its exact name only.
    assert names(Tied(), "int4", include=("layers.0.0.weight",)) == ["layers.0.0.weight"]
    assert names(Tied(), "int4", include=("layers.0.0.weight", "layers.1.*")) == [
        "layers.0.0.weight", "layers.1.1.weight",
    ]  # fmt: skip


def test_patterns_that_match_nothing_are_refused():
    for argument in ("include", "exclude"):
        with pytest.raises(ValueError, match=r"'mlp\.\*' matches no parameter; names are embed.weight"):
            select(Tied(), "int4", **{argument: ("mlp.*",)})
        with pytest.raises(ValueError, match="tuple or list"):
            select(Tied(), "int4", **{argument: "layers.*"})
    # named_parameters() of a module hides the second name of a tied weight: the pattern is refused, not ignored.
    with pytest.raises(ValueError, match="matches no parameter"):
        select(Tied().named_parameters(), "int4", exclude=("head.*",))
    with pytest.raises(ValueError, match=r"matches nothing that can be quantized: layers.0.0.weight has 1 dimension"):
        select(Tied(), "int4", include=("layers.*.0.weight",))
    with pytest.raises(ValueError, match="nothing to quantize"):
        select(Tied(), "int4", exclude=("*",))


def test_frozen_parameters_are_left_out():
    model = Tied()
    model.embed.requires_grad_(False)
    assert names(model, "int4") == ["layers.0.1.weight", "layers.1.1.weight"]
    assert names(model, "int4", frozen=True)[0] == "embed.weight"
    with pytest.raises(ValueError, match=r"embed.weight is frozen"):
        select(model, "int4", include=("embed*",))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to quantize"):
        select(model, "int4")


def test_blocks_that_do_not_divide_name_the_parameter():
    with pytest.raises(ValueError, match=r"layers\.0\.1\.weight: block=3 does not divide the row length 8"):
        select(Tied(), "int4/absmax/block=3", include=("layers.*",))


def test_other_types_and_places():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    assert names(model, "int4") == ["0.weight"]
    with pytest.raises(ValueError, match=r"1\.weight has type torch\.int8"):
        select(model, "int4", include=("1.*",), frozen=True)
    with pytest.raises(ValueError, match="meta device"):
        select(nn.Linear(4, 4, device="meta"), "int4")
    narrow = nn.Parameter(torch.zeros(2, 4).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"w: weights of type torch.float8"):
        select([("w", narrow)], "int4", frozen=True)
    sparse = nn.Parameter(torch.eye(4).to_sparse())
    with pytest.raises(ValueError, match="w has layout"):
        select([("w", sparse)], "int4")
    with pytest.raises(ValueError, match="complex"):
        select(nn.Linear(4, 4), "fairy")
    with pytest.raises(ValueError, match="unknown codebook"):
        select(nn.Linear(4, 4), "int99")


def test_sources_that_are_no_named_parameters():
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="yields Parameter"):
        select(model.parameters(), "int4")
    used = model.named_parameters()
    list(used)
    with pytest.raises(ValueError, match="used only once"):
        select(used, "int4")


def test_prefixes_of_wrappers_are_left_out():
    compiled = torch.compile(Tied(), backend="eager")
    assert names(compiled, "int4") == names(Tied(), "int4")
    replicated = nn.Module()
    replicated.module = Tied()
    assert names(replicated, "int4", include=("layers.0.*",)) == ["layers.0.1.weight"]


def test_fsdp1_is_refused():
    flat = nn.Parameter(torch.zeros(16))
    flat._is_flat_param = True
    with pytest.raises(ValueError, match="FlatParameter of FSDP1"):
        select([("flat", flat)], "int4", include=("flat",))


def test_shards_hold_whole_blocks_or_are_refused():
    with second_of_two() as mesh:

        def shard(rows, *places, n=8):
            return nn.Parameter(DTensor.from_local(torch.randn(rows, n), mesh, places, run_check=False))

        (item,) = select([("w", shard(3, Shard(0)))], "int4/absmax/row")
        # Six rows of eight in two shards: this one begins with weight 24.
        assert (tuple(item.local.shape), item.start) == ((3, 8), 24)
        assert select([("w", shard(3, Replicate()))], "int4/absmax/tensor")[0].start == 0
        with pytest.raises(ValueError, match="w: is sharded, and format int4 has one scale for the whole tensor"):
            select([("w", shard(3, Shard(0)))], "int4")
        for place in (Shard(1), Partial()):
            with pytest.raises(ValueError, match="only shards of whole rows"):
                select([("w", shard(3, place))], "int4/absmax/row")
        vector = nn.Parameter(DTensor.from_local(torch.randn(4), mesh, [Shard(0)], run_check=False))
        with pytest.raises(ValueError, match="sharded vector"):
            select([("w", vector)], "int4/absmax/row", include=("w",))
        with pytest.raises(ValueError, match="sharded parameters have no place"):
            StraightThrough([("w", shard(3, Shard(0)))], "int4/absmax/row", method="lsq")
        with pytest.raises(ValueError, match="w is sharded; curvature='kfac'"):
            LotionPenalty([("w", shard(3, Shard(0)))], "int4/absmax/row", curvature="kfac")


def test_casts_take_the_tensors_of_a_trainer():
    model = Tied()
    penalty = LotionPenalty(model, "int4", include=("layers.*",))
    with quantized(penalty) as items:
        assert items is penalty.items
    with pytest.raises(ValueError, match="leave format and patterns out"), quantized(penalty, "int4"):
        pass
    with pytest.raises(ValueError, match="give format"), quantized(model):
        pass


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = nn.Linear(8, 4, bias=False)
        before = model.weight.clone()
        with quantized(model, "int2/row"):
            assert not torch.equal(model.weight, before)
        assert torch.equal(model.weight, before)
    with (
        pytest.raises(RuntimeError, match="weight was made in inference mode, and can be changed in that mode only"),
        quantized(model, "int2/row"),
    ):
        pass
    assert torch.equal(model.weight, before)
