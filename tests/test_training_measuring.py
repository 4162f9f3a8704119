"""Where a penalty's curvature is measured, with what a pass of its own leaves behind: nothing; and curvature for any loss,
its mean against exact diagonals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lotion_theory as lt
from lotion_theory.smoothing import gradients
from lotion_theory.training import LotionPenalty, StraightThrough, gnb_update, hutchinson_update
from lotion_theory.training.curvature import weight_squares
from lotion_theory.training.measuring import moved_to
from tests import tolerances
from tests.torch_models import mlp

FALSE_ALARM = 1e-6
"""Probability that a correct program fails one sampled test; the seeds are fixed."""
DECAY = 0.999


def linear_net(seed=0):
    """Two linear layers of 2 x 2 weights in double precision, and a batch."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x, y = torch.randn(8, 2, generator=generator).double(), torch.randn(8, 2, generator=generator).double()
    return model, x, y


class Squared:
    """The mean squared error of :func:`linear_net` as a loss of lotion_theory on its 8 weights."""

    def __init__(self, x, y):
        self.x, self.y = x.numpy(), y.numpy()

    def _layers(self, points):
        return points[:, :4].reshape(-1, 2, 2), points[:, 4:].reshape(-1, 2, 2)

    def __call__(self, points):
        a, b = self._layers(points)
        return ((self.x @ (b @ a).swapaxes(1, 2) - self.y) ** 2).mean(axis=(1, 2))

    def gradient(self, points):
        a, b = self._layers(points)
        hidden = self.x @ a.swapaxes(1, 2)
        delta = 2 * (hidden @ b.swapaxes(1, 2) - self.y) / self.y.size
        first, second = (delta @ b).swapaxes(1, 2) @ self.x, delta.swapaxes(1, 2) @ hidden
        return np.concatenate([first.reshape(-1, 4), second.reshape(-1, 4)], axis=1)

    def curvature_at(self, w):
        a, b = (part[0] for part in self._layers(w[None]))
        moments, n = (self.x**2).mean(axis=0), self.y.shape[1]
        first = 2 / n * (b**2).sum(axis=0)[:, None] * moments
        second = 2 / n * ((self.x @ a.T) ** 2).mean(axis=0)[None] + 0 * b
        return np.concatenate([first.ravel(), second.ravel()])


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy().copy()


