"""The decoder and its mixers: sizes, causality, positions, initial weights, and what recomputation must not change."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from testbeds.lm.loop.config import PRESETS
from testbeds.lm.model.config import ModelConfig
from testbeds.lm.model.decoder import Attention, Decoder, RMSNorm, flops_per_token, parameter_counts, rotated, rotations
from testbeds.lm.model.mixer import Recurrence, scan
from testbeds.lm.model.norm import EPSILON, RootMeanSquare

SMALL = ModelConfig(vocabulary=11, width=16, depth=2, heads=2, hidden=24, context=12)
MIXERS = ("attention", "recurrence")


def decoder(mixer="attention", seed=0, recompute=False, **changes):
    model = Decoder(replace(SMALL, mixer=mixer, **changes), recompute)
    model.initialize(seed)
    return model


def tokens(batch=3, length=12, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, SMALL.vocabulary, (batch, length)))


# --- sizes -----------------------------------------------------------------------------------------------------------


# Blocks: depth (4 W² + 3 W F + 2 W + 2 W / H) + W for the last norm; embedding V W, shared with the output layer.
@pytest.mark.parametrize(
    "name, embedding, blocks",
    [
        ("tiny", 256 * 128, 656_768),
        ("20m", 50_304 * 512, 20_454_656),
        ("150m", 50_304 * 1024, 149_449_216),
        ("300m", 50_304 * 1024, 298_897_408),
    ],
)
def test_presets_have_the_documented_sizes(name, embedding, blocks):
    config = PRESETS[name].model
    per_block = 4 * config.width**2 + 3 * config.width * config.hidden + 2 * config.width
    per_block += 2 * config.width // config.heads
    assert blocks == config.depth * per_block + config.width
    assert parameter_counts(config) == {"embedding": embedding, "blocks": blocks, "total": embedding + blocks}
    untied = parameter_counts(replace(config, tied=False))
    assert untied == {"embedding": 2 * embedding, "blocks": blocks, "total": 2 * embedding + blocks}


def test_named_sizes_are_those_of_the_blocks():
    for name, size in (("20m", 20e6), ("150m", 150e6), ("300m", 300e6)):
        assert abs(parameter_counts(PRESETS[name].model)["blocks"] / size - 1) < 0.03


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_blocks_of_every_preset_divide_all_rows(block):
    for config in PRESETS.values():
        assert config.model.width % block == 0 and config.model.hidden % block == 0


def test_mixers_have_equally_large_matrices():
    sizes = [sum(p.numel() for p in decoder(mixer).blocks.parameters() if p.ndim == 2) for mixer in MIXERS]
    assert sizes[0] == sizes[1]


def test_flops_count_matrix_products():
    # Forward: 2 per weight and token, and T scores and T sums of D products in each head; backward twice that.
    config = SMALL
    matrices = sum(p.numel() for p in Decoder(config).blocks.parameters() if p.ndim == 2) + 11 * 16
    exact = 3 * (2 * matrices + config.depth * 2 * 2 * config.context * config.width)
    gains = 6 * (parameter_counts(config)["blocks"] + 11 * 16 - matrices)
    assert flops_per_token(config) == exact + gains
    assert flops_per_token(replace(config, mixer="recurrence", context=999)) < exact


# --- what the layers compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("changed", [0, 5, 11])
def test_no_token_sees_the_future(mixer, changed):
    model, x = decoder(mixer), tokens()
    y = x.clone()
    y[:, changed] = (y[:, changed] + 1) % SMALL.vocabulary
    before, after = model(x), model(y)
    assert torch.equal(before[:, :changed], after[:, :changed])
    # ... and every later one may see the past.
    assert ((before - after)[:, changed:].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_prefix_gives_the_same_logits(mixer):
    model, x = decoder(mixer), tokens()
    # Same sums in another order: a few units in the last place of logits below 1.
    torch.testing.assert_close(model(x)[:, :7], model(x[:, :7]), rtol=1e-5, atol=1e-6)


def test_attention_is_softmax_of_normed_rotated_products():
    model = decoder()
    layer, x = model.blocks[0].mixer, torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    rotation = model.rotation[:5]
    q, k, v = (m(x).view(2, 5, 2, 8) for m in (layer.query, layer.key, layer.value))
    q, k = rotated(layer.query_norm(q), rotation), rotated(layer.key_norm(k), rotation)
    out = torch.zeros(2, 5, 2, 8)
    for t in range(5):
        scores = torch.einsum("bhd,bshd->bhs", q[:, t], k[:, : t + 1]) / math.sqrt(8)
        out[:, t] = torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v[:, : t + 1])
    torch.testing.assert_close(layer(x, rotation), layer.out(out.reshape(2, 5, 16)))


def test_rotary_products_depend_on_the_distance_only():
    table = rotations(40, 8)
    q, k = np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)
    q, k = (torch.from_numpy(a)[None, None, None].expand(1, 40, 1, 8) for a in (q, k))
    product = rotated(q, table)[0, :, 0] @ rotated(k, table)[0, :, 0].T
    for distance in (0, 1, 7):
        diagonal = product.diagonal(distance)
        # Eight products of size below 10 in float32.
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotated(q, table).norm(dim=-1), q.norm(dim=-1))


def test_queries_and_keys_are_normed():
    layer = Attention(SMALL)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    x, rotation = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1)), rotations(6, 8)
    before = layer(x, rotation)
    with torch.no_grad():
        layer.query.weight *= 8
        layer.key.weight *= 0.25
    # Powers of two commute with rounding, up to the norm's epsilon.
    torch.testing.assert_close(before, layer(x, rotation), rtol=1e-4, atol=1e-4)


def test_norm_keeps_the_type_and_divides_by_the_root_mean_square():
    x = torch.tensor([[3.0, 4.0], [-0.3, 0.4]])
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(RMSNorm(2)(x), expected)
    assert RMSNorm(2)(x.bfloat16()).dtype == torch.bfloat16


def test_norm_has_the_derivatives_of_its_formula():
    generator = torch.Generator().manual_seed(4)
    x, w = (torch.randn(n, dtype=torch.float64, generator=generator).requires_grad_() for n in ((2, 3, 4), (4,)))
    assert torch.autograd.gradcheck(RootMeanSquare.apply, (x, w))
    assert torch.autograd.gradgradcheck(RootMeanSquare.apply, (x, w))
    torch.testing.assert_close(RootMeanSquare.apply(x, w), torch.nn.functional.rms_norm(x, (4,), w, EPSILON))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_scan_is_the_recurrence(length):
    generator = torch.Generator().manual_seed(length)
    a = torch.rand(2, length, 3, generator=generator, dtype=torch.float64)
    a[0, length // 2] = 0  # forgets everything
    b = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(length):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    torch.testing.assert_close(scan(a, b), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_recurrence_remembers_by_its_decay():
    # A rate of zero makes sigmoid 1/2: the channels then forget at 0.9 ... 0.999, as set at the start.
    layer = Recurrence(SMALL)
    with torch.no_grad():
        layer.rate.weight.zero_()
        layer.convolution.zero_()
        layer.convolution[:, 0, -1] = 1
        for matrix in (layer.value, layer.gate, layer.out):
            matrix.weight.copy_(torch.eye(16))
    x = torch.zeros(1, 6, 16)
    x[0, 0] = 1
    x[0, 1:] = 1e-3  # keeps the gate open, a little
    a = torch.linspace(0.9, 0.999, 16)
    drive, h = (1 - a**2).sqrt(), torch.zeros(16)
    for t in range(6):
        h = a * h + drive * x[0, t]
        torch.testing.assert_close(layer(x, rotations(6, 8))[0, t], h * F.silu(x[0, t]), rtol=1e-4, atol=1e-7)


def test_loss_is_the_cross_entropy_of_the_logits():
    model, x, y = decoder(), tokens(), tokens(seed=1)
    probability = model(x).log_softmax(-1).gather(-1, y[..., None])[..., 0]
    torch.testing.assert_close(model(x, y), -probability.mean())
    torch.testing.assert_close(model(x, y, "none"), -probability)


def test_sequences_beyond_the_context_are_refused():
    with pytest.raises(ValueError, match=r"sequences of 13 tokens; valid: up to context = 12"):
        decoder()(tokens(length=13))


# --- initial weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", MIXERS)
def test_initial_weights_come_from_the_seed_alone(mixer):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b, other = decoder(mixer), decoder(mixer), decoder(mixer, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and torch.isfinite(p).all(), name
        assert (p.ndim < 2) == torch.equal(p, r), name


def test_deeper_models_share_the_first_layers():
    shallow, deep = decoder(), decoder(depth=3)
    for name, parameter in shallow.named_parameters():
        factor = math.sqrt(3 / 2) if name.endswith(("mixer.out.weight", "feed.down.weight")) else 1
        torch.testing.assert_close(parameter, deep.get_parameter(name) * factor)


@pytest.mark.parametrize("tied", [True, False])
def test_an_untrained_model_knows_nothing(tied):
    model = decoder(tied=tied)
    # Logits have a standard deviation of 0.64, worth 0.64² / 2 = 0.2 nats. Tied, the token that was read has a logit of
    # about 0.64 sqrt(16) = 2.6, as far as the blocks leave it alone: log(10 + e^2.6) - log 11 = 0.7 nats more.
    excess = model(tokens(), tokens(seed=1)).item() - math.log(11)
    assert -0.2 < excess < (1.2 if tied else 0.5)
    assert (model.head is None) == tied


# --- recomputation, mixed precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mixer", MIXERS)
def test_recomputation_changes_no_bit(mixer):
    plain, again = decoder(mixer), decoder(mixer, recompute=True)
    for model in (plain, again):
        model(tokens(), tokens(seed=1)).backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        assert p.grad is not None and torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("mixer", MIXERS)
def test_bfloat16_is_close_and_leaves_weights_in_float32(mixer):
    model = decoder(mixer)
    exact = model(tokens(), tokens(seed=1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens(), tokens(seed=1))
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in model.parameters())
    # bfloat16 has 8 bits; the logits are below 1.
    assert loss.item() == pytest.approx(exact.item(), abs=2**-8)
