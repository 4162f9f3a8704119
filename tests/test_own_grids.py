"""LSQ and QuEST on their own grids: the textbook's gradient, one grid in training, evaluation and export, and resuming."""

import math

import pytest
import torch
from torch import nn

from lotion_theory import Quantizer, Stream
from lotion_theory.export import decode, encode, load_packed
from lotion_theory.training import StraightThrough, quantized
from testbeds.lm.export import export_run
from testbeds.lm.loop import checkpoint
from testbeds.lm.loop.train import train
from testbeds.lm.model.decoder import Decoder
from testbeds.lm.text.sequences import fixed_batch, fixed_sequences, load_tokens
from tests.lm_cases import assert_same_bits, interrupted_at, lines, small
from tests.torch_models import mlp

FORMATS = ["int2", "int3/absmax/row", "int4/absmax/block=4", "int8/absmax/row", "ternary/absmax/row", "binary"]
VARIANTS = [("lsq", {}), ("quest", {}), ("quest", {"grid": "absmax"}), ("pact", {"clip": 1.5})]


def weights(dtype=torch.float32, rows=6, size=8):
    """Rows of many sizes, one of them zeros, and heavy tails."""
    u = torch.from_numpy(Stream(3, "own grids").numpy_generator().standard_normal((rows, size)))
    w = u**3 * torch.logspace(-3, 3, rows, dtype=torch.float64)[:, None]
    w[2] = 0
    return nn.Parameter(w.to(dtype))


def trainer(method, text, settings, w):
    st = StraightThrough([("w", w)], text, method, **settings)
    if st.parameters():
        # Off their starting values, as after some training.
        with torch.no_grad():
            st.parameters()[0].mul_(1.37)
    return st


# --- the grid --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [1, 3, 7, 127])
def test_gradient_of_a_learned_step_is_that_of_the_textbook(positive):
    """Autograd of ``s · round(clip(v / s))`` with a straight-through round, scaled by ``1/√(N Q_P)`` (eqs. 1-3)."""
    text = {1: "ternary", 3: "int3", 7: "int4", 127: "int8"}[positive] + "/absmax/row"
    w = weights(torch.float64)
    st = trainer("lsq", text, {}, w)
    (learned,) = st.parameters()
    # The parameter is √Q_P steps, and what it moves the step by under plain descent is the textbook's.
    step = learned / math.sqrt(positive)
    goal = torch.linspace(-1, 1, w.numel(), dtype=torch.float64).view(w.shape)
    with st:
        ((w - goal) ** 2).sum().backward()
    st.before_step_()

    v, s = w.detach().clone().requires_grad_(), step.detach().clone().requires_grad_()
    inside = (v / s).clamp(-positive, positive)
    point = s * (inside + (inside.round() - inside).detach())
    ((point - goal) ** 2).sum().backward()
    torch.testing.assert_close(w.grad, v.grad, rtol=1e-12, atol=0)
    moved = learned.grad / math.sqrt(positive)
    torch.testing.assert_close(moved, s.grad / math.sqrt(w.shape[1] * positive), rtol=1e-10, atol=1e-12)
    assert bool((s.grad != 0).any())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "settings"), VARIANTS, ids=str)
def test_cast_is_the_point_of_training_and_is_stored_exactly(method, settings, dtype):
    for text in FORMATS:
        w = weights(dtype)
        st = trainer(method, text, settings, w)
        grid = st.quantizer("w")
        cast = grid.cast(w.detach())
        assert torch.equal(cast, st.points()["w"]), text
        with quantized(st):
            assert torch.equal(w, cast)
        assert torch.equal(decode(encode(w.detach(), grid)), cast)
        if (method, settings) == ("quest", {"grid": "absmax"}):
            assert grid is st.items[0].quantizer
        else:
            levels = {"int2": 3, "ternary/absmax/row": 3, "binary": 2}.get(text)
            count = len(grid.codebook.levels)
            assert count == (levels if method == "lsq" and levels else count) and grid.codebook.step is not None
    with pytest.raises(ValueError, match="'v' is not trained here; valid: w"):
        st.quantizer("v")


