"""Training speed of this package's decoder and trainer against nanoGPT's model and training step.

    python benchmarks/lm_throughput.py --nanogpt PATH [--rounds 7] [--json results/benchmarks/lm_throughput.json]

PATH is a checkout of github.com/karpathy/nanoGPT; its model.py is imported, and its step is written below as in its
train.py: batches by random places of a memory-mapped file, accumulation, clipping, its own AdamW, no dropout, no bias.
Width, depth, heads, context, vocabulary and batch are those of the preset. Its blocks have 12 W² parameters each; ours
have 4 W² + 3 W F with F hidden: the preset's F, and a second time the F that matches nanoGPT's count. Contenders take
turns in one process on one core; processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from lotion_theory.files import write_text  # noqa: E402
from testbeds.data import load_sotu  # noqa: E402
from testbeds.lm.loop.config import TrainConfig, preset  # noqa: E402
from testbeds.lm.measure.stepcost import Contender, load_averages, median  # noqa: E402
from testbeds.lm.model.decoder import parameter_counts  # noqa: E402
from testbeds.lm.text.config import DataConfig  # noqa: E402
from testbeds.machine import code_version, machine  # noqa: E402

# Preset, sequences per micro-batch, micro-batches per step: the tiny one's own batch, and what one core can do.
CASES = (("tiny", 32, 1), ("20m", 1, 2))
FORMAT = "int4"


def nanogpt(folder: Path) -> Any:
    """nanoGPT's ``model.py``; FileNotFoundError if ``folder`` has none."""
    path = folder / "model.py"
    if not path.is_file():
        raise FileNotFoundError(f"--nanogpt {folder}: no model.py; give a checkout of github.com/karpathy/nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass asks for the module by name
    spec.loader.exec_module(module)
    return module


def their_step(module: Any, config: TrainConfig, data: Path) -> tuple[Callable[[], None], dict[str, int]]:
    """nanoGPT's training step at the preset's sizes, and its numbers of parameters."""
    shape, settings = config.model, config.optimizer
    micro = config.run.micro_batch or config.batch
    accumulate = config.batch // micro
    torch.manual_seed(config.seed)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(
            module.GPTConfig(
                block_size=shape.context, vocab_size=shape.vocabulary, n_layer=shape.depth, n_head=shape.heads,
                n_embd=shape.width, dropout=0.0, bias=False,
            )
        )  # fmt: skip
        optimizer = model.configure_optimizers(
            settings.weight_decay, settings.lr, (settings.beta1, settings.beta2), "cpu"
        )
    model.train()

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        ids = np.memmap(data, dtype=np.uint16, mode="r")
        places = torch.randint(len(ids) - shape.context, (micro,))
        x, y = (
            torch.stack([torch.from_numpy(ids[i + by : i + by + shape.context].astype(np.int64)) for i in places])
            for by in (0, 1)
        )
        return x, y

    ahead = [batch()]

    def step() -> None:
        for group in optimizer.param_groups:
            group["lr"] = settings.lr
        for _ in range(accumulate):
            _, loss = model(*ahead[0])
            loss = loss / accumulate
            ahead[0] = batch()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    total = sum(p.numel() for p in model.parameters())
    embedding = shape.vocabulary * shape.width
    return step, {"embedding": embedding, "blocks": total - embedding, "total": total}


def our_step(config: TrainConfig) -> tuple[Callable[[], None], dict[str, int]]:
    """The trainer's step without a method, and the decoder's numbers of parameters."""
    contender = Contender("plain", config, FORMAT, torch.device("cpu"))

    def step() -> None:
        float(contender.trainer.step()[0])

    return step, parameter_counts(config.model)


def compare(name: str, micro: int, accumulate: int, module: Any, data: Path, rounds: int) -> list[dict[str, Any]]:
    """One row per contender, steps in turns."""
    base = preset(name)
    run = replace(base.run, device="cpu", precision="float32", micro_batch=micro, log_every=10**6)
    config = replace(base, data=DataConfig(), run=run, batch=micro * accumulate)
    # 3 W F = 8 W², up to a multiple of 8.
    matched = replace(config, model=replace(config.model, hidden=-(-config.model.width // 3) * 8))
    made = {
        "lotion, preset": our_step(config),
        "lotion, matched": our_step(matched),
        "nanoGPT": their_step(module, config, data),
    }
    seconds: dict[str, list[float]] = {label: [] for label in made}
    for number in range(rounds + 1):
        for label in list(made)[:: 1 if number % 2 == 0 else -1]:
            begin = time.process_time()
            made[label][0]()
            if number:  # the first one makes the optimizer's state
                seconds[label].append(time.process_time() - begin)
    tokens, rows = config.batch * config.model.context, []
    for label, values in seconds.items():
        ratio = median([theirs / ours for ours, theirs in zip(values, seconds["nanoGPT"], strict=True)])
        rows.append(
            {"preset": name, "contender": label, "micro_batch": micro, "accumulate": accumulate,
             "tokens_per_step": tokens, "parameters": made[label][1], "rounds": rounds,
             "hidden": {"lotion, preset": config.model.hidden, "lotion, matched": matched.model.hidden}.get(label),
             "tokens_per_second": tokens / median(values).middle, "speed": ratio.middle, "speed_low": ratio.low,
             "speed_high": ratio.high, "loadavg": load_averages()}
        )  # fmt: skip
    return rows


def commit(folder: Path) -> str | None:
    """The commit that ``folder`` is at; None where git does not know."""
    answer = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, encoding="ascii")
    return answer.stdout.strip() or None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="checkout of github.com/karpathy/nanoGPT")
    parser.add_argument("--presets", nargs="+", default=[name for name, *_ in CASES])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: must be at least 1")
    unknown = set(arguments.presets) - {name for name, *_ in CASES}
    if unknown:
        parser.error(f"--presets {' '.join(sorted(unknown))}; valid: {', '.join(name for name, *_ in CASES)}")
    try:
        module = nanogpt(arguments.nanogpt)
    except FileNotFoundError as error:
        parser.error(str(error))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.bin"
        np.frombuffer(load_sotu().encode(), np.uint8).astype(np.uint16).tofile(data)
        for name, micro, accumulate in CASES:
            if name in arguments.presets:
                rows += compare(name, micro, accumulate, module, data, arguments.rounds)
    for row in rows:
        print(
            f"{row['preset']:5} {row['contender']:16} {row['parameters']['blocks']:12,} parameters in blocks, "
            f"{row['tokens_per_second']:9,.1f} tokens/s, x{row['speed']:.3f} "
            f"[{row['speed_low']:.3f}, {row['speed_high']:.3f}] of nanoGPT's"
        )
    if arguments.json:
        about = {
            "date": str(datetime.date.today()), "machine": machine(), "threads": torch.get_num_threads(),
            "python": platform.python_version(), "code": code_version(), "nanogpt": commit(arguments.nanogpt),
            **{name: importlib.metadata.version(name) for name in ("numpy", "torch")},
        }  # fmt: skip
        write_text(arguments.json, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
