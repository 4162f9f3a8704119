"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

from lotion_theory.formats.partition import GRAMMAR

FORMAT_HELP = f"CODEBOOK[/SCALE][/{GRAMMAR}] or an alias, as in `lotion formats`"
DEFAULT_STORE = Path("runs/sweep.sqlite")
STORE_HELP = "SQLite file with the runs, or an archive of them (.jsonl.xz)"
