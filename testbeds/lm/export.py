"""The quantized points of a trained run as files that others load: packed safetensors, or GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import checkpoint
from .config import TrainConfig
from .evaluate import quantized_names
from .methods import OWN_GRID
from .model import Decoder
from .settings import changed

KINDS = ("packed", "gguf")
_GGUF = {"q4_0": "Q4_0", "q8_0": "Q8_0"}


def export_run(run: Path, out: Path, kind: str = "packed", fall_back: bool = False) -> dict[str, Any]:
    """Write the RTN cast of a run's newest checkpoint in the format it was trained for; returns what was written.

    ``kind``: "packed" (:func:`lotion_theory.export.save_packed`) or "gguf", for runs in the formats q4_0 and q8_0,
    whose points GGUF holds exactly. LSQ and QuEST are cast to the grid they were trained on, which only a packed file
    holds. Tensors that the run does not quantize are stored as they are. Raises FileNotFoundError for a folder without
    a checkpoint, and ValueError for a damaged one or a format that the file cannot hold.
    """
    from lotion_theory.export import save_packed, write_gguf

    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    found = checkpoint.load(run / "checkpoints", fall_back)
    if found is None:
        raise FileNotFoundError(f"{run} holds no checkpoint; name the folder that `lotion train` printed")
    config = changed(TrainConfig(), found.facts["config"], str(found.path))
    model = Decoder(config.model)
    model.load_state_dict(found.parts["model"])
    names = quantized_names(model, config.method.include, config.method.exclude)
    if config.method.name in OWN_GRID:
        return _own_grid(found, config, model, names, out, kind)
    about: dict[str, Any] = {"step": found.step, "format": config.method.format, "tensors": len(names)}
    if kind == "packed":
        report = save_packed(out, model, config.method.format, include=names)
        return {**about, "bytes": report.file_bytes, "bits": sum(report.bits.values()) / len(report.bits)}
    short = config.method.format.split("/")[0]
    if short not in _GGUF:
        raise ValueError(f"format {config.method.format}: GGUF holds q4_0 and q8_0 exactly; train in one of them")
    from lotion_theory import Quantizer

    quantizer = Quantizer.parse(config.method.format)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    points = {name: quantizer.cast(state[name]).numpy() for name in names}
    plain = {name: tensor.numpy() for name, tensor in state.items() if name not in points}
    write_gguf(out, points, _GGUF[short], {"lotion.step": found.step}, plain)
    return {**about, "bytes": out.stat().st_size}


def _own_grid(
    found: checkpoint.Checkpoint, config: TrainConfig, model: Decoder, names: list[str], out: Path, kind: str
) -> dict[str, Any]:
    """Write the points of a method that trains on a grid of its own."""
    from lotion_theory import Quantizer
    from lotion_theory.export import encode, save_packed

    from .quantized import own_grid

    if kind != "packed":
        raise ValueError(f"kind = {kind!r}: method {config.method.name} trains on a grid of its own; valid: packed")
    weights = {name: model.get_parameter(name) for name in names}
    method, quantizer = config.method, Quantizer.parse(config.method.format)
    grids = own_grid(method.name, weights, quantizer, method.settings, config.steps, found.parts["method"])
    state: dict[str, Any] = dict(model.state_dict())
    state |= {name: encode(w.detach(), grids.quantizer(name)) for name, w in weights.items()}
    report = save_packed(out, state, quantizer, include=names)
    bits = sum(report.bits.values()) / len(report.bits)
    about = {"step": found.step, "format": method.format, "method": method.name, "tensors": len(names)}
    return {**about, "bytes": report.file_bytes, "bits": bits}
