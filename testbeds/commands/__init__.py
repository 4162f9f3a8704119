"""The subcommands of ``lotion``: one file each, with a class ``COMMAND`` whose fields are the options.

Its docstring is the help. ``run(console)`` does the work by a plain function and returns the exit status.
"""

from importlib import import_module
from typing import Protocol

from rich.console import Console

# A command is known by its name here; its file has the same name.
NAMES = (
    "formats", "verify", "landscape", "sweep", "leaderboard", "figures", "prepare", "train", "tune", "evaluate",
    "quantize", "export", "report", "reproduce",
)  # fmt: skip


class Command(Protocol):
    """A subcommand with its options given."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        ...


def command(name: str) -> type[Command]:
    """The class of the subcommand called ``name``."""
    return import_module(f".{name}", __name__).COMMAND
