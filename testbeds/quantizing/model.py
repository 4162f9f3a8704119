"""The story of ``lotion quantize``: a source, a text, the rounding, the loss before and after, a file."""

from __future__ import annotations

import ast
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lotion_theory.export import write_like
from lotion_theory.export.compressed import compressed_parts
from lotion_theory.export.gguf_tokens import tokenizer_fields
from lotion_theory.export.model_tensors import is_stored, raw_tensors
from lotion_theory.export.models import kind_of
from lotion_theory.files import write_text
from lotion_theory.quantize import Quantization, Row, quantize
from lotion_theory.quantize.lattices import parse_format
from lotion_theory.quantize.layers import Layer, chosen_layers
from lotion_theory.sources import Source
from lotion_theory.sources.families import fields_of

from ..lm.deploy import open_source
from ..lm.loop.evaluate import Estimate, estimate
from .texts import cut, require_causal, text_of, window_losses

REPORT = ".report.json"
RESOLUTION = 2.0**-24
"""Shares of output power below this are roundings of the second moments."""


@dataclass(frozen=True)
class Plan:
    """What ``lotion quantize`` is told; see the command's help."""

    source: Path
    out: Path
    format: Sequence[str]
    scheme: str
    setting: Sequence[str]
    exclude: Sequence[str]
    calibration: Sequence[str]
    windows: int
    length: int
    measured: int
    seed: int
    inputs: str
    scales: str
    fall_back: str | None
    kind: str | None
    dequantized: bool
    resume: Path | None


@dataclass(frozen=True)
class Outcome:
    """``before``, ``after``: losses on the held-out windows in nats per token, None where none were measured; ``gap``
    is paired by window. ``seconds``: of rounding, calibration included; ``file``: what was written."""

    found: Quantization
    before: Estimate | None
    after: Estimate | None
    gap: Estimate | None
    seconds: float
    file: dict[str, Any]
    protocol: str

    def lines(self) -> list[str]:
        """The report in a few lines."""
        rows, out = self.found.rows, []
        for key in dict.fromkeys((row.format, row.scheme) for row in rows):
            part = [row for row in rows if (row.format, row.scheme) == key]
            informed = [row for row in part if row.vectors and row.rtn_error > 0]
            line = f"{len(part)} weights in {key[0]} by {key[1]}"
            if informed:
                ratio = math.exp(sum(map(_log_ratio, informed)) / len(informed))
                line += f": output error × {ratio:.3f} of RTN's (geometric mean)"
            reasons = dict.fromkeys(row.reason for row in part if row.reason)
            out.append(line + (f" ({'; '.join(list(reasons)[:2])})" if reasons else ""))
        out += _kept_line(self.found)
        out.append(f"{self.found.bits_per_weight:.2f} bits per quantized weight; {self.seconds:.0f} s")
        for name, value in (("before", self.before), ("after", self.after)):
            if value is not None:
                low, high = (math.exp(x) for x in value.interval)
                out.append(
                    f"{name:6} loss {value.mean:.4f} ± {value.standard_error:.4f}   "
                    f"perplexity {math.exp(value.mean):.3f} [{low:.3f}, {high:.3f}]"
                )
        if self.gap is not None:
            low, high = self.gap.interval
            out.append(f"gap    {self.gap.mean:+.4f} [{low:+.4f}, {high:+.4f}] nats per token; {self.protocol}")
        return out


def _log_ratio(row: Row) -> float:
    return math.log(max(row.error, RESOLUTION) / max(row.rtn_error, RESOLUTION))


def _kept_line(found: Quantization) -> list[str]:
    """Which matrices are no quantized ones, and what part of all weights they are; no line if there are none."""
    if not found.kept:
        return []
    sizes = {name: parameter.numel() for name, parameter in found.model.named_parameters()}
    rest = sum(sizes.get(name, 0) for name in found.kept)
    share = rest / (rest + sum(math.prod(row.shape) for row in found.rows))
    name, why = next(iter(found.kept.items()))
    more = f", and {len(found.kept) - 1} more" if len(found.kept) > 1 else ""
    return [f"kept: {share:.0%} of the weights ({name}: {why}{more})"]


