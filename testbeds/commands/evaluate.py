"""The command ``lotion evaluate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console


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
            from ..lm.measure.harness import evaluate_run
        except ImportError as error:
            raise ImportError(f"downstream tasks need {error.name}: pip install 'lotion-theory[harness]'") from None
        for name, least in (("limit", 1), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: must be at least {least}")
        from ..documents import write_json

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
                text = "   ".join(
                    f"{which} {_plus_minus(row, which)}" for which in ("float", "rtn", "rr") if which in row
                )
                console.print(f"{task} {metric}: {text}", highlight=False, markup=False)
        print(out)
        return 0


def _plus_minus(row: dict[str, Any], which: str) -> str:
    """The value of these weights and its standard error, where there is one."""
    error = row[f"{which}_standard_error"]
    return f"{row[which]:.4g}" + ("" if error is None else f" ± {error:.2g}")


COMMAND = Evaluate
