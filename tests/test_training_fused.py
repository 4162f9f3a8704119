"""The penalty's gradient in one pass: that of the plain path, bit for bit."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lotion_theory.training import LotionPenalty, StraightThrough
from lotion_theory.training._tensors import fused as _fused
from lotion_theory.training._tensors.term import Term, add_gradient_, jobs_of
from tests.fast_cases import compiled, needs_compiler, plain
from tests.strategies import as_torch, examples, probes
from tests.torch_models import mlp

needs_numba = pytest.mark.skipif(_fused.loops() is None, reason="numba is not installed")
# The loops also run as plain Python, so that what they compute is tested where numba is missing.
RUNS = (pytest.param(True, marks=needs_numba, id="compiled"), pytest.param(False, id="interpreted"))
FORMATS = ("int2", "int4", "int8", "e2m1", "nf4", "ternary", "binary")
PARTITIONS = ("tensor", "row", "block=4")
SCALE = torch.tensor(0.7, dtype=torch.float64)


def item_of(w, text):
    return LotionPenalty([("w", nn.Parameter(w.clone()))], text, curvature="given").items[0]


def fused(out, item, g, attached, with_numba):
    run = _fused.loops() if with_numba else _fused.interpreted
    with patch.object(_fused, "loops", lambda: run):
        (job,) = jobs_of([Term(out, item, item.parameter.detach(), g)], SCALE, attached)
    job()
    return out


def check(w, text, attached, with_numba=True):
    """Both paths from the same start, within the bounds that follow from the number of rounding errors."""
    item, eps = item_of(w, text), torch.finfo(w.dtype).eps
    generator = torch.Generator().manual_seed(5)
    g, start = (torch.rand(w.shape, dtype=w.dtype, generator=generator) for _ in range(2))
    expected, result = start.clone(), start.clone()
    add_gradient_(expected, item, item.parameter.detach(), g, SCALE, attached)
    fused(result, item, g, attached, with_numba)
    x, h = item.blocks(item.parameter.detach()), item.blocks(g)
    top = x.abs().amax(dim=1, keepdim=True)
    gap = (lambda s: (s.second - s.first).abs())(item.levels.sides(x, top))
    # A derivative is a product of the curvature, at most twice the gap, and 1/2; each operation may round differently,
    # once in the term, once where it is added. A block's sum has n terms.
    terms = 0.5 * h * gap
    bound = 8 * eps * (terms + item.blocks(expected).abs())
    if attached:
        sums = terms.sum(dim=1, keepdim=True)
        bound = bound + (x.abs() == top) * (2 * (x.shape[1] + 8) * eps * sums)
    assert bool(((item.blocks(result - expected)).abs() <= bound).all())
    # Loops and plain path add in the same order: not only within those bounds.
    assert torch.equal(result, expected)
    return result


@pytest.mark.parametrize("with_numba", RUNS)
@pytest.mark.parametrize("text", FORMATS)
def test_the_plain_path_agrees(text, with_numba):
    shape = (3, 4096) if with_numba else (2, 24)
    torch.manual_seed(1)
    w = torch.randn(shape)
    w[0, :4], w[1, 1], w[1, 2] = 0, -w[1].abs().max(), w[1].abs().max()  # a block of zeros; a tie of both signs
    for dtype in (torch.float32, torch.float64):
        for partition in PARTITIONS:
            for attached in (True, False):
                check(w.to(dtype), f"{text}/absmax/{partition}", attached, with_numba)


@needs_numba
@examples(60)
@given(
    text=st.sampled_from(FORMATS), dtype=st.sampled_from(("float32", "float64")), seed=st.integers(0, 10**6),
    attached=st.booleans(),
)  # fmt: skip
def test_the_plain_path_agrees_on_probes(text, dtype, seed, attached):
    check(as_torch(probes(text, dtype, rows=6, size=8, seed=seed, typical=1.0)), f"{text}/absmax/row", attached)


@needs_numba
@pytest.mark.parametrize("text", ["int4/absmax/row", "e2m1/absmax/row"])
def test_the_largest_weight_gets_the_whole_sum(text):
    # Where all but the leader lie between levels, the leader's part is what attached and detached differ by.
    torch.manual_seed(2)
    w, g = torch.randn(4, 64, dtype=torch.float64), torch.rand(4, 64, dtype=torch.float64)
    item = item_of(w, text)
    moving, still = (fused(torch.zeros_like(w), item, g, attached, True) for attached in (True, False))
    leader = w.abs() == w.abs().amax(dim=1, keepdim=True)
    assert torch.equal(moving[~leader], still[~leader])
    # Homogeneity of degree two: Σ w ∂P/∂w = 2 P, with the gradient through the scale only.
    penalty = LotionPenalty([("w", item.parameter)], text, curvature={"w": g}, weight=float(SCALE))
    with torch.no_grad():
        np.testing.assert_allclose(float((w * moving).sum()), 2 * float(penalty()), rtol=1e-12)


@needs_numba
@pytest.mark.parametrize("text", ["int4/absmax/row", "e2m1/absmax/row"])
def test_what_is_not_finite_gives_nan(text):
    w = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    w[0, 2], w[1, 5] = float("nan"), float("inf")
    result = fused(torch.zeros_like(w), item_of(w, text), torch.ones_like(w), True, True)
    assert bool(result[0].isnan().all()) and bool(result[1, 5].isnan()) and bool(result[2].isfinite().all())


@needs_numba
def test_threads_change_nothing():
    steps = []
    for threads, smallest in ((1, 1), (2, 1), (1, 1 << 60)):
        model = mlp((16, 64, 64, 8))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with patch.object(_fused, "SMALLEST", smallest):
                penalty = LotionPenalty(model, "int4/absmax/block=8")
            assert penalty._fused == (smallest == 1)
            nn.functional.mse_loss(model(torch.eye(16)), torch.ones(16, 8)).backward()
            penalty.observe(16)
            version = model[0].weight.grad._version
            penalty.add_gradient_()
            assert model[0].weight.grad._version > version
        finally:
            torch.set_num_threads(before)
        steps.append([p.grad for p in model.parameters()])
    one, two, plain = steps
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for a, b in zip(one, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@needs_numba
@pytest.mark.parametrize(
    "w, text",
    [
        (torch.ones(4, 8, dtype=torch.bfloat16), "int4"),
        (torch.ones(4, 8), "e4m3"),  # too many levels for a table
        (torch.ones(4, 8), "mxfp4/block=4"),
        (torch.ones(8, 4).T, "int4"),  # not contiguous
    ],
)
def test_what_the_loops_do_not_serve_takes_the_plain_path(w, text):
    item = item_of(w, text)
    parameter = nn.Parameter(w)  # clone() of a transposed tensor keeps its layout
    g = torch.ones_like(w, dtype=item.working_type)
    out, expected = torch.zeros_like(g), torch.zeros_like(g)
    assert not list(jobs_of([Term(out, item, parameter.detach(), g)], SCALE, True))
    add_gradient_(expected, item, parameter.detach(), g, SCALE, True)
    assert torch.equal(out, expected)


def test_small_models_do_not_wait_for_a_compiler():
    penalty = LotionPenalty(mlp(), "int4")
    assert not _fused.worth(penalty.items) and not penalty._fused


@needs_compiler
@pytest.mark.parametrize(
    "text", ["int4/absmax/block=8", "int3/absmax/tensor", "nf4/absmax/row", "e2m1/e4m3-up/block=8"]
)
def test_straight_through_casts_by_the_compiled_pass_of_the_quantizer(text):
    model, x = mlp((16, 64, 8)), torch.eye(16)
    with plain():
        expected = StraightThrough(model, text).points()
    st = StraightThrough(model, text)
    with compiled() as answers:
        late = model(x).sum()
        with st:
            assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters() if name in expected)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                late.backward()
    assert answers and all(answer is not None for answer in answers)
