"""Quantize a trained network as a whole by one scheme, and measure what it costs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lotion_theory.rounders import rounder

from ..descent.methods import method_of
from ..problems import descriptor
from ..problems.descriptor import Config, Descriptor
from ..results.quantized import quantized_table
from ..values import METHOD, NAME, NUMBER, PROBLEM
from .base import Kind


def has_network(problem: Descriptor) -> bool:
    """Whether a problem is a network to quantize."""
    return problem.network is not None


def _problem(config: Config) -> tuple[Descriptor, Mapping[str, Any]]:
    return descriptor(config.get("name"), has_network), {key: value for key, value in config.items() if key != "name"}


def quantize_run(config: Config, seed: int) -> dict[str, Any]:
    """Quantize one network with the calibration that ``seed`` draws.

    ``float_loss``, ``loss`` and their difference ``gap`` (paired by window, with its standard error); ``error``:
    geometric mean over matrices of the output error over RTN's; ``bits`` per quantized weight; ``seconds``, calibration
    included; ``memory``: the most bytes that the process ever held.
    """
    import torch

    from lotion_theory.quantize import quantize

    from ..lm.loop.runtime import peak_memory

    torch.set_num_threads(1)
    found, settings = _problem(config["problem"])
    assert found.network is not None, "such problems were asked for"
    network = found.network(settings, seed)
    name, chosen = method_of(config["method"])
    scales = chosen.pop("scales", "own")
    inputs = chosen.pop("inputs", "quantized")
    begin = time.perf_counter()
    result = quantize(network.model, network.batches, config["format"], name, settings=chosen, exclude=network.exclude,
                      inputs=inputs, scales=scales, seed=seed)  # fmt: skip
    seconds = time.perf_counter() - begin
    losses = network.losses()
    gaps = losses - network.float_losses
    informed = [row for row in result.rows if row.vectors and row.rtn_error > 0]
    return {
        "float_loss": float(network.float_losses.mean()), "loss": float(losses.mean()), "gap": float(gaps.mean()),
        "gap_standard_error": float(gaps.std(ddof=1)) / math.sqrt(len(gaps)),
        "error": math.exp(sum(math.log(max(r.error, 1e-300) / r.rtn_error) for r in informed) / len(informed)),
        "bits": result.bits_per_weight, "seconds": seconds,
        "memory": peak_memory(torch.device("cpu")),
        "fallen_back": sum(bool(row.reason) for row in result.rows),
    }  # fmt: skip


def check(configs: Sequence[Config]) -> None:
    """ValueError for networks, formats, schemes and settings that do not fit."""
    from lotion_theory.quantize.lattices import SEARCHES, parse_format
    from lotion_theory.quantize.run import ALIASES, INPUTS

    for config in configs:
        found, settings = _problem(config["problem"])
        assert found.check_network is not None, "networks have a check"
        found.check_network(settings)
        parse_format(config["format"])
        if "method" not in config:
            continue
        name, chosen = method_of(config["method"])
        known = {"scales": SEARCHES, "inputs": INPUTS}
        scheme = rounder(ALIASES.get(name, name))
        for key, value in chosen.items():
            if key in known and value not in known[key]:
                raise ValueError(f"{name}: {key} = {value!r}; valid: {', '.join(known[key])}")
            if key not in known and key not in scheme.settings:
                raise ValueError(f"{name} has no setting {key!r}; valid: {', '.join([*known, *scheme.settings])}")


KIND = Kind(
    "quantize",
    quantize_run,
    check,
    takes=has_network,
    config={"problem": PROBLEM, "format": NAME, "method": METHOD},
    metrics={"loss": NUMBER, "gap": NUMBER, "error": NUMBER},
    words="quantizing whole networks",
    table=lambda rows, experiment, reference: quantized_table(rows, experiment, reference),
)
