"""The checks, speeds and first trainings of the 150m model on one GPU, in stages; see README.md beside this file.

    python benchmarks/gpu/run.py --shards train.xz --validation val.xz --out runs/gpu [--seconds 540]
    python benchmarks/gpu/run.py --dry-run cpu --out runs/gpu-dry

Every call does the stages that OUT/rows.jsonl does not say are done, in order, and stops after --seconds; call it again
to go on. Exit status: 0 when all stages are done, 3 when there are more, 1 when a check or a training failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lotion_theory.formats.catalog import FORMATS
from testbeds.lm.loop.config import (
    GPT2_VOCABULARY,
    EvaluationConfig,
    MethodConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    preset,
)  # fmt: skip
from testbeds.lm.loop.train import train
from testbeds.lm.measure.device_checks import checks, failed
from testbeds.lm.measure.format_costs import costs
from testbeds.lm.measure.stepcost import Contender, compile_once, laps, load_averages, summary
from testbeds.lm.model.config import ModelConfig
from testbeds.lm.model.decoder import flops_per_token, parameter_counts
from testbeds.lm.text.config import SOTU, DataConfig
from testbeds.lm.text.ids import prepare_ids
from testbeds.machine import code_version, machine
from testbeds.settings import to_dict

METHODS = ("plain", "lotion", "qat")
TRAINED = ("ptq", "qat", "lotion")
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 (SXM) or H200, by their data sheets."""

COMPILED = ("int4/absmax/block=32", "mxfp4", "nvfp4/sr", "nf4/absmax/block=64")
"""Formats that are compiled too, which takes seconds each."""

# A stage is begun only with so many seconds left.
LEAST = 60.0


@dataclass
class Session:
    """One call: its options, when it ends, and the rows so far."""

    options: argparse.Namespace
    device: torch.device
    config: TrainConfig
    ends: float

    @property
    def left(self) -> float:
        """Seconds until this call should end."""
        return self.ends - time.monotonic()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows written so far, by this and earlier calls; a line cut off by a crash is left out."""
        path = self.options.out / "rows.jsonl"
        out = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                out.append(json.loads(line))
            except ValueError:
                continue
        return out

    def write(self, stage: str, rows: list[dict[str, Any]], done: bool = True) -> None:
        """Append the rows of a stage, and that it is done; each says where it was measured."""
        common = {"stage": stage, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **about()}
        lines = [json.dumps({**common, **row}) for row in rows]
        if done:
            lines.append(json.dumps({**common, "done": True}))
        with (self.options.out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


def about() -> dict[str, Any]:
    """Machine, accelerator, versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    found = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {"machine": machine(), "gpu": gpu, "python": platform.python_version(), "cuda": torch.version.cuda,
            "code": code_version(), "loadavg": load_averages(), **found}  # fmt: skip


# --- stages ----------------------------------------------------------------------------------------------------------


def kernels(session: Session) -> bool:
    """The same bits, or values within rounding errors, as on the CPU."""
    rows = list(checks(session.device, compiled=session.device.type != "cpu"))
    session.write("kernels", rows, done=not failed(rows))
    print(f"kernels: {len(rows)} checks, {sum(not row['holds'] for row in rows)} fail {failed(rows)}")
    return not failed(rows)


def graphs(session: Session) -> bool:
    """Nothing is compiled after the second step."""
    rows = []
    for name in METHODS:
        begin = time.monotonic()
        short = replace(session.config, batch=2, run=replace(session.config.run, micro_batch=1))
        rows.append(compile_once(name, short, session.options.format, session.device))
        rows[-1]["seconds"] = time.monotonic() - begin
        print(f"graphs: {name} {rows[-1]['graphs']} in two steps, {rows[-1]['later']} later")
    torch.compiler.reset()
    session.write("graphs", rows)
    return all(row["later"] == 0 for row in rows)