def effective(draws):
    """How many draws of equal weight the moving average is worth."""
    return int(1 / float(weight_squares(DECAY, torch.tensor(DECAY**draws, dtype=torch.float64))))


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["int3/absmax/row", "mxfp4/sr"])
def test_points_are_weights_or_roundings(text):
    model = mlp((32, 32, 4))
    penalty = LotionPenalty(model, text, curvature="hutchinson")
    before = [item.local.detach().clone() for item in penalty.items]
    for place in ("rounded", "mixture"):
        with moved_to(place, penalty.items, 3, 7):
            found = [item.local.detach().clone() for item in penalty.items]
        with moved_to(place, penalty.items, 3, 7):
            assert all(torch.equal(item.local, x) for item, x in zip(penalty.items, found, strict=True))
        with moved_to("rounded", penalty.items, 3, 7):
            rounded = [item.local.detach().clone() for item in penalty.items]
        t = lt.Stream(3, "curvature/t").uniforms(1, 7, dtype="float64")[0]
        taken = [(x == r) & (x != w) for x, r, w in zip(found, rounded, before, strict=True)]
        assert all(((x == w) | (x == r)).all() for x, r, w in zip(found, rounded, before, strict=True))
        share = sum(int(k.sum()) for k in taken) / sum(
            int((r != w).sum()) for r, w in zip(rounded, before, strict=True)
        )
        count = sum(w.numel() for w in before)
        expected = 1.0 if place == "rounded" else t
        # Each weight is taken by a uniform of its own.
        assert abs(share - expected) <= tolerances.hoeffding_bound(1.0, count // 2, FALSE_ALARM)
    assert all(torch.equal(item.local, w) for item, w in zip(penalty.items, before, strict=True))


@pytest.mark.parametrize("place", ["weight", "rounded", "mixture"])
def test_the_mean_curvature_is_that_of_its_place(place):
    """Exact Hessian diagonals at 400 drawn points of a two-layer net, against enumeration: at w, over RR(w), over all
    mixtures (C21). Bernstein's bound with the variance over the enumerated law."""
    model, x, y = linear_net()
    loss, q = Squared(x, y), "int3/absmax/block=4"
    items = LotionPenalty(model, "int3", curvature="hutchinson").items
    w, n = flat(model), 400
    law = lt.law(w, q)
    points, probs = {
        "weight": (w[None], np.ones(1)), "rounded": (law.points, law.probs), "mixture": lt.smoothing.mixtures(w, q)
    }[place]  # fmt: skip
    points, which = np.unique(points, axis=0, return_inverse=True)
    probs = np.bincount(which.ravel(), probs)
    each = np.array([loss.curvature_at(m) for m in points])
    exact = probs @ each
    spread, reach = probs @ (each - exact) ** 2, np.abs(each - exact).max(axis=0)
    total = np.zeros_like(w)
    for k in range(n):
        with moved_to(place, items, 0, k):
            total += loss.curvature_at(flat(model)) / n
    bound = tolerances.bernstein_bound(spread, reach, n, FALSE_ALARM, w.size)
    assert (np.abs(total - exact) <= bound + 1e-12 * exact).all()
    assert place == "weight" or (np.abs(loss.curvature_at(w) - exact) > bound).any()


def test_the_three_places_of_a_quadratic_are_one():
    """The gradient of a linear model's squared error at sampled targets does not depend on its weights."""
    generator = torch.Generator().manual_seed(2)
    model, x = nn.Linear(6, 3, bias=False).double(), torch.randn(16, 6, generator=generator).double()
    found = []
    for place in ("weight", "rounded", "mixture"):
        penalty = LotionPenalty(model, "int2/absmax/row", curvature="gnb", curvature_at=place)
        penalty.warm_up(range(5), lambda _: model(x), loss="squared")
        found.append(penalty.curvature_of("weight"))
    # A target is an output plus noise, rounded: half an ulp of numbers of size 10 against noise of size 1.
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", ["fisher", "gnb", "hutchinson", "kfac"])
@pytest.mark.parametrize("place", ["weight", "mixture"])
def test_measuring_leaves_nothing_behind(kind, place):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4))
    x, y = torch.randn(24, 8), torch.randint(0, 4, (24,))
    penalty = LotionPenalty(model, "int3/absmax/row", curvature=kind, curvature_at=place)
    if kind == "kfac":
        penalty.watch(model)
    kept = [torch.randn_like(p) for p in model.parameters()]
    for p, gradient in zip(model.parameters(), kept, strict=True):
        p.grad = gradient
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()

    def closure():
        logits = model(x)
        return logits if kind == "gnb" else nn.functional.cross_entropy(logits, y)

    assert penalty.measure(closure, batch_size=len(x)) and penalty.curvature.ready
    assert (penalty.curvature_of("0.weight") > 0).any()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), kept, strict=True))
    # Also where the pass fails.
    with pytest.raises(ZeroDivisionError):
        penalty.measure(lambda: closure() / (1 // 0), batch_size=len(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), kept, strict=True))


def test_the_fisher_of_a_place_is_the_squared_gradient_there():
    model, x, y = linear_net(1)
    penalty = LotionPenalty(model, "int3", curvature_at="rounded", curvature_every=3, seed=5)
    due = []
    for step in range(4):
        due.append(penalty.measure(lambda: nn.functional.mse_loss(model(x), y), batch_size=8))
        if step == 0:
            with moved_to("rounded", penalty.items, 5, 0):
                (gradient,) = torch.autograd.grad(nn.functional.mse_loss(model(x), y), model[0].weight)
            torch.testing.assert_close(penalty.curvature_of("0.weight"), 8 * gradient**2)
        penalty.add_gradient_()
        penalty.step()
    assert due == [True, False, False, True]
    # The same by hand, in the block that the closure runs in.
    other = LotionPenalty(model, "int3", curvature_at="rounded", seed=5)
    with other.measuring():
        (4 * nn.functional.mse_loss(model(x), y)).backward()
        other.observe(batch_size=8, scale=4.0)
    torch.testing.assert_close(other.curvature_of("0.weight"), 8 * gradient**2)


def test_kfac_takes_sampled_labels_at_a_place():
    """What training's own passes go through is not recorded; the factors are those of sampled labels at the rounding."""
    model, x = mlp(), torch.randn(16, 8)
    penalty = LotionPenalty(model, "int3", curvature="kfac", curvature_at="rounded")
    penalty.watch(model)
    model(x).square().sum().backward()
    assert penalty.measure(lambda: model(x), loss="cross_entropy")
    other = LotionPenalty(model, "int3", curvature="kfac")
    other.watch(model)
    with moved_to("rounded", penalty.items, 0, 0):
        gnb_update(other, model(x))
    torch.testing.assert_close(penalty.curvature_of("0.weight"), other.curvature_of("0.weight"))


def test_a_resumed_run_measures_at_the_same_points():
    def steps(penalty, model, x, y, count):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(count):
            penalty.measure(lambda: model(x), loss="squared")
            nn.functional.mse_loss(model(x), y).backward()
            penalty.add_gradient_()
            optimizer.step(), optimizer.zero_grad(), penalty.step()

    def made(model):
        return LotionPenalty(model, "int3", curvature="gnb", curvature_at="mixture", curvature_every=2)

    model, x, y = linear_net(2)
    penalty = made(model)
    steps(penalty, model, x, y, 3)
    saved, other = copy.deepcopy(penalty.state_dict()), copy.deepcopy(model)
    steps(penalty, model, x, y, 3)
    again = made(other)
    again.load_state_dict(saved)
    steps(again, other, x, y, 3)
    assert np.array_equal(flat(other), flat(model))


def test_a_warm_up_gives_the_first_step_curvature():
    """Its measurements have points and targets of their own, and nothing is counted."""
    model, x, _ = linear_net(3)
    penalty = LotionPenalty(model, "int3", curvature="gnb", curvature_at="rounded", decay=0.9)
    seen = []
    penalty.warm_up(range(3), lambda _: seen.append(flat(model)) or model(x), loss="squared")
    assert len(seen) == 3 and not np.array_equal(seen[0], seen[1])
    assert penalty.curvature.ready and int(penalty.count) == 0
    found = penalty.curvature_of("0.weight")
    assert sum(float(v) for v in penalty.parts().values()) > 0
    alone = LotionPenalty(model, "int3", curvature="gnb", curvature_at="rounded", decay=0.9)
    alone.measure(lambda: model(x), loss="squared")
    assert not torch.allclose(alone.curvature_of("0.weight"), found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature_at": "middle"}, "curvature_at = 'middle'; valid: weight, rounded, mixture"),
        (
            {"curvature_at": "rounded", "curvature": "adam", "batch_size": 4},
            "curvature 'adam' is not measured by a pass",
        ),
        ({"curvature_every": 0}, "curvature_every = 0"),
    ],
)
def test_places_that_are_not_valid(settings, message):
    model = mlp()
    if settings.get("curvature") == "adam":
        settings = {**settings, "optimizer": torch.optim.Adam(model.parameters())}
    with pytest.raises(ValueError, match=message):
        LotionPenalty(model, "int4", **settings)


def test_curvature_of_the_weights_is_not_taken_for_another_place():
    model, x = mlp(), torch.randn(6, 8)
    for kind, feed in (
        ("fisher", lambda p: p.observe(6)),
        ("gnb", lambda p: gnb_update(p, model(x))),
        ("hutchinson", lambda p: hutchinson_update(p, model(x).square().mean())),
    ):
        penalty = LotionPenalty(model, "int4", curvature=kind, curvature_at="mixture")
        with pytest.raises(RuntimeError, match=r"curvature_at = 'mixture' is measured by measure\(\)"):
            feed(penalty)
    with (
        pytest.raises(RuntimeError, match="this one is 'given'"),
        LotionPenalty(model, "int4", curvature="given").measuring(),
    ):
        pass
    with pytest.raises(ValueError, match="curvature 'fisher' needs batch_size"):
        LotionPenalty(model, "int4").measure(lambda: model(x).sum())


# --- curvature for any loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_gaussian_targets_give_the_gauss_newton_diagonal_of_a_squared_error(activation):
    """600 draws. Given the inputs a draw is g χ²₁, of variance 2 g²: the gradient is linear in the Gaussian noise."""
    draws, k = 600, 3
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, k)).double()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(8)).double()
    penalty = LotionPenalty(model, "int4", curvature="gnb", decay=DECAY)
    for _ in range(draws):
        gnb_update(penalty, model(x), loss="squared")
        penalty.step()
    for name in ("0.weight", "2.weight"):
        jacobian = torch.func.jacrev(lambda p, name=name: torch.func.functional_call(model, {name: p}, (x,)))(
            model.get_parameter(name).detach()
        )
        exact = 2 / k * jacobian.detach().square().sum(dim=1).mean(dim=0)
        # χ² has heavier tails than the normal law: 4 standard errors are far inside of the bound for so many draws.
        bound = tolerances.standard_error_bound(2 * exact.numpy() ** 2, effective(draws), FALSE_ALARM, exact.numel())
        assert (np.abs((penalty.curvature_of(name) - exact).numpy()) <= bound + 1e-300).all()


