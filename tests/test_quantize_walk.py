"""Layers as matrices, their inputs, second moments, and passing a model block by block."""

from __future__ import annotations

import weakref

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from lotion_theory.quantize import quantize, walk  # noqa: E402
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


@pytest.mark.parametrize("inputs", ["quantized", "float"])
def test_moments_of_one_block_are_in_memory(inputs, monkeypatch):
    """Counted whenever a moment is made: those of a block's two stages at most, in a chain of any length."""
    alive: weakref.WeakSet[Moment] = weakref.WeakSet()
    most = 0

    class Counted(Moment):
        __hash__ = object.__hash__

        def __init__(self) -> None:
            nonlocal most
            super().__init__()
            alive.add(self)
            most = max(most, len(alive))

    monkeypatch.setattr(walk, "Moment", Counted)
    found = quantize(Stack(), _batches(), "int4/absmax/tensor", "gptq", inputs=inputs)
    assert found.mode == "blocks" and most == (1 if inputs == "quantized" else 2)


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


class Several(nn.Module):
    """``a`` meets x alone, ``b`` x and then something else."""

    def __init__(self, b_first: bool) -> None:
        super().__init__()
        self.a, self.b, self.b_first = nn.Linear(6, 6), nn.Linear(6, 6), b_first

    def forward(self, x):
        y = self.b(x) if self.b_first else self.a(x)
        z = self.a(x) if self.b_first else self.b(x)
        return y + z + self.b(torch.sin(y))


class InPlace(nn.Module):
    """Changes its input between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        y = self.a(x)
        return y + self.b(x.relu_())


class Loop(nn.Module):
    """Calls a layer once for every vector of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        y = x[0]
        for row in x:
            y = torch.tanh(self.a(y + row))
        return y


class Adding(nn.Module):
    """A block that adds to its input, or to a shared tensor, in place."""

    def __init__(self, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.c = shared

    def forward(self, x, beside=None, notes=None):
        if notes is not None:
            notes.append(self.a(x + sum(notes)))
        if beside is not None:
            beside += self.a(x + beside)
            return x + self.b(beside)
        x += torch.tanh(self.a(x))
        if self.c is not None:
            x = x + self.c(torch.tanh(x))
        x += self.b(torch.tanh(x))
        return x


class Chain(nn.Module):
    """Blocks that hand on one state; ``kind``: what is special about them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        shared = nn.Linear(6, 6) if kind == "shared" else None
        self.blocks, self.kind = nn.ModuleList(Adding(shared) for _ in range(3)), kind

    def forward(self, x):
        beside, notes = torch.zeros_like(x), [x]
        x = x * 1
        for block in self.blocks:
            if self.kind == "beside":
                x = block(x, beside)
            else:
                x = block(x, notes=notes) if self.kind == "notes" else block(x)
        return self.blocks[0].b(x) if self.kind == "outside" else x


USES = {
    "calls differ": (lambda: Several(b_first=False), ""), "calls differ, turned": (lambda: Several(b_first=True), ""),
    "input changed": (InPlace, ""), "loop": (Loop, ""), "blocks add in place": (lambda: Chain("plain"), "blocks"),
    "blocks share a layer": (lambda: Chain("shared"), "share layers"),
    "a block's layer outside": (lambda: Chain("outside"), "share layers"),
    "a tensor beside is changed": (lambda: Chain("beside"), "change in place"),
    "an object beside": (lambda: Chain("notes"), "different arguments"),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_moments_are_of_every_input_that_a_layer_meets(use):
    """Whatever a model does with its layers: the reference sums what hooks on whole passes see."""
    torch.manual_seed(5)
    make, why = USES[use]
    model = make().eval()
    batches = [torch.randn(rows, 6) for rows in ((2, 5, 3) if use == "loop" else (9, 9, 9))]
    before = [x.clone() for x in batches]
    layers = [layer for layer, _ in chosen_layers(model, "int4")[0]]
    exact = {layer.name: torch.zeros(6, 6, dtype=torch.float64) for layer in layers}
    seen = dict.fromkeys(exact, 0)
    handles = []
    for layer in layers:

        def see(_, args, name=layer.name):
            x = args[0].detach().double().reshape(-1, 6)
            exact[name] += x.T @ x
            seen[name] += len(x)

        handles.append(layer.module.register_forward_pre_hook(see))
    with resting(model):
        for x in before:
            model(x.clone())
        for handle in handles:
            handle.remove()
        found = survey(model, layers, batches[0])
        walker = Walker(model, batches, found)
        assert bool(found.blocks) == (why == "blocks") and (why == "blocks" or why in found.why)
        for stage in found.stages:
            (moment,) = walker.moments([stage])
            for layer in stage.layers:
                assert moment.vectors == seen[layer.name]
                torch.testing.assert_close(moment.matrix[0], exact[layer.name] / seen[layer.name], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(batches, before, strict=True))


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


def test_inputs_without_float32_squares_are_named():
    model = nn.Sequential(nn.Linear(3, 3))
    (layer,) = (layer for layer, _ in chosen_layers(model, "int4")[0])
    for size, word in ((1e25, "large"), (1e-25, "small")):
        moment = Moment()
        moment.add(torch.full((1, 2, 3), size))
        with pytest.raises(ValueError, match=rf"0\.weight: its inputs.* are too {word} for second moments"):
            moment.check(layer)


def test_a_second_name_of_a_weight_does_not_hide_it():
    model = nn.Module()
    linear = nn.Linear(3, 2)
    model.again, model.linear = linear.weight, linear
    (layer,), kept = find_layers(model)
    assert layer.module is linear and not kept


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


def test_a_model_that_is_a_layer_has_a_weight_of_that_name():
    ((layer, _),), _ = chosen_layers(nn.Linear(3, 2), {"weight": "int4"})
    assert layer.name == "weight" and layer.paths == ("weight",)


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
