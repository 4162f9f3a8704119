"""Language models on the page."""

from __future__ import annotations

from typing import Any

from .boards import experiments
from .contents import Contents
from .curves import training_curves
from .section import Section


def entries(contents: Contents) -> dict[str, Any]:
    """Leaderboards of the language models, and the curves of all their methods."""
    boards = experiments(contents.language, contents.material.stores, contents.language_boards)
    return {"language": {"boards": boards, "curves": training_curves(contents.language, every=True)}}


SECTION = Section(
    "models",
    "Language models",
    "Language models",
    data=entries,
    template="language",
    missing={"language": "No language-model rows stored."},
)