@pytest.mark.parametrize("method", ["lsq", "quest"])
def test_rounding_is_unbiased_inside_the_range_and_clips_beyond_it(method):
    w = weights(torch.float64)
    st = trainer(method, "int4/absmax/row", {}, w)
    if method == "lsq":
        st.parameters()[0].detach().mul_(0.3)
    grid, draws = st.quantizer("w"), 1000
    top = grid.cast(torch.where(w > 0, 1e9, -1e9) * torch.ones_like(w)).abs()
    clipped = torch.minimum(torch.maximum(w.detach(), -top), top)
    assert 0 < st.clipped() == float((w.abs() > top).double().mean()) < 1
    # The mean over equally spaced uniforms is that of the law up to a cell over their number.
    mean = sum(grid.round(w.detach(), torch.full_like(w, (k + 0.5) / draws)) for k in range(draws)) / draws
    lo, hi = grid.bracket(w.detach())
    assert bool(((mean - clipped).abs() <= (hi - lo) / draws + 1e-12 * top).all())
    assert bool(((mean - w.detach()).abs() > 0).any())
    assert trainer("quest", "int4", {"grid": "absmax"}, weights()).clipped() == 0


def test_range_of_quest_is_its_constant_times_the_root_mean_square():
    w = weights(torch.float64)
    grid = StraightThrough([("w", w)], "int4/absmax/row", "quest").quantizer("w")
    assert [int(c) for c in grid.codebook.levels] == list(range(-15, 16, 2))
    high = grid.cast(torch.full_like(w, 1e9))[:, 0]
    torch.testing.assert_close(high, 2.51393 * w.detach().square().mean(1).sqrt())


def test_learned_steps_start_from_the_weights_where_the_method_starts():
    model = mlp()
    st = StraightThrough(model, "int4/absmax/row", "lsq", start=3)
    w, step = model[0].weight, st.parameters()[0]
    for number in range(1, 6):
        with torch.no_grad():
            w.add_(0.1)
            if number > 3:
                step.mul_(1.5)
        kept = step.detach().clone()
        st.step()
        # √7 steps of 2 mean|w| / √7.
        started = 2 * w.detach().abs().mean(1, keepdim=True)
        torch.testing.assert_close(step.detach(), started if number <= 3 else kept)


def test_given_tops_are_checked():
    w = weights().detach()
    q = Quantizer.parse("int4/absmax/row")
    top = torch.rand(6, 1)
    assert torch.equal(q.with_top(top).cast(torch.full_like(w, 9.0)), top.expand(6, 8))
    for bad, message in [(-top, "not be negative"), (top[:3], r"shape \(3, 1\), expected \(6, 1\)"), (top / 0, "top")]:
        with pytest.raises(ValueError, match=message):
            q.with_top(bad).cast(w)
    for bad in (top.double(), top.numpy()):
        with pytest.raises(TypeError, match="top is of type"):
            q.with_top(bad).cast(w)


# --- in the trainer of language models -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=VARIANTS[:2], ids=str)
def run(request, tmp_path_factory):
    name, settings = request.param
    config = small(method__name=name, method__settings=settings, method__format="int3/absmax/block=16")
    folder = tmp_path_factory.mktemp(name)
    return config, folder, train(config, folder)


def textbook(config, w, learned, u):
    """The weight rounded on a grid written out: to nearest, or with ``u`` at random."""
    blocks = w.double().reshape(-1, 16)
    if config.method.name == "lsq":
        # In the type of training, so that a weight midway between two levels goes the same way.
        step, shift, last = (learned * math.sqrt(3)).double() / 3, 0.0, 3
    else:
        step, shift, last = 2 * 2.05107 * blocks.square().mean(1, keepdim=True).sqrt() / 7, 0.5, 4
    # Codes shift - last, ..., last - shift.
    place = (blocks / step).clamp(shift - last, last - shift) + shift
    code = place.round() if u is None else place.floor() + (u.double().reshape(-1, 16) < place - place.floor())
    return (step * (code - shift)).reshape(w.shape).float()


def test_evaluation_is_that_of_the_grid_written_out(run):
    config, folder, result = run
    parts = checkpoint.load(folder / "checkpoints").parts
    model, held_out = Decoder(config.model), load_tokens(config.data)[1]
    numbers = fixed_sequences(held_out, 16, 8, 0)
    x, y = (torch.from_numpy(a) for a in fixed_batch(held_out, 16, numbers))

    @torch.no_grad()
    def loss(sample):
        model.load_state_dict(parts["model"])
        for name, w in model.named_parameters():
            if name.startswith("blocks.") and w.ndim == 2:
                stream = Stream(0, "lm/evaluation/rounding").spawn(name)
                u = None if sample is None else stream.uniforms(tuple(w.shape), sample, like=w)
                w.copy_(textbook(config, w, parts["method"]["learned"].get(name), u))
        return float(model(x, y))

    metrics = result["metrics"]
    # Levels differ by roundings of float32, losses of eight windows by a few ulp of their sums.
    assert metrics["rtn_loss"] == pytest.approx(loss(None), rel=1e-5)
    assert metrics["rr_loss"] == pytest.approx((loss(0) + loss(1)) / 2, rel=1e-5)
    assert abs(metrics["rtn_loss"] - metrics["float_loss"]) > 1e-4
    clipped = [line["clipped"] for line in lines(folder) if line["kind"] == "train"]
    assert len(clipped) == 20 and 0 < clipped[-1] < 1


