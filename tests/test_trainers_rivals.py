"""Rival training methods: every one trains, checks its settings, and is the same in both engines."""

import numpy as np
import pytest

from lotion_theory.methods import Rule
from lotion_theory.methods import method as training_method
from testbeds.problems import linear_regression
from tests.rival_cases import FORMATS, state_at, train_with

# Every method with the settings that take another path through the code.
VARIANTS = {
    "diffq": [{}, {"scale": "detached", "variance": 0.25}],
    "quant_noise": [{}],
    "cage": [{"silent": 0.2}, {"silent": 0.2, "form": "coupled"}],
    "quest": [{}, {"grid": "absmax"}],
    "lsq": [{}],
    "pact": [{"start": 1.5, "decay": 1e-3}],
    "stable_qat": [{}, {"grid": "absmax"}],
    "winq": [{}, {"resets": 3, "noise": 0.02}],
    "dsq": [{}],
    "dgm": [{}],
    "parq": [{}, {"steepness": 1.0, "begin": 0.1, "end": 0.8}],
    "hestia": [{}, {"scale": "absmax"}],
    "crown_q": [{"weight": 0.3, "late": 0.5}] + [{"weight": 0.3, "variant": v} for v in ("published", "true")],
}
RUNS = [(name, settings) for name, chosen in VARIANTS.items() for settings in chosen]
# Rules with tanh or exp, whose last bits differ between numpy and numba, and how much their slope magnifies an error of
# the weight: Hestia's by up to 1/τ, about 700 in the last of 30 steps.
TRANSCENDENTAL = {"stable_qat": 1, "dsq": 1, "dgm": 1, "hestia": 700}


# Every method


@pytest.mark.parametrize(("name", "settings"), RUNS)
@pytest.mark.parametrize("q", FORMATS)
def test_trains(name, settings, q):
    problem = linear_regression(64, seed=3)
    result = train_with(problem, training_method(name)(**settings), q, steps=60, lr=0.05)
    # 60 steps of at most 0.05 reach weights one standard deviation off the optimum only in part.
    first = result.curve["float"][0]
    assert not result.diverged
    assert result.losses.full < 0.8 * first
    assert result.losses.rtn < 0.8 * result.curve["rtn"][0] + 0.1 * first


@pytest.mark.parametrize("name", VARIANTS)
def test_says_what_it_is_and_refuses_unknown_settings(name):
    method = training_method(name)
    assert method.name == name
    assert method.grid == {
        "quest": "rms",
        "lsq": "learned",
        "pact": "learned",
        "stable_qat": "learned",
        "winq": "learned",
        "hestia": "absmean",
    }.get(name, "absmax")
    assert method.information.startswith("gradient at")
    assert "arXiv" in method.source or "parameter-golf" in method.source
    assert set(method.tuning) <= set(method.settings)
    for key, values in method.tuning.items():
        for value in values:
            assert isinstance(method(**{key: value}), Rule)
    with pytest.raises(ValueError, match="no setting 'bogus'"):
        method(bogus=1)


@pytest.mark.parametrize(
    ("name", "key", "bad"),
    [
        ("diffq", "scale", "loose"), ("diffq", "variance", -1.0), ("quant_noise", "p", 1.5), ("quant_noise", "group", 0),
        ("cage", "form", "other"), ("cage", "point", "x"), ("cage", "ramp", "cubic"), ("cage", "silent", 1.0),
        ("quest", "grid", "learned"), ("pact", "start", 0.0), ("pact", "decay", -1.0), ("dsq", "alpha", 1.0),
        ("dsq", "k", 0.0), ("dgm", "beta", 0.0), ("hestia", "tau0", -1.0), ("hestia", "warm", 1.0), ("hestia", "scale", "rms"),
        ("stable_qat", "amplitude", 0.3), ("stable_qat", "grid", "rms"), ("winq", "alpha", 2.0), ("winq", "noise", 0.5), ("winq", "resets", 0), ("parq", "steepness", 0.0), ("parq", "end", 2.0),
        ("crown_q", "variant", "other"), ("crown_q", "late", 2.0), ("crown_q", "levels", 0),
    ],
)  # fmt: skip
def test_bad_settings(name, key, bad):
    with pytest.raises(ValueError, match=rf"^{key} = "):
        training_method(name)(**{key: bad})


@pytest.mark.parametrize("name", ["diffq", "quest", "crown_q"])
def test_uniform_grids_only(name):
    with pytest.raises(ValueError, match=f"codebook e2m1: {name}"):
        state_at(training_method(name)(), [1.0, 2.0], "e2m1")


@pytest.mark.parametrize("name", ["cage", "quant_noise", "lsq", "pact", "stable_qat", "dsq", "parq", "hestia"])
@pytest.mark.parametrize("q", ["e2m1/absmax/block=32", "nf4"])
def test_other_grids(name, q):
    problem = linear_regression(64, seed=3)
    result = train_with(problem, training_method(name)(), q, steps=60, lr=0.05)
    assert result.losses.rtn < 0.8 * result.curve["rtn"][0]


@pytest.mark.parametrize("name", VARIANTS)
def test_zero_weights_and_blocks(name):
    """A start at 0, where absmax and RMS grids have no step, gives finite weights that move."""
    problem = linear_regression(32, seed=1, start="zero")
    result = train_with(problem, training_method(name)(), "int4/absmax/block=16", steps=40, lr=0.05)
    assert np.isfinite(result.state.w).all()
    assert result.losses.full < result.curve["float"][0]


def _compare(name, settings, q):
    problem = linear_regression(64, seed=5)
    rule = training_method(name)(**settings)
    fast, slow = (train_with(problem, rule, q, engine=engine) for engine in ("compiled", "plain"))
    a, b = fast.state, slow.state
    for x, y in ((a.w, b.w), (a.m, b.m), (a.v, b.v), (a.h, b.h), (a.top, b.top)):
        if name in TRANSCENDENTAL:
            # Each step brings a few ulp from tanh or exp to a gradient. Adam's m / √v takes relative errors over as
            # they are, and an error of w comes back through the gradient times lr: 30 steps add up to 30 · 10 ulp.
            ulp = 2.0**-52 * max(1.0, np.abs(y).max())
            np.testing.assert_allclose(x, y, rtol=0, atol=300 * TRANSCENDENTAL[name] * ulp)
        else:
            np.testing.assert_array_equal(x, y)
    assert fast.losses.rtn == pytest.approx(slow.losses.rtn, rel=1e-12)


@pytest.mark.parametrize(("name", "settings"), [("cage", VARIANTS["cage"][0]), ("lsq", {})])
@pytest.mark.parametrize("q", FORMATS)
def test_compiled_equals_plain(name, settings, q):
    _compare(name, settings, q)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), RUNS)
def test_compiled_equals_plain_everywhere(name, settings):
    for q in FORMATS:
        _compare(name, settings, q)
