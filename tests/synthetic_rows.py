"""Made-up rows of sweeps, in the shape that runs leave behind; the numbers mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from lotion_theory import Stream

STEPS = [1, 3, 10, 30, 100, 300, 1000, 3000]


def row(
    kind: str, config: dict[str, Any], seed: int, metrics: dict[str, Any] | None = None, status: str = "ok",
    phase: str = "final", experiment: str = "synthetic", version: str = "v1", finished: str = "2025-01-01T00:00:00",
    machine: str = "m1",
) -> dict[str, Any]:  # fmt: skip
    return {
        "experiment": experiment, "phase": phase, "kind": kind, "key": f"{config}/{seed}", "config": config,
        "seed": seed, "status": status, "message": "", "seconds": 1.0, "metrics": metrics or {}, "version": version,
        "machine": machine, "finished": finished,
    }  # fmt: skip


def train(
    method: dict[str, Any], seed: int, rtn: float | None, float_loss: float = 0.01, lr: float = 0.01,
    problem: dict[str, Any] | None = None, format: str = "int4/absmax", floor: float | None = None,
    steps: int = 3000, optimizer: str = "adam", **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """A training run that ends at ``rtn``; None: one that diverged."""
    config = {
        "problem": problem or {"name": "linear_regression", "d": 64}, "format": format, "method": method,
        "optimizer": optimizer, "lr": lr, "steps": steps, "batch": None,
    }  # fmt: skip
    if rtn is None:
        return row("train", config, seed, {"rtn_loss": float("nan")}, more.pop("status", "diverged"), **more)
    share = [1 / (1 + s / 200) for s in STEPS]
    curve = {
        "step": STEPS, "seconds": [s * 1e-3 * (2 if method["name"] == "lotion" else 1) for s in STEPS],
        "float": [float_loss + s for s in share], "rtn": [rtn + 1.5 * s for s in share],
        "rr": [1.1 * rtn + 1.5 * s for s in share],
    }  # fmt: skip
    metrics = {
        "float_loss": float_loss, "rtn_loss": rtn, "rr_loss": 1.1 * rtn, "rr_standard_error": 0.001,
        "gap": rtn - float_loss, "rtn_of_optimum": 2 * rtn, "noise_floor": floor,
        "train_seconds": 3.0 + 0.1 * seed, "curve": curve,
    }  # fmt: skip
    return row("train", config, seed, metrics, **more)


def noise(seed: int, purpose: str, scale: float = 0.1) -> float:
    """A log-normal factor."""
    return float(np.exp(scale * Stream(seed, f"synthetic/{purpose}").numpy_generator().standard_normal()))


VARIANTS = (
    ({"name": "ptq"}, 0.075), ({"name": "qat"}, 0.101), ({"name": "rat"}, 0.076),
    ({"name": "lotion", "scale": "detached", "ramp": False, "weight": 1.0}, 0.078),
    ({"name": "lotion", "scale": "attached", "ramp": False, "weight": 1.0}, 0.043),
    ({"name": "lotion", "scale": "attached", "ramp": True, "weight": 1.0}, 0.041),
    ({"name": "cage", "weight": 10.0}, 0.09), ({"name": "detached_noise"}, 0.0762),
)  # fmt: skip


def contest(seeds: int = 5, formats: tuple[str, ...] = ("int4/absmax", "int8/absmax"), **more: Any) -> list[dict]:
    return [
        train(method, seed, base * noise(seed, "instance", 0.2) * noise(seed, str(method), 0.05) / (1 + 9 * k),
              float_loss=0.002 * noise(seed, "float"), format=format, **more)
        for k, format in enumerate(formats) for method, base in VARIANTS for seed in range(seeds)
    ]  # fmt: skip


def lambdas(formats: tuple[str, ...] = ("int4/absmax", "int8/absmax"), seeds: int = 5) -> list[dict]:
    rows = []
    for k, format in enumerate(formats):
        for scale, ramp, base in (("attached", False, 0.04), ("detached", False, 0.07), ("attached", True, 0.038)):
            for weight in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
                method = {"name": "lotion", "scale": scale, "ramp": ramp, "weight": weight}
                bowl = base * (1 + 0.3 * np.log10(weight) ** 2) / (1 + 9 * k)
                rows += [
                    train(method, s, bowl * noise(s, f"{scale}{weight}{ramp}{k}"), 0.01 * bowl * (1 + weight), format=format)
                    for s in range(seeds)
                ]  # fmt: skip
    return rows


def widths(ks: tuple[int, ...] = (1, 4, 16, 64, 256), seeds: int = 5) -> list[dict]:
    rows = []
    for format, gain in (("int4/absmax", 0.5), ("int8/absmax", 0.05), ("e2m1/absmax", 0.35)):
        for k in ks:
            for name, base in (("lotion", 0.1 * (1 - gain / k**0.3)), ("qat", 0.1), ("ptq", 0.13)):
                rows += [
                    train({"name": name}, s, base * noise(s, f"{k}") * noise(s, f"{name}{k}{format}", 0.04),
                          problem={"name": "two_layer", "k": k}, format=format)
                    for s in range(seeds)
                ]  # fmt: skip
    return rows


ROUNDERS = (
    ("rtn", 0.12), ("rr", 0.6), ("conditional", 0.08), ("coordinate_descent", 0.03), ("gptq", 0.04), ("babai", 0.05),
    ("adaround", 0.012), ("discquant", 0.02), ("lotion", 0.003), ("beam", 0.002),
)  # fmt: skip


def rounding(formats: tuple[str, ...] = ("int4/absmax",), instances: int = 40) -> list[dict]:
    rows = []
    for format in formats:
        for d in (4, 6, 8, 10, 12, 16, 20):
            for name, base in ROUNDERS:
                for s in range(instances):
                    u = Stream(s, f"synthetic/{name}{d}{format}").uniforms((1,))[0]
                    share = np.exp(-base * d**1.3)
                    ratio = 1.0 if u < share else 1 + 0.4 * base * d * float(u)
                    metrics = {"loss": 0.02 * ratio, "optimum": 0.02, "ratio": ratio, "optimal": bool(u < share),
                               "seconds": 1e-4 * d * (1 + 10 * base)}  # fmt: skip
                    config = {"problem": {"name": "rotated", "d": d}, "format": format, "method": {"name": name}}
                    rows.append(row("round", config, s, metrics))
    return rows


def estimators(formats: tuple[str, ...] = ("int4/absmax", "e2m1/absmax"), seeds: int = 3) -> list[dict]:
    known = {
        "exact": (1e-16, 0.0), "monte_carlo": (0.0, 0.8), "antithetic": (0.0, 0.5), "straight_through": (0.9, 0.4),
        "rtn_straight_through": (1.1, 0.0), "lotion_second_order": (0.06, 0.0), "conditional_difference": (0.0, 0.2),
        "lotion_detached": (0.5, 0.0),
    }  # fmt: skip
    rows = []
    for format in formats:
        for name, (bias, deviation) in known.items():
            for s in range(seeds):
                error = 0.01 * deviation
                metrics = {"bias": abs(bias * noise(s, name + format) + error * (noise(s, name, 1) - 1)),
                           "bias_standard_error": error, "deviation": deviation * noise(s, format)}  # fmt: skip
                config = {"problem": {"name": "rotated", "d": 10}, "format": format, "method": {"name": name}}
                rows.append(row("estimator", config, s, metrics))
    return rows


def minima(formats: tuple[str, ...] = ("int2/absmax", "int4/absmax", "e2m1/absmax"), seeds: int = 10) -> list[dict]:
    rows = []
    for k, format in enumerate(formats):
        for d in (2, 3, 4, 5, 6, 8):
            for s in range(seeds):
                raw = max(1, round((2.0 + k) ** d * noise(s, f"{format}{d}", 0.3)))
                smooth = max(1, round((1.15 + 0.1 * k) ** d * noise(s, f"s{format}{d}", 0.2)))
                for smoothed in (False, True):
                    counts = {"local_minima_raw": None if smoothed else raw, "points": 15**d,
                              "local_minima_smoothed": smooth if smoothed else None, "global_kept": smoothed or None}  # fmt: skip
                    rows.append(row("minima", {"d": d, "format": format, "smoothed": smoothed}, s, counts))
    return rows
