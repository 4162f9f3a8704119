"""Training methods by name."""

from importlib import import_module

from ...descent.rule import Trainer

# Name -> the file and the object in it.
FILES = {
    "ptq": "ptq:TRAINER",
    "qat": "qat:TRAINER",
    "rr_ste": "rr_ste:TRAINER",
    "diffq": "diffq:TRAINER",
    "quant_noise": "quant_noise:TRAINER",
    "cage": "cage:TRAINER",
    "quest": "quest:TRAINER",
    "lsq": "lsq:TRAINER",
    "pact": "pact:TRAINER",
    "dsq": "dsq:TRAINER",
    "dgm": "dsq:DGM",
    "hestia": "hestia:TRAINER",
    "crown_q": "crown_q:TRAINER",
    "lotion": "lotion:TRAINER",
}


def names() -> tuple[str, ...]:
    """All training methods. ``cbo``, which uses loss values only, is beside them: see :mod:`.cbo`."""
    return tuple(FILES)


def trainer(name: str) -> Trainer:
    """The method called ``name``; ValueError, listing the names, for an unknown one."""
    if name not in FILES:
        raise ValueError(f"unknown training method {name!r}; valid: {', '.join(FILES)}")
    module, _, attribute = FILES[name].partition(":")
    return getattr(import_module(f".{module}", __name__), attribute)
