"""PTQ: train without quantization and round at the end."""

from ...descent.rule import Rule, Trainer


def rule(settings) -> Rule:
    """The loss gradient at the weights."""
    return Rule()


TRAINER = Trainer(
    "ptq",
    rule=rule,
    information="gradient at w",
    grid="absmax",
    source="baseline: full-precision training, then rounding",
)
