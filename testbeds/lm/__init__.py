"""Language models trained to be quantized: a plain decoder, its data, a resumable trainer and its evaluation."""

from .loop.config import PRESETS, TrainConfig, preset

__all__ = ["PRESETS", "TrainConfig", "preset"]
