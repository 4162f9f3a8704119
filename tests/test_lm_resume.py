"""Interrupted training goes on to the same bits, and damaged or foreign files are named."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testbeds.documents import read_json, unsealed
from testbeds.lm.loop import checkpoint, runtime
from testbeds.lm.loop.folder import locked
from testbeds.lm.loop.logs import Log, read
from testbeds.lm.loop.train import train
from testbeds.lm.model.methods import METHODS, Plain
from tests.lm_cases import SMALL, assert_same_bits, interrupted_at, interrupting, small

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("plain_signals")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 20 steps without interruption: its folder."""
    out = tmp_path_factory.mktemp("straight")
    assert train(SMALL, out)["status"] == "ok"
    return out


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [3, 12, 20])
def test_resumed_run_has_the_bits_of_a_straight_one(tmp_path, straight, step):
    interrupted_at(step, tmp_path)
    result = train(SMALL, tmp_path)
    assert result["status"] == "ok" and result["curve"]["step"] == [20]
    assert_same_bits(straight, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_stops_at_the_next_step(tmp_path, straight, number):
    before = signal.getsignal(number)
    result = train(SMALL, tmp_path, progress=interrupting(7, lambda: os.kill(os.getpid(), number)))
    assert (result["status"], result["signal"], result["step"], result["metrics"]) == ("stopped", number, 8, {})
    assert signal.getsignal(number) is before
    assert checkpoint.steps(tmp_path / "checkpoints") == [5, 8]
    train(SMALL, tmp_path)
    assert_same_bits(straight, tmp_path)


def test_second_interrupt_is_obeyed_at_once():
    with runtime.signals_caught() as caught, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
    assert caught == [signal.SIGINT]


def test_killed_while_writing_a_checkpoint(tmp_path, straight):
    """kill -9 after some files of the second checkpoint: the first one is used, the rest is cleared away."""
    program = f"""
import os, signal
from pathlib import Path
from testbeds.lm.loop import checkpoint
from testbeds.lm.loop.train import train
from tests.lm_cases import SMALL
write = checkpoint._write
def dying(path, value):
    if "00000010" in str(path) and path.name == "optimizer.pt":
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, value)
checkpoint._write = dying
train(SMALL, Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [".partial-step-00000010", "step-00000005"]
    train(SMALL, tmp_path)
    assert_same_bits(straight, tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000015", "step-00000020"]


@pytest.mark.parametrize("file", ["model.pt", "optimizer.pt", "rng.pt", "method.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "flip", "remove"])
def test_damaged_checkpoint_is_named_and_left_only_when_asked(tmp_path, file, how):
    folder = tmp_path / "checkpoints"
    for step in (5, 10):
        parts = {name: {"x": torch.full((4,), step)} for name in ("model", "optimizer", "rng", "method")}
        checkpoint.save(folder, step, parts, {"position": step})
    path = folder / "step-00000010" / file
    content = path.read_bytes()
    if how == "remove":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] if how == "cut" else content[:half] + b"\xff\xff" + content[half + 2 :])
    with pytest.raises(ValueError, match=rf"step-00000010/{file} is .*from the checkpoint of step 5, pass --fall-back"):
        checkpoint.load(folder)
    found = checkpoint.load(folder, fall_back=True)
    assert found.step == 5 and found.parts["model"]["x"][0] == 5 and file in found.skipped[0]
    # With nothing to fall back on there is no such advice.
    checkpoint.save(folder, 10, {}, {}, keep=1)
    (folder / "step-00000010" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged or missing \((?!.*fall-back)"):
        checkpoint.load(folder, fall_back=True)


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, straight):
    interrupted_at(12, tmp_path)
    (tmp_path / "checkpoints" / "step-00000010" / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000010/model\.pt is truncated.*--fall-back"):
        train(SMALL, tmp_path)
    train(SMALL, tmp_path, fall_back=True)
    assert_same_bits(straight, tmp_path)
    starts = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines() if '"start"' in x]
    assert starts[-1]["step"] == 5 and "model.pt is truncated" in starts[-1]["skipped"][0]


def test_full_disk_names_the_file_and_keeps_the_older_checkpoint(tmp_path, straight):
    """A limit on the size of files stops torch.save in the middle, as a full disk does."""
    interrupted_at(7, tmp_path)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (tmp_path / "checkpoints/step-00000005/optimizer.pt").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/optimizer\.pt: .*; the checkpoint of step 5 is intact"):
            train(SMALL, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    train(SMALL, tmp_path)
    assert_same_bits(straight, tmp_path)


def test_full_disk_is_called_so(tmp_path, monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"model\.pt: the disk is full; there is no older checkpoint") as caught:
        checkpoint.save(tmp_path / "c", 5, {"model": torch.ones(3)}, {})
    assert caught.value.errno == errno.ENOSPC and list((tmp_path / "c").iterdir()) == []


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, {"model": {"x": torch.ones(1)}}, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_resumed_log_drops_what_is_done_again(tmp_path):
    """Of the checkpoint's own step only the training line is older: an evaluation there comes after it."""
    log = Log(tmp_path, SMALL.run)
    for step in range(1, 8):
        log.write("train", step, {"loss": 1.0})
        if step == 5:
            log.write("evaluation", step, {"float_loss": 1.0})
    log.close()
    again = Log(tmp_path, SMALL.run, 5)
    again.close()
    assert [(one["kind"], one["step"]) for one in again.entries] == [("train", step) for step in range(1, 6)]
    assert read(tmp_path / "log.jsonl") == again.entries


def test_log_survives_a_line_cut_in_half(tmp_path, straight):
    interrupted_at(12, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    train(SMALL, tmp_path)
    assert_same_bits(straight, tmp_path)


def test_deterministic_kernels_are_asked_for_in_the_block_only():
    with runtime.determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert train(small(steps=2, run__deterministic=True))["status"] == "ok"


# --- folders ---------------------------------------------------------------------------------------------------------


def test_finished_run_is_not_done_again(tmp_path, straight):
    def fail(*args):
        raise AssertionError("trained again")

    stored = unsealed(read_json(straight / "result.json"))
    assert train(SMALL, straight, progress=fail) == stored
    # What is written more often, or evaluated otherwise, is the same run: only the evaluation is new.
    content = {p.name: p.read_bytes() for p in straight.iterdir() if p.is_file()}
    try:
        again = train(small(evaluation__windows=4, run__log_every=2), straight, progress=fail)
    finally:
        for name, data in content.items():
            (straight / name).write_bytes(data)
    assert again["metrics"]["float_standard_error"] != stored["metrics"]["float_standard_error"]


def test_folder_of_another_run_is_refused(tmp_path, straight):
    config = small(steps=30, optimizer__lr=1e-3)
    before = (straight / "config.json").read_text()
    with pytest.raises(
        ValueError, match=r"of another run \(optimizer.lr: 0.01, now 0.001; steps: 20, now 30\): choose"
    ):
        train(config, straight)
    assert (straight / "config.json").read_text() == before


def test_folder_belongs_to_one_process(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match=f"another process is training in {tmp_path}"):
        train(SMALL, tmp_path)


def test_state_of_torchs_generator_is_restored(tmp_path, monkeypatch):
    class Noisy(Plain):
        def after_backward(self, step):
            drawn.append(torch.randn(()).item())

    drawn = []
    monkeypatch.setitem(METHODS, "noisy", Noisy)
    config = small(method__name="noisy")
    torch.manual_seed(1)
    interrupted_at(12, tmp_path, config)
    before = drawn[10:12]
    torch.manual_seed(2)
    train(config, tmp_path)
    assert drawn[12:14] == before and len(drawn) == 12 + 10
