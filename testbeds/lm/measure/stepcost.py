"""What a training method costs: optimizer steps of several methods taken in turns, by the trainer itself.

Every contender is a :class:`~testbeds.lm.loop.train.Trainer` with weights of its own; all see the same batches. A lap
is one optimizer step: its time, the part of it spent in the method's own hooks, and in the optimizer.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from lotion_theory import Quantizer

from ..loop.config import MethodConfig, TrainConfig
from ..loop.distributed import World
from ..loop.train import Trainer
from ..model.hooks import Step

TORCHAO = "torchao"
METHODS: dict[str, MethodConfig] = {
    "plain": MethodConfig(name="ptq"),
    "lotion": MethodConfig(name="lotion", settings={"scale": "attached"}),
    "lotion detached": MethodConfig(name="lotion", settings={"scale": "detached"}),
    "qat": MethodConfig(name="qat"),
    TORCHAO: MethodConfig(name="ptq"),
}
"""Contenders by name; ``torchao`` is that library's fake-quantized linear layers on the same weights."""


class Lap(NamedTuple):
    """Seconds of one optimizer step; of it, in the method's hooks, and in the optimizer."""

    seconds: float
    own: float
    optimizer: float


class Median(NamedTuple):
    """A median and an interval that holds it with a probability of at least 95 %, or of 1 - 2^(1-n) for n < 6."""

    middle: float
    low: float
    high: float


def median(values: Sequence[float]) -> Median:
    """Median of independent ``values``, with the order statistics around it that the binomial distribution names."""
    x, n = sorted(values), len(values)
    cut, below = 0, 0.0
    while cut < n // 2:
        below += math.comb(n, cut) / 2**n
        if below > 0.025:
            break
        cut += 1
    place = max(cut - 1, 0)
    return Median(statistics.median(x), x[place], x[n - 1 - place])


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds of processor time on a CPU, where waiting for a core must not count; of wall time on an accelerator,
    after its work is done."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


