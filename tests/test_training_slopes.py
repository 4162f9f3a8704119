"""The penalty's gradient in formats that only the quantizer serves: by hand, in a compiled pass, and by autograd."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from lotion_theory import Quantizer
from lotion_theory.formats import fast
from lotion_theory.formats.catalog import FORMATS
from lotion_theory.fused import machine
from lotion_theory.training import LotionPenalty
from lotion_theory.training._tensors import term
from lotion_theory.training.fake import supported

TEXTS = [text for text in FORMATS if not text.startswith("fairy") and not supported(Quantizer.parse(text))]
BY_HAND = [text for text in TEXTS if not Quantizer.parse(text).scale.is_drawn]


def case(text, dtype):
    """Weights of 64 rows with zeros and ties for the largest, their curvature in blocks, and the quantizer."""
    generator = torch.Generator().manual_seed(1)
    w, g = (torch.randn(64, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    w[3], w[4, 2], w[4, 9], w[5, 2], w[5, 7] = 0, 9, 9, -9, 9
    q = Quantizer.parse(text)
    q = q.with_scale(0.3) if q.scale.is_frozen else q
    return q, w.to(dtype), q.partition.to_blocks(g.abs().to(dtype))


@pytest.mark.skipif(machine.features() is None, reason="llvmlite, which comes with numba, is absent")
@pytest.mark.parametrize("text", BY_HAND)
def test_plain_and_compiled_have_the_same_bits_and_agree_with_autograd(text):
    for dtype in (torch.float32, torch.float64):
        q, w, g = case(text, dtype)
        half = torch.tensor(0.35, dtype=dtype)
        for attached in (True, False):
            with patch.object(fast, "compute", lambda *_, **__: None):
                plain = term._general_gradient(q, w, g, half, attached)
            answers, compute = [], fast.compute

            def told(*arguments, compute=compute, answers=answers, **options):
                answers.append(compute(*arguments, **options))
                return answers[-1]

            with patch.multiple(fast, _COMPILE_AFTER=0, compute=told):
                assert torch.equal(term._general_gradient(q, w, g, half, attached), plain)
            assert len(answers) == 1 and answers[0] is not None
            leaf = w.clone().requires_grad_()
            (expected,) = torch.autograd.grad(term._general_value(q, leaf, g, half, attached), leaf)
            # Sums of at most 4,096 terms, none of which exceeds the largest entry of the result by much.
            bound = 64 * torch.finfo(dtype).eps * float(expected.abs().max())
            torch.testing.assert_close(plain, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("text", ["uint4/zp-real/block=32", "nvfp4", "bitnet"])
def test_sixteen_bit_weights_get_the_gradient_in_their_working_type(text):
    q, w, g = case(text, torch.float32)
    half = torch.tensor(0.35)
    found = term._general_gradient(q, w.bfloat16(), g, half, True)
    leaf = w.bfloat16().requires_grad_()
    (expected,) = torch.autograd.grad(term._general_value(q, leaf, g, half, True), leaf)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2.0**-7 * float(expected.abs().max()))


def test_rules_of_ones_own_go_through_autograd():
    """Their derivative may be written for arrays of numpy alone."""
    q, w, g = case("int4full/absmax8/block=32", torch.float32)

    class Foreign:
        def __call__(self, *arguments):
            return q.scale.draws(*arguments)

    Foreign.__module__ = "elsewhere"
    own = replace(q, scale=replace(q.scale, name="mine", draws=Foreign(), jacobian=None))
    assert not own.scale.is_built_in and q.scale.is_built_in
    half = torch.tensor(0.5)
    expected = term._general_gradient(q, w, g, half, True)
    torch.testing.assert_close(term._general_gradient(own, w, g, half, True), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["nvfp4/sr", "int4full/gauge/row"])
def test_the_two_forms_of_the_penalty_agree(text):
    _, w, _ = case(text, torch.float64)
    parameter = nn.Parameter(w)
    penalty = LotionPenalty([("w", parameter)], text, curvature={"w": torch.ones(64, 64, dtype=torch.float64)})
    penalty().backward()
    by_autograd, parameter.grad = parameter.grad, None
    penalty.add_gradient_()
    torch.testing.assert_close(parameter.grad, by_autograd, rtol=0, atol=1e-12 * float(by_autograd.abs().max()))
