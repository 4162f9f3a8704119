"""What the choice of settings took: tuning evaluations, and whose best still lies at an edge of what was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .leaderboard import TuningLine, tuning_table
from .rows import Row, grouped


@dataclass(frozen=True)
class Budget:
    """``least``, ``most``: evaluations (training runs) spent on the settings of one method on one problem and format;
    ``seeds``: of these per configuration. ``edges``: lines of the tuning table whose choice has no tried neighbour on
    some side."""

    least: int
    most: int
    seeds: int
    edges: tuple[TuningLine, ...]

    @property
    def words(self) -> str:
        """The budget as a sentence."""
        each = f"{self.least // self.seeds} configurations on {self.seeds} other instance{'s' * (self.seeds > 1)}"
        more = f", up to {self.most} where its best lay at an edge of the grid" if self.most > self.least else ""
        return f"Every method had {self.least} tuning evaluations ({each}){more}."

    @property
    def at_edges(self) -> str:
        """Whose choices still lie at an edge, as a sentence; empty where none do."""
        if not self.edges:
            return ""
        found = grouped(self.edges, lambda line: (line.method, line.edges))
        told = [
            f"{method} on {', '.join(dict.fromkeys(line.format.upper() for line in lines))} ({', '.join(edges)})"
            for (method, edges), lines in found.items()
        ]
        grown = self.most > self.least
        where = "Still at an edge, where the extension ended or the method's own range does" if grown else "At an edge"
        return f"{where}: {'; '.join(told)}."


def budget(rows: Sequence[Row], experiment: str) -> Budget | None:
    """The budget of an experiment whose methods were tuned; None for others."""
    mine = [r for r in rows if r["experiment"] == experiment]
    tuned = [r for r in mine if r["phase"] == "tune"]
    if not tuned:
        return None
    lines = tuning_table(mine)
    sizes = [
        sum(line.seeds + line.failed for line in group)
        for group in grouped(lines, lambda x: (x.problem, x.format, x.method)).values()
    ]
    return Budget(min(sizes), max(sizes), len({r["seed"] for r in tuned}), tuple(x for x in lines if x.edges))
