"""PTQ: train without quantization and round at the end."""

from ...descent.rule import Rule, Trainer

TRAINER = Trainer(
    "ptq",
    rule=lambda settings: Rule(),
    information="gradient at w",
    grid="absmax",
    source="baseline: full-precision training, then rounding",
)