def test_hutchinson_gives_the_diagonal_of_the_hessian():
    """300 draws on a tanh net, whose diagonal has negative entries too; the variance of a draw is Σ_j≠i H_ij²."""
    draws = 300
    model = mlp((3, 4, 2), torch.float64)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(9)).double()
    y = 3 * torch.randn(8, 2, generator=torch.Generator().manual_seed(10)).double()
    names = ("0.weight", "2.weight")
    sizes = [model.get_parameter(name).numel() for name in names]

    def loss_at(flattened):
        parts = flattened.split(sizes)
        values = {n: p.reshape(model.get_parameter(n).shape) for n, p in zip(names, parts, strict=True)}
        return nn.functional.mse_loss(torch.func.functional_call(model, values, (x,)), y)

    hessian = torch.func.hessian(loss_at)(torch.cat([model.get_parameter(n).detach().reshape(-1) for n in names]))
    hessian = hessian.detach()
    exact = hessian.diagonal()
    spread = hessian.square().sum(dim=1) - exact**2
    penalty = LotionPenalty(model, "int4", curvature="hutchinson", decay=DECAY)
    for step in range(draws):
        hutchinson_update(penalty, nn.functional.mse_loss(model(x), y), probes=1 + step % 2)
        penalty.step()
    found = torch.cat([(penalty.curvature.estimate(k) * penalty.curvature.factor()).reshape(-1) for k in range(2)])
    bound = tolerances.standard_error_bound(spread.numpy(), effective(draws), FALSE_ALARM, len(exact))
    assert (np.abs((found - exact).numpy()) <= bound).all()
    assert (exact < 0).any(), "a tanh net has directions that curve down"
    used = torch.cat([penalty.curvature_of(name).reshape(-1) for name in names])
    assert torch.equal(used, found.clamp(min=0))


