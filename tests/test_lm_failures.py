"""Nothing is lost, or the file is named: full disks, killed processes, damaged token files."""

import errno
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testbeds import cli
from testbeds.lm.loop import train as trainer
from testbeds.lm.loop.train import train
from testbeds.lm.text.prepare import prepare
from testbeds.lm.text.sources import text_files
from testbeds.lm.text.tokenizer import Bytes
from tests.lm_cases import SMALL, assert_same_bits, interrupted_at, interrupting, parts, small

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 20 steps without interruption: its folder."""
    out = tmp_path_factory.mktemp("straight")
    assert train(SMALL, out)["status"] == "ok"
    return out


# --- full disks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True)
    if not done or done.returncode:
        pytest.skip("a file system of its own needs Linux and root")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk):
    """Write to ``disk`` until it is full."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC


@pytest.mark.parametrize("step", [3, 7])
def test_full_disk_at_a_checkpoint(disk, straight, step):
    """Full from two or three steps before a checkpoint on: what is older stays, and what is newer is done again."""
    config, out = small(run__log_every=100), disk / "run"
    kept = "there is no older checkpoint" if step == 3 else "the checkpoint of step 5 is intact"
    with pytest.raises(OSError, match=rf"cannot write .*\.pt: the disk is full; {kept}"):
        train(small(run__log_every=step), out, progress=interrupting(step, lambda: fill(disk)))
    assert [p.name for p in (out / "checkpoints").iterdir()] == ([] if step == 3 else ["step-00000005"])
    (disk / "ballast").unlink()
    assert train(config, out)["status"] == "ok"
    first, second = parts(straight), parts(out)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_full_disk_at_the_log(disk, straight):
    interrupted_at(7, disk / "run")
    with pytest.raises(OSError, match=r"cannot write .*/run/log\.jsonl: No space left on device"):
        # The rest of the log's last block takes some more lines.
        train(small(run__checkpoint_every=100), disk / "run", progress=lambda done, *_: fill(disk))
    (disk / "ballast").unlink()
    train(SMALL, disk / "run")
    assert_same_bits(straight, disk / "run")


def test_full_disk_at_the_result(disk, straight, monkeypatch):
    write_json = trainer.write_json

    def full(path, value):
        if path.name == "result.json":
            fill(disk)
        write_json(path, value)

    monkeypatch.setattr(trainer, "write_json", full)
    with pytest.raises(OSError, match=r"cannot write .*/run/result\.json: No space left on device"):
        train(SMALL, disk / "run")
    assert not list((disk / "run").glob("result*"))
    monkeypatch.undo()
    (disk / "ballast").unlink()
    steps = []
    assert train(SMALL, disk / "run", progress=lambda done, *_: steps.append(done))["status"] == "ok"
    assert steps == []  # only evaluated again
    assert_same_bits(straight, disk / "run")


# --- killed processes ------------------------------------------------------------------------------------------------


def test_killed_in_training(tmp_path, straight):
    """kill -9 in the middle of a step, two steps after a checkpoint."""
    program = f"""
import os, signal
from pathlib import Path
from testbeds.lm.model.methods import METHODS, Plain
from testbeds.lm.loop.train import train
from tests.lm_cases import SMALL
class Dying(Plain):
    def after_backward(self, step):
        if step.number == 12:
            os.kill(os.getpid(), signal.SIGKILL)
METHODS["ptq"] = Dying
train(SMALL, Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps = []
    train(SMALL, tmp_path, progress=lambda done, *_: steps.append(done))
    assert steps[0] == 11
    assert_same_bits(straight, tmp_path)


# --- token files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path):
    """Text tokenized into several files."""
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(f"Text number {k} says {k * k}, and {k + 1} follows." for k in range(200)))
    prepare(tmp_path / "tokens", text_files([source], "\n\n"), Bytes(), tokens_per_file=2000)
    return tmp_path / "tokens"


@pytest.mark.parametrize("how", ["cut", "flip", "header", "empty"])
def test_damaged_token_file_is_named_and_training_goes_on_once_it_is_back(prepared, tmp_path, how, capsys):
    files = sorted(prepared.glob("train-*.tokens"))
    assert len(files) > 2
    config = small(data__tokens=str(prepared))
    train(config, tmp_path / "whole")
    interrupted_at(12, tmp_path / "run", config)
    content = files[1].read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:-7],
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "header": b"{" + content[1:],
        "empty": b"",
    }[how]
    files[1].write_bytes(damaged)
    message = re.escape(str(files[1])) + " is .*make it again with lotion prepare"
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    options = ["--tokens", str(prepared), "--out", str(tmp_path / "new"), "--device", "cpu", "--steps", "1"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", *options])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and str(files[1]) in err.replace("\n", "") and "Traceback" not in err
    files[1].write_bytes(content)
    train(config, tmp_path / "run")
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def test_other_tokens_than_those_begun_with_are_noticed(prepared, tmp_path):
    """A run resumed on other text would be neither run."""
    config = small(data__tokens=str(prepared))
    interrupted_at(12, tmp_path / "run", config)
    files = sorted(prepared.glob("train-*.tokens"))
    files[-1].unlink()
    with pytest.raises(ValueError, match=r"step-00000010 is of another run \(the token files in .* have changed since"):
        train(config, tmp_path / "run")


def test_missing_tokenizer_is_named(tmp_path, capsys):
    source = tmp_path / "text.txt"
    source.write_text("some text")
    for name in ("gone.tiktoken", "gone.json", "gone"):
        path = str(tmp_path / name) if "." in name else name
        with pytest.raises(SystemExit) as stopped:
            cli.main(["prepare", "--files", str(source), "--tokenizer", path, "--out", str(tmp_path / "out")])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and name in err and "Traceback" not in err, err
        assert not list((tmp_path / "out").glob("*")) or not list((tmp_path / "out").glob("*.tokens"))