def quantize_file(plan: Plan, progress: Callable[[int, int, str], None] | None = None) -> Outcome:
    """Quantize the model of ``plan.source`` into ``plan.out``; a report is written beside it.

    Raises FileNotFoundError and ValueError for sources, texts, formats and schemes that do not fit, and for points
    that the file cannot hold, before anything is written.
    """
    formats = formats_of(plan.format)
    if plan.measured == 1:
        raise ValueError("measured = 1: one window has no standard error; valid: 0 for none, or at least 2")
    _check_places(plan, kind_of(plan.out, plan.kind))
    source = open_source(plan.source)
    _rehearse(source, plan, formats)
    length = min(plan.length, source.context or plan.length)
    ids = source.encode(text_of(plan.calibration))
    first = source.tokenizer.first if source.tokenizer is not None else None
    windows = cut(ids, length, plan.windows, plan.measured, plan.seed, first)

    def losses() -> np.ndarray | None:
        return window_losses(source.logits, windows.held_out) if plan.measured > 1 else None

    try:
        if plan.measured:
            require_causal(source.logits, windows.held_out[:1])
        before = losses()
    except ValueError as error:
        raise ValueError(f"{error}; --measured 0 measures no loss") from None
    begin = time.perf_counter()
    found = quantize(
        source.model, [torch.from_numpy(w[None]) for w in windows.calibration], formats, plan.scheme,
        settings=settings_of(plan.setting), exclude=tuple(plan.exclude), inputs=plan.inputs, scales=plan.scales,
        fall_back=plan.fall_back, seed=plan.seed, folder=plan.resume, progress=progress,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    written = write_like(source, plan.out, found.stored, plan.kind, plan.dequantized)
    file = {"path": str(written.path), "kind": written.kind, "bytes": written.bytes, "types": written.types}
    after = losses()
    protocol = (
        f"{plan.measured} held-out windows of {length} tokens of {', '.join(plan.calibration)}, "
        f"{'each after the id ' + str(first) if first is not None else 'no id before them'}, stride {length}"
    )
    outcome = Outcome(
        found, _estimate(before), _estimate(after),
        None if before is None or after is None else estimate(after - before), seconds, file, protocol,
    )  # fmt: skip
    write_text(Path(f"{plan.out}{REPORT}"), json.dumps(report(plan, outcome), indent=1) + "\n")
    return outcome


def _check_places(plan: Plan, kind: str) -> None:
    """ValueError, FileExistsError or FileNotFoundError for places that cannot be written to in the end, or that would
    cost the source."""
    out, source = plan.out.resolve(), plan.source.resolve()
    if out == source:
        raise ValueError(f"--out {plan.out} is the source itself")
    if out.exists() and out.is_relative_to(source) and out.suffix.lower() != ".gguf":
        raise FileExistsError(f"--out {plan.out} is part of the source; name a new file")
    if plan.resume is not None and plan.resume.resolve().is_relative_to(out):
        raise ValueError(f"--resume {plan.resume} is in --out {plan.out}; name another folder")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out {plan.out}: there is no folder {plan.out.parent}")
    if kind in ("folder", "compressed-tensors"):
        if out.exists():
            raise FileExistsError(f"--out {plan.out} exists already; name a new folder")
    elif out.is_dir():
        raise ValueError(f"--out {plan.out} is a folder, and {kind} is one file")


def _rehearse(source: Source, plan: Plan, formats: Any) -> None:
    """ValueError for a model or a format that the file cannot hold, before hours are spent: tried on the smallest
    weight of each format and length of rows."""
    kind = kind_of(plan.out, plan.kind)
    if reason := source.refused.get(kind):
        raise ValueError(reason)
    if kind == "gguf" and source.kind != "gguf":
        fields_of(source.config, str(source.path))
        tokenizer_fields(source)
    smallest: dict[tuple[str, int], Layer] = {}
    for layer, format in chosen_layers(source.model, formats, tuple(plan.exclude))[0]:
        if layer.name not in source.names:
            raise ValueError(f"{layer.name} is not stored as one tensor in the source; exclude it")
        if kind == "compressed-tensors" and not isinstance(layer.module, torch.nn.Linear):
            raise ValueError(
                f"{layer.name} is no weight of a linear layer, and compressed-tensors packs those only; exclude it"
            )
        known = smallest.setdefault((format, layer.shape[1]), layer)
        if math.prod(layer.shape) < math.prod(known.shape):
            smallest[format, layer.shape[1]] = layer
    for (text, _), layer in smallest.items():
        form = parse_format(text)
        try:
            form.check(layer, plan.scales)
            place = form.place(layer, layer.weight.detach(), None, "own")
        except ValueError as error:
            raise ValueError(f"{layer.name}: {error}") from None
        stored = place.rtn()
        if kind == "gguf":
            raw_tensors(layer.name, stored, source.names[layer.name], plan.dequantized)
        elif kind == "packed" and plan.dequantized:
            raise ValueError("packed files hold codes; leave --dequantized out, or write a folder")
        elif kind == "packed" and is_stored(stored):
            raise ValueError(f"format {text}: packed files hold formats, not types of GGUF; write a .gguf file")
        elif kind == "compressed-tensors":
            if is_stored(stored):
                raise ValueError(
                    f"format {text}: compressed-tensors holds integers with real scales; write a .gguf file"
                )
            compressed_parts(layer.name, stored)


def _estimate(values: np.ndarray | None) -> Estimate | None:
    return None if values is None else estimate(values)


def report(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    """All that is known of a quantization, as plain values."""
    found = outcome.found
    return {
        "plan": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(plan).items()},
        "mode": found.mode, "kept": found.kept, "bits_per_weight": found.bits_per_weight, "seconds": outcome.seconds,
        "protocol": outcome.protocol, "file": outcome.file,
        **{
            name: None if value is None else value._asdict()
            for name, value in (("before", outcome.before), ("after", outcome.after), ("gap", outcome.gap))
        },
        "weights": [asdict(row) for row in found.rows],
    }  # fmt: skip


def formats_of(texts: Sequence[str]) -> str | dict[str, str]:
    """One format, or ``pattern -> format`` of texts PATTERN=FORMAT; ValueError for what is neither."""
    if len(texts) == 1 and _names_format(texts[0]):
        return texts[0]
    found: dict[str, str] = {}
    for text in texts:
        pattern, sign, format = text.partition("=")
        if not sign or not pattern:
            parse_format(text)  # says what is wrong with it
            raise ValueError(f"format {text!r}: of several each is PATTERN=FORMAT, e.g. '*.mlp.*=int4/absmax/row'")
        parse_format(format)
        if pattern in found:
            raise ValueError(f"format: the pattern {pattern!r} is given twice")
        found[pattern] = format
    if not found:
        raise ValueError("format is missing; give one, e.g. q4_0")
    return found


def _names_format(text: str) -> bool:
    try:
        parse_format(text)
    except ValueError:
        return False
    return True


def settings_of(texts: Sequence[str]) -> Mapping[str, Any]:
    """``name -> value`` of texts NAME=VALUE; values are Python's literals, anything else is text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ValueError(f"setting {text!r}; valid: NAME=VALUE, e.g. damping=0.1")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
