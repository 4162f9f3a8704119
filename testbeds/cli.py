"""The ``lotion`` command. Every subcommand is a thin shell around a plain function."""

from __future__ import annotations

import functools
import logging
import operator
import os
import sys
from dataclasses import make_dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console

from .commands import NAMES, command

# What transformers imports along the way logs about itself there.
_CHATTY = ("torchao", "torch.utils._pytree")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to :func:`main`: rich would exit with 1, which means a failed claim here."""
        raise BrokenPipeError


def _choice() -> Any:
    """What tyro parses: one of the subcommands."""
    each = [Annotated[command(name), tyro.conf.subcommand(name)] for name in NAMES]
    one: Any = functools.reduce(operator.or_, each)
    return make_dataclass("Choice", [("command", Annotated[one, tyro.conf.arg(name="")])])


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
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        chosen = tyro.cli(
            _choice(), prog="lotion", args=arguments,
            config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            description="Smoothing the loss of quantized networks: verify the theory, look at landscapes, compare "
            "methods.",
        )  # fmt: skip
        status = chosen.command.run(_Console())
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
