"""The training methods of lotion_theory.training inside the language-model trainer."""

import pytest
import torch

from testbeds.lm.loop.distributed import World
from testbeds.lm.loop.train import Trainer, train
from testbeds.lm.model.methods import QUANTIZED
from tests.lm_cases import assert_same_bits, interrupted_at, lines, parts, small


def run(name, out=None, settings=None, **changes):
    """One checkpoint, at the end."""
    return train(small(method__name=name, method__settings=settings or {}, run__checkpoint_every=20, **changes), out)


def weights(out):
    return {k: v for k, v in parts(out).items() if k.startswith("model/")}


def same(a, b) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights of plain training."""
    out = tmp_path_factory.mktemp("ptq")
    run("ptq", out)
    return weights(out)


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_method_trains_and_is_its_own(name, plain, tmp_path):
    result = run(name, tmp_path, {"late": 0.0} if name == "crown_q" else None)
    metrics = result["metrics"]
    assert result["status"] == "ok" and metrics["gap"] == pytest.approx(metrics["rtn_loss"] - metrics["float_loss"])
    assert not same(weights(tmp_path), plain)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lotion", {"weight": 0.0}), ("qat", {"start": 1.0}), ("cage", {"start": 1.0}), ("rr_ste", {"start": 20})],
)
def test_methods_switched_off_are_plain_training(name, settings, plain, tmp_path):
    run(name, tmp_path, settings)
    assert same(weights(tmp_path), plain)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("lotion", {"ramp": 0.5}), ("lotion", {"curvature": "gnb", "every": 3}), ("lotion", {"curvature": "adam"}),
     ("lotion", {"curvature_at": "mixture", "every": 3}), ("lotion", {"curvature": "kfac", "curvature_at": "rounded"}),
     ("rr_ste", {}), ("cage", {"silent": 0.3}), ("diffq", {})],
    ids=str,
)  # fmt: skip
def test_resumed_runs_equal_uninterrupted_ones(name, settings, tmp_path):
    config = small(method__name=name, method__settings=settings)
    train(config, tmp_path / "whole")
    interrupted_at(8, tmp_path / "parts", config)
    train(config, tmp_path / "parts")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_scale_curvature_and_ramp_matter_and_are_logged(tmp_path):
    found = {}
    for k, settings in enumerate(({}, {"scale": "detached"}, {"curvature": "gnb"}, {"ramp": 1.0}, {"weight": 30.0})):
        run("lotion", tmp_path / str(k), settings)
        found[k] = weights(tmp_path / str(k))
    assert all(not same(found[0], found[k]) for k in (1, 2, 3, 4))
    penalties = [line["penalty"] for line in lines(tmp_path / "0") if line["kind"] == "train"]
    assert len(penalties) == 20 and all(p > 0 for p in penalties)
    run("qat", tmp_path / "qat", {"start": 0.5})
    active = [line["active"] for line in lines(tmp_path / "qat") if line["kind"] == "train"]
    assert set(active) == {0.0, 1.0} and active == sorted(active)


@pytest.mark.parametrize("curvature", ["fisher", "gnb", "kfac"])
def test_the_place_of_the_curvature_matters_and_its_passes_do_not(curvature):
    """Each place gives weights of its own; with λ = 0 a pass at RR(w) leaves training as it is, to the bit."""

    def trained(**settings):
        settings = {"curvature": curvature, "every": 2, **settings}
        trainer = Trainer(small(method__name="lotion", method__settings=settings), World(torch.device("cpu")))
        for _ in range(3):
            trainer.step()
        return dict(trainer.model.state_dict())

    found = [trained(curvature_at=place, weight=30.0) for place in ("weight", "rounded", "mixture")]
    assert not same(found[0], found[1]) and not same(found[0], found[2]) and not same(found[1], found[2])
    assert same(trained(curvature_at="rounded", weight=0.0), trained(weight=0.0))


@pytest.mark.parametrize("ramp", [0.0, 0.25, 0.5, 1.0])
def test_the_ramp_starts_at_nothing_and_ends_when_it_says(ramp):
    """Step k of n, counted from 0, has λ times k / (ramp n), at most λ."""
    steps, seen = 8, []
    trainer = Trainer(small(method__name="lotion", method__settings={"weight": 3.0, "ramp": ramp}, steps=steps),
                      World(torch.device("cpu")))  # fmt: skip
    penalty = trainer.method.penalty
    added = penalty.add_gradient_
    penalty.add_gradient_ = lambda: (seen.append(penalty.weight), added())
    for _ in range(steps):
        trainer.step()
    assert seen == [3.0 * (min(1.0, k / (ramp * steps)) if ramp else 1.0) for k in range(steps)]


def test_clipping_comes_after_the_penalty():
    """The norm that a step tells, by which it clips, is that of the loss gradient and the penalty's together."""
    norms = {}
    for weight in (0.0, 1e4):
        trainer = Trainer(small(method__name="lotion", method__settings={"weight": weight}), World(torch.device("cpu")))
        trainer.step()
        _, norm = trainer.step()
        norms[weight] = float(norm)
    assert norms[1e4] > 10 * norms[0.0] > 0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lotion", {"lamda": 1}, "no setting 'lamda'; valid: weight, ramp"),
        ("lotion", {"ramp": 2.0}, "must lie in"),
        ("lotion", {"every": 0}, "positive integer"),
        ("lotion", {"weight": float("inf")}, "settings.weight = inf; must be a finite number"),
        ("lotion", {"ramp": float("nan")}, "settings.ramp = nan; must be a finite number"),
        ("lsq", {"rate": 10**400}, "must be a finite number"),
        ("lotion", {"curvature": "hessian"}, "valid: fisher, gnb, kfac, adam"),
        ("lotion", {"curvature_at": "middle"}, "curvature_at = 'middle'; valid: weight, rounded, mixture"),
        ("lotion", {"scale": "free"}, "attached, detached"),
        ("qat", {"weight": 1}, "qat has no setting 'weight'"),
        ("lsq", {"rate": 0}, "settings.rate = 0; must be positive"),
        ("quest", {"rate": 1.0}, "quest has no setting 'rate'; valid: grid, start"),
        ("quest", {"grid": "mean"}, "grid = 'mean'; valid: rms, absmax"),
    ],
)
def test_bad_settings_are_answered(name, settings, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        run(name, settings=settings)