def test_a_diagonal_hessian_takes_one_probe():
    """v · (H v) is the diagonal itself then, whatever the signs."""
    p = nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64))
    h = torch.tensor([[1.0, 2.0], [0.5, 4.0]], dtype=torch.float64)
    penalty = LotionPenalty([("w", p)], "int4", curvature="hutchinson")
    hutchinson_update(penalty, (h * p.square()).sum() / 2)
    torch.testing.assert_close(penalty.curvature_of("w"), h, rtol=1e-15, atol=0)
    # A loss that is linear in the weights has none.
    hutchinson_update(penalty, p.sum())
    torch.testing.assert_close(penalty.curvature.average[0], 0.99 * 0.01 * h)


def test_an_estimate_that_is_not_finite_is_left_out():
    p = nn.Parameter(torch.ones(2, 2))
    penalty = LotionPenalty([("w", p)], "int4", curvature="hutchinson")
    hutchinson_update(penalty, p.square().sum())
    before = penalty.curvature_of("w")
    hutchinson_update(penalty, float("inf") * p.square().sum())
    assert penalty.skipped == 1 and torch.equal(penalty.curvature_of("w"), before)


def test_losses_that_are_not_valid():
    model, x = mlp(), torch.randn(4, 8)
    with pytest.raises(ValueError, match="loss = 'hinge'; valid: cross_entropy, squared"):
        gnb_update(LotionPenalty(model, "int4", curvature="gnb"), model(x), loss="hinge")
    penalty = LotionPenalty(model, "int4", curvature="hutchinson")
    with pytest.raises(RuntimeError, match="there is no curvature yet: call hutchinson_update"):
        penalty()
    with pytest.raises(ValueError, match="one number with its graph"):
        hutchinson_update(penalty, model(x))
    with pytest.raises(ValueError, match="probes = 0"):
        hutchinson_update(penalty, model(x).sum(), probes=0)
    with pytest.raises(RuntimeError, match="this one is 'fisher'"):
        hutchinson_update(LotionPenalty(model, "int4"), model(x).sum())


# --- the sampled gradient --------------------------------------------------------------------------------------------


def test_straight_through_at_a_rounding_with_its_curvature_is_the_sampled_gradient():
    """RR-STE's gradient at q and the penalty's with the curvature at q (C22), against the reference at the same q."""
    model, x, y = linear_net(4)
    loss, w = Squared(x, y), flat(model)
    q = lt.Quantizer.parse("int3/absmax/block=4")
    st = StraightThrough(model, "int3", "rr_ste", seed=1)
    penalty = LotionPenalty(model, "int3", curvature="given")
    with st:
        point = flat(model)
        nn.functional.mse_loss(model(x), y).backward()
    st.before_step_()
    values = torch.from_numpy(loss.curvature_at(point))
    penalty.set_curvature_({"0.weight": values[:4].reshape(2, 2), "1.weight": values[4:].reshape(2, 2)})
    penalty.add_gradient_()
    found = np.concatenate([p.grad.reshape(-1).numpy() for p in model.parameters()])
    stated = gradients.corrected(loss, q, w, point[None], moving=True)[0]
    np.testing.assert_allclose(found, stated, rtol=1e-12, atol=1e-13)
