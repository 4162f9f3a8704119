"""A section of the page: its heading, its data, and what stands and is drawn below the heading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .contents import Contents

Block = dict[str, Any]
"""One thing that the page draws by itself: see :func:`text`, :func:`command`, :func:`table` and :func:`figure`."""


@dataclass(frozen=True)
class Section:
    """``id``: of its heading, and its place in links; ``title``: the heading; ``menu``: its words in the navigation.

    A section is made of blocks, or of data with a template. ``blocks(contents)``: what the page draws, one below the
    other. ``data(contents)``: entries of the page's data, JSON values. ``template``: the file of that name in
    ``templates/``, which sees them; elements in it are filled by scripts of ``assets/``, with
    ``Lotion.draw[ID] = (data) => nodes``, once they come near the window. ``missing``: per entry, the sentence of an
    empty one, which templates find under that name in ``missing``.
    """

    id: str
    title: str
    menu: str
    blocks: Callable[[Contents], Sequence[Block]] | None = None
    data: Callable[[Contents], Mapping[str, Any]] | None = None
    template: str = "blocks"
    missing: Mapping[str, str] = field(default_factory=dict)

    def entries(self, contents: Contents) -> dict[str, Any]:
        """The section's entries of the page's data; those of blocks are under its id."""
        found = {} if self.data is None else dict(self.data(contents))
        return found if self.blocks is None else {**found, self.id: list(self.blocks(contents))}

    def absent(self, data: Mapping[str, Any]) -> dict[str, str]:
        """The sentences of the entries that are empty."""
        return {name: sentence for name, sentence in self.missing.items() if not _something(data[name])}


def text(words: str) -> Block:
    """A paragraph."""
    return {"text": words}


def command(line: str) -> Block:
    """A command with a button that copies it."""
    return {"command": line}


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """A table that its headings sort, with a download; cells are texts, numbers or None."""
    return {"table": {"caption": caption, "columns": list(columns), "rows": [list(row) for row in rows]}}


def figure(drawing: Mapping[str, Any], made_by: str = "") -> Block:
    """A drawing as :mod:`testbeds.results.studies` makes them, and the command behind it."""
    return {"figure": dict(drawing), "command": made_by}


def _something(value: Any) -> bool:
    """Whether there is anything in a value; an object of empty lists holds nothing."""
    return any(value.values()) if isinstance(value, Mapping) else bool(value)
