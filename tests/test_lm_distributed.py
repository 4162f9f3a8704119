"""Two processes under torchrun train what one trains, and a killed one loses nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from testbeds.lm.loop.train import train
from tests.lm_cases import SMALL, assert_same_bits, lines, parts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_signals")]
ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import os, signal, sys
from pathlib import Path
from testbeds.lm.loop.train import train
from tests.lm_cases import small

def progress(done, steps, text):
    if done == {kill_at} and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.{signal})

result = train(small(**{changes!r}), Path({out!r}), progress=progress)
if os.environ["RANK"] == "0":
    print(result["status"], result["step"])
"""


def torchrun(tmp_path, out, restarts=0, kill_at=0, kill="SIGKILL", **changes):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(out=str(out), changes=changes, kill_at=kill_at, signal=kill))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", str(restarts),
         "--master-addr", "127.0.0.1", "--master-port", str(port), str(program)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    train(SMALL, out)
    return out


def assert_alike(a, b):
    """Equal up to the order of sums over the batch, which 20 steps of Adam amplify."""
    first, second = lines(a), lines(b)
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert [v for v in one.values() if isinstance(v, float)] == pytest.approx(
            [v for v in two.values() if isinstance(v, float)], rel=2e-3, abs=2e-3
        )
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], rel=1e-6)
    for name, value in parts(a).items():
        if name.startswith("model/"):
            torch.testing.assert_close(value, parts(b)[name], rtol=0, atol=5e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_two_processes_train_what_one_trains(tmp_path, alone, strategy, micro_batch):
    done = torchrun(tmp_path, tmp_path / "run", run__strategy=strategy, run__micro_batch=micro_batch)
    assert done.returncode == 0 and done.stdout.split() == ["ok", "20"], done.stderr
    assert_alike(alone, tmp_path / "run")


def test_checkpoints_do_not_depend_on_the_number_of_processes(tmp_path, alone):
    done = torchrun(tmp_path, tmp_path / "fewer", kill_at=7, kill="SIGTERM", run__strategy="fsdp")
    assert "stopped 8" in done.stdout, done.stderr
    assert train(SMALL, tmp_path / "fewer")["status"] == "ok"
    assert_alike(alone, tmp_path / "fewer")

    def stop(done, steps, text):
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(SMALL, tmp_path / "more", progress=stop)["step"] == 8
    done = torchrun(tmp_path, tmp_path / "more", run__strategy="fsdp")
    assert done.stdout.split() == ["ok", "20"], done.stderr
    assert_alike(alone, tmp_path / "more")


def test_killed_process_is_restarted_by_torchrun_without_loss(tmp_path):
    torchrun(tmp_path, tmp_path / "straight")
    done = torchrun(tmp_path, tmp_path / "killed", restarts=1, kill_at=12)
    assert done.stdout.split() == ["ok", "20"], done.stderr
    assert_same_bits(tmp_path / "straight", tmp_path / "killed")
    starts = [
        json.loads(x)["step"] for x in (tmp_path / "killed" / "log.jsonl").read_text().splitlines() if '"start"' in x
    ]
    assert starts == [0, 10]


@pytest.mark.parametrize("dying", [0, 1])
def test_death_of_one_process_ends_the_other_with_a_reason(tmp_path, dying):
    """Without torchrun to restart them: an error long before a lost connection times out, and the run goes on from its checkpoint."""
    program = f"""
import os, signal
from pathlib import Path
from testbeds import cli
from testbeds.commands.train import Train
from testbeds.lm.model.methods import METHODS, Plain
from tests.lm_cases import SMALL
class Dying(Plain):
    def after_backward(self, step):
        if step.number == 7 and os.environ["RANK"] == "{dying}":
            os.kill(os.getpid(), signal.SIGKILL)
METHODS["ptq"] = Dying
Train.resolved = lambda self: SMALL
cli.main(["train", "--out", {str(tmp_path / "run")!r}])
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    both[dying].communicate(timeout=900)
    _, err = both[1 - dying].communicate(timeout=300)
    assert both[dying].returncode == -signal.SIGKILL and both[1 - dying].returncode == 2
    assert "another process of this run has ended" in err and "Traceback" not in err, err
    steps = []
    assert train(SMALL, tmp_path / "run", progress=lambda done, *_: steps.append(done))["status"] == "ok"
    assert steps[0] == 6


def test_batch_must_be_divisible(tmp_path):
    done = torchrun(tmp_path, tmp_path / "run", batch=3)
    assert done.returncode != 0 and "batch = 3 cannot be split evenly among 2 processes" in done.stderr


def test_error_of_the_first_process_is_raised_in_all(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "result.json").write_text("{")
    done = torchrun(tmp_path, out)
    assert done.returncode != 0 and done.stderr.count("result.json is damaged") >= 2
