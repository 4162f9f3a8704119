"""Layers as matrices, their inputs, second moments, and passing a model block by block."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from lotion_theory.quantize.layers import chosen_layers, find_layers  # noqa: E402
from lotion_theory.quantize.moments import Moment  # noqa: E402
from lotion_theory.quantize.walk import Walker, resting, survey  # noqa: E402

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(3, 4, 3),
    "strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same"),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "reflected": lambda: nn.Conv2d(3, 2, 3, padding=2, padding_mode="reflect"),
    "one axis": lambda: nn.Conv1d(3, 5, 4, stride=2, padding=1),
    "three axes": lambda: nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)),
    "linear": lambda: nn.Linear(7, 5),
}


def _input(module: nn.Module, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, nn.Linear):
        return torch.randn(2, 6, module.in_features, generator=generator)
    return torch.randn(2, module.in_channels, *[9, 8, 7][: len(module.kernel_size)], generator=generator)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_rows_times_inputs_are_the_outputs(kind):
    """What rounding works on, rows of weights and vectors of inputs, is what the layer multiplies."""
    torch.manual_seed(0)
    module = CONVOLUTIONS[kind]().double()
    (layer,), kept = find_layers(module)
    assert not kept
    x = _input(module).double()
    rows = layer.matrix(module.weight.detach())
    vectors = layer.inputs(x)
    assert rows.shape == layer.shape and vectors.shape[::2] == (layer.groups, layer.shape[1])
    product = torch.einsum("grn,gvn->vgr", rows.reshape(layer.groups, -1, layer.shape[1]), vectors).flatten(1)
    out = module(x) - module.bias.reshape(-1, *[1] * (x.ndim - 2)) if kind != "linear" else module(x) - module.bias
    expected = out.movedim(1, -1).reshape(-1, out.shape[1]) if kind != "linear" else out.reshape(-1, out.shape[-1])
    torch.testing.assert_close(product, expected.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.tensor(rows), module.weight)


def test_moments_are_sums_over_batches():
    """Batches of any cut give the mean of ``x xᵀ``, within roundings of float32 products."""
    x = torch.randn(2, 301, 5, generator=torch.Generator().manual_seed(1))
    whole, cut = Moment(), Moment()
    whole.add(x)
    for part in x.split([1, 200, 100], dim=1):
        cut.add(part)
    exact = x.double().transpose(1, 2) @ x.double() / 301
    for found in (whole, cut):
        # A float32 sum of 301 products is off by at most 301 units of 2^-24 of the sum of their sizes.
        bound = 301 * 2.0**-24 * (x.double().abs().transpose(1, 2) @ x.double().abs() / 301)
        assert ((found.matrix - exact).abs() <= bound).all() and found.vectors == 301
        torch.testing.assert_close(found.mean, x.double().mean(1))
        assert found.error <= 301 * 2.0**-24
        assert torch.equal(found.matrix, found.matrix.transpose(1, 2))


class Block(nn.Module):
    """A residual block with two matrices on one input and one behind them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x, scale=1.0, use_cache=None):
        return (x + scale * self.out(torch.tanh(self.a(x)) * self.b(x)),)


class Stack(nn.Module):
    """An embedding, blocks and a head; ``chained``: whether blocks hand on one state."""

    def __init__(self, chained: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.chained = nn.Embedding(11, 6), nn.Linear(6, 11), chained
        self.blocks = nn.ModuleList(Block(6) for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, 0.5)[0] if self.chained else block(x + 0, scale=0.5)[0]
        return self.head(x)


def _batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 11, (2, 5), generator=generator) for _ in range(count)]


def _all_moments(model: nn.Module) -> dict[str, torch.Tensor]:
    layers = [layer for layer, _ in chosen_layers(model, "int4")[0]]
    with resting(model):
        found = survey(model, layers, _batches()[0])
        walker = Walker(model, _batches(), found)
        out = {}
        for stage in found.stages:
            (moment,) = walker.moments([stage])
            out |= {layer.name: moment.matrix for layer in stage.layers}
    return out


