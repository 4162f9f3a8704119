"""Hold every method to the paper or the released code that it is named after, and print how far apart they are.

    python scripts/sources.py

The checks are those of tests/source_checks.py: each runs a method's own functions and the source's formula on the same
numbers. A check whose oracle is another library (torchao, curvlinops, qmcpy) runs where that is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from tests.source_checks import CHECKS  # noqa: E402


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def table() -> tuple[list[str], bool]:
    """The lines of a Markdown table, and whether every difference is within its limit."""
    lines = ["| method | form | held to | in | largest difference | limit |", "|---|---|---|---|---:|---:|"]
    sound = True
    for check in CHECKS:
        found = check.measure() if check.there else None
        sound &= found is None or 0 <= found <= check.limit
        shown = f"({check.needs} is not installed)" if found is None else f"{found:.1e}"
        words = map(_cell, (check.method, check.form, check.source, check.what))
        lines.append(f"| {' | '.join([*words, shown, f'{check.limit:.1e}'])} |")
    return lines, sound


if __name__ == "__main__":
    told, fine = table()
    print("\n".join(told))
    sys.exit(0 if fine else "a method is not what its source is")
