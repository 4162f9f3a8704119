"""The training loop: optimizer steps around a method's hooks, logs, checkpoints, and stopping when told."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...documents import sealed, write_json
from ...machine import code_version, machine
from ...settings import differences, to_dict
from ..model.casts import Casting, quantized_names
from ..model.decoder import Decoder, flops_per_token, parameter_counts
from ..model.hooks import Setting, Step
from ..model.methods import METHODS
from ..text.sequences import Order, load_tokens
from . import checkpoint
from .checkpoint import Checkpoint, Damaged
from .config import TrainConfig
from .distributed import World, joined
from .evaluate import evaluate, metrics
from .folder import CHECKPOINTS, CONFIG, RESULT, finished, locked
from .logs import Log, check_trackers
from .restore import check_facts, check_model, check_optimizer, check_rng, take_method
from .runtime import determinism, memory_named, peak_memory, signals_caught
from .schedules import learning_rate

REFUSALS = (RuntimeError, ValueError, LookupError)
"""What methods and samplers may raise over weights or losses that are no numbers."""
Progress = Callable[[int, int, str], None]


def train(
    config: TrainConfig,
    out: Path | None = None,
    fall_back: bool = False,
    progress: Progress | None = None,
    begun: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train, evaluate, and return the result as plain data; with a folder ``out``, also keep and resume it there.

    ``out`` gets ``config.json``, ``log.jsonl``, ``checkpoints/`` and ``result.json``. If it holds a run of the same
    configuration, that run goes on from its newest checkpoint, and its bits are those of a run without interruption
    (one device, same machine); if that run is finished, its result is returned. SIGTERM and SIGINT end the step,
    save, and return. ``fall_back``: allow a damaged newest checkpoint to be replaced by the one before it.
    ``begun`` is called with the steps done before, once all that was given is known to be valid; ``progress`` with the
    steps done, all steps, and a few words.

    The result: ``status`` ("ok", "stopped" or "diverged"), ``step``, ``metrics`` (see
    :func:`testbeds.lm.loop.evaluate.metrics`; empty unless "ok"), ``curve`` (``step``, ``seconds`` of training, and
    losses ``float``, ``rtn``, ``rr``), ``tokens``, ``train_seconds``, ``tokens_per_second``, ``mfu`` (None without
    ``run.peak_flops``), ``memory_bytes``, ``parameters``, ``quantized_parameters``, ``machine``, ``version``,
    ``signal`` (number, or None), ``config``.

    Raises ValueError, OSError or ImportError saying which setting, file or package is at fault.
    """
    with ExitStack() as stack:
        stack.enter_context(memory_named())
        world = stack.enter_context(joined(config.run))
        stack.enter_context(determinism(config.run.deterministic))
        if out is not None:
            stored = world.on_first(lambda: finished(out, to_dict(config)))
            if stored is not None:
                return stored
        caught = stack.enter_context(signals_caught())
        trainer = Trainer(config, world)
        if out is not None:
            # Only once everything given is known to be valid: a run that is refused leaves no folder behind.
            world.on_first(lambda: out.mkdir(parents=True, exist_ok=True))
            world.on_first(lambda: stack.enter_context(locked(out)))
        trainer.begin(out, fall_back)
        stack.callback(trainer.log.close)
        if begun is not None and world.first:
            begun(trainer.done)
        return trainer.run(caught, progress if world.first else None)


def check(config: TrainConfig) -> None:
    """ValueError, OSError or ImportError for a run that could not start; nothing is written."""
    with joined(config.run) as world:
        Trainer(config, world)


