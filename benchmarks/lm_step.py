"""What LOTION and QAT add to an optimizer step of a language model, and to its memory.

    python benchmarks/lm_step.py [--preset 20m] [--set NAME=VALUE ...] [--rounds 5]
        [--json results/benchmarks/lm_step.json]

Plain AdamW, LOTION (empirical Fisher; attached and detached scale), QAT, and torchao's fake-quantized linear layers
take turns in one process on one core, on the same batches, by the trainer that `lotion train` runs. The penalty's cost
is per step, not per token: the overhead is given as measured at a small batch, and, computed from it, at the preset's.
``--warmup`` takes small models past the steps after which compiled code takes over (some 400 of the 0.1 M decoder).
A last table counts the graphs that torch.compile makes, at the shape of the tiny preset.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import torch  # noqa: E402

from lotion_theory.files import write_text  # noqa: E402
from testbeds.lm.loop.config import PRESETS, TrainConfig, assigned, preset  # noqa: E402
from testbeds.lm.measure.stepcost import METHODS, Contender, compile_once, laps, load_averages, summary  # noqa: E402
from testbeds.lm.text.config import DataConfig  # noqa: E402
from testbeds.machine import code_version, machine  # noqa: E402

FORMATS = ("int4/absmax/block=32", "int4/absmax", "int4/absmax/row")
COMPILED = ("plain", "lotion", "lotion detached", "qat")
MIB = 2**20


def settings(base: TrainConfig, micro_batch: int, accumulate: int) -> TrainConfig:
    """The preset's model with a batch that this machine can do; the text does not matter, only its length."""
    run = replace(base.run, device="cpu", precision="float32", micro_batch=micro_batch, log_every=10**6)
    return replace(base, data=DataConfig(), run=run, batch=micro_batch * accumulate)


def compare(base: TrainConfig, config: TrainConfig, format: str, rounds: int, warmup: int = 2) -> list[dict[str, Any]]:
    """One row per contender that has the format; steps in turns."""
    contenders = []
    for name in METHODS:
        try:
            contenders.append(Contender(name, config, format, torch.device("cpu")))
        except (ValueError, ImportError) as error:
            print(f"{name} is left out: {error}")
    sizes = {contender.name: contender.memory() for contender in contenders}
    rows = summary(laps(contenders, rounds, warmup), config, base)
    return [{"format": format, **row, **sizes[row["contender"]], "loadavg": load_averages()} for row in rows]


def write(arguments: argparse.Namespace, rows: list[dict[str, Any]], compiled: list[dict[str, Any]]) -> None:
    """The rows so far as JSON, if wanted: an interrupted run leaves the formats it has measured."""
    if arguments.json is None:
        return
    about = {
        "date": str(datetime.date.today()), "machine": machine(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "code": code_version(), "preset": arguments.preset,
        "command": f"python benchmarks/lm_step.py {shlex.join(sys.argv[1:])}".strip(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "numba", "torch", "torchao")},
    }  # fmt: skip
    found = {"about": about, "steps": rows, "compiled": compiled}
    write_text(arguments.json, json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="20m")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings in place of the preset's")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    # The second step is the first with the loops compiled for the number of weights seen.
    parser.add_argument("--warmup", type=int, default=2, help="steps of each contender before the first that counts")
    parser.add_argument("--no-compile", action="store_true", help="leave the count of compiled graphs out")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.micro_batch, arguments.accumulate) < 1:
        parser.error("--rounds, --micro-batch and --accumulate: must be at least 1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    base = assigned(preset(arguments.preset), arguments.set)
    config = settings(base, arguments.micro_batch, arguments.accumulate)
    rows: list[dict[str, Any]] = []
    for format in arguments.formats:
        rows += compare(base, config, format, arguments.rounds, arguments.warmup)
        gc.collect()
        print(f"\n{format}, {config.batch} x {config.model.context} tokens per step")
        for row in (row for row in rows if row["format"] == format):
            print(
                f"{row['contender']:16} {row['seconds']:7.3f} s  x{row['ratio']:.3f} "
                f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]  own {row['own_seconds'] * 1e3:6.1f} ms = "
                f"{row['overhead']:6.2%}, at the preset's batch {row['overhead_at_batch']:7.3%}; holds "
                f"{row['held'] / MIB:.1f} MiB, peak {row['peak'] / MIB:.1f} MiB of {row['quantized'] / MIB:.1f}"
            )
        write(arguments, rows, [])
    small = settings(preset("tiny"), 2, 1)
    compiled = [] if arguments.no_compile else [
        compile_once(name, small, FORMATS[0], torch.device("cpu")) for name in COMPILED
    ]  # fmt: skip
    for row in compiled:
        print(f"{row['contender']:16} {row['graphs']} graphs in two steps, {row['later']} in those after")
    write(arguments, rows, compiled)


if __name__ == "__main__":
    main()
