"""The ``lotion`` command. Every subcommand is a thin shell around a plain function."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from lotion_theory.formats.partition import GRAMMAR

from .lm.commands import Evaluate, Export, Prepare, Train, Tune
from .report.command import Report
from .sweep.commands import Figures, Leaderboard, Sweep

FORMAT_HELP = f"CODEBOOK[/SCALE][/{GRAMMAR}] or an alias, as in `lotion formats`"


@dataclass(frozen=True)
class Formats:
    """List number formats with what their scale rules promise.

    Example: lotion formats; lotion formats int4 nf4/absmax/block=64 mxfp4/sr
    """

    formats: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FORMAT ...]", help=FORMAT_HELP)
    ] = ()

    def run(self, console: Console) -> int:
        from lotion_theory.formats.catalog import formats

        from .text.tables import format_table, print_table

        print_table(format_table(formats(self.formats or None)), console)
        return 0


@dataclass(frozen=True)
class Verify:
    """Check the theory's claims on number formats and print the verdicts, with the simplest counterexample found.

    Exit status 1 if a claim that should hold does not, or if a predicted failure was not found.

    Example: lotion verify --formats int4/absmax/block=32 mxfp4 --claims C1 C4 C6
    """

    formats: Annotated[tuple[str, ...], tyro.conf.arg(help=FORMAT_HELP + "; default: all", help_behavior_hint="")] = ()
    claims: Annotated[tuple[str, ...], tyro.conf.arg(help="C1 ... C20; default: all", help_behavior_hint="")] = ()
    evidence: Annotated[
        tuple[Literal["proved", "exhaustive", "property"], ...],
        tyro.conf.arg(help="levels of evidence; default: all", help_behavior_hint=""),
    ] = ()
    json: Annotated[bool, tyro.conf.arg(help="print the rows as JSON instead of tables")] = False
    csv: Annotated[bool, tyro.conf.arg(help="print the rows as CSV instead of tables")] = False
    out: Annotated[Path | None, tyro.conf.arg(help="also write the rows to this .json or .csv file")] = None
    cache: Annotated[Path | None, tyro.conf.arg(help="keep finished formats here, to resume an interrupted run")] = None
    processes: Annotated[int | None, tyro.conf.arg(help="worker processes; default: the number of cores")] = None

    def run(self, console: Console) -> int:
        from lotion_theory.files import write_text
        from lotion_theory.theory import verification

        from .text.tables import print_verdicts

        if self.json and self.csv:
            raise ValueError("--json and --csv exclude each other")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"--processes {self.processes}: must be at least 1")
        if self.out is not None and self.out.suffix not in (".json", ".csv"):
            raise ValueError(f"--out {self.out}: the name must end in .json or .csv")
        if self.out is not None and self.out.is_dir():
            raise ValueError(f"--out {self.out}: is a folder")
        if self.out is not None:
            # Before the run, so that a folder that cannot be made does not cost its result.
            self.out.parent.mkdir(parents=True, exist_ok=True)
        rows = run_verification(
            self.formats or None, self.claims or None, self.evidence or None, self.processes, self.cache
        )
        if self.out is not None:
            write_text(
                self.out, verification.to_json(rows) if self.out.suffix == ".json" else verification.to_csv(rows)
            )
        if self.json or self.csv:
            sys.stdout.write(verification.to_json(rows) if self.json else verification.to_csv(rows))
        else:
            print_verdicts(rows, console)
        return 1 if verification.surprises(rows) else 0


@dataclass(frozen=True)
class Landscape:
    """Draw the loss landscape of a format: raw, smoothed, second-order losses, gradient fields, minima, trajectories.

    Writes PNG, PDF and SVG files and prints their paths.

    Example: lotion landscape int4 --dimension 2 --out figures
    """

    format: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FORMAT", help=FORMAT_HELP)]
    dimension: Annotated[Literal[1, 2], tyro.conf.arg(help="one weight (and a line through a block), or a plane")] = 1
    out: Annotated[Path, tyro.conf.arg(help="folder for the figures")] = Path("figures")
    seed: Annotated[int, tyro.conf.arg(help="draws the quadratic and the roundings")] = 0
    points: Annotated[int | None, tyro.conf.arg(help="resolution per axis")] = None

    def run(self, console: Console) -> int:
        from .figures import landscape_figures

        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: must not be negative")
        if self.points is not None and self.points < 9:
            raise ValueError(f"--points {self.points}: must be at least 9")
        with console.status("drawing") as status:
            paths = landscape_figures(
                self.format,
                self.out,
                self.dimension,
                self.seed,
                self.points,
                progress=lambda name: status.update(f"drawing {name}"),
            )
        for path in paths:
            print(path)
        return 0


@dataclass(frozen=True)
class Reproduce:
    """Run every check and draw every figure, then write a summary. An interrupted run goes on where it stopped.

    Example: lotion reproduce --preset quick --out reproduced
    """

    preset: Annotated[
        Literal["quick", "paper"], tyro.conf.arg(help="quick: minutes on 2 cores; paper: some two hours")
    ] = "quick"
    out: Annotated[Path, tyro.conf.arg(help="folder for rows, figures and the summary")] = Path("reproduced")
    processes: Annotated[int | None, tyro.conf.arg(help="worker processes; default: the number of cores")] = None
    skip_real: Annotated[bool, tyro.conf.arg(help="leave out the pretrained weights")] = False

    def run(self, console: Console) -> int:
        from .reproduce import reproduce

        presets = ("quick", "lm-quick") if self.preset == "quick" else ("quick", "lm-quick", "paper", "lm")
        return reproduce(self.out, self.processes, self.skip_real, console, presets)


def run_verification(formats, claims, evidence, processes, cache) -> list:
    """``verify`` with a progress bar on standard error."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from lotion_theory import Quantizer
    from lotion_theory.theory.verification import select, verify

    # Bad names are answered before the bar appears.
    for text in formats or ():
        Quantizer.parse(text)
    select(claims)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("checking", total=None)
        return verify(
            formats, claims, evidence, processes, cache=cache,
            progress=lambda label, done, total: bar.update(
                task, completed=done, total=total, description=f"checked {label}"
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class _Commands:
    command: Annotated[
        Annotated[Formats, tyro.conf.subcommand("formats")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Landscape, tyro.conf.subcommand("landscape")]
        | Annotated[Sweep, tyro.conf.subcommand("sweep")]
        | Annotated[Leaderboard, tyro.conf.subcommand("leaderboard")]
        | Annotated[Figures, tyro.conf.subcommand("figures")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[Tune, tyro.conf.subcommand("tune")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[Reproduce, tyro.conf.subcommand("reproduce")],
        tyro.conf.arg(name=""),
    ] = field()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to :func:`main`: rich would exit with 1, which means a failed claim here."""
        raise BrokenPipeError


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run the subcommand, and exit: 0, 1 (a claim failed) or 2 (bad input)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # Closed by the shell, as in `lotion ... >&-`; the next file to be opened must not take its place.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A result is not lost because a terminal or a locale lacks a letter; JSON stays JSON.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        commands = tyro.cli(
            _Commands, prog="lotion", args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            description="Smoothing the loss of quantized networks: verify the theory, look at landscapes, compare "
            "methods.",
        )  # fmt: skip
        status = commands.command.run(_Console())
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has seen enough, as in `lotion formats | head`. Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + 13
    except MemoryError as error:
        # numpy says how much it wanted, Python itself nothing.
        print(f"lotion: out of memory {error}".rstrip(), file=sys.stderr)
        status = 2
    except OSError as error:
        print(f"lotion: {_sentence(error)}", file=sys.stderr)
        status = 2
    except (ValueError, TypeError, ImportError) as error:
        print(f"lotion: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("lotion: interrupted; run the same command again to go on", file=sys.stderr)
        status = 130
    sys.exit(status)


def _sentence(error: OSError) -> str:
    """What the system refused, without its number: the path, then the reason."""
    if error.strerror is None:
        return str(error)
    # Folders are made where they are missing: only a file can be in their way.
    reason = "is a file, not a folder" if isinstance(error, FileExistsError) else error.strerror
    return reason if error.filename is None else f"{error.filename}: {reason}"


if __name__ == "__main__":
    main()
