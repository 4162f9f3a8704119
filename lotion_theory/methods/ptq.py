"""PTQ: train without quantization and round at the end."""

from .rule import Method, Rule

METHOD = Method(
    "ptq",
    rule=lambda settings: Rule(),
    information="gradient at w",
    grid="absmax",
    source="baseline: full-precision training, then rounding",
    instead="train without StraightThrough and round at the end, e.g. within quantized(...)",
)
