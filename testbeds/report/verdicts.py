"""The verdict matrix as data of the page: rows with their texts interned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lotion_theory.theory.verification import NO_FORMAT, Row, surprises

from ..text.summary import layer_means
from .contents import Contents
from .section import Section

FIELDS = ("check", "evidence", "measured", "theoretical", "tolerance", "verdict", "expected", "counterexample", "note",
          "checked", "kind")  # fmt: skip
"""Order of a row's values after its format and claim."""
TEXTS = ("check", "evidence", "verdict", "expected", "counterexample", "note", "kind")


def matrix(rows: Sequence[Row], command: str) -> dict[str, Any]:
    """The rows of a matrix of formats by claims.

    ``texts``: the strings; ``rows``: lists ``[format, claim, *FIELDS]``, numbers into ``formats``, ``claims`` and, for
    the names in TEXTS, into ``texts``. ``command``: reproduces a cell; ``{format}`` and ``{claim}`` are filled in.
    """
    from lotion_theory.theory.claims import CLAIMS

    formats = list(dict.fromkeys(r.format for r in rows))
    claims = [c for c in CLAIMS if any(r.claim == c for r in rows)]
    claims += [c for c in dict.fromkeys(r.claim for r in rows) if c not in claims]
    texts: dict[str, int] = {}
    return {
        "formats": formats,
        "any": NO_FORMAT,
        "claims": [
            {"id": c, "title": CLAIMS[c].title if c in CLAIMS else _title(rows, c),
             "statement": CLAIMS[c].statement if c in CLAIMS else ""}
            for c in claims
        ],
        "fields": FIELDS,
        "texts_in": TEXTS,
        "rows": [
            [
                formats.index(r.format), claims.index(r.claim),
                *(texts.setdefault(getattr(r, f), len(texts)) if f in TEXTS else getattr(r, f) for f in FIELDS),
            ]
            for r in rows
        ],
        "texts": list(texts),
        "cases": sum(r.checked for r in rows),
        "surprises": len(surprises(list(rows))),
        "command": command,
    }  # fmt: skip


def _title(rows: Sequence[Row], claim: str) -> str:
    return next(r.title for r in rows if r.claim == claim)


def entries(contents: Contents) -> dict[str, Any]:
    """Both matrices, and the losses on trained layers."""
    found = contents.material
    return {
        "verdicts": matrix(found.verify, "lotion verify --formats {format} --claims {claim}") if found.verify else None,
        "trained": matrix(found.real, "lotion reproduce") if found.real else None,
        "layers": [list(line) for line in layer_means(found.real_losses)] if found.real_losses else [],
    }


SECTION = Section(
    "verdicts",
    "Verdicts: which formats keep the promises",
    "Verdicts",
    data=entries,
    template="verdicts",
    missing={
        "verdicts": "No verdicts stored: lotion verify or lotion reproduce writes them (--theory).",
        "trained": "No rows on trained weights stored: lotion reproduce writes them.",
    },
)
