"""The training loop: against a loop by hand, the hooks of methods, what it writes, and what it refuses."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from testbeds.lm.loop import checkpoint
from testbeds.lm.loop.config import MethodConfig
from testbeds.lm.loop.schedules import learning_rate
from testbeds.lm.loop.train import train
from testbeds.lm.model.decoder import Decoder, flops_per_token
from testbeds.lm.model.methods import METHODS, Plain
from testbeds.lm.text.sequences import Order, load_tokens
from tests.lm_cases import SMALL, assert_same_bits, interrupted_at, lines, parts, small


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 20 steps without interruption: its folder."""
    out = tmp_path_factory.mktemp("straight")
    assert train(SMALL, out)["status"] == "ok"
    return out


# --- what is computed ------------------------------------------------------------------------------------------------


def test_steps_are_those_of_a_loop_by_hand(straight):
    model = Decoder(SMALL.model)
    model.initialize(0)
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim > 1]}, {"params": gains, "weight_decay": 0.0}],
        betas=(0.9, 0.95), weight_decay=0.1, foreach=False,
    )  # fmt: skip
    order = Order(load_tokens(SMALL.data)[0], 16, seed=0)
    losses = []
    for step in range(8):
        x, y = (torch.from_numpy(a) for a in order.batch(4 * step, 4))
        loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1.0, 1.0 / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(SMALL.optimizer, step, 20)
        optimizer.step()
        losses.append(loss.item())
    logged = [one for one in lines(straight) if one["kind"] == "train"]
    # The same operations in float32 except for the order of sums in the norm; eight steps amplify it little.
    assert [one["loss"] for one in logged[:8]] == pytest.approx(losses, rel=1e-5)
    assert [one["position"] for one in logged] == [4 * step for step in range(1, 21)]
    assert logged[-1]["loss"] < logged[0]["loss"] - 1


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_accumulated_gradients_are_those_of_the_batch(tmp_path, straight, micro_batch):
    train(small(run__micro_batch=micro_batch), tmp_path)
    a, b = ([one["loss"] for one in lines(out) if one["kind"] == "train"] for out in (straight, tmp_path))
    # Sums in another order, amplified by 20 steps of Adam.
    assert a == pytest.approx(b, rel=1e-3) and a[0] == pytest.approx(b[0], rel=1e-6)


def test_recomputation_trains_to_the_same_bits(tmp_path, straight):
    train(small(run__recompute=True), tmp_path)
    assert_same_bits(straight, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"model__mixer": "recurrence"}, {"run__precision": "bfloat16"}, {"model__tied": False}]
)
def test_other_models_train(changes):
    result = train(small(steps=12, **changes))
    assert result["status"] == "ok" and result["metrics"]["float_loss"] < math.log(256) - 1


@pytest.mark.slow
def test_compiled_model_trains_alike_and_is_compiled_once(tmp_path, straight):
    from torch._dynamo.utils import counters

    compiled = []
    train(small(run__compile=True), tmp_path, progress=lambda *_: compiled.append(counters["stats"]["unique_graphs"]))
    assert compiled[0] > 0 and len(set(compiled)) == 1
    a, b = ([one["loss"] for one in lines(out) if one["kind"] == "train"] for out in (straight, tmp_path))
    assert a == pytest.approx(b, rel=1e-3)


def test_result_tells_sizes_and_speed(straight):
    result = json.loads((straight / "result.json").read_text())
    assert result["parameters"]["total"] == sum(v.numel() for k, v in parts(straight).items() if k.startswith("model/"))
    assert result["quantized_parameters"] == 2 * (4 * 16 * 16 + 3 * 16 * 32)
    assert result["tokens"] == 20 * 4 * 16 and result["mfu"] is None and result["memory_bytes"] > 1e7
    assert result["curve"]["step"] == [20] and result["curve"]["rtn"] == [result["metrics"]["rtn_loss"]]


def test_utilization_is_flops_over_the_peak():
    result = train(small(steps=3, run__peak_flops=1e12))
    assert result["mfu"] == pytest.approx(result["tokens_per_second"] * flops_per_token(SMALL.model) / 1e12)


def test_without_a_method_only_floats_are_evaluated():
    result = train(small(steps=2, method__name="none", evaluation__windows=4))
    assert set(result["metrics"]) == {
        "float_loss", "float_standard_error", "float_perplexity", "float_perplexity_low", "float_perplexity_high"
    }  # fmt: skip


