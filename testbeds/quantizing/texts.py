"""Windows of a text: some to calibrate on, others to measure on, and the loss on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import Stream
from lotion_theory.arguments import count

from ..data.text import load_sotu
from ..documents import read_text

EMBEDDED = "sotu"
HELD_OUT = 10
"""One window of so many is held out, the last ones of the text."""


def text_of(names: Sequence[str]) -> str:
    """The embedded text for "sotu", else the text of UTF-8 files, one after the other; ValueError for an empty one."""
    text = "\n\n".join(load_sotu() if name == EMBEDDED else read_text(Path(name)) for name in names)
    if not text.strip():
        raise ValueError(f"{', '.join(names) or 'no file'}: no text to calibrate on")
    return text


class Windows(NamedTuple):
    """Token ids, each (windows, length), int64. No token is in two windows."""

    calibration: np.ndarray
    held_out: np.ndarray


def cut(ids: np.ndarray, length: int, calibration: int, held_out: int, seed: int, first: int | None = None) -> Windows:
    """Disjoint windows of ``length`` tokens of ``ids`` (tokens,).

    The last tenth of the text is for measuring: ``held_out`` windows spread evenly over it, the same for every seed.
    ``calibration`` windows are drawn by ``seed`` from the rest, without repetition. ``first``: an id that every window
    begins with, as the model expects one before a text; None for none. Raises ValueError for a text that is too short.
    """
    count("length", length, 2)
    count("windows", calibration)
    count("measured", held_out, 0)
    body = length - (first is not None)
    whole = len(ids) // body
    kept = whole // HELD_OUT
    if calibration > whole - kept or held_out > kept:
        raise ValueError(
            f"the text has {len(ids):,} tokens, {whole} windows of {length}: at most {whole - kept} to calibrate on, "
            f"{kept} to measure on; not {calibration} and {held_out}; give a longer text, shorter or fewer windows"
        )
    cells = ids[: whole * body].reshape(whole, body)
    drawn = Stream(seed, "quantizing/windows").numpy_generator().permutation(whole - kept)[:calibration]
    spread = whole - kept + (np.arange(held_out) * kept) // max(held_out, 1)

    def windows(numbers: np.ndarray) -> np.ndarray:
        found = cells[numbers].astype(np.int64)
        return found if first is None else np.insert(found, 0, first, axis=1)

    return Windows(windows(np.sort(drawn)), windows(spread))


def require_causal(logits: Callable[[Any], Any], windows: np.ndarray) -> None:
    """ValueError for a model whose loss of the next token says nothing: it gives no logits of tokens, or those of a
    token depend on the ones after it. Tried on ``windows`` (windows, length) of ids."""
    import torch

    ids = torch.from_numpy(windows)
    with torch.no_grad():
        found = logits(ids)
        if found.ndim != 3 or found.shape[:2] != ids.shape:
            raise ValueError(
                f"the model gives values of shape {tuple(found.shape)} for ids {tuple(ids.shape)}, no logits"
            )
        other = ids.clone()
        other[:, -1] = (other[:, -1] + 1) % found.shape[-1]
        seen = (logits(other) - found)[:, :-1].abs().max()
    # Kernels may sum in another order; a model that looks ahead differs by far more.
    if seen > 1e-3 * found.abs().max():
        raise ValueError("the model sees the tokens after one as well, so its loss of the next token says nothing")


def window_losses(logits: Callable[[Any], Any], windows: np.ndarray, batch: int = 4) -> np.ndarray:
    """Mean cross-entropy in nats over the tokens after the first of each window, (windows,) float64.

    ``logits``: (B, T, V) of token ids (B, T), both torch tensors.
    """
    import torch
    from torch.nn.functional import cross_entropy

    out = []
    with torch.no_grad():
        for start in range(0, len(windows), batch):
            ids = torch.from_numpy(windows[start : start + batch])
            found = logits(ids)[:, :-1]
            loss = cross_entropy(found.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
            out.append(loss.view(len(ids), -1).double().mean(1))
    return torch.cat(out).numpy() if out else np.zeros(0)
