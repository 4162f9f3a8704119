"""The quantized points of a trained run as files that others load: packed safetensors, or GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .loop.opened import open_run

KINDS = ("packed", "gguf")
_GGUF = {"q4_0": "Q4_0", "q8_0": "Q8_0"}
_ENDINGS = {".gguf": "gguf", ".safetensors": "packed"}


def export_run(run: Path, out: Path, kind: str | None = None, fall_back: bool = False) -> dict[str, Any]:
    """Write the RTN cast of a run's newest checkpoint in the format it was trained for; returns what was written.

    ``kind``: "packed" (:func:`lotion_theory.export.save_packed`) or "gguf", for runs in the formats q4_0 and q8_0,
    whose points GGUF holds exactly; None: gguf where ``out`` ends in .gguf, else packed. LSQ and QuEST are cast to the
    grid they were trained on, which only a packed file holds. Tensors that the run does not quantize are stored as they
    are. Raises FileNotFoundError for a folder without a checkpoint, and ValueError for a damaged one, plain training, a
    format that the file cannot hold, or an ``out`` that ends in .gguf or .safetensors and is to be the other.
    """
    from lotion_theory.export import encode, save_packed, write_gguf

    if kind is None:
        kind = "gguf" if out.suffix.lower() == ".gguf" else "packed"
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    if out.suffix.lower() in _ENDINGS and _ENDINGS[out.suffix.lower()] != kind:
        raise ValueError(f"out = {out} and kind = {kind!r} contradict each other; leave kind out, or give another name")
    opened = open_run(run, fall_back)
    method, casting = opened.config.method, opened.casting
    if casting is None:
        raise ValueError(f"{run}: method {method.name} has no quantized points; train with another method")
    about: dict[str, Any] = {"step": opened.step, "format": method.format, "tensors": len(casting.names)}
    state: dict[str, Any] = {name: tensor.detach() for name, tensor in opened.model.state_dict().items()}
    if kind == "packed":
        if casting.grid is not None:
            about["method"] = method.name
            own = {name: casting.quantizer_of(name, state[name]) for name in casting.names}
            state |= {name: encode(state[name], quantizer) for name, quantizer in own.items()}
        report = save_packed(out, state, casting.quantizer, include=casting.names)
        return {**about, "bytes": report.file_bytes, "bits": sum(report.bits.values()) / len(report.bits)}
    if casting.grid is not None:
        raise ValueError(f"kind = {kind!r}: method {method.name} trains on a grid of its own; valid: packed")
    short = method.format.lower().split("/")[0]
    if short not in _GGUF:
        raise ValueError(f"format {method.format}: GGUF holds q4_0 and q8_0 exactly; train in one of them")
    points = {name: casting.nearest(name, state[name]) for name in casting.names}
    plain = {name: tensor for name, tensor in state.items() if name not in points}
    write_gguf(out, points, _GGUF[short], {"lotion.step": opened.step}, plain)
    return {**about, "bytes": out.stat().st_size}
