"""The commands ``lotion train`` and ``lotion prepare``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from .config import SOTU, TrainConfig, assigned, load, preset
from .settings import changed


@dataclass(frozen=True)
class Train:
    """Train a language model and evaluate it as floats, cast to nearest (RTN) and randomly rounded (RR).

    Stop it at any moment and start it again with the same options: it goes on from its last checkpoint. On several
    GPUs: torchrun --nproc-per-node 8 -m testbeds.cli train ... Exit status 1 if the loss is no number any more.

    Example: lotion train --preset tiny --method ptq --format int4 --steps 600 --out runs/lm/ptq
    """

    preset: Annotated[
        Literal["tiny", "20m", "150m", "300m"],
        tyro.conf.arg(help="size and settings to start from; named by the parameters of the blocks"),
    ] = "tiny"
    config: Annotated[Path | None, tyro.conf.arg(help="YAML file of settings on top of the preset")] = None
    method: Annotated[str | None, tyro.conf.arg(help="training method")] = None
    format: Annotated[str | None, tyro.conf.arg(help="number format, as in `lotion formats`")] = None
    steps: Annotated[int | None, tyro.conf.arg(help="optimizer steps")] = None
    batch: Annotated[int | None, tyro.conf.arg(help="sequences per step, over all devices")] = None
    micro_batch: Annotated[int | None, tyro.conf.arg(help="sequences per device and forward pass")] = None
    lr: Annotated[float | None, tyro.conf.arg(help="learning rate")] = None
    seed: Annotated[int | None, tyro.conf.arg(help="of initial weights, data order and rounding noise")] = None
    tokens: Annotated[str | None, tyro.conf.arg(help=f"folder made by `lotion prepare`, or {SOTU}")] = None
    mixer: Annotated[Literal["attention", "recurrence"] | None, tyro.conf.arg(help="architecture")] = None
    device: Annotated[str | None, tyro.conf.arg(help="auto, cpu, cuda, cuda:1, ...")] = None
    precision: Annotated[Literal["float32", "bfloat16"] | None, tyro.conf.arg(help="of matrix products")] = None
    compile: Annotated[bool, tyro.conf.arg(help="use torch.compile")] = False
    strategy: Annotated[Literal["auto", "none", "ddp", "fsdp"] | None, tyro.conf.arg(help="under torchrun")] = None
    out: Annotated[
        Path | None, tyro.conf.arg(help="folder of the run; default: runs/lm/ and a name made of the options")
    ] = None
    fall_back: Annotated[bool, tyro.conf.arg(help="if the newest checkpoint is damaged, use the one before")] = False
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(help="any other setting, e.g. model.width=64 optimizer.schedule=wsd")
    ] = ()

    def run(self, console: Console) -> int:
        """Train with a progress bar on standard error; print the result; the exit status."""
        try:
            from .train import train
        except ImportError as error:
            raise ImportError(f"training needs {error.name}: pip install 'lotion-theory[lm]'") from None
        config = self.resolved()
        out = self.out or Path("runs/lm") / default_name(self.preset, config)
        first = os.environ.get("RANK", "0") == "0"
        with _Bar(config.steps, shown=first) as bar:
            result = train(config, out, self.fall_back, progress=bar.show)
        if first:
            print_result(result, console)
            print(out)
        if result["status"] == "stopped":
            print("lotion: stopped and saved; run the same command again to go on", file=sys.stderr)
            return 128 + result["signal"] if result["signal"] else 1
        return 1 if result["status"] == "diverged" else 0

    def resolved(self) -> TrainConfig:
        """The preset, changed by the file, the options and ``--set`` in this order."""
        config = preset(self.preset)
        if self.config is not None:
            config = load(self.config, config)
        options = {
            "method": {"name": self.method, "format": self.format},
            "optimizer": {"lr": self.lr},
            "data": {"tokens": self.tokens},
            "model": {"mixer": self.mixer},
            "run": {"device": self.device, "precision": self.precision, "strategy": self.strategy,
                    "micro_batch": self.micro_batch, "compile": self.compile or None},
            "steps": self.steps, "batch": self.batch, "seed": self.seed,
        }  # fmt: skip
        return assigned(changed(config, _given(options), "command line"), self.set)


@dataclass(frozen=True)
class Export:
    """Write the quantized points of a run made by `lotion train`, bit for bit, for other programs to load.

    Example: lotion export runs/lm/tiny-lotion-int4-seed0 --out model.safetensors
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="folder of the run")]
    out: Annotated[Path, tyro.conf.arg(help="file to write")]
    kind: Annotated[
        Literal["packed", "gguf"], tyro.conf.arg(help="packed safetensors, or GGUF for runs in q4_0 and q8_0")
    ] = "packed"
    fall_back: Annotated[bool, tyro.conf.arg(help="if the newest checkpoint is damaged, use the one before")] = False

    def run(self, console: Console) -> int:
        """Write the file and print what it holds."""
        try:
            from .export import export_run
        except ImportError as error:
            raise ImportError(f"exporting needs {error.name}: pip install 'lotion-theory[lm]'") from None
        found = export_run(self.folder, self.out, self.kind, self.fall_back)
        console.print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                                for name, value in found.items()), highlight=False)  # fmt: skip
        print(self.out)
        return 0