class Timed:
    """A method whose hooks are timed; ``seconds`` adds up."""

    def __init__(self, method: Any, now: Callable[[], float]) -> None:
        self.method, self.now, self.seconds = method, now, 0.0

    def before_forward(self, step: Step) -> None:
        """As the method's, timed; so are the next two."""
        self._timed(self.method.before_forward, step)

    def after_backward(self, step: Step) -> None:
        self._timed(self.method.after_backward, step)

    def after_step(self, step: Step) -> None:
        self._timed(self.method.after_step, step)

    def grid(self, name: str, w: torch.Tensor) -> Quantizer | None:
        """That of the method."""
        return self.method.grid(name, w)

    def metrics(self) -> dict[str, float]:
        """Not timed, as it belongs to the log."""
        return self.method.metrics()

    def state_dict(self) -> dict[str, Any]:
        """That of the method."""
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The method takes it back."""
        self.method.load_state_dict(state)

    def _timed(self, hook: Callable[[Step], None], step: Step) -> None:
        begin = self.now()
        hook(step)
        self.seconds += self.now() - begin


class Contender:
    """The method ``name`` of :data:`METHODS` on ``config``'s model and batches, in ``format``.

    Raises ValueError for a name that is none, and where torchao has no fake quantizer like the format.
    """

    def __init__(self, name: str, config: TrainConfig, format: str, device: torch.device) -> None:
        if name not in METHODS:
            raise ValueError(f"contender = {name!r}; valid: {', '.join(METHODS)}")
        self.name, self.now = name, clock(device)
        chosen = METHODS[name]
        method = replace(config.method, name=chosen.name, format=format, settings=chosen.settings)
        self.trainer = Trainer(replace(config, method=method), World(device))
        self.method = Timed(self.trainer.method, self.now)
        self.trainer.method = self.method
        self._optimizer = 0.0
        self.trainer.optimizer.register_step_pre_hook(lambda *_: self._count(-1))
        self.trainer.optimizer.register_step_post_hook(lambda *_: self._count(1))
        self.layers = fake_quantized(self.trainer.model, self.trainer.names, format) if name == TORCHAO else []

    def _count(self, sign: int) -> None:
        self._optimizer += sign * self.now()

    def lap(self) -> Lap:
        """One optimizer step."""
        own, optimizer, begin = self.method.seconds, self._optimizer, self.now()
        self.trainer.step()
        return Lap(self.now() - begin, self.method.seconds - own, self._optimizer - optimizer)

    def memory(self) -> dict[str, int]:
        """Bytes: of the ``quantized`` weights in float32; that the method has ``held`` between steps; and the ``peak``
        of what its hooks allocate beyond that, gradients being there."""
        trainer = self.trainer
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        step = Step(trainer.done, trainer.config.steps, 1e-3, trainer.config.batch * trainer.config.model.context, ())

        def hooks() -> None:
            self.method.before_forward(step)
            self.method.after_backward(step)
            self.method.after_step(step)

        def fakes() -> None:
            made = [layer.weight_fake_quantizer(layer.weight) for layer in self.layers]
            del made

        peak = peak_bytes(fakes if self.layers else hooks, trainer.world.device)
        trainer.optimizer.zero_grad(set_to_none=True)
        return {"quantized": 4 * trainer.quantized_parameters, "held": _bytes(self.method.state_dict()), "peak": peak}


def fake_quantized(model: torch.nn.Module, names: Sequence[str], format: str) -> list[Any]:
    """Put torchao's fake-quantized linear layers in the place of those that hold the weights ``names``, which they
    share; the layers. Symmetric INT4 of that library: levels from -8 to 7 and a scale of absmax / 7.5.

    Raises ValueError for formats that it has nothing like, and ImportError without the library.
    """
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig

    quantizer = Quantizer.parse(format)
    kind, size = quantizer.partition.kind, quantizer.partition.size
    if quantizer.codebook.name != "int4" or not quantizer.is_absmax or kind == "tensor":
        raise ValueError(f"format = {format!r}: torchao's fake quantizer is for int4/absmax, by row, channel or block")
    shape = {"granularity": "per_channel"} if size is None else {"group_size": size}
    four_bits: Any = getattr(torch, "int4")  # noqa: B009 - torch's stubs do not know it
    config = IntxFakeQuantizeConfig(four_bits, is_symmetric=True, **shape)
    layers = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        parent, _, child = path.rpartition(".")
        linear = model.get_submodule(path)
        assert leaf == "weight" and isinstance(linear, torch.nn.Linear), f"{name} is the weight of a linear layer"
        layers.append(FakeQuantizedLinear.from_linear(linear, weight_config=config))
        setattr(model.get_submodule(parent), child, layers[-1])
    return layers


def laps(contenders: Sequence[Contender], rounds: int, warmup: int = 1) -> dict[str, list[Lap]]:
    """``rounds`` steps of each contender, taken in turns after ``warmup`` untimed ones, by name."""
    for contender in contenders:
        for _ in range(warmup):
            contender.lap()
    taken: dict[str, list[Lap]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        # Every other round backwards, so that none always comes after the same one.
        for contender in contenders[:: 1 if number % 2 == 0 else -1]:
            taken[contender.name].append(contender.lap())
    return taken


def summary(taken: Mapping[str, Sequence[Lap]], config: TrainConfig, preset: TrainConfig) -> list[dict[str, Any]]:
    """One row per contender: medians, and ratios to ``plain`` within each round, which must be among them.

    ``overhead``: time in the method's own hooks over the rest of the step, as measured; ``overhead_at_batch``: computed
    for the step of ``preset`` (its batch in its micro-batches), forward and backward passes taking as long per token.
    For torchao both come from whole steps, its work being done in every forward and backward pass.
    """
    plain = taken["plain"]
    passes = statistics.median(lap.seconds - lap.own - lap.optimizer for lap in plain)
    tokens = config.batch * config.model.context
    long_step = passes * (preset.batch * preset.model.context / tokens)
    long_step += statistics.median(lap.optimizer for lap in plain)
    micro = config.run.micro_batch or config.batch
    more = (preset.batch // (preset.run.micro_batch or preset.batch)) / (config.batch // micro)
    rows = []
    for name, one in taken.items():
        ratio = median([lap.seconds / base.seconds for lap, base in zip(one, plain, strict=True)])
        if name == TORCHAO:
            own = Median(*(ratio[k] - 1 for k in range(3)))
            late = (statistics.median(lap.seconds for lap in one) - statistics.median(p.seconds for p in plain)) * more
        else:
            own = median([lap.own / (lap.seconds - lap.own) for lap in one])
            late = statistics.median(lap.own for lap in one)
        rows.append(
            {"contender": name, "rounds": len(one), "tokens_per_step": tokens, "micro_batch": micro,
             "seconds": statistics.median(lap.seconds for lap in one),
             "own_seconds": statistics.median(lap.own for lap in one),
             "ratio": ratio.middle, "ratio_low": ratio.low, "ratio_high": ratio.high,
             "overhead": own.middle, "overhead_low": own.low, "overhead_high": own.high,
             "overhead_at_batch": late / long_step, "tokens_at_batch": preset.batch * preset.model.context}
        )  # fmt: skip
    return rows


def graphs() -> int:
    """Number of graphs that torch.compile has made in this process since it was last reset."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def compile_once(name: str, config: TrainConfig, format: str, device: torch.device, steps: int = 5) -> dict[str, Any]:
    """Graphs compiled in the first two steps of a contender under torch.compile, and in the steps after them."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    contender = Contender(name, replace(config, run=replace(config.run, compile=True)), format, device)
    made = []
    for _ in range(steps):
        contender.lap()
        made.append(graphs())
    return {"contender": name, "format": format, "steps": steps, "graphs": made[1], "later": made[-1] - made[1]}


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most memory that tensors made during ``call`` take at a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None, "has run"
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now, most = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _bytes(state: Any) -> int:
    """Of all tensors in nested dicts."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    return sum(map(_bytes, state.values())) if isinstance(state, dict) else 0


def load_averages() -> list[float] | None:
    """Load averages over 1, 5 and 15 minutes, where the system tells them: how busy the machine was."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
