"""The commands ``lotion train``, ``tune``, ``evaluate``, ``export`` and ``prepare``."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from lotion_theory.files import write_text

from .options import Options, default_name
from .settings import to_dict, yaml_text


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


@dataclass(frozen=True)
class Tune(Options):
    """Search the learning rate, and λ of lotion or cage, for the lowest mean RTN loss over several seeds.

    The search is Optuna's. Stop it at any moment and start it again with the same options: it goes on. Writes
    OUT/best.yaml for `lotion train --config`.

    Example: lotion tune --preset tiny --method lotion --format int4 --trials 20 --out runs/tune
    """

    trials: Annotated[int, tyro.conf.arg(help="settings to try, those tried before included")] = 20
    seeds: Annotated[int, tyro.conf.arg(help="runs of each setting")] = 2
    lr_range: Annotated[tuple[float, float], tyro.conf.arg(help="lowest and highest learning rate")] = (3e-4, 3e-2)
    weight_range: Annotated[
        tuple[float, float] | None,
        tyro.conf.arg(help="lowest and highest λ; default: 0.1 to 10 for lotion, else not tuned"),
    ] = None
    out: Annotated[Path | None, tyro.conf.arg(help="folder of the search; default: runs/tune/ and a name")] = None

    def run(self, console: Console) -> int:
        """Tune with a progress bar; print the trials and the command that trains with the best settings."""
        from .tune import Stopped, tune

        config = self.resolved()
        if self.lr is not None:
            raise ValueError(f"--lr {self.lr:g}: the learning rate is what is tuned; bound it by --lr-range")
        weight = self.weight_range
        if weight is None and config.method.name == "lotion" and "weight" not in config.method.settings:
            weight = (0.1, 10.0)
        out = self.out or Path("runs/tune") / default_name(self.preset, config)
        try:
            with _Bar(self.trials, shown=True) as bar:
                found = tune(config, out, self.trials, self.seeds, self.lr_range, weight, progress=bar.show)
        except ImportError as error:
            raise ImportError(f"tuning needs {error.name}: pip install 'lotion-theory[tune]'") from None
        except Stopped:
            raise KeyboardInterrupt from None
        path = out / "best.yaml"
        write_text(path, yaml_text(to_dict(found.config)))
        for trial in found.trials:
            settings = ", ".join(f"{name}={trial[name]:.3g}" for name in found.best)
            console.print(f"RTN loss {trial['value']:.4f}  {settings}", highlight=False, markup=False)
        print(f"lotion train --preset {self.preset} --config {shlex.quote(str(path))}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write the quantized points of a run made by `lotion train`, bit for bit, for other programs to load.

    Example: lotion export runs/lm/tiny-lotion-int4-seed0 --out model.safetensors
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="folder of the run")]
    out: Annotated[Path, tyro.conf.arg(help="file to write")]
    kind: Annotated[
        Literal["packed", "gguf"] | None,
        tyro.conf.arg(help="packed safetensors, or GGUF for runs in q4_0 and q8_0; by default what --out ends in"),
    ] = None
    fall_back: Annotated[bool, tyro.conf.arg(help="if the newest checkpoint is damaged, use the one before")] = False

    def run(self, console: Console) -> int:
        """Write the file and print what it holds."""
        try:
            from .export import export_run
        except ImportError as error:
            raise ImportError(f"exporting needs {error.name}: pip install 'lotion-theory[lm]'") from None
        if self.out.is_dir():
            raise ValueError(f"--out {self.out}: is a folder")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        found = export_run(self.folder, self.out, self.kind, self.fall_back)
        console.print(", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                                for name, value in found.items()), highlight=False)  # fmt: skip
        print(self.out)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Ask a run made by `lotion train` tasks of lm-evaluation-harness: as floats, RTN and RR, side by side.

    A task is a YAML file of the harness, a packaged one (sotu_words: which of four words goes on; sotu_perplexity), or
    a name of the harness, which then downloads its data. The packaged ones need no network.

    Example: lotion evaluate runs/lm/tiny-lotion-int4-seed0 --tasks sotu_words mytasks/cloze.yaml
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="folder of the run")]
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(help="YAML files or names")] = ("sotu_words", "sotu_perplexity")
    samples: Annotated[int, tyro.conf.arg(help="randomized roundings")] = 2
    limit: Annotated[int | None, tyro.conf.arg(help="only so many documents of each task")] = None
    tokenizer: Annotated[
        str | None, tyro.conf.arg(help="the run's tokenizer file, if it is not beside its token files")
    ] = None
    batch: Annotated[int, tyro.conf.arg(help="sequences at a time")] = 16
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda, cuda:1, ...")] = "auto"
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write; default: tasks.json in the run's folder")] = (
        None
    )
    fall_back: Annotated[bool, tyro.conf.arg(help="if the newest checkpoint is damaged, use the one before")] = False
    allow_code: Annotated[
        bool, tyro.conf.arg(help="let task files run Python code (!function, class, any template): only yours")
    ] = False

    def run(self, console: Console) -> int:
        """Write the metrics and print them."""
        try:
            from .harness import evaluate_run
        except ImportError as error:
            raise ImportError(f"downstream tasks need {error.name}: pip install 'lotion-theory[harness]'") from None
        for name, least in (("limit", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: must be at least {least}")
        from .results import write_json

        out = self.out or self.folder / "tasks.json"
        if out.is_dir():
            raise ValueError(f"--out {out}: is a folder")  # before the work, not after it
        result = evaluate_run(
            self.folder, self.tasks, self.samples, self.limit, self.tokenizer, self.batch, self.device, self.fall_back,
            progress=lambda text: print(f"evaluating {text}", file=sys.stderr), allow_code=self.allow_code,
        )  # fmt: skip
        write_json(out, result)
        for task, found in result["tasks"].items():
            for metric, row in found["metrics"].items():
                text = "   ".join(f"{kind} {_plus_minus(row, kind)}" for kind in ("float", "rtn", "rr") if kind in row)
                console.print(f"{task} {metric}: {text}", highlight=False, markup=False)
        print(out)
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
    validation_ids: Annotated[tuple[Path, ...], tyro.conf.arg(help="files of held-out ids", help_behavior_hint="")] = ()
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
        from .prepare import c4, prepare, text_files
        from .tokenizer import tokenizer
        from .tokens import vocabulary_in

        if sum((self.c4, bool(self.files), bool(self.ids))) != 1:
            raise ValueError("give either --files or --c4 or --ids")
        if self.validation_ids and not self.ids:
            raise ValueError("--validation-ids goes with --ids")
        if self.ids:
            return self._take_ids(console)
        if self.learn is not None and self.tokenizer != "bytes":
            raise ValueError("--learn and --tokenizer exclude each other")
        texts = c4("train") if self.c4 else text_files(self.files, self.separator)
        chosen = tokenizer(self.tokenizer) if self.learn is None else self.learn
        for what in getattr(chosen, "ignored", ()):
            print(f"lotion: {self.tokenizer} asks for {what}, which is switched off here", file=sys.stderr)
        with console.status("tokenizing") as status:
            counts = prepare(
                self.out, texts, chosen, c4("validation") if self.c4 else None, self.held_out_every,
                self.held_out_part, self.tokens_per_file, self.limit,
                progress=lambda count: status.update(f"{count:,} tokens"),
            )  # fmt: skip
        for split, count in counts.items():
            print(f"{split}: {count:,} tokens, vocabulary {vocabulary_in(self.out, split)}")
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


def _plus_minus(row: dict[str, Any], kind: str) -> str:
    """A value and its standard error, where there is one."""
    error = row[f"{kind}_standard_error"]
    return f"{row[kind]:.4g}" + ("" if error is None else f" ± {error:.2g}")


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