def formats(session: Session) -> bool:
    """Rounding and the penalty of every format: no wait of the host, one graph, and their time."""
    dry = session.device.type == "cpu"
    shape, rounds = ((8, 256) if dry else (4096, 4096)), session.options.rounds
    eager = costs(session.device, COMPILED if dry else FORMATS, shape, rounds, None)
    some, backend = (COMPILED[:1], "aot_eager") if dry else (COMPILED, "inductor")
    rows = [*eager, *costs(session.device, some, shape, rounds, backend)]
    # On a CPU values are at hand.
    waits = 0 if dry else sum(row.get("waits", 0) for row in rows)
    cut = sum(row.get("graphs", 1) != 1 for row in rows)
    differ = sum(row["unequal"] > 0 for row in rows if row["operation"] != "penalty gradient")
    good = not (waits or cut or differ)
    session.write("formats", rows, done=good)
    print(f"formats: {len(rows)} rows, {waits} waits, {cut} cut into graphs, {differ} unlike the CPU")
    return good


def speed(session: Session) -> bool:
    """Tokens per second, MFU, memory, and what the methods add to a step, in turns."""
    config, device = session.config, session.device
    contenders = [Contender(name, config, session.options.format, device) for name in METHODS]
    sizes = {contender.name: contender.memory() for contender in contenders}
    found = laps(contenders, session.options.rounds, warmup=3)
    rows = summary(found, config, preset("150m"))
    for row, contender in zip(rows, contenders, strict=True):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            # What the other contenders hold is there all the time.
            before = torch.cuda.memory_allocated(device)
            contender.lap()
            row["step_peak_bytes"] = torch.cuda.max_memory_allocated(device) - before
        rate = row["tokens_per_step"] / statistics.median(lap.seconds for lap in found[row["contender"]])
        row |= {"format": session.options.format, "tokens_per_second": rate, **sizes[row["contender"]],
                "mfu": rate * flops_per_token(config.model) / session.options.peak_flops,
                "peak_flops": session.options.peak_flops, "parameters": parameter_counts(config.model)}  # fmt: skip
        print(f"speed: {row['contender']} {rate:,.0f} tokens/s, MFU {row['mfu']:.1%}, overhead {row['overhead']:.2%}, "
              f"at the preset's batch {row['overhead_at_batch']:.2%}")  # fmt: skip
    session.write("speed", [{**row, "config": to_dict(config)} for row in rows])
    return True


def training(method: str) -> Callable[[Session], bool]:
    """The stage that trains by ``method``; stopped and saved in time if need be."""

    def stage(session: Session) -> bool:
        chosen = replace(session.config.method, name=method, format=session.options.format)
        config = replace(session.config, method=chosen)
        folder = session.options.out / "work" / method

        def progress(done: int, steps: int, text: str) -> None:
            print(f"\r{method}: {done}/{steps} {text}  ", end="", file=sys.stderr, flush=True)
            if session.left < 0 and done < steps:
                signal.raise_signal(signal.SIGTERM)  # the trainer saves and returns

        result = train(config, folder, fall_back=True, progress=progress)
        print(file=sys.stderr)
        if result["status"] == "stopped":
            print(f"{method}: stopped at step {result['step']}, to be gone on with")
            return True
        row = {key: value for key, value in result.items() if key not in ("machine", "signal", "version")}
        session.write(f"train {method}", [{"method": method, "text": session.options.text, **row}])
        shown = ", ".join(f"{n} {result['metrics'].get(f'{n}_loss', float('nan')):.4f}" for n in ("float", "rtn", "rr"))
        print(f"{method}: {result['status']} after {result['step']} steps: {shown}")
        return result["status"] == "ok"

    return stage


STAGES: dict[str, Callable[[Session], bool]] = {
    "kernels": kernels, "graphs": graphs, "formats": formats, "speed": speed,
    **{f"train {name}": training(name) for name in TRAINED},
}  # fmt: skip


