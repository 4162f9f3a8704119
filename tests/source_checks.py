"""Every method against what it is named after: formulas of papers and of released code, written here a second time.

A check runs the method's own functions and the source's formula on the same numbers and returns the largest difference.
The formulas are written with autograd in mind, as their authors run them; ours give derivatives by hand.
``python scripts/sources.py`` prints the table.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor, nn

from lotion_theory import Stream
from lotion_theory.methods import hestia, method, stable_qat
from lotion_theory.rounders import Case, gsq, rounder
from lotion_theory.training import LotionPenalty
from testbeds.descent import plain
from testbeds.descent.cbo import consensus, consensus_point, move
from tests.rival_cases import parameters_at, quadratic, state_at

SIZE = 16
FORMAT = f"int4/absmax/block={SIZE}"
TOP = 7


@dataclass(frozen=True)
class Held:
    """``method`` in a ``form``, held to ``source`` in ``what``. ``measure()``: the largest difference, ``limit`` at the
    most. ``needs``: a library that is the oracle, where it is no part of the toolkit."""

    method: str
    form: str
    source: str
    what: str
    limit: float
    measure: Callable[[], float]
    needs: str = ""

    @property
    def there(self) -> bool:
        """Whether the oracle is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


CHECKS: list[Held] = []


def held(name: str, form: str, source: str, what: str, limit: float = 1e-12, needs: str = "") -> Callable:
    """Put a check into the table. The limit is some thousand rounding errors of float64 unless said."""

    def register(measure: Callable[[], float]) -> Callable[[], float]:
        CHECKS.append(Held(name, form, source, what, limit, measure, needs))
        return measure

    return register


