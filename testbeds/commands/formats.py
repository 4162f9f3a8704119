"""The command ``lotion formats``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console

from .options import FORMAT_HELP


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

        from ..text.tables import format_table, print_table

        print_table(format_table(formats(self.formats or None)), console)
        return 0


COMMAND = Formats
