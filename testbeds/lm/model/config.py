"""Settings of the decoder."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings import at_least, one_of

MIXERS = ("attention", "recurrence")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the decoder. ``hidden``: width inside the SwiGLU; ``context``: longest sequence in tokens; ``tied``:
    the output layer shares the embedding; ``mixer``: attention, or a gated linear recurrence in its place."""

    vocabulary: int = 256
    width: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int = 256
    context: int = 128
    mixer: str = "attention"
    tied: bool = True

    def __post_init__(self) -> None:
        at_least(self, 1, "vocabulary", "width", "depth", "heads", "hidden", "context")
        one_of(self, "mixer", MIXERS)
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(f"model.heads = {self.heads}: must divide width = {self.width} into even parts")