def test_evaluating_changes_nothing_in_training(tmp_path, straight):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train(small(run__evaluate_every=3, evaluation__seed=7, evaluation__samples=3), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = parts(straight), parts(tmp_path)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert [one["step"] for one in lines(tmp_path) if one["kind"] == "evaluation"] == [3, 6, 9, 12, 15, 18, 20]


# --- methods ---------------------------------------------------------------------------------------------------------


class Recorder(Plain):
    """Doubles the weights for the forward pass, halves them again, adds to a gradient, and counts."""

    def __init__(self, setting):
        super().__init__(setting)
        self.setting, self.calls, self.count = setting, [], torch.zeros(())

    def before_forward(self, step):
        assert step.tokens == 4 * 16 and sum(len(x) for x, _ in step.batches) == 4
        self.calls.append(("before", step.number, step.lr))
        with torch.no_grad():
            for weight in self.setting.weights.values():
                weight.mul_(2)

    def after_backward(self, step):
        with torch.no_grad():
            for weight in self.setting.weights.values():
                weight.mul_(0.5)
                assert weight.grad is not None
                weight.grad.zero_()

    def after_step(self, step):
        self.calls.append(("after", step.number, step.lr))
        self.count += 1

    def metrics(self):
        return {"count": float(self.count)}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count.copy_(state["count"])


@pytest.fixture
def recorder(monkeypatch):
    made = []

    def make(setting):
        made.append(Recorder(setting))
        return made[-1]

    monkeypatch.setitem(METHODS, "recorder", make)
    return made


def test_method_sees_every_step(tmp_path, recorder):
    config = small(method__name="recorder", run__micro_batch=2, optimizer__weight_decay=0.0)
    train(config, tmp_path)
    rates = [learning_rate(config.optimizer, step, 20) for step in range(20)]
    expected = [(what, step, rates[step]) for step in range(20) for what in ("before", "after")]
    assert recorder[0].calls == expected
    assert list(recorder[0].setting.weights) == [n for n in recorder[0].setting.weights if n.startswith("blocks.")]
    # Its zeroed gradients kept the quantized weights where they started.
    start = Decoder(config.model)
    start.initialize(0)
    for name in recorder[0].setting.weights:
        assert torch.equal(parts(tmp_path)[f"model/{name}/"], start.get_parameter(name))
    assert [one["count"] for one in lines(tmp_path) if one["kind"] == "train"] == list(range(1, 21))


def test_state_of_a_method_survives(tmp_path, recorder):
    config = small(method__name="recorder")
    interrupted_at(12, tmp_path, config)
    train(config, tmp_path)
    assert recorder[-1].count == 20 and len(recorder[-1].calls) == 2 * 10


def test_plain_training_has_no_settings():
    with pytest.raises(ValueError, match=r"method\.settings: this method has none, not weight"):
        train(small(method__settings={"weight": 1}))


def test_diverged_run_is_told_and_leaves_no_broken_checkpoint(tmp_path, recorder, monkeypatch):
    def poison(self, step):
        if step.number == 6:
            self.setting.model.norm.weight.detach().fill_(math.nan)

    monkeypatch.setattr(Recorder, "after_step", poison)
    result = train(small(method__name="recorder", run__log_every=100), tmp_path)
    assert (result["status"], result["step"], result["metrics"]) == ("diverged", 10, {})
    assert checkpoint.steps(tmp_path / "checkpoints") == [5]
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model__vocabulary": 255},
            r"model\.vocabulary = 255, but sotu has ids up to 255 \(bytes\): must be at least 256",
        ),
        ({"run__micro_batch": 3}, r"batch = 4 cannot be split evenly among 1 processes .*micro_batch = 3"),
        ({"run__device": "tpu"}, r"run\.device = 'tpu'; valid: auto, cpu"),
        ({"run__strategy": "fsdp"}, r"run\.strategy = 'fsdp' needs processes started by torchrun"),
        (
            {"method__format": "int4/block=24"},
            r"method\.format = 'int4/block=24': blocks\.0\.mixer\.query\.weight: block=24",
        ),
        ({"method__format": "int99"}, r"format 'int99'"),
        (
            {"method__include": ("layers.*",)},
            r"method\.include: pattern 'layers\.\*' matches no matrix; valid: .*blocks\.\*",
        ),
    ],
)
def test_wrong_settings_are_refused_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        train(small(**changes))


# --- trackers --------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(small(steps=3, run__tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    logged = [one["loss"] for one in lines(tmp_path) if one["kind"] == "train"]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(logged, rel=1e-6)


def test_wandb_is_offline_unless_asked(tmp_path, monkeypatch):
    logged, options = [], {}

    def init(**given):
        options.update(given)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    train(small(steps=2, run__wandb="mine"), tmp_path)
    assert options["mode"] == "offline" and options["project"] == "mine"
    assert [step for step, values in logged if "train/loss" in values] == [1, 2]


@pytest.mark.parametrize(
    "setting, package", [({"run__wandb": "mine"}, "wandb"), ({"run__tensorboard": True}, "tensorboard")]
)
def test_missing_tracker_says_what_to_install(tmp_path, monkeypatch, setting, package):
    monkeypatch.setitem(sys.modules, {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[package], None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        train(small(steps=2, **setting), tmp_path)


def test_method_names_are_checked_where_they_are_configured():
    with pytest.raises(ValueError, match=r"method\.name = 'recorder'; valid: none, ptq"):
        replace(SMALL, method=MethodConfig(name="recorder"))
