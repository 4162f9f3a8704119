"""Small tensors worked on together: each gets the bits that it gets alone, and what cannot be stacked goes its own way."""

from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from torch import nn

from lotion_theory.training import LotionPenalty, StraightThrough, curvature
from lotion_theory.training._tensors import fused as _fused
from lotion_theory.training._tensors import stacks as _stacks
from lotion_theory.training._tensors.blocks import SPAN, fold, span_sums

needs_numba = pytest.mark.skipif(_fused.loops() is None, reason="numba is not installed")
FORMATS = ("int4", "int4/absmax/row", "int4/absmax/block=8", "nf4/absmax/block=8", "e2m1", "mxfp4/block=8")
X = torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 8, (16,), generator=torch.Generator().manual_seed(2))


def net(dtype=torch.float32):
    """Matrices of a few shapes, several of some."""
    torch.manual_seed(3)
    sizes = (24, 40, 40, 40, 24, 8)
    layers = [nn.Linear(a, b, dtype=dtype) for a, b in pairwise(sizes)]
    return nn.Sequential(*[module for layer in layers for module in (layer, nn.Tanh())])


def alone():
    """Nothing is small enough to be stacked."""
    return patch.object(_stacks, "SMALL", 0)


def train(penalize, straight, steps=4, dtype=torch.float32, prepare=None, scale=1.0):
    """Weights after some steps, and curvatures."""
    model = net(dtype)
    if prepare is not None:
        prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    penalty = None if penalize is None else LotionPenalty(model, **penalize)
    through = None if straight is None else StraightThrough(model, **straight)
    for _ in range(steps):
        if through is not None:
            through.__enter__()
        (scale * nn.functional.cross_entropy(model(X.to(dtype)), Y)).backward()
        if through is not None:
            through.__exit__(None)
            through.before_step_(optimizer)
            through.step()
        if penalty is not None:
            penalty.observe(16, scale)
            penalty.add_gradient_()
            penalty.step()
        optimizer.step()
        optimizer.zero_grad()
    found = [p.detach().clone() for p in model.parameters()]
    return found + ([] if penalty is None else [penalty.curvature_of(item.name) for item in penalty.items])


def check(penalize=None, straight=None, **settings):
    """The same weights, bit for bit, with and without company."""
    together = train(penalize, straight, **settings)
    with alone():
        apart = train(penalize, straight, **settings)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def stacks_made(run):
    """How many tensors each stack held."""
    sizes = []
    whole = _stacks.stacked

    def counted(tensors, n):
        sizes.append(len(tensors))
        return whole(tensors, n)

    with (
        patch("lotion_theory.training._tensors.term.stacked", counted),
        patch("lotion_theory.training._site.stacked", counted),
    ):
        run()
    return sizes


@pytest.mark.parametrize("text", FORMATS)
def test_the_penalty_gives_small_tensors_the_bits_that_they_have_alone(text):
    for scale_gradient in ("attached", "detached"):
        check({"format": text, "scale_gradient": scale_gradient})


@pytest.mark.parametrize("settings", [{"mean": "tracked"}, {"curvature": "fisher", "ramp": (0, 3)}])
def test_so_do_other_curvatures_and_ramps(settings):
    check({"format": "int4/absmax/block=8", **settings})


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("method", ["qat", "cage", "rr_ste"])
def test_straight_through_gives_small_tensors_the_bits_that_they_have_alone(text, method):
    check(straight={"format": text, "method": method, "total_steps": 4})


def test_tensors_of_one_kind_are_stacked():
    sizes = stacks_made(lambda: train({"format": "int4/absmax/block=8"}, None, steps=1))
    assert sizes == [5, 5, 5]  # gradients, weights and curvatures of all matrices
    sizes = stacks_made(lambda: train(None, {"format": "int4"}, steps=1))
    assert sizes == [2, 2]  # one block each: those of 24 x 40 and of 40 x 40


def freeze(model):
    model[2].weight.requires_grad_(False)


def turn(model):
    # No longer contiguous.
    model[2].weight = nn.Parameter(model[2].weight.detach().T.contiguous().T)


def mixed(model):
    model[2].to(torch.float64)
    model[2].register_forward_pre_hook(lambda module, inputs: inputs[0].double())
    model[2].register_forward_hook(lambda module, inputs, output: output.float())


@pytest.mark.parametrize("prepare", [freeze, turn, mixed])
def test_what_differs_from_the_others_goes_its_own_way(prepare):
    check({"format": "int4/absmax/block=8"}, prepare=prepare)
    if prepare is not freeze:
        check(straight={"format": "int4/absmax/block=8"}, prepare=prepare)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    check({"format": "int4/absmax/block=8"}, dtype=dtype)
    check(straight={"format": "int4/absmax/block=8"}, dtype=dtype)
    sizes = stacks_made(lambda: train({"format": "int4/absmax/block=8"}, None, steps=1, dtype=dtype))
    # Levels in 16 bits are computed in another type than the weights have.
    assert sizes == ([5, 5, 5] if dtype == torch.float64 else [])


def test_a_loss_scale_is_taken_out_the_same_way():
    check({"format": "int4/absmax/block=8"}, scale=1024.0)


@needs_numba
@pytest.mark.parametrize("text", FORMATS[:4])
def test_compiled_loops_take_over_with_the_same_bits(text):
    expected = train({"format": text}, None)
    for after in (0, 2 * 24 * 40):
        with patch.multiple(_fused, COMPILE_AFTER=after, LOAD_AFTER=after, _demand=0):
            found = train({"format": text}, None)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_sums_are_those_of_their_numbers():
    generator = torch.Generator().manual_seed(5)
    for n in (1, 2, 3, 31, SPAN - 1, SPAN, SPAN + 1, 3 * SPAN, 5 * SPAN + 7):
        x = torch.randint(-1000, 1000, (3, n), generator=generator).double()
        # Whole numbers: every order gives the same sum.
        assert torch.equal(fold(span_sums(x.clone())), x.sum(dim=1))
        y = torch.rand(3, n, generator=generator, dtype=torch.float64)
        # A sum of n terms in pairs is rounded log2(n) times, each time by half an ulp at most.
        bound = (n - 1).bit_length() * 2.0**-53 * y.sum(dim=1)
        exact = torch.tensor([sum(map(int, (row * 2**60).tolist())) / 2**60 for row in y], dtype=torch.float64)
        assert bool(((fold(span_sums(y.clone())) - exact).abs() <= bound).all())


def test_no_gradient_that_overflows_passes_for_one_that_fits():
    top = torch.finfo(torch.float32).max
    generator = torch.Generator().manual_seed(6)
    for weight in (0.5, 1.0, 1e6):
        edge = (top / max(weight, 1.0)) ** 0.5
        for size in (0.5, 0.999, 1.001, 2.0):
            g = torch.rand(50, generator=generator)
            g[7] = 0.0
            g = g / g.max() * torch.tensor(edge, dtype=torch.float64) * size
            g = g.float()
            fits = bool((g.double().square() * max(weight, 1.0) <= top).all())
            assert curvature.squares_fit([g, None], weight, 1.0, [top, top]) is fits
    for bad in (float("nan"), float("inf")):
        assert curvature.squares_fit([torch.tensor([1.0, bad])], 1.0, 1.0, [top]) is False