# --- the call --------------------------------------------------------------------------------------------------------


def config_of(options: argparse.Namespace, tokens: str) -> TrainConfig:
    """The run that is measured and trained: the preset's model, or a tiny one for a dry run."""
    if options.dry_run:
        return TrainConfig(
            model=ModelConfig(256 if tokens == SOTU else GPT2_VOCABULARY, 32, 1, 2, 64, 32),
            data=DataConfig(tokens), optimizer=OptimizerConfig(warmup=2), steps=4, batch=4,
            evaluation=EvaluationConfig(windows=4, samples=2),
            run=RunConfig(device="cpu", micro_batch=2, log_every=1),
        )  # fmt: skip
    base = preset("150m")
    return replace(
        base, data=DataConfig(tokens), steps=options.steps, batch=options.batch,
        optimizer=replace(base.optimizer, warmup=max(1, options.steps // 10)),
        evaluation=EvaluationConfig(windows=64, samples=2), method=MethodConfig(),
        run=replace(base.run, device="cuda", compile=True, micro_batch=min(32, options.batch), log_every=10,
                    checkpoint_every=100, evaluate_every=0, keep=1, peak_flops=options.peak_flops),
    )  # fmt: skip


def token_folder(options: argparse.Namespace) -> str:
    """Where the token files are, made from the shards where needed; the embedded text for a dry run without any."""
    if options.tokens is not None:
        return str(options.tokens)
    if not options.shards:
        return SOTU
    folder = options.out / "work" / "tokens"
    if not (folder / "validation-00000.tokens").exists():
        counts = prepare_ids(folder, options.shards, options.validation, limit=10_000 if options.dry_run else None)
        print(f"tokens: {counts}")
    return str(folder)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of rows.jsonl (kept) and work/ (large)")
    parser.add_argument("--shards", type=Path, nargs="*", default=[], help="ids of GPT-2 as uint16, .xz or not")
    parser.add_argument("--validation", type=Path, nargs="*", default=[], help="the same, held out")
    parser.add_argument("--tokens", type=Path, help="instead: a folder made by lotion prepare")
    parser.add_argument("--text", default="Debian-docs", help="name of the text, for the rows")
    parser.add_argument("--format", default="int4/absmax/block=32")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--batch", type=int, default=64, help="sequences of 1,024 tokens per step")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each method")
    parser.add_argument("--seconds", type=float, default=540, help="stop after so long")
    parser.add_argument("--peak-flops", type=float, default=PEAK_FLOPS, help="of the device in bfloat16, for MFU")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--dry-run", choices=["cpu"], help="all stages with a tiny model on the CPU")
    options = parser.parse_args(arguments)
    if min(options.steps, options.batch, options.rounds) < 1 or options.batch % min(32, options.batch):
        parser.error("--steps, --rounds: at least 1; --batch: up to 32, or a multiple of 32")
    if options.dry_run is None and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --dry-run cpu tries the stages without one")
    if options.dry_run is None and not options.shards and options.tokens is None:
        parser.error("give --shards (and --validation), or --tokens")
    if options.dry_run:
        options.rounds = min(options.rounds, 2)
        options.text = options.text if options.shards or options.tokens else SOTU
    return options


def main(arguments: list[str] | None = None) -> int:
    """Do what is left to do within the time; the exit status."""
    options = parsed(arguments)
    ends = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.dry_run or "cuda")
    session = Session(options, device, config_of(options, token_folder(options)), ends)
    for name in options.stages:
        if any(row["stage"] == name and row.get("done") for row in session.rows):
            continue
        if session.left < (0 if options.dry_run else LEAST):
            break
        if not STAGES[name](session):
            return 1
    done = {row["stage"] for row in session.rows if row.get("done")}
    missing = [name for name in options.stages if name not in done]
    print(f"left to do: {', '.join(missing)}" if missing else f"all done: {options.out / 'rows.jsonl'}")
    return 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
