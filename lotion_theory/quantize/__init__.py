"""A model in, a quantized model out: any rounding scheme on Linear, convolution and Embedding layers. Needs torch."""

from .corrections import correct_biases, recalibrate_norms
from .run import Quantization, Row, quantize

__all__ = ["Quantization", "Row", "correct_biases", "quantize", "recalibrate_norms"]
