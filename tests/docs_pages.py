"""The pages of the documentation as programs: their fenced blocks, and how each kind is run."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from testbeds import cli

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if "_build" not in p.parts)
NOT_RUN = "not run"
FENCE = re.compile(r"^```([\w{}-]+)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Appended to commands, so that what takes a reader minutes takes a test a second; what they mean is the same.
SHORT = {
    "train": ["--steps", "2", "--batch", "2", "--device", "cpu"],
    "sweep": ["--pool", "serial"],
    "verify": ["--processes", "1"],
    "quantize": ["--windows", "8", "--length", "16", "--measured", "4"],
}
SHORT_SETTINGS = (
    "model.width=32", "model.heads=2", "model.hidden=32", "model.depth=1", "model.context=16",
    "evaluation.windows=4", "evaluation.samples=2",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, whether it is run, its text and the number of its first line."""

    language: str
    runs: bool
    text: str
    line: int

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a shell block as words, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: str) -> list[Block]:
    """The blocks of a page but for directives; ValueError for a marker that is not known."""
    source, out = (DOCS / page).read_text(encoding="utf-8"), []
    for match in FENCE.finditer(source):
        language, marker, text = match.groups()
        line = source.count("\n", 0, match.start()) + 1
        if language.startswith("{"):
            continue
        if marker not in ("", NOT_RUN):
            raise ValueError(f"{page}:{line}: marker {marker!r}; valid: none, {NOT_RUN!r}")
        out.append(Block(language, marker != NOT_RUN, text, line))
    return out


def shortened(words: list[str]) -> list[str]:
    """The arguments of ``lotion`` with the settings of a test."""
    name, *rest = words
    if name == "train":
        rest = rest if "--set" in rest else [*rest, "--set"]
        last = next((i for i in range(rest.index("--set") + 1, len(rest)) if rest[i].startswith("--")), len(rest))
        rest[last:last] = SHORT_SETTINGS
    return [name, *rest, *SHORT.get(name, [])]


def lotion(arguments: list[str]) -> None:
    """Run ``lotion`` in this process; AssertionError with what it printed unless it ends well."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(arguments)
    except SystemExit as stopped:
        assert not stopped.code, f"lotion {shlex.join(arguments)}: {stopped.code}\n{out.getvalue()}{err.getvalue()}"


def run_page(page: str) -> int:
    """Run the blocks of a page in order, in the present folder, with one namespace; returns how many were run.

    Python is executed, shell commands must be ``lotion``'s, YAML is written to the file that its first line names.
    """
    namespace, done = {"__name__": "docs"}, 0
    for block in blocks(page):
        if not block.runs:
            continue
        if block.language == "python":
            # The block keeps its place in the page, for tracebacks.
            code = compile("\n" * block.line + block.text, str(DOCS / page), "exec")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, namespace)
        elif block.language == "bash":
            for program, *arguments in block.commands:
                assert program == "lotion", f"{page}:{block.line}: {program} is not run; mark the block {NOT_RUN!r}"
                lotion(shortened(arguments))
        elif block.language == "yaml":
            Path(block.text.split()[1]).write_text(block.text, encoding="utf-8")
        else:
            continue
        done += 1
    return done