class Trainer:
    """State of one run: model, optimizer, method, and the number of steps ``done``; ValueError for settings, tokens or
    a method that do not go together. It writes nothing before :meth:`begin` gives it a folder."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        self.out: Path | None = None
        check_trackers(config.run)
        self.tokens, self.held_out = load_tokens(config.data)
        if self.tokens.vocabulary > config.model.vocabulary:
            raise ValueError(
                f"model.vocabulary = {config.model.vocabulary}, but {config.data.tokens} has ids up to "
                f"{self.tokens.vocabulary - 1} ({self.tokens.tokenizer}): must be at least {self.tokens.vocabulary}"
            )
        self.order = Order(self.tokens, config.model.context, config.seed)
        self.micro_batch, self.accumulate = _shares(config, world.size)
        self.model = Decoder(config.model, config.run.recompute)
        self.names = quantized_names(self.model, config.method.include, config.method.exclude)
        plain = config.method.name == "none"
        casting = None if plain else Casting.fitting(self.model, self.names, config.method.format)
        self.quantized_parameters = sum(self.model.get_parameter(name).numel() for name in self.names)
        self.model.initialize(config.seed)
        self.model.to(world.device)
        self.module = world.wrap(self.model, config.run.compile)
        self.optimizer = _optimizer(self.model, config)
        weights = {name: self.model.get_parameter(name) for name in self.names}
        quantizer = None if casting is None else casting.quantizer
        setting = Setting(
            self.model, weights, quantizer, config.method.settings, config.seed, self.optimizer, config.steps,
            config.batch * config.model.context, config.run.compile and world.device.type != "cpu",
        )  # fmt: skip
        self.method = METHODS[config.method.name](setting)
        self.casting = None if casting is None else replace(casting, grid=self.method.grid)
        self.done, self.position, self.seconds = 0, 0, 0.0
        self.log = Log(None, config.run)
        self._rate = 0.0
        self._since, self._lap_steps = time.perf_counter(), 0

    def begin(self, out: Path | None, fall_back: bool) -> None:
        """Keep the run in the folder ``out`` (nowhere if None), and go on with the one that is there."""
        self.out = out
        skipped = self._resume(fall_back)
        self.log = Log(out if self.world.first else None, self.config.run, self.done)
        self.log.write("start", self.done, {"machine": machine(), "version": code_version(), "skipped": skipped})
        self._since = time.perf_counter()

    # --- one step ----------------------------------------------------------------------------------------------------

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step: loss of this process's part of the batch, and norm of the whole gradient."""
        config, world = self.config, self.world
        lr = learning_rate(config.optimizer, self.done, config.steps)
        batches = self._batches()
        step = Step(self.done, config.steps, lr, config.batch * config.model.context, batches)
        for group in self.optimizer.param_groups:
            group["lr"] = lr  # before the method's hooks, some of which step at that rate themselves
        self.method.before_forward(step)
        total = torch.zeros((), device=world.device)
        for number, (x, y) in enumerate(batches):
            with world.accumulating(self.module, number == len(batches) - 1):
                with self.autocast():
                    loss = self.module(x, y) / len(batches)
                loss.backward()
            total += loss.detach()
        self.method.after_backward(step)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step(step)
        self.done += 1
        self.position += config.batch
        self._lap_steps += 1
        return total, norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _batches(self) -> tuple[tuple[Tensor, Tensor], ...]:
        share = self.micro_batch * self.accumulate
        x, y = self.order.batch(self.position + self.world.rank * share, share)
        on_device = (self._moved(torch.from_numpy(a)) for a in (x, y))
        return tuple(zip(*(a.split(self.micro_batch) for a in on_device), strict=True))

    def _moved(self, ids: Tensor) -> Tensor:
        if self.world.device.type == "cuda":
            return ids.pin_memory().to(self.world.device, non_blocking=True)
        return ids.to(self.world.device)

    def autocast(self) -> AbstractContextManager:
        """Around forward passes: bfloat16 matrix products if so configured; weights stay float32."""
        if self.config.run.precision == "float32":
            return nullcontext()
        return torch.autocast(self.world.device.type, torch.bfloat16)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def run(self, caught: list[int], progress: Progress | None) -> dict[str, Any]:
        """Train to the end, or until a signal is ``caught`` in any process, or the loss is no number."""
        config, run = self.config, self.config.run
        status, measured = "ok", {}
        while True:
            last = self.done == config.steps
            if last or (run.evaluate_every and self.done and self.done % run.evaluate_every == 0):
                measured = self._evaluate()
                if not all(math.isfinite(value) for name, value in measured.items() if name.endswith("_loss")):
                    status = "diverged"
                    break
            if last:
                break
            try:
                loss, norm = self.step()
            except REFUSALS:
                if self._is_finite():
                    raise
                status = "diverged"
                break
            stop = self.world.any(bool(caught))
            saving = self.done == config.steps or stop
            saving = saving or bool(run.checkpoint_every and self.done % run.checkpoint_every == 0)
            logging = self.done % run.log_every == 0 or self.done == config.steps
            if logging or (saving and self.out is not None):
                # Reading the loss waits for the device, so it is not looked at in every step.
                value = self.world.mean(loss)
                self._lap()
                if logging:
                    self._record(value, float(norm), progress)
                if not math.isfinite(value):
                    status = "diverged"
                    break
            if saving and self.out is not None:
                self._save()
            if stop:
                status = "stopped"
                break
        return self._result(status, measured, caught)

    def _record(self, loss: float, norm: float, progress: Progress | None) -> None:
        lr = learning_rate(self.config.optimizer, self.done - 1, self.config.steps)
        self.log.write(
            "train", self.done,
            {"loss": loss, "lr": lr, "gradient_norm": norm, "position": self.position, "seconds": self.seconds,
             "tokens_per_second": self._rate, "mfu": self._mfu(self._rate),
             "memory_bytes": peak_memory(self.world.device),
             **self._method_metrics()},
        )  # fmt: skip
        if progress is not None:
            progress(self.done, self.config.steps, f"loss {loss:.3f}, {self._rate:,.0f} tokens/s")

    def _method_metrics(self) -> dict[str, float]:
        """The method's numbers for the log; none of weights that are no numbers any more."""
        try:
            return self.method.metrics()
        except REFUSALS:
            if self._is_finite():
                raise
            return {}

    @torch.no_grad()
    def _is_finite(self) -> bool:
        """Whether the weights and the loss of the next micro-batch are finite numbers."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            return False
        with self.autocast():
            return bool(self.module(*self._batches()[0]).isfinite())

    def _evaluate(self) -> dict[str, float]:
        self._lap()
        measured = metrics(
            evaluate(
                self.model, self.held_out, self.config.evaluation, self.config.model.context, self.casting,
                self.micro_batch, self.world, self.autocast,
            )
        )  # fmt: skip
        self.log.write("evaluation", self.done, {"seconds": self.seconds, **measured})
        self._since = time.perf_counter()
        return measured

    def _lap(self) -> None:
        """Add the time since the last lap to the training time; evaluating and saving start it anew."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        elapsed = time.perf_counter() - self._since
        if self._lap_steps:
            self.seconds += elapsed
            self._rate = self._lap_steps * self.config.batch * self.config.model.context / elapsed
        self._since, self._lap_steps = time.perf_counter(), 0

    def _mfu(self, rate: float) -> float | None:
        peak = self.config.run.peak_flops
        return None if peak is None else flops_per_token(self.config.model) * rate / (peak * self.world.size)

    def _result(self, status: str, measured: dict[str, float], caught: list[int]) -> dict[str, Any]:
        self._lap()
        # The median does not see the first lap, which holds compilation.
        reported = [one.get("tokens_per_second") for one in self.log.entries if one["kind"] == "train"]
        rates = [value for value in reported if isinstance(value, int | float)]
        rate = statistics.median(rates) if rates else None
        points = [one for one in self.log.entries if one["kind"] == "evaluation"]
        keys = {"step": "step", "seconds": "seconds", "float": "float_loss", "rtn": "rtn_loss", "rr": "rr_loss"}
        result = {
            "status": status,
            "step": self.done,
            "signal": caught[0] if caught else None,
            "metrics": measured if status == "ok" else {},
            "curve": {name: [one.get(key) for one in points] for name, key in keys.items()},
            "tokens": self.position * self.config.model.context,
            "train_seconds": self.seconds,
            "tokens_per_second": rate,
            "mfu": None if rate is None else self._mfu(rate),
            "memory_bytes": peak_memory(self.world.device),
            "parameters": parameter_counts(self.config.model),
            "quantized_parameters": self.quantized_parameters,
            "machine": machine(),
            "version": code_version(),
            "config": to_dict(self.config),
        }
        self.log.write("end", self.done, {"status": status, "train_seconds": self.seconds})
        if self.out is not None and status != "stopped":
            path = self.out / RESULT
            self.world.on_first(lambda: write_json(path, sealed(result)))
        return result

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        assert self.out is not None, "a run without a folder keeps no checkpoints"
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        rng = {"cpu": torch.get_rng_state()}
        if self.world.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.world.device)
        parts = {"model": weights, "optimizer": optimizer, "method": self.method.state_dict(), "rng": rng}
        facts = {
            "position": self.position, "seconds": self.seconds, "config": to_dict(self.config),
            "tokens": self.tokens.digest, "tokenizer": self.tokens.tokenizer,
        }  # fmt: skip
        folder = self.out / CHECKPOINTS
        self.world.on_first(lambda: checkpoint.save(folder, self.done, parts, facts, self.config.run.keep))
        self._since = time.perf_counter()

    def _resume(self, fall_back: bool) -> tuple[str, ...]:
        """Take the newest checkpoint's state, if there is one; what was wrong with newer ones."""
        if self.out is None:
            return ()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        folder, path = self.out / CHECKPOINTS, self.out / CONFIG
        stored = checkpoint.load(folder, fall_back, self._check)
        self.world.on_first(lambda: write_json(path, to_dict(self.config)))
        if stored is None:
            return ()
        set_state_dict(
            self.model, self.optimizer, model_state_dict=stored.part("model"),
            optim_state_dict=stored.part("optimizer"), options=StateDictOptions(full_state_dict=True),
        )  # fmt: skip
        rng = stored.part("rng")
        torch.set_rng_state(rng["cpu"])
        if self.world.device.type == "cuda" and "cuda" in rng:
            torch.cuda.set_rng_state(rng["cuda"], self.world.device)
        self.done, self.position, self.seconds = stored.step, stored.facts["position"], stored.facts["seconds"]
        return stored.skipped

    def _check(self, stored: Checkpoint) -> None:
        """Take the method's state of a checkpoint if all of it fits; ValueError if it is of another run or damaged."""
        config = stored.facts.get("config")
        if not isinstance(config, dict):
            raise Damaged(f"{stored.path / 'manifest.json'} tells no configuration of a run")
        unlike = _unlike(config, to_dict(self.config))
        if unlike:
            raise ValueError(f"{stored.path} is of another run ({'; '.join(unlike)}): choose another folder")
        check_facts(stored, self.config.steps, self.config.batch)
        if stored.facts.get("tokens", self.tokens.digest) != self.tokens.digest:
            raise ValueError(
                f"{stored.path} is of another run (the token files in {self.config.data.tokens} have changed since): "
                "choose another folder"
            )
        check_model(stored, self.model)
        check_optimizer(stored, self.model, self.optimizer)
        check_rng(stored)
        take_method(stored, self.method)


def _unlike(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that change the training itself and differ."""
    a, b = ({k: v for k, v in one.items() if k not in ("run", "evaluation")} for one in (old, new))
    return differences(a, b)


def _shares(config: TrainConfig, processes: int) -> tuple[int, int]:
    """Sequences per micro-batch and micro-batches per step of one process."""
    share, rest = divmod(config.batch, processes)
    micro = min(config.run.micro_batch or share, share)
    if rest or not share or share % micro:
        raise ValueError(
            f"batch = {config.batch} cannot be split evenly among {processes} processes in micro-batches of "
            f"run.micro_batch = {config.run.micro_batch}"
        )
    return micro, share // micro


def _optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    settings = config.optimizer
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, settings.lr, (settings.beta1, settings.beta2), settings.epsilon, fused=True)