def test_blocks_are_found_and_give_the_moments_of_the_whole_model():
    chained, whole = Stack(), Stack(chained=False)
    layers = [layer for layer, _ in chosen_layers(chained, "int4")[0]]
    found = survey(chained, layers, _batches()[0])
    assert found.blocks == tuple(chained.blocks) and not found.why
    assert [[layer.name for layer in stage.layers] for stage in found.stages] == [
        *([f"blocks.{k}.a.weight", f"blocks.{k}.b.weight"] if half == 0 else [f"blocks.{k}.out.weight"]
          for k in range(3) for half in range(2)),
        ["head.weight"],
    ]  # fmt: skip
    other = survey(whole, [layer for layer, _ in chosen_layers(whole, "int4")[0]], _batches()[0])
    assert other.blocks == () and "first argument" in other.why
    one, two = _all_moments(chained), _all_moments(whole)
    assert one.keys() == two.keys() and "head.weight" in one
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-9)


def test_moments_follow_the_weights_as_they_are_then():
    """A layer changed before a block is passed changes what later layers see, and nothing before it."""
    model = Stack()
    layers = [layer for layer, _ in chosen_layers(model, "int4")[0]]
    plain = _all_moments(model)
    with resting(model):
        found = survey(model, layers, _batches()[0])
        walker, seen = Walker(model, _batches(), found), {}
        for stage in found.stages:
            (moment,) = walker.moments([stage])
            for layer in stage.layers:
                seen[layer.name] = moment.matrix
                layer.weight.mul_(0.5)
    assert torch.equal(seen["blocks.0.a.weight"], plain["blocks.0.a.weight"])
    assert not torch.allclose(seen["blocks.0.out.weight"], plain["blocks.0.out.weight"], rtol=1e-3)
    halved = Stack()
    with torch.no_grad():
        for layer in chosen_layers(halved, "int4", exclude=("embed*",))[0]:
            layer[0].weight.mul_(0.5)
    inputs = {"blocks.2.a.weight": [], "head.weight": []}
    for name, kept in inputs.items():
        module = halved.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0].detach().flatten(0, 1)))
    for batch in _batches():
        halved(batch)
    for name, kept in inputs.items():
        x = torch.cat(kept).double()
        torch.testing.assert_close(seen[name][0], x.T @ x / len(x), rtol=1e-5, atol=1e-7)


def test_a_layer_that_is_never_called_is_named():
    model = Stack()
    model.spare = nn.Linear(3, 3)
    layers = [layer for layer, _ in chosen_layers(model, "int4")[0]]
    with pytest.raises(ValueError, match=r"spare\.weight: never called"):
        survey(model, layers, _batches()[0])


def test_not_finite_inputs_are_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    layers = [layer for layer, _ in chosen_layers(model, "int4")[0]]
    batch = torch.ones(4, 3)
    batch[2, 1] = torch.nan
    found = survey(model, layers, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"0\.weight: the calibration gives it NaN"):
        Walker(model, [batch], found).moments([found.stages[0]])


def test_patterns_choose_layers_once():
    model = Stack()
    chosen, kept = chosen_layers(model, {"blocks.*": "int4", "head.weight": "int8"})
    assert {layer.name: f for layer, f in chosen} == {"head.weight": "int8"} | {
        f"blocks.{k}.{part}.weight": "int4" for k in range(3) for part in ("a", "b", "out")
    }
    assert kept == {"embed.weight": "no pattern of format matches it"}
    with pytest.raises(ValueError, match=r"matches the patterns 'blocks\.\*' and '\*'"):
        chosen_layers(model, {"blocks.*": "int4", "*": "int8"})
    with pytest.raises(ValueError, match="'nothing' matches no weight"):
        chosen_layers(model, "int4", exclude=("nothing",))
    with pytest.raises(ValueError, match="nothing to quantize"):
        chosen_layers(model, "int4", exclude=("*",))
    assert chosen_layers(nn.Sequential(nn.Linear(2, 2), nn.Bilinear(2, 2, 2)), "int4")[1] == {
        "1.weight": "is not the weight of a Linear, Conv1d to Conv3d or Embedding layer"
    }


def test_tied_weights_are_one_layer():
    model = Stack()
    model.head.weight = nn.Parameter(torch.randn(11, 6))
    model.embed.weight = model.head.weight
    chosen, _ = chosen_layers(model, "int4", exclude=("blocks.*",))
    ((layer, _),) = chosen
    assert layer.kind == "embedding" and layer.reason_for_rtn is not None
    assert set(layer.paths) == {"embed.weight", "head.weight"}


def test_modes_come_back():
    model = Stack()
    model.blocks[1].eval()
    with resting(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
    assert model.training and not model.blocks[1].training and torch.is_grad_enabled()