@pytest.mark.parametrize(
    ("name", "settings"), [("lsq", {}), ("lsq", {"start": 0.3, "rate": 0.5}), ("quest", {})], ids=str
)
def test_resumed_runs_equal_uninterrupted_ones(name, settings, tmp_path):
    config = small(method__name=name, method__settings=settings, run__evaluate_every=7)
    train(config, tmp_path / "whole")
    for step in (3, 12):
        parts = tmp_path / f"interrupted at {step}"
        interrupted_at(step, parts, config)
        train(config, parts)
        assert_same_bits(tmp_path / "whole", parts)
        a, b = (checkpoint.load(out / "checkpoints").parts["method"] for out in (tmp_path / "whole", parts))
        assert a["learned"].keys() == b["learned"].keys() and len(a["learned"]) == (14 if name == "lsq" else 0)
        assert all(torch.equal(a["learned"][k], b["learned"][k]) for k in a["learned"])


def test_learned_steps_are_trained_at_their_own_rate(tmp_path):
    ends = {}
    for rate in (1e-9, 1.0):
        train(small(method__name="lsq", method__settings={"rate": rate}), tmp_path / str(rate))
        ends[rate] = checkpoint.load(tmp_path / str(rate) / "checkpoints").parts["method"]["learned"]
    model = Decoder(small().model)
    model.initialize(0)
    for name, first in ((n, 2 * model.get_parameter(n).detach().reshape(-1, 16).abs().mean(1)) for n in ends[1.0]):
        torch.testing.assert_close(ends[1e-9][name][:, 0], first)
        # Adam moves by at most about the learning rate per step: 20 of up to 0.01.
        change = (ends[1.0][name][:, 0] - first).abs()
        assert 1e-3 * 7**0.5 < float(change.max()) < 20 * 0.01 * 1.5


def test_exported_points_are_those_evaluated(run, tmp_path):
    config, folder, _ = run
    found = export_run(folder, tmp_path / "m.safetensors")
    parts, loaded = checkpoint.load(folder / "checkpoints").parts, load_packed(tmp_path / "m.safetensors", like="torch")
    blocks = [name for name, w in parts["model"].items() if name.startswith("blocks.") and w.ndim == 2]
    assert found["tensors"] == len(blocks) == 14 and found["bits"] == 3 + 32 / 16
    for name, w in parts["model"].items():
        if name in blocks:
            expected = textbook(config, w, parts["method"]["learned"].get(name), None)
            torch.testing.assert_close(loaded[name], expected, rtol=1e-6, atol=0)
        else:
            assert torch.equal(loaded[name], w)
    with pytest.raises(
        ValueError, match=r"kind = 'gguf': method (lsq|quest) trains on a grid of its own; valid: packed"
    ):
        export_run(folder, tmp_path / "m.gguf", "gguf")


@pytest.mark.parametrize("text", ["e2m1/absmax/row", "nf4/absmax/block=4"])
def test_a_learned_highest_level_serves_any_levels(text):
    w = weights(torch.float64)
    st = trainer("lsq", text, {}, w)
    grid = st.quantizer("w")
    assert grid.codebook is st.items[0].quantizer.codebook
    assert torch.equal(grid.cast(w.detach()), st.points()["w"])


@pytest.mark.parametrize("name", ["lsq", "quest"])
def test_formats_without_a_grid_to_learn_are_refused(name):
    if name == "quest":
        with pytest.raises(ValueError, match="codebook e2m1: quest is for uniform levels"):
            train(small(method__name=name, method__format="fp4/absmax/block=16"))
    with pytest.raises(ValueError, match="needs an absmax scale and levels from -c to c"):
        train(small(method__name=name, method__format="int4full/absmax/block=16"))
