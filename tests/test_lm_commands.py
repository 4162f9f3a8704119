"""``train`` and ``prepare`` on the command line: what they print, write, and exit with."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from testbeds.commands.train import Train
from testbeds.lm.loop.config import PRECISIONS, PRESETS, STRATEGIES, preset
from testbeds.lm.model.config import MIXERS
from testbeds.lm.options import default_name

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "--steps", "3", "--batch", "2", "--device", "cpu", "--format", "int4/block=16",
    "--set", "model.width=16", "model.heads=2", "model.hidden=16", "model.depth=1", "model.context=16",
    "evaluation.windows=4", "evaluation.samples=2", "run.log_every=1",
)  # fmt: skip


def test_training_prints_losses_and_where_they_are(lotion, tmp_path):
    code, out, _ = lotion("train", *TINY, "--out", tmp_path / "run")
    assert code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in ("float", "rtn", "rr"):
        assert (
            f"loss {result['metrics'][f'{name}_loss']:.4f} ± {result['metrics'][f'{name}_standard_error']:.4f}" in out
        )
    assert "ok at step 3" in out and out.rstrip().endswith(str(tmp_path / "run"))
    again = lotion("train", *TINY, "--out", tmp_path / "run")
    assert again[0] == 0 and again[1] == out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "model.widht=3"], "--set: no setting 'model.widht'; valid: model.vocabulary"),
        (["--method", "magic"], "command line: method.name = 'magic'; valid: none, ptq"),
        (["--format", "int99"], "int99"),
        (["--steps", "0"], "command line: steps = 0: must be at least 1"),
        (["--preset", "20m"], "data.tokens is empty: give a folder made by lotion prepare"),
        (["--tokens", "nowhere"], "data.tokens = 'nowhere': no such folder"),
        (["--config", "gone.yaml"], "no such file: gone.yaml"),
        (["--config", "."], ". is a folder, not a file"),
        (["--lr", "inf"], "optimizer.lr = inf: must be at most 3.4e+38"),
        (["--lr", "nan"], "optimizer.lr = nan: must be positive"),
        (["--lr", "-1"], "optimizer.lr = -1.0: must be positive"),
        (["--lr", "0"], "optimizer.lr = 0.0: must be positive"),
        (["--steps", "-1"], "steps = -1: must be at least 1"),
        (["--steps", "99999999999999"], "steps = 99999999999999: must be at most 2147483647"),
        (["--batch", "99999999"], "batch = 99999999: must be at most 1048576"),
        (["--format", "int4/block=24"], "method.format = 'int4/block=24'"),
        (["--set", "run.tensorboard=3"], "run.tensorboard = 3: expected true or false"),
        (["--set", "method.include=[nothing]"], "pattern 'nothing' matches no matrix"),
        (["--set", "model.vocabulary=2147483647", "model.width=2147483640"], "the run does not fit into memory"),
    ],
)
def test_bad_options_are_explained_and_exit_with_2(lotion, tmp_path, arguments, message):
    code, _, err = lotion("train", *arguments, "--out", tmp_path / "run", "--device", "cpu")
    assert code == 2 and message in err and "Traceback" not in err
    assert err.startswith("lotion: "), "refused before a bar is drawn"
    assert not (tmp_path / "run").exists()


def test_options_go_over_the_file_and_settings_over_options(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 5\nbatch: 6\nseed: 7\n")
    config = Train(config=path, batch=8, seed=9, method="none", compile=True, set=("seed=10",)).resolved()
    assert (config.steps, config.batch, config.seed, config.method.name, config.run.compile) == (5, 8, 10, "none", True)


def test_default_folder_is_named_by_the_options():
    assert default_name("tiny", preset("tiny")) == "tiny-ptq-int4-seed0"
    assert (
        default_name("20m", Train(preset="20m", format="int4/absmax/block=32", seed=3).resolved())
        == "20m-ptq-int4-absmax-block=32-seed3"
    )
    assert default_name("tiny", Train(method="none").resolved()) == "tiny-none-seed0"
    settings = ("model.width=64", "method.settings.decay=0.9", "run.log_every=3", "evaluation.windows=9")
    shown = default_name("tiny", Train(method="lotion", lr=0.01, set=settings).resolved())
    assert shown == "tiny-lotion-int4-width=64-lr=0.01-settings.decay=0.9-seed0"


def test_default_folders_of_runs_that_differ_differ():
    """And are one name inside their folder, whatever stands in the settings."""
    options = [
        {}, {"lr": 1e-2}, {"seed": 1}, {"steps": 7}, {"batch": 7}, {"mixer": "recurrence"}, {"tokens": "../a b"},
        {"tokens": "../a-b"}, {"set": ("method.settings.weight=2",)}, {"set": ("method.settings.decay=0.9",)},
        {"set": ("optimizer.decay=0.9",)}, {"set": ("method.include=[a]",)}, {"set": ("method.include=[a,b]",)},
        {"set": ("method.exclude=[a]",)}, {"preset": "20m"}, {"method": "lotion"}, {"format": "int8"},
        {"tokens": "long" * 80}, {"tokens": "long" * 81},
    ]  # fmt: skip
    names = [default_name(one.get("preset", "tiny"), Train(**one).resolved()) for one in options]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and len(name) <= 100 for name in names)


def test_choices_offered_are_those_there_are():
    hints = get_type_hints(Train)
    for name, valid in {"preset": PRESETS, "mixer": MIXERS, "precision": PRECISIONS, "strategy": STRATEGIES}.items():
        offered = [
            one for kind in (hints[name], *get_args(hints[name])) for one in get_args(kind) if isinstance(one, str)
        ]
        assert offered == list(valid), name


def test_prepared_files_are_trained_on(lotion, tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": f"line {i} of some text that goes on"}) + "\n" for i in range(100))
    code, out, _ = lotion(
        "prepare", "--files", tmp_path / "a.jsonl.gz", "--out", tmp_path / "tokens", "--held-out-every", 10
    )
    assert code == 0 and "train: " in out and "validation: " in out and "vocabulary 256" in out
    code, _, _ = lotion("train", *TINY, "--tokens", tmp_path / "tokens", "--out", tmp_path / "run")
    assert code == 0


def test_learned_tokenizer_is_used(lotion, tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "a.txt").write_text("\n\n".join(f"the {i} cats and the {i} dogs" for i in range(300)))
    code, out, _ = lotion(
        "prepare", "--files", tmp_path / "a.txt", "--separator", "\n\n", "--learn", 300, "--out", tmp_path / "tokens"
    )
    assert code == 0 and "vocabulary 300" in out and (tmp_path / "tokens" / "tokenizer.json").exists()
    code, _, err = lotion("train", *TINY, "--tokens", tmp_path / "tokens", "--out", tmp_path / "run")
    assert code == 2 and "model.vocabulary = 256" in err and "must be at least 300" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--c4", "--files", "a.txt"], "give either --files or --c4"),
        ([], "give either --files or --c4"),
        (["--files", "a.txt", "--learn", "300", "--tokenizer", "x.json"], "--learn and --tokenizer exclude each other"),
        (["--files", "gone.txt"], "no such file: gone.txt"),
    ],
)
def test_bad_preparations_are_explained(lotion, tmp_path, arguments, message):
    code, _, err = lotion("prepare", *arguments, "--out", tmp_path)
    assert code == 2 and message in err


@pytest.mark.slow
@pytest.mark.usefixtures("plain_signals")
def test_terminated_command_saves_and_says_so(tmp_path):
    command = [sys.executable, "-m", "testbeds.cli", "train", *TINY, "--out", str(tmp_path / "run")]
    command[command.index("3")] = "100000"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and not (log.exists() and '"train"' in log.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM and "run the same command again to go on" in err
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
