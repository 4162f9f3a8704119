"""The quantized points of a trained run as files that others load or run: see :func:`export_run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lotion_theory.export import encode, write_like
from lotion_theory.export.models import KINDS

from .deploy import opened_source
from .loop.opened import open_run

_ENDINGS = {".gguf": "gguf", ".safetensors": "packed"}


def export_run(
    run: Path,
    out: Path,
    kind: str | None = None,
    fall_back: bool = False,
    dequantized: bool = False,
    tokenizer_file: str | None = None,
) -> dict[str, Any]:
    """Write the RTN cast of a run's newest checkpoint in the format it was trained for; returns what was written.

    ``kind``, ``dequantized``: as in :func:`lotion_theory.export.write_like`; None: gguf where ``out`` ends in .gguf,
    else packed. GGUF holds q4_0, q8_0 and their relatives exactly; LSQ and QuEST are cast to the grid they were trained
    on, which only packed files hold as codes. Tensors that the run does not quantize are stored as they are.
    ``tokenizer_file``: where the run's tokenizer is, unless it is bytes or lies beside the token files; without it the
    model takes and gives ids only. ``fall_back``: if the newest checkpoint is damaged, take the one before.

    Raises FileNotFoundError for a folder without a checkpoint, and ValueError for a damaged one, plain training, a
    format or a mixer that the kind does not hold, or an ``out`` whose ending is that of another kind.
    """
    if kind is None:
        kind = "gguf" if out.suffix.lower() == ".gguf" else "packed"
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    if _ENDINGS.get(out.suffix.lower(), kind) != kind:
        raise ValueError(f"out = {out} and kind = {kind!r} contradict each other; leave kind out, or give another name")
    opened = open_run(run, fall_back)
    method, casting = opened.config.method, opened.casting
    if casting is None:
        raise ValueError(f"{run}: method {method.name} has no quantized points; train with another method")
    about: dict[str, Any] = {"kind": kind, "step": opened.step, "format": method.format, "tensors": len(casting.names)}
    if casting.grid is not None:
        if kind in ("gguf", "compressed-tensors") and not dequantized:
            raise ValueError(f"kind = {kind!r}: method {method.name} trains on a grid of its own; valid: packed")
        about["method"] = method.name
    weights = {name: opened.model.get_parameter(name).detach() for name in casting.names}
    codes = {name: encode(w, casting.quantizer_of(name, w)) for name, w in weights.items()}
    written = write_like(opened_source(opened, run, tokenizer_file), out, codes, kind, dequantized)
    bits = [one.bits_per_weight for one in codes.values()]
    return {**about, "bytes": written.bytes, "bits": sum(bits) / len(bits)}
