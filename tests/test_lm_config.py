"""Settings of training runs: presets, files, assignments, and errors that name what is wrong."""

import math
from dataclasses import fields, replace

import pytest

from testbeds.lm.loop.config import (
    PRESETS,
    EvaluationConfig,
    MethodConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    assigned,
    load,
    preset,
)
from testbeds.lm.loop.schedules import learning_rate
from testbeds.lm.model.config import ModelConfig
from testbeds.settings import changed, differences, to_dict


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_plain_data(name):
    config = replace(preset(name), method=MethodConfig(settings={"weight": 2.0}, exclude=("*.out.*",)))
    assert changed(TrainConfig(), to_dict(config)) == config
    assert differences(to_dict(config), to_dict(config)) == []


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"preset = '1b'; valid: tiny, 20m, 150m, 300m"):
        preset("1b")


def test_file_changes_the_preset_it_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: 20m\nsteps: 7\noptimizer: {lr: 1e-3, schedule: wsd}\nmethod: {exclude: ['*.down.*']}\n")
    base = preset("20m")
    optimizer = replace(base.optimizer, lr=1e-3, schedule="wsd")
    expected = replace(base, steps=7, optimizer=optimizer, method=MethodConfig(exclude=("*.down.*",)))
    assert load(path) == expected
    path.write_text("steps: 7")
    assert load(path) == replace(preset("tiny"), steps=7)
    assert load(path, base) == replace(base, steps=7)


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: {widht: 3}", r"mine.yaml: no setting 'model.widht'; valid: model.vocabulary, model.width"),
        ("color: red", r"mine.yaml: no setting 'color'; valid: model, data"),
        ("model: 3", r"model = 3: expected settings, e.g. model: \{vocabulary: 256\}"),
        ("steps: 1.5", r"steps = 1.5: expected a whole number"),
        ("steps: true", r"steps = True: expected a whole number"),
        ("optimizer: {lr: fast}", r"optimizer.lr = 'fast': expected a number"),
        ("optimizer: {lr: yes}", r"optimizer.lr = True: expected a number"),
        ("run: {compile: 1}", r"run.compile = 1: expected true or false"),
        ("run: {micro_batch: x}", r"run.micro_batch = 'x': expected a whole number or null"),
        ("method: {include: blocks}", r"method.include = 'blocks': expected a list of texts"),
        ("method: {settings: [1]}", r"method.settings = \[1\]: expected settings by name"),
        ("model: {width: 30}", r"mine.yaml: model.heads = 4: must divide width = 30"),
        ("[1, 2]", r"mine.yaml: expected settings"),
        ("a: [", r"mine.yaml: not valid YAML"),
        ("preset: huge", r"preset = 'huge'; valid: tiny"),
    ],
)
def test_wrong_files_are_explained(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_assignments_are_made_together():
    config = assigned(
        TrainConfig(), ["model.width=96", "model.heads=3", "optimizer.lr=1e-2", "method.settings.weight=2"]
    )
    assert (config.model.width, config.model.heads, config.optimizer.lr) == (96, 3, 0.01)
    assert config.method.settings == {"weight": 2}


@pytest.mark.parametrize(
    "texts, message",
    [
        (["steps"], "--set steps: expected NAME=VALUE"),
        (["=3"], "--set =3: expected NAME=VALUE"),
        (["model..width=3"], "expected NAME=VALUE"),
        (["model=3", "model.width=3"], "--set model.width=3: 'model' is given a value as well"),
        (["run.speed=3"], "--set: no setting 'run.speed'; valid: run.device"),
    ],
)
def test_wrong_assignments_are_explained(texts, message):
    with pytest.raises(ValueError, match=message):
        assigned(TrainConfig(), texts)


@pytest.mark.parametrize(
    "kind, values, message",
    [
        (ModelConfig, {"depth": 0}, "model.depth = 0: must be at least 1"),
        (ModelConfig, {"mixer": "mamba"}, "model.mixer = 'mamba'; valid: attention, recurrence"),
        (ModelConfig, {"width": 12, "heads": 4}, "model.heads = 4: must divide"),
        (OptimizerConfig, {"lr": float("nan")}, "optimizer.lr = nan: must be positive"),
        (OptimizerConfig, {"schedule": "step"}, "optimizer.schedule = 'step'; valid: cosine, wsd, constant"),
        (OptimizerConfig, {"beta2": 1.0}, r"optimizer.beta2 = 1.0: must lie in \[0, 1\)"),
        (OptimizerConfig, {"decay": 1.5}, "optimizer.decay = 1.5: a part"),
        (MethodConfig, {"name": "magic"}, "method.name = 'magic'; valid: none, ptq"),
        (MethodConfig, {"include": ()}, "method.include is empty"),
        (EvaluationConfig, {"samples": 1}, "evaluation.samples = 1: must be at least 2"),
        (RunConfig, {"keep": 0}, "run.keep = 0: must be at least 1"),
        (RunConfig, {"precision": "fp8"}, "run.precision = 'fp8'; valid: float32, bfloat16"),
        (TrainConfig, {"steps": 0}, "^steps = 0: must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


NUMBERS = [
    (kind, one.name)
    for kind in (ModelConfig, OptimizerConfig, EvaluationConfig, RunConfig, TrainConfig)
    for one in fields(kind)
    if one.type.split(" ")[0] in ("int", "float")
]


@pytest.mark.parametrize("kind, name", NUMBERS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 1e39, 2**64])
def test_no_number_is_out_of_bounds(kind, name, value):
    """Of every numeric setting; the sentence names it and one end of what is valid."""
    with pytest.raises(ValueError, match=rf"{name} = .*: (must|a part of)") as caught:
        kind(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["seed: 1" + "0" * 5000, "optimizer: {lr: 1" + "0" * 400 + "}", "preset: [tiny]",
                                  "method: {include: {a: b}}", "steps: 1\nsteps: 2"])  # fmt: skip
def test_numbers_and_names_without_sense_are_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml: "):
        load(tmp_path / "a.yaml")


def test_differences_are_told_by_their_path():
    new = replace(TrainConfig(), steps=3, model=replace(TrainConfig().model, width=64))
    assert differences(to_dict(TrainConfig()), to_dict(new)) == ["model.width: 128, now 64", "steps: 600, now 3"]


# --- learning rate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_learning_rate_rises_stays_and_falls(schedule, steps):
    config = OptimizerConfig(lr=2.0, warmup=10, schedule=schedule, decay=0.25, final=0.1)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    warmup = min(10, steps)
    assert rates[:warmup] == pytest.approx([2.0 * (i + 1) / warmup for i in range(warmup)])
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    if steps > 10:
        assert rates[-1] == pytest.approx(2.0 if schedule == "constant" else 0.2)


def test_schedules_at_known_points():
    cosine = OptimizerConfig(lr=1.0, warmup=0, final=0.0)
    # Half of the way down after half of the steps: the middle of the cosine.
    assert learning_rate(cosine, 49, 100) == pytest.approx(0.5)
    wsd = OptimizerConfig(lr=1.0, warmup=0, final=0.0, schedule="wsd", decay=0.2)
    assert [learning_rate(wsd, step, 100) for step in (0, 79, 80, 89, 99)] == pytest.approx([1, 1, 0.95, 0.5, 0])
