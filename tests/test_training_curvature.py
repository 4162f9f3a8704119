"""Curvature sources: exact expectations by enumeration, exactness where theory has it, and what must be refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lotion_theory.training import LotionPenalty, gnb_update
from lotion_theory.training.curvature import weight_squares
from lotion_theory.training.gnb import sampled_labels
from tests.tolerances import standard_error_bound
from tests.torch_models import mlp

# A sample's gradient is HIGH with probability CHANCE, else LOW: everything about batches of them can be enumerated.
HIGH, LOW, CHANCE = 1.5, -0.5, 0.3
FISHER = CHANCE * HIGH**2 + (1 - CHANCE) * LOW**2
MEAN = CHANCE * HIGH + (1 - CHANCE) * LOW


def _batches(size, steps):
    """All sequences of ``steps`` batches of ``size`` samples: mean gradients (sequences, steps, size) of each sample, and
    probabilities (sequences,)."""
    samples = np.array(list(itertools.product([HIGH, LOW], repeat=size * steps)))
    chances = np.where(samples == HIGH, CHANCE, 1 - CHANCE).prod(axis=1)
    return torch.tensor(samples.reshape(-1, steps, size)), torch.tensor(chances)


def _observer(sequences, **settings):
    """A penalty with one weight per sequence, whose gradients can then be set."""
    p = nn.Parameter(torch.ones(1, sequences, dtype=torch.float64))
    return LotionPenalty([("w", p)], "int4", **settings), p


def _expected(penalty, chances):
    return float((penalty.curvature_of("w")[0] * chances).sum())


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_fisher_neglecting_the_mean_overestimates_by_it(steps):
    samples, chances = _batches(size=3, steps=steps)
    penalty, p = _observer(len(chances), decay=0.9)
    for t in range(steps):
        p.grad = samples[:, t].mean(dim=1)[None]
        penalty.observe(batch_size=3)
    np.testing.assert_allclose(_expected(penalty, chances), FISHER + 2 * MEAN**2, rtol=1e-12)


@pytest.mark.parametrize(("size", "steps"), [(2, 2), (2, 4), (3, 3), (1, 4)])
def test_fisher_with_a_tracked_mean_is_exact(size, steps):
    samples, chances = _batches(size, steps)
    penalty, p = _observer(len(chances), decay=0.8, mean="tracked")
    for t in range(steps):
        p.grad = samples[:, t].mean(dim=1)[None]
        penalty.observe(batch_size=size)
    np.testing.assert_allclose(_expected(penalty, chances), FISHER, rtol=1e-12)
    assert (penalty.curvature_of("w") >= 0).all()


@pytest.mark.parametrize(("micro", "count", "steps"), [(1, 2, 3), (2, 2, 2), (1, 4, 2), (2, 3, 1)])
def test_fisher_from_accumulated_micro_batches_is_exact_with_one_buffer(micro, count, steps):
    samples, chances = _batches(micro * count, steps)
    penalty, p = _observer(len(chances), decay=0.7)
    for t in range(steps):
        # As with each micro-batch's mean loss divided by their number.
        p.grad = samples[:, t, :micro].mean(dim=1)[None] / count
        penalty.observe_part(batch_size=micro, total=micro * count, scale=1 / count)
        p.grad = samples[:, t].mean(dim=1)[None]
        penalty.observe(batch_size=micro * count)
    # Before negative estimates are cut off at use; where a micro-batch is one sample there are none.
    unbiased = penalty.curvature.estimate(0)[0] * penalty.curvature.factor()
    np.testing.assert_allclose(float((unbiased * chances).sum()), FISHER, rtol=1e-12)
    assert bool((unbiased < 0).any()) == (micro > 1)
    assert (penalty.curvature_of("w") >= 0).all()


@pytest.mark.parametrize("steps", [2, 3])
def test_adams_averages_are_exact(steps):
    samples, chances = _batches(size=2, steps=steps)
    p = nn.Parameter(torch.ones(1, len(chances), dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.0, betas=(0.8, 0.95))
    penalty = LotionPenalty([("w", p)], "int4", curvature="adam", optimizer=optimizer, batch_size=2)
    for t in range(steps):
        p.grad = samples[:, t].mean(dim=1)[None]
        optimizer.step()
    unbiased = penalty.curvature.estimate(0)[0]
    np.testing.assert_allclose(float((unbiased * chances).sum()), FISHER, rtol=1e-12)
    assert (penalty.curvature_of("w") >= 0).all()


def test_one_observation_of_a_tracked_mean_falls_back_on_the_square():
    penalty, p = _observer(1, mean="tracked")
    p.grad = torch.full((1, 1), 3.0, dtype=torch.float64)
    penalty.observe(batch_size=4)
    assert float(penalty.curvature_of("w")) == pytest.approx(4 * 9)


def test_fisher_in_a_training_loop():
    # The wiring on a real model: i.i.d. batches from 32 samples at fixed weights, against per-sample gradients.
    model, draws, batch, decay = mlp((4, 3, 2), torch.float64), 3000, 4, 0.999
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(32, 4, generator=generator).double(), torch.randint(0, 2, (32,), generator=generator)
    penalty = LotionPenalty(model, "int4", decay=decay)

    def gradient(rows):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        return model[0].weight.grad

    each = torch.stack([gradient([k]) for k in range(32)])
    mean, fisher = each.mean(dim=0), each.square().mean(dim=0)
    picks = torch.randint(0, 32, (draws, batch), generator=generator)
    # The spread of B g² from the same population, by an independent large sample.
    others = each[torch.randint(0, 32, (20000, batch), generator=generator)].mean(dim=1)
    spread = (batch * others.square()).var(dim=0)
    for rows in picks:
        gradient(rows)
        penalty.observe(batch_size=batch)
        penalty.step()
    effective = 1 / float(weight_squares(decay, torch.tensor(decay**draws, dtype=torch.float64)))
    # False alarm 1e-6 over 12 entries; the spread is known to about 5 %, hence the factor.
    bound = 1.1 * standard_error_bound(spread.numpy(), int(effective), 1e-6, 12)
    found = penalty.curvature_of("0.weight")
    assert (np.abs(found.numpy() - (fisher + (batch - 1) * mean**2).numpy()) <= bound).all()
    assert (np.abs(found.numpy() - (fisher / batch).numpy()) > bound).any()


def test_gnb_is_the_gauss_newton_diagonal_of_softmax_regression():
    batch, classes, draws, decay = 8, 3, 1500, 0.999
    generator = torch.Generator().manual_seed(6)
    x, model = torch.randn(batch, 4, generator=generator).double(), mlp((4, classes), torch.float64)
    penalty = LotionPenalty(model, "int4", curvature="gnb", decay=decay)
    p = model(x).softmax(dim=1).detach()
    exact = torch.einsum("bo,bi->oi", p * (1 - p), x.square()) / batch
    # Var(B ĝ²) for ĝ = mean of x (p - 1[y = o]), from the second and fourth moments of each two-point term.
    second = torch.einsum("bo,bi->boi", p * (1 - p), x**2)
    fourth = torch.einsum("bo,bi->boi", p * (1 - p) * ((1 - p) ** 3 + p**3), x**4)
    total = second.sum(dim=0)
    moment = fourth.sum(dim=0) + 3 * (total**2 - second.square().sum(dim=0))
    spread = moment / batch**2 - exact**2
    for _ in range(draws):
        gnb_update(penalty, model(x))
        penalty.step()
    effective = 1 / float(weight_squares(decay, torch.tensor(decay**draws, dtype=torch.float64)))
    bound = standard_error_bound(spread.numpy(), int(effective), 1e-6, exact.numel())
    error = np.abs((penalty.curvature_of("0.weight") - exact).numpy())
    assert (error <= bound).all()


def test_gnb_leaves_everything_else_alone():
    model, x = mlp((4, 6, 3)), torch.randn(2, 5, 4)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    before = torch.get_rng_state()
    results = []
    for backward in (None, lambda loss: (4 * loss).backward()):
        penalty = LotionPenalty(model, "int4", curvature="gnb")
        kept = [torch.randn_like(p) for p in model.parameters()]
        for p, gradient in zip(model.parameters(), kept, strict=True):
            p.grad = gradient
        state = torch.get_rng_state()
        gnb_update(penalty, model(x), backward, mask=mask, seed=3, scale=1.0 if backward is None else 4.0)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is gradient for p, gradient in zip(model.parameters(), kept, strict=True))
        results.append(penalty.curvature_of("0.weight"))
    assert not torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(results[0], results[1])
    # Seven predictions count, by hand with the same labels.
    rows = model(x).reshape(-1, 3)[mask.reshape(-1)]
    loss = nn.functional.cross_entropy(rows, sampled_labels(rows, 3, 0))
    (gradient,) = torch.autograd.grad(loss, model[0].weight)
    torch.testing.assert_close(results[0], 7 * gradient**2)


def test_gnb_refuses():
    model, x = mlp((4, 3)), torch.randn(5, 4)
    gnb = LotionPenalty(model, "int4", curvature="gnb")
    with pytest.raises(RuntimeError, match="there is no curvature yet: call gnb_update"):
        gnb()
    with pytest.raises(RuntimeError, match="this one is 'fisher'"):
        gnb_update(LotionPenalty(model, "int4"), model(x))
    with pytest.raises(ValueError, match="carry no graph"):
        gnb_update(gnb, model(x).detach())
    with pytest.raises(ValueError, match=r"expected bool and \(5,\)"):
        gnb_update(gnb, model(x), mask=torch.ones(5))
    with pytest.raises(ValueError, match="leaves no prediction"):
        gnb_update(gnb, model(x), mask=torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="without backward"):
        gnb_update(gnb, model(x), scale=2.0)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_kfac_is_exact_for_linear_nets(micro_batches):
    # MSELoss over k outputs has H = (2/k) I; labels f ± 1/√(2/k) with all sign patterns make E[d dᵀ] = H exactly.
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(3, 4, generator=generator).double()
    signs = torch.tensor(list(itertools.product([1.0, -1.0], repeat=2))).double()
    x, c = inputs.repeat_interleave(4, dim=0), 2 / 2
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 2, bias=False)).double()
    penalty = LotionPenalty(model, "int4", curvature="kfac")
    handles = penalty.watch(model)
    y = model(x).detach() + signs.repeat(3, 1) / c**0.5
    model.eval()
    model(2 * x)  # evaluation is not recorded
    model.train()
    for part_x, part_y in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
        (nn.functional.mse_loss(model(part_x), part_y) / micro_batches).backward()
    penalty.observe(batch_size=len(x))
    w1, w2 = model[0].weight.detach(), model[1].weight.detach()
    first = c * w2.square().sum(dim=0)[:, None] * inputs.square().mean(dim=0)
    second = c * (inputs @ w1.t()).square().mean(dim=0).expand(2, 5)
    np.testing.assert_allclose(penalty.curvature_of("0.weight").numpy(), first.numpy(), rtol=1e-12)
    np.testing.assert_allclose(penalty.curvature_of("1.weight").numpy(), second.numpy(), rtol=1e-12)
    # The penalty in the same loss does not disturb what is recorded.
    model.zero_grad()
    (nn.functional.mse_loss(model(x), y) + penalty()).backward()
    penalty.observe(batch_size=len(x))
    np.testing.assert_allclose(penalty.curvature_of("0.weight").numpy(), first.numpy(), rtol=1e-12)
    for handle in handles:
        handle.remove()
    with pytest.raises(RuntimeError, match=r"nothing was recorded for 0\.weight"):
        penalty.observe(batch_size=12)


def test_kfac_from_sampled_labels():
    model, x = mlp((4, 6, 3)), torch.randn(64, 4)
    penalty = LotionPenalty(model, "int4", curvature="kfac")
    penalty.watch(model)
    gnb_update(penalty, model(x))
    assert (penalty.curvature_of("2.weight") > 0).all()


def test_kfac_refuses_what_is_no_linear_layer():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"no nn\.Linear of the model holds 0\.weight: exclude them"):
        LotionPenalty(model, "int4", curvature="kfac").watch(model)
    with pytest.raises(ValueError, match="weight is no matrix"):
        LotionPenalty(nn.Conv1d(2, 3, 2), "int4", curvature="kfac")
    with pytest.raises(RuntimeError, match="this one is 'fisher'"):
        LotionPenalty(model, "int4").watch(model)
