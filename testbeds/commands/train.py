"""The command ``lotion train``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ..lm.options import Options, default_name
from ..progress import Bar


@dataclass(frozen=True)
class Train(Options):
    """Train a language model and evaluate it as floats, cast to nearest (RTN) and randomly rounded (RR).

    Stop it at any moment and start it again with the same options: it goes on from its last checkpoint. On several
    GPUs: torchrun --nproc-per-node 8 -m testbeds.cli train ... Exit status 1 if the loss is no number any more.

    Example: lotion train --preset tiny --method ptq --format int4 --steps 600 --out runs/lm/ptq
    """

    out: Annotated[
        Path | None, tyro.conf.arg(help="folder of the run; default: runs/lm/ and a name made of the options")
    ] = None
    fall_back: Annotated[bool, tyro.conf.arg(help="if the newest checkpoint is damaged, use the one before")] = False

    def run(self, console: Console) -> int:
        """Train with a progress bar on standard error; print the result; the exit status."""
        try:
            from ..lm.loop.train import train
        except ImportError as error:
            raise ImportError(f"training needs {error.name}: pip install 'lotion-theory[lm]'") from None
        config = self.resolved()
        out = self.out or Path("runs/lm") / default_name(self.preset, config)
        first = os.environ.get("RANK", "0") == "0"
        with Bar("training", config.steps, shown=first) as bar:
            result = train(config, out, self.fall_back, progress=bar.show, begun=bar.begin)
        if first:
            print_result(result, console)
            print(out)
        if result["status"] == "stopped":
            print("lotion: stopped and saved; run the same command again to go on", file=sys.stderr)
            return 128 + result["signal"] if result["signal"] else 1
        return 1 if result["status"] == "diverged" else 0


def print_result(result: dict[str, Any], console: Console) -> None:
    """Losses with standard errors and perplexities with their 95 % intervals, size and speed."""
    found = result["metrics"]
    for name in ("float", "rtn", "rr"):
        if f"{name}_loss" in found:
            low, high = found[f"{name}_perplexity_low"], found[f"{name}_perplexity_high"]
            console.print(
                f"{name:5} loss {found[f'{name}_loss']:.4f} ± {found[f'{name}_standard_error']:.4f}   "
                f"perplexity {found[f'{name}_perplexity']:.3f} [{low:.3f}, {high:.3f}]",
                highlight=False, markup=False,
            )  # fmt: skip
    counts = result["parameters"]
    speed = "" if result["tokens_per_second"] is None else f", {result['tokens_per_second']:,.0f} tokens/s"
    mfu = "" if result["mfu"] is None else f", MFU {result['mfu']:.1%}"
    console.print(
        f"{result['status']} at step {result['step']}; {counts['total']:,} parameters ({counts['blocks']:,} in blocks, "
        f"{result['quantized_parameters']:,} quantized){speed}{mfu}, {result['memory_bytes'] / 2**20:,.0f} MiB",
        highlight=False, markup=False,
    )  # fmt: skip


COMMAND = Train
