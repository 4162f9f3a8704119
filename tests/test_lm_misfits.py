"""Checkpoints whose checksums fit and whose content does not: what is wrong is named, and an older one may be used."""

import hashlib
import json
import shutil

import pytest
import torch

from testbeds.documents import read_json, unsealed
from testbeds.lm.loop import checkpoint
from testbeds.lm.loop.checkpoint import Damaged
from testbeds.lm.loop.logs import read
from testbeds.lm.loop.opened import open_run
from testbeds.lm.loop.train import train
from tests.lm_cases import SMALL, assert_same_bits, interrupted_at, small
from tests.strategies import storable

LSQ = small(method__name="lsq")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 20 steps without interruption: its folder."""
    out = tmp_path_factory.mktemp("straight")
    assert train(LSQ, out)["status"] == "ok"
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """That run, interrupted at step 12: its folder."""
    out = tmp_path_factory.mktemp("stopped")
    interrupted_at(12, out, LSQ)
    return out


@pytest.fixture
def begun(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


def rewritten(out, change, step=10):
    """The checkpoint of ``step`` saved again after ``change(parts, facts)``, with checksums that fit."""
    folder = out / "checkpoints"
    found = checkpoint.load(folder)
    assert found.step == step
    change(found.parts, found.facts)
    checkpoint.save(folder, step, found.parts, found.facts)


def without(part, name):
    return lambda parts, facts: parts[part].pop(name)


def with_value(part, name, value):
    def change(parts, facts):
        parts[part][name] = value

    return change


def in_group(name, value):
    return lambda parts, facts: parts["optimizer"]["param_groups"][0].update({name: value})


def in_state(name, value):
    return lambda parts, facts: parts["optimizer"]["state"]["embedding.weight"].update({name: value})


WEIGHT = "blocks.1.feed.up.weight"
MISFITS = [
    (without("model", WEIGHT), rf"model\.pt does not fit: it lacks {WEIGHT}"),
    (with_value("model", "extra", torch.ones(3)), r"model\.pt does not fit: it has unknown extra"),
    (with_value("model", WEIGHT, torch.ones(3, 4)), rf"{WEIGHT} has shape \(3, 4\), not \(32, 16\)"),
    (with_value("model", WEIGHT, 3.0), rf"{WEIGHT} is no tensor of floats"),
    (lambda parts, facts: parts["model"].clear(), r"it lacks .* and \d+ more"),
    (lambda parts, facts: parts.pop("model"), r"model\.pt is missing from its checkpoint"),
    (lambda parts, facts: parts.update(model=[1]), r"model\.pt is missing from its checkpoint, or holds no dict"),
    (lambda parts, facts: facts.update(position=3), "position 3, not 10 steps of 4"),
    (lambda parts, facts: facts.pop("config"), "tells no configuration"),
    (lambda parts, facts: facts["config"].pop("model"), r"of another run|tells no configuration"),
]
TRAINING = [
    (without("optimizer", "state"), r"optimizer\.pt does not fit: no state"),
    (lambda parts, facts: parts["optimizer"]["state"].pop("norm.weight"), r"lacks norm\.weight\.exp_avg, norm"),
    (in_state("exp_avg", torch.ones(2, 2)), r"embedding\.weight\.exp_avg has shape \(2, 2\), not \(256, 16\)"),
    (in_state("step", None), r"embedding\.weight\.step is no tensor"),
    (in_state("more", torch.ones(1)), r"has unknown embedding\.weight\.more"),
    (in_group("betas", (0.5, 0.5)), r"betas of group 0 is \(0\.5, 0\.5\), not \(0\.9, 0\.95\)"),
    (in_group("params", ["a"]), "params of group 0 is"),
    (lambda parts, facts: parts["optimizer"]["param_groups"].pop(), "1 groups of weights, not 2"),
    (with_value("rng", "cpu", torch.ones(3, dtype=torch.uint8)), r"rng\.pt does not fit"),
    (without("rng", "cpu"), r"rng\.pt does not fit"),
    (without("method", "learned"), r"method\.pt does not fit"),
    (lambda parts, facts: parts["method"]["optimizer"].pop("state"), r"method\.pt does not fit"),
    (lambda parts, facts: facts.pop("seconds"), "seconds = None"),
    (lambda parts, facts: facts.update(tokens=3), "tokens and tokenizer must be texts"),
]


@pytest.mark.parametrize(
    "change, message", MISFITS + TRAINING, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_does_not_fit_is_named(begun, change, message):
    rewritten(begun, change)
    before = (begun / "config.json").read_text()
    with pytest.raises(ValueError, match=f"step-00000010.*{message}"):
        train(LSQ, begun)
    assert (begun / "config.json").read_text() == before and not (begun / "result.json").exists()
    if (change, message) in MISFITS:
        with pytest.raises(Damaged, match="step-00000010"):
            open_run(begun)
        assert open_run(begun, fall_back=True).step == 5


@pytest.mark.parametrize("how", ["lacks weights", "torch refuses", "method", "no numbers"])
def test_an_older_checkpoint_takes_the_place_of_one_that_does_not_fit(begun, straight, how):
    change = {"lacks weights": without("model", WEIGHT), "method": without("method", "learned")}.get(
        how, lambda parts, facts: None
    )
    rewritten(begun, change)
    place = begun / "checkpoints" / "step-00000010"
    if how == "torch refuses":
        checkpoint_bytes(place, "optimizer.pt", b"no zip archive")
    if how == "no numbers":
        checkpoint_bytes(place, "manifest.json", b'{"step": 10, "files": {"../model.pt": [1, "x"]}, "facts": {}}')
    with pytest.raises(Damaged, match=r"step-00000010.*from the checkpoint of step 5, pass --fall-back"):
        train(LSQ, begun)
    assert train(LSQ, begun, fall_back=True)["status"] == "ok"
    assert_same_bits(straight, begun)


def checkpoint_bytes(place, name, content):
    """Write a file of a checkpoint, and its checksum into the manifest."""
    (place / name).write_bytes(content)
    if name != "manifest.json":
        manifest = json.loads((place / "manifest.json").read_text())
        del manifest["sha256"]  # as earlier versions wrote it
        manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
        (place / "manifest.json").write_text(json.dumps(manifest))


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path):
    interrupted_at(7, tmp_path)
    found = checkpoint.load(tmp_path / "checkpoints")
    checkpoint.save(tmp_path / "checkpoints", 25, found.parts, {**found.facts, "position": 100})
    with pytest.raises(Damaged, match=r"step 25 of a run of 20 steps.*from the checkpoint of step 5"):
        train(SMALL, tmp_path)
    assert train(SMALL, tmp_path, fall_back=True)["step"] == 20


def test_a_manifest_tells_its_own_hash(begun):
    path = begun / "checkpoints" / "step-00000010" / "manifest.json"
    path.write_text(path.read_text().replace("int4/absmax", "int3/absmax"))
    with pytest.raises(Damaged, match=r"manifest\.json is damaged or missing \(its SHA-256 is another\)"):
        open_run(begun)


def test_folders_with_other_names_are_no_checkpoints(tmp_path):
    checkpoint.save(tmp_path, 5, {}, {})
    for name in filter(storable, ("step-7", "step-²", "step-00000009x", "step--0000001", "step-000000010")):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000011").touch()
    assert checkpoint.steps(tmp_path) == [5]
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000006")
    with pytest.raises(Damaged, match="step 5 in the folder of step 6"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "line, message",
    [
        (b"oops", "line 2 is damaged"),
        (b"\xff\xfe", "line 2 is damaged"),
        (b"[1]", "no object with a kind and a step"),
        (b'{"kind": "train"}', "no object with a kind and a step"),
        (b'{"kind": 3, "step": 1}', "no object"),
        (b'{"kind": "train", "step": "1"}', "no object"),
        (b"", "line 2 is damaged"),
        (b"[" * 100_000, "line 2 is damaged"),
    ],
)
def test_damaged_lines_of_a_log_are_named(tmp_path, line, message):
    good = b'{"kind": "train", "step": 1}\n'
    path = tmp_path / "log.jsonl"
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(ValueError, match=message):
        read(path)
    # What a crash cut off is left out.
    path.write_bytes(good + line)
    assert read(path) == [{"kind": "train", "step": 1}]
    path.write_bytes(good.strip())
    assert len(read(path)) == 1


def test_a_log_without_speeds_is_gone_on_with(begun):
    (begun / "log.jsonl").write_text(
        '{"kind": "train", "step": 1}\n{"kind": "train", "step": 2, "tokens_per_second": "x"}\n'
    )
    assert train(LSQ, begun)["tokens_per_second"] > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.pop("metrics"), lambda result: result.update(metrics={"float_loss": 1.0}),
        lambda result: result.update(status="done"), lambda result: result.update(step=None),
        lambda result: result["metrics"].update(float_loss="low"), lambda result: result.update(tokens_per_second="fast"),
        lambda result: result.update(parameters={}), lambda result: result.update(curve=3),
    ],
)  # fmt: skip
def test_a_damaged_result_is_named(tmp_path, straight, change):
    result = unsealed(read_json(straight / "result.json"))
    change(result)
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"result\.json is damaged .*: remove it"):
        train(LSQ, tmp_path)


def test_a_result_with_another_number_is_named(tmp_path, straight):
    text = (straight / "result.json").read_text()
    loss = repr(json.loads(text)["metrics"]["rtn_loss"])
    (tmp_path / "result.json").write_text(text.replace(loss, str(float(loss) + 0.01)))
    with pytest.raises(ValueError, match=r"result\.json is damaged \(its SHA-256 is another\): remove it"):
        train(LSQ, tmp_path)