def _numbers(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two blocks of weights, loss gradients, positive curvatures and uniforms."""
    rng = np.random.default_rng(seed)
    return *rng.standard_normal((2, 2 * SIZE)), rng.random(2 * SIZE) + 0.1, rng.random(2 * SIZE)


def _gap(mine: np.ndarray, theirs: Tensor) -> float:
    return float(np.abs(mine - theirs.detach().numpy().ravel()).max())


def difference(
    name: str,
    oracle: Callable,
    settings: dict | None = None,
    progress: float = 0.5,
    q: str = FORMAT,
    penalty: bool = False,
) -> float:
    """Largest difference in the point of the loss and in what the optimizer is given for the weights.

    ``oracle(v, h, u)``: of weights (blocks, n) that require gradients, the point; with ``penalty`` also a number that is
    added to the loss.
    """
    w, g, h, u = _numbers()
    state = state_at(method(name)(**(settings or {})), w, q)
    state.h[:] = h
    p, a = plain.place(state, u), parameters_at(state, progress)
    point = state.rule.point(p, a) + 0 * w
    d, _ = plain.direction(state, p, g, a)
    v = torch.tensor(w.reshape(2, SIZE), requires_grad=True)
    found = oracle(v, torch.tensor(h.reshape(2, SIZE)), torch.tensor(u.reshape(2, SIZE)))
    theirs, extra = found if penalty else (found, 0.0)
    ((theirs * torch.tensor(g.reshape(2, SIZE))).sum() + extra).backward()
    return max(_gap(point, theirs), _gap(d, v.grad))


def learned_difference(name: str, oracle: Callable, unit: float, factor: float, settings: dict | None = None) -> float:
    """The same for a learned number per block, ``top / unit`` in the source, whose gradient that multiplies by
    ``factor``: what plain gradient descent moves it by."""
    w, g, _, _ = _numbers()
    state = state_at(method(name)(**(settings or {})), w, FORMAT)
    state.top[:] = state.top * (0.6, 0.9)
    p, a = plain.place(state, np.zeros_like(w)), parameters_at(state)
    d, slopes = plain.direction(state, p, g, a)
    v = torch.tensor(w.reshape(2, SIZE), requires_grad=True)
    s = torch.tensor(state.top * state.span / unit).reshape(2, 1).requires_grad_()
    theirs = oracle(v, s)
    (theirs * torch.tensor(g.reshape(2, SIZE))).sum().backward()
    moved = slopes * state.span / unit
    return max(_gap(p.near, theirs), _gap(d, v.grad), _gap(moved, s.grad * factor))


def rounded(x: Tensor) -> Tensor:
    """Round to nearest with a straight-through gradient."""
    return x + (x.round() - x).detach()


def step_of(v: Tensor) -> Tensor:
    """The step of the absmax grid, (blocks, 1), with its gradient."""
    return v.abs().amax(dim=1, keepdim=True) / TOP


# --- training methods ------------------------------------------------------------------------------------------------


@held("qat", "detached scale", "Bengio et al. 1308.3432 (STE)", "point, gradient")
def qat_detached() -> float:
    return difference("qat", lambda v, h, u: rounded(v / step_of(v).detach()) * step_of(v).detach())


@held("qat", "attached scale", "s · round(w/s) with STE, s = max|w|/7 in the graph", "point, gradient")
def qat_attached() -> float:
    return difference("qat", lambda v, h, u: rounded(v / step_of(v)) * step_of(v), {"scale": "attached"})


@held("rr_ste", "", "STE through randomized rounding", "point, gradient")
def rr_ste() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> Tensor:
        z = v / step_of(v).detach()
        return v + ((z.floor() + (u < z - z.floor())) * step_of(v).detach() - v).detach()

    return difference("rr_ste", oracle)


@held("diffq", "attached, uniform noise", "facebookresearch/diffq: w + step · ξ, ξ ~ U[-½, ½]", "point, gradient")
def diffq() -> float:
    return difference("diffq", lambda v, h, u: v + step_of(v) * (u - 0.5))


@held("quant_noise", "p = ½", "Fan, Stock et al. 2004.07320: E[w̃] = p Q(w) + (1 - p) w", "mean over the mask", 1e-12)
def quant_noise() -> float:
    w, _, _, _ = _numbers()
    state = state_at(method("quant_noise")(p=0.5, group=1), w, FORMAT)
    draws = [state.rule.point(plain.place(state, np.full_like(w, u)), np.array([0.5])) for u in (0.25, 0.75)]
    near = plain.place(state, np.zeros_like(w)).near
    return float(np.abs(np.mean(draws, axis=0) - 0.5 * (near + w)).max())


@held("cage", "coupled", "IST-DASLab/CAGE: g + λ (w - Q(w)), λ ramped after the silent share", "point, gradient")
def cage() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        q = (rounded(v / step_of(v).detach()) * step_of(v).detach()).detach()
        # Silent up to 0.8, so that at 0.9 half of λ = 10 is on.
        return v + (q - v).detach(), 0.5 * 5.0 * (v - q).square().sum()

    return difference("cage", oracle, {"form": "coupled"}, progress=0.9, penalty=True)


@held("cage", "limits in one dimension", "fixed points of g + λ e = 0", "(h w* + λ q)/(h + λ), q + h(w* - q)/λ", 5e-6)
def cage_limits() -> float:
    """h = 2, w* = 0.83, s = 0.25, λ = 10: 0.76333 with the gradient at the weight, 0.76600 with STE's."""
    ends = []
    for point in ("weight", "nearest"):
        rule, w = method("cage")(silent=0.0, ramp="constant", point=point), np.array([0.83, 1.75])
        state = state_at(rule, w)
        for _ in range(400):
            p = plain.place(state, np.zeros(2))
            g = 2.0 * (rule.point(p, (10.0,)) - w)
            state.w[0] -= 0.01 * (g[0] + rule.decay(p, 0, (10.0,))[0])
        ends.append(state.w[0])
    return float(max(abs(ends[0] - 9.16 / 12), abs(ends[1] - 0.766)))


@held("quest", "RMS grid", "IST-DASLab/QuEST: mid-rise grid, mask |q - y| <= T σ", "point, gradient")
def quest() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> Tensor:
        sigma = v.square().mean(dim=1, keepdim=True).sqrt().detach()
        top, step = 2.51393 * sigma, 2 * 2.51393 * sigma / 15
        q = step * ((torch.minimum(torch.maximum(v, -top), top) / step + 0.5).round() - 0.5)
        mask = (q - v).abs() <= 2.51393 / 15 * sigma
        return v * mask + (q - v * mask).detach()

    return difference("quest", oracle)


@held("lsq", "learned step", "Esser et al. 1902.08153, eqs. 1-3 and §2.2", "point, both gradients, 1/√(N Q_P)")
def lsq() -> float:
    return learned_difference("lsq", lambda v, s: rounded((v / s).clamp(-TOP, TOP)) * s, TOP, 1 / math.sqrt(SIZE * TOP))


@held("pact", "learned clip", "Choi et al. 1805.06085, eqs. 1-3, at ±α; MQBench pact.py", "point, both gradients")
def pact() -> float:
    def oracle(v: Tensor, alpha: Tensor) -> Tensor:
        # The clip as a sum of magnitudes, for both ends, and then a uniform quantizer whose own scale has no gradient.
        y = 0.5 * ((v + alpha).abs() - (v - alpha).abs())
        step = alpha.detach() / TOP
        return y + ((y / step).round() * step - y).detach()

    return learned_difference("pact", oracle, 1.0, 1.0)


@held("stable_qat", "learned step", "microsoft/StableQAT: LsqBinaryTernaryExtension.backward, amplitude 0.2",
      "gradient of the weights")  # fmt: skip
def stable() -> float:
    def oracle(v: Tensor, s: Tensor) -> Tensor:
        x = v / s
        wave = math.sqrt(2) * 0.2 * math.pi * torch.cos(math.pi * (x + x.round() - 1))
        slope = ((1 + wave) / (1 - wave)).detach() * (x.abs() <= TOP)
        straight = rounded((v.detach() / s).clamp(-TOP, TOP)) * s
        return straight + slope * (v - v.detach())

    return learned_difference("stable_qat", oracle, TOP, 1 / math.sqrt(SIZE * TOP))


@held(
    "stable_qat", "amplitude", "damped first harmonic of the turned triangle wave", "A at which the slope is 0", 1e-15
)
def stable_range() -> float:
    return abs(math.sqrt(2) * math.pi * stable_qat.LARGEST - 1)


@held("winq", "resets", "facebookresearch/WinQ: every K steps w ← α w + (1 - α) Q(w), α = 0.2", "weights, and when")
def winq_resets() -> float:
    w, _, _, _ = _numbers()
    rule, steps = method("winq")(noise=0.0, resets=4), 200
    state = state_at(rule, w, FORMAT)
    p, rows, out = plain.place(state, np.full_like(w, 0.5)), rule.parameters(np.arange(200) / 200), 0.0
    for t in range(steps):
        theirs = 0.2 * w + (1 - 0.2) * p.near if (t + 1) % 50 == 0 else w
        out = max(out, float(np.abs(state.rule.reset(p, rows[t]) - theirs).max()))
    return out


@held("winq", "between resets", "the same: LSQ at noisy weights, here without the noise", "point, both gradients")
def winq_lsq() -> float:
    return learned_difference(
        "winq", lambda v, s: rounded((v / s).clamp(-TOP, TOP)) * s, TOP, 1 / math.sqrt(SIZE * TOP), {"noise": 0.0}
    )


@held("dsq", "α = 0.4", "Gong et al. 1908.05033; MQBench dsq.py: φ by autograd", "point, gradient")
def dsq() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> Tensor:
        step, k = step_of(v).detach(), math.log(2 / 0.4 - 1)
        x = v / step
        middle = x.detach().floor() + 0.5
        soft = middle + 0.5 * torch.tanh(k * (x - middle)) / math.tanh(k / 2)
        return (soft + (x.round() - soft).detach()) * step

    return difference("dsq", oracle)


@held("dgm", "β = 1", "Bao et al. 2511.07903, eq. 6 as printed: g by autograd", "point, gradient")
def dgm() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> Tensor:
        step = step_of(v).detach()
        x = v / step
        part = x - x.detach().floor()
        soft = x.detach().floor() + 0.5 * torch.tanh(1.0 * part - 0.5) / math.tanh(0.5) + 0.5
        return (soft + (x.round() - soft).detach()) * step

    return difference("dgm", oracle)


@held("parq", "annealed proximal map", "torchao ProxPARQ, steepness 10", "point in mid-annealing", 1e-12, "torchao")
def parq() -> float:
    from torchao.prototype.parq.optim.parq import ProxPARQ

    w, _, _, _ = _numbers()
    out = 0.0
    for progress in (0.0, 0.3, 0.5, 0.8, 0.95):
        state = state_at(method("parq")(), w, FORMAT)
        p = plain.place(state, np.zeros_like(w))
        mine = state.rule.point(p, parameters_at(state, progress))
        for k in range(2):
            block = torch.tensor(w[k * SIZE : (k + 1) * SIZE])
            levels = torch.arange(-TOP, TOP + 1, dtype=torch.float64) * (block.abs().max() / TOP)
            ProxPARQ(0, 1000).apply_(block, None, levels, round(1000 * progress))
            # The largest weight is a level of ours; theirs is a rounding away from it.
            out = max(out, _gap(mine[k * SIZE : (k + 1) * SIZE], block))
    return out


def _hestia(progress: float, tau: float) -> float:
    """The released quantizer: softmax over codes at w / mean|w|, interpolated with the weights at first."""
    pressure = min(progress / 0.2, 1.0)

    def oracle(v: Tensor, h: Tensor, u: Tensor) -> Tensor:
        a = v.abs().mean(dim=1, keepdim=True)
        codes = torch.arange(-TOP, TOP + 1, dtype=torch.float64)
        shares = torch.softmax(-((v / a).unsqueeze(-1) - codes).square() / (tau + 1e-6), dim=-1)
        return torch.lerp(v, (shares * codes).sum(-1) * a, pressure)

    return difference("hestia", oracle, progress=progress)


@held("hestia", "mean-magnitude scale", "hestia2026/Hestia: ThermoQuantizer.forward, cosine", "point, gradient", 1e-11)
def hestia_released() -> float:
    tau0 = hestia.METHOD.settings["tau0"]
    return max(
        _hestia(0.1, tau0), _hestia(0.2, tau0), _hestia(0.6, tau0 / 2), _hestia(0.9, tau0 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    )  # fmt: skip


@held("hestia", "at temperature 0", "hestia2026/Hestia: hard rounding with STE, scale in the graph", "point, gradient")
def hestia_cold() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> Tensor:
        a = v.abs().mean(dim=1, keepdim=True)
        return v + (v / a).detach().round().clamp(-TOP, TOP) * a - v.detach()

    return difference("hestia", oracle, {"tau0": 0.0, "warm": 0.0})


@held("crown_q", "released", "record's code: λ Σ_rows mean(w²) (max|w|/c)²/12, late", "point, gradient of the penalty")
def crown_q() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        q = rounded(v / step_of(v).detach()) * step_of(v).detach()
        return q, 0.3 * (v.square().mean(dim=1) * (v.abs().amax(dim=1) / TOP).square() / 12).sum()

    return difference("crown_q", oracle, {"weight": 0.3}, progress=0.9, penalty=True)


@held("crown_q", "published", "record's README: λ Σ w² δ²/12, δ detached", "point, gradient of the penalty")
def crown_q_published() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return v, 0.3 * (v.square() * (step_of(v).detach()).square() / 12).sum()

    return difference("crown_q", oracle, {"weight": 0.3, "variant": "published"}, penalty=True)


@held("lotion", "attached", "Kwun et al. 2510.08757: L + ½ Σ h Var(RR), s in the graph", "gradient of the penalty")
def lotion() -> float:
    def oracle(v: Tensor, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        s = step_of(v)
        below = (v / s).detach().floor()
        share = v / s - below
        # On its own level the largest weight has no variance; a rounding of w/s must not give it one.
        share = share * (share.detach() > 1e-9) * (share.detach() < 1 - 1e-9)
        return v, 0.5 * (h * s.square() * share * (1 - share)).sum()

    return difference("lotion", oracle, penalty=True)


@held("lotion", "smoothed loss of a quadratic", "E L(RR(w)) by enumeration of 2⁸ roundings", "L + ½ Σ h Var", 1e-14)
def lotion_enumerated() -> float:
    rng = np.random.default_rng(5)
    w, h, center = rng.standard_normal(8), rng.random(8), rng.standard_normal(8)
    p = plain.place(state_at(method("lotion")(), w, "int4"), np.zeros(8))
    up = (p.w - p.lo) / np.where(p.hi > p.lo, p.hi - p.lo, 1)
    total = 0.0
    for bits in itertools.product((0, 1), repeat=8):
        chosen = np.array(bits)
        x = np.where(chosen, p.hi, p.lo)
        total += np.prod(np.where(chosen, up, 1 - up)) * 0.5 * (h * (x - center) ** 2).sum()
    closed = 0.5 * (h * (w - center) ** 2).sum() + 0.5 * (h * (p.hi - w) * (w - p.lo)).sum()
    return abs(total - closed)


# --- rounding schemes ------------------------------------------------------------------------------------------------


def _case(n: int = 12) -> Case:
    rng = np.random.default_rng(2)
    root = rng.standard_normal((n, n))
    return Case.make(root @ root.T / n, rng.standard_normal(n), "int4")


@held("gptq", "damping 0", "Frantar et al. 2210.17323: (w - q)ᵀH(w - q) = Σ e²", "the identity, relative", 1e-11)
def gptq() -> float:
    case = _case()
    w, q = case.weights[0].copy(), np.empty(12)
    factor, errors = np.linalg.cholesky(np.linalg.inv(case.hessian)).T, []
    for i in range(12):
        q[i] = case.grid.nearest(np.broadcast_to(w[i], (1, 12)))[0, i]
        e = (w[i] - q[i]) / factor[i, i]
        errors.append(e)
        w[i:] -= e * factor[i, i:]
    mine = rounder("gptq")(case, Stream(0, "x"), damping=0.0)[0]
    away = case.weights[0] - mine
    return max(float(np.abs(mine - q).max()), abs(away @ case.hessian @ away / np.sum(np.square(errors)) - 1))


@held("gsq", "relaxation", "IST-DASLab/GSQ: GumbelSoftmaxFunction", "soft levels, gradient of the logits")
def gsq_softmax() -> float:
    rng = np.random.default_rng(3)
    logits, noise, slope = rng.standard_normal((1, 6, 5)), rng.gumbel(size=(1, 6, 5)), rng.standard_normal((1, 6))
    logits[0, 0, 3:] = -np.inf
    values, temperature, scale = 0.25 * (rng.integers(-3, 4, (1, 6, 1)) + np.arange(-2, 3)), 0.7, 3.0
    soft, shares = gsq.soft_levels(logits, values, noise, temperature, scale)
    mine = gsq.through_softmax(slope, values, shares) * (scale / temperature)
    z = torch.tensor(np.where(np.isfinite(logits), logits, -1e9), requires_grad=True)
    theirs = (torch.softmax((z * scale + torch.tensor(noise)) / temperature, dim=-1) * torch.tensor(values)).sum(-1)
    (theirs * torch.tensor(slope)).sum().backward()
    return max(_gap(soft.ravel(), theirs), _gap(mine.ravel(), z.grad))


# --- a search, curvature and points ----------------------------------------------------------------------------------


@held("cbo", "drift", "Riedl et al. 2306.09778; CBXpy: m and one Euler-Maruyama step", "particles", 1e-13)
def cbo_drift() -> float:
    rng = np.random.default_rng(4)
    particles, energies, xi = rng.standard_normal((9, 3)), rng.random(9), rng.standard_normal((9, 3))
    shares = np.exp(-7.0 * energies) / np.exp(-7.0 * energies).sum()
    center = shares @ particles
    out = float(np.abs(consensus_point(particles, energies, 7.0) - center).max())
    for noise, reach in (
        ("anisotropic", np.abs(particles - center)), ("isotropic", np.linalg.norm(particles - center, axis=1)[:, None]),
    ):  # fmt: skip
        theirs = particles - 0.7 * 0.1 * (particles - center) + 1.3 * math.sqrt(0.1) * reach * xi
        mine = move(particles, center, xi, {"dt": 0.1, "drift": 0.7, "sigma": 1.3, "noise": noise})
        out = max(out, float(np.abs(mine - theirs).max()))
    return out


@held("cbo", "hopping schedule", "authors' CH script: width × 0.98 every 100 steps", "widths of the particles", 1e-12)
def cbo_hopping() -> float:
    """With α = 0 the consensus is the mean of the particles: its steps are known from the draws and the width."""
    problem, n, steps = quadratic([1.0, 1.0], [0.0, 0.0], [1.0, 1.0]), 4, 250
    centers = []
    consensus(
        problem, None, 3, {"kind": "hopping", "particles": n, "steps": steps, "alpha": 0.0, "spread": 0.5},
        watch=lambda step, center, best: centers.append(center),
    )  # fmt: skip
    stream, out = Stream(3, "cbo"), 0.0
    for step in range(1, steps + 1):
        mean = stream.numpy_generator(step).standard_normal((n, 2)).mean(axis=0)
        width = 0.5 * 0.98 ** ((step - 1) // 100)
        out = max(out, float(np.abs(centers[step] - centers[step - 1] - width * mean).max()))
    return out


def _data() -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(3, (8,), generator=generator)


def _kfac(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    penalty = LotionPenalty(model, "int4", curvature="kfac")
    handles = penalty.watch(model)
    nn.functional.cross_entropy(model(x), y).backward()
    penalty.observe(batch_size=len(x))
    for handle in handles:
        handle.remove()
    return {name: penalty.curvature_of(name) for name, _ in model.named_parameters()}


@held("kfac", "empirical, one token a sample", "E[d dᵀ] ⊗ E[a aᵀ], written out", "diagonal, relative", 1e-12)
def kfac_written_out() -> float:
    model, x, y = _data()
    mine, out = _kfac(model, x, y), 0.0
    for k, name in ((0, "0.weight"), (2, "2.weight")):
        inputs, grads = [], []
        for i in range(8):
            a = model[:k](x[i : i + 1]).detach()
            z = (a @ model[k].weight.t()).detach().requires_grad_()
            nn.functional.cross_entropy(model[k + 1 :](z), y[i : i + 1]).backward()
            inputs.append(a[0])
            grads.append(z.grad[0])
        a, d = torch.stack(inputs), torch.stack(grads)
        dense = torch.kron(d.t() @ d / 8, a.t() @ a / 8).diagonal().view(model[k].weight.shape)
        out = max(out, float((mine[name] / dense - 1).abs().max()))
    return out


@held("kfac", "the same", "curvlinops KFACLinearOperator(empirical, expand)", "diagonal, relative", 1e-10, "curvlinops")
def kfac_curvlinops() -> float:
    from curvlinops import KFACLinearOperator

    model, x, y = _data()
    mine, out = _kfac(model, x, y), 0.0
    operator = KFACLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], fisher_type="empirical", kfac_approx="expand"
    )
    diagonal = torch.as_tensor(operator @ torch.eye(35, dtype=torch.float64)).diagonal()
    for (name, weight), part in zip(model.named_parameters(), diagonal.split([20, 15]), strict=True):
        out = max(out, float((mine[name] / part.view(weight.shape) - 1).abs().max()))
    return out


def _fisher(**settings: object) -> float:
    """The mean over all pairs of batches of two samples, whose gradients are 1.5 or -0.5, of the estimate; over theirs."""
    samples = np.array(list(itertools.product([1.5, -0.5], repeat=4))).reshape(16, 2, 2)
    chances = np.where(samples > 0, 0.3, 0.7).prod(axis=(1, 2))
    p = nn.Parameter(torch.ones(1, 16, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.0, betas=(0.8, 0.95))
    adam = settings.get("curvature") == "adam"
    penalty = LotionPenalty(
        [("w", p)], "int4", **settings, **({"optimizer": optimizer, "batch_size": 2} if adam else {"decay": 0.8})
    )
    for t in range(2):
        p.grad = torch.tensor(samples[:, t].mean(axis=1))[None]
        if adam:
            optimizer.step()
        else:
            penalty.observe(batch_size=2)
    found = penalty.curvature.estimate(0)[0] * (1.0 if adam else penalty.curvature.factor())
    return abs(float((found * torch.tensor(chances)).sum()) / (0.3 * 1.5**2 + 0.7 * 0.5**2) - 1)


@held("fisher", "tracked mean", "EF = (E[g²] - (1 - 1/B) ḡ²) B for means of B samples", "expectation, relative")
def fisher_tracked() -> float:
    return _fisher(mean="tracked")


@held("fisher", "Adam's moments", "EF = B v - (B - 1) m², bias-corrected", "expectation, relative")
def fisher_adam() -> float:
    return _fisher(curvature="adam")


@held(
    "quasi-Monte Carlo",
    "scipy's Sobol' points, unscrambled",
    "qmcpy DigitalNetB2 (Joe-Kuo)",
    "the points",
    0.0,
    "qmcpy",
)
def sobol() -> float:
    import warnings

    import qmcpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the first point is the origin
        theirs = qmcpy.DigitalNetB2(dimension=20, randomize=False).gen_samples(256)
        mine = qmc.Sobol(20, scramble=False).random(256)
    # In another order: a Gray code's.
    return float(np.abs(np.array(sorted(map(tuple, mine))) - np.array(sorted(map(tuple, theirs)))).max())