@dataclass(frozen=True)
class Prepare:
    """Tokenize texts into files that `lotion train --tokens FOLDER` reads. An interrupted preparation goes on.

    Texts are local files (plain, or JSON lines with a field "text", gzipped or not), or C4 streamed from the hub. Or
    take ids as they are (--ids): little-endian uint16, .xz or not, whose documents are put in a random order.

    Example: lotion prepare --files wiki.jsonl.gz --tokenizer gpt2.tiktoken --out runs/tokens/wiki
    """

    out: Annotated[Path, tyro.conf.arg(help="folder for the token files")]
    files: Annotated[tuple[Path, ...], tyro.conf.arg(help="local texts", help_behavior_hint="")] = ()
    c4: Annotated[bool, tyro.conf.arg(help="stream C4 (English) instead; its own validation split is held out")] = False
    ids: Annotated[tuple[Path, ...], tyro.conf.arg(help="files of ids instead", help_behavior_hint="")] = ()
    validation_ids: Annotated[
        tuple[Path, ...], tyro.conf.arg(help="files of held-out ids", help_behavior_hint="")
    ] = ()
    vocabulary: Annotated[int, tyro.conf.arg(help="with --ids: ids are below it; default: GPT-2's")] = 50257
    end_of_text: Annotated[int, tyro.conf.arg(help="with --ids: the id after every document")] = 50256
    tokenizer: Annotated[
        str, tyro.conf.arg(help="bytes, a .tiktoken file of ranks (GPT-2's), or a tokenizer.json file")
    ] = "bytes"
    learn: Annotated[
        int | None, tyro.conf.arg(help="learn a byte-level BPE of so many ids from the texts, into OUT/tokenizer.json")
    ] = None
    separator: Annotated[str | None, tyro.conf.arg(help="cut plain files into documents here")] = None
    held_out_every: Annotated[int, tyro.conf.arg(help="hold out every so-manieth document")] = 20
    held_out_part: Annotated[
        float | None, tyro.conf.arg(help="instead hold out the last part of every text, e.g. 0.05")
    ] = None
    tokens_per_file: Annotated[int, tyro.conf.arg(help="size of the files")] = 50_000_000
    limit: Annotated[int | None, tyro.conf.arg(help="stop after about so many tokens, per split")] = None

    def run(self, console: Console) -> int:
        """Write the files and print the numbers of tokens."""
        from .prepare import c4, learned_tokenizer, prepare, text_files
        from .tokenizer import tokenizer

        if sum((self.c4, bool(self.files), bool(self.ids))) != 1:
            raise ValueError("give either --files or --c4 or --ids")
        if self.validation_ids and not self.ids:
            raise ValueError("--validation-ids goes with --ids")
        if self.ids:
            return self._take_ids(console)
        if self.learn is not None and self.tokenizer != "bytes":
            raise ValueError("--learn and --tokenizer exclude each other")
        texts = c4("train") if self.c4 else text_files(self.files, self.separator)
        chosen = (
            tokenizer(self.tokenizer)
            if self.learn is None
            else learned_tokenizer(texts, self.learn, self.out / "tokenizer.json")
        )
        with console.status("tokenizing") as status:
            counts = prepare(
                self.out, texts, chosen, c4("validation") if self.c4 else None, self.held_out_every,
                self.held_out_part, self.tokens_per_file, self.limit,
                progress=lambda count: status.update(f"{count:,} tokens"),
            )  # fmt: skip
        for split, count in counts.items():
            print(f"{split}: {count:,} tokens, vocabulary {chosen.vocabulary}")
        return 0

    def _take_ids(self, console: Console) -> int:
        from .ids import prepare_ids

        with console.status("reading") as status:
            counts = prepare_ids(
                self.out, self.ids, self.validation_ids, self.vocabulary, self.end_of_text, self.held_out_every,
                self.tokens_per_file, self.limit, progress=lambda count: status.update(f"{count:,} tokens"),
            )  # fmt: skip
        for split, count in counts.items():
            print(f"{split}: {count:,} tokens, vocabulary {self.vocabulary}")
        return 0


def default_name(name: str, config: TrainConfig) -> str:
    """Name for a run's folder, e.g. ``tiny-ptq-int4-absmax-block=32-seed0``."""
    text = "" if config.method.name == "none" else f"-{config.method.format.replace('/', '-')}"
    return f"{name}-{config.method.name}{text}-seed{config.seed}"


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


class _Bar:
    """A progress bar on standard error."""

    def __init__(self, steps: int, shown: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not shown)
        self._task = self._progress.add_task("training", total=steps)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, done: int, steps: int, text: str) -> None:
        self._progress.update(self._task, completed=done, description=text)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those that are None."""
    out = {}
    for name, value in options.items():
        value = _given(value) if isinstance(value, dict) else value
        if value is not None and value != {}:
            out[name] = value
    return out


def main(arguments: list[str] | None = None) -> None:
    """``python -m testbeds.lm.commands train|prepare ...``, as ``lotion`` does it."""
    from typing import Union

    commands: Any = Union[  # noqa: UP007
        Annotated[Train, tyro.conf.subcommand("train")], Annotated[Prepare, tyro.conf.subcommand("prepare")]
    ]
    chosen: Any = tyro.cli(
        commands, prog="lotion", args=arguments, config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    )
    try:
        status = chosen.run(Console())
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"lotion: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("lotion: interrupted; run the same command again to go on", file=sys.stderr)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
