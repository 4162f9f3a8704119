"""Tables about the package, made from its own files: ``promises`` of number formats, and ``requirements``."""

import re
import tomllib
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


def table(head, rows):
    """A Markdown table as text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def canonical(name):
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Promises(SphinxDirective):
    """``{promises} FORMAT ...``: what the scale rules of these formats promise."""

    required_arguments = 1
    optional_arguments = 100

    def run(self):
        """The table."""
        from lotion_theory import formats

        rows = []
        for row in formats(self.arguments):
            kept = (row.unbiased, row.continuous, row.support_fixed)
            rows.append([f"`{row.format}`", *("yes" if promise else "**no**" for promise in kept)])
        return self.parse_text_to_nodes(table(["format", "unbiased", "continuous", "support fixed"], rows))


class Requirements(SphinxDirective):
    """``{requirements}``: packages by extra, the oldest version asked for and the one that the tests run with."""

    def run(self):
        """The table, from pyproject.toml and constraints.txt."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pins = {canonical(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
        groups = {"(always)": project["dependencies"], **project["optional-dependencies"]}
        rows = []
        for extra, needed in groups.items():
            for requirement in needed:
                name, oldest = re.match(r"([\w.-]+)(?:\[[^\]]*\])?(?:>=([\w.]+))?", requirement).groups()
                if name != project["name"]:
                    rows.append([extra, name, oldest or "any", pins.get(canonical(name), "not pinned")])
        self.env.note_dependency(str(ROOT / "pyproject.toml"))
        self.env.note_dependency(str(ROOT / "constraints.txt"))
        return self.parse_text_to_nodes(table(["extra", "package", "at least", "tested with"], rows))


def setup(app):
    """Register the directives."""
    app.add_directive("promises", Promises)
    app.add_directive("requirements", Requirements)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
