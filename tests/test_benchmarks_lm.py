"""The benchmark scripts of language models run, on models small enough for a test."""

import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from testbeds.lm.measure import device_checks
from tests.lm_cases import SMALL
from tests.torch_models import COMPILES

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"

# What the script asks of nanoGPT's model.py.
MODEL = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.n_embd)
        self.layer = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def configure_optimizers(self, weight_decay, lr, betas, device):
        return torch.optim.AdamW(self.parameters(), lr, betas, weight_decay=weight_decay)

    def forward(self, x, y):
        logits = self.layer(self.table(x)) @ self.table.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
"""


def script(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def throughput():
    return script(FOLDER / "lm_throughput.py")


def test_throughput_of_both_on_the_same_shapes(throughput, tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.setattr(throughput, "preset", lambda name: SMALL)
    data = tmp_path / "train.bin"
    (np.arange(400) % 256).astype(np.uint16).tofile(data)
    rows = throughput.compare("small", 2, 2, throughput.nanogpt(tmp_path), data, rounds=2)
    by_name = {row["contender"]: row for row in rows}
    assert set(by_name) == {"lotion, preset", "lotion, matched", "nanoGPT"}
    assert {row["tokens_per_step"] for row in rows} == {4 * SMALL.model.context}
    assert by_name["nanoGPT"]["speed"] == 1 and all(row["tokens_per_second"] > 0 for row in rows)
    width = SMALL.model.width
    assert by_name["nanoGPT"]["parameters"] == {
        "embedding": 256 * width,
        "blocks": width**2,
        "total": 256 * width + width**2,
    }
    # 4 W² + 3 W F against 12 W², norms aside: hidden is at most 8 above 8 W / 3.
    blocks = by_name["lotion, matched"]["parameters"]["blocks"]
    assert 0 <= blocks - SMALL.model.depth * 12 * width**2 <= SMALL.model.depth * (3 * width * 8 + 3 * width) + width
    with pytest.raises(FileNotFoundError, match=r"no model\.py; give a checkout"):
        throughput.nanogpt(tmp_path / "gone")


def test_a_step_of_each_contender_is_compared():
    pytest.importorskip("torchao")
    step = script(FOLDER / "lm_step.py")
    config = step.settings(replace(SMALL, batch=8), micro_batch=1, accumulate=2)
    rows = step.compare(replace(SMALL, batch=8), config, "int4/absmax/block=16", rounds=1)
    assert [row["contender"] for row in rows] == list(step.METHODS)
    assert all(row["tokens_per_step"] == 2 * SMALL.model.context and row["rounds"] == 1 for row in rows)


# --- one GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    return script(FOLDER / "gpu" / "run.py")


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_stages_of_the_gpu_run_are_done_once(gpu, tmp_path, capsys):
    ids = np.random.default_rng(0).integers(0, 50256, 4000).astype("<u2")
    ids[99::100] = 50256
    for name in ("train.u16", "validation.u16"):
        ids.tofile(tmp_path / name)
    out = tmp_path / "out"
    call = ["--dry-run", "cpu", "--out", str(out), "--shards", str(tmp_path / "train.u16"), "--rounds", "1"]
    call += ["--validation", str(tmp_path / "validation.u16"), "--stages", "speed", "train lotion"]
    assert gpu.main([*call, "--seconds", "0"]) == 3
    assert "left to do: speed, train lotion" in capsys.readouterr().out and not (out / "rows.jsonl").exists()
    assert gpu.main(call) == 0
    rows = rows_of(out)
    measured = [row for row in rows if row["stage"] == "speed" and not row.get("done")]
    assert [row["contender"] for row in measured] == list(gpu.METHODS)
    assert all(row["tokens_per_second"] > 0 and row["torch"] and row["config"]["steps"] == 4 for row in measured)
    (trained,) = (row for row in rows if row["stage"] == "train lotion" and not row.get("done"))
    assert trained["status"] == "ok" and trained["text"] == "Debian-docs"
    assert {"float_loss", "rtn_loss", "rr_loss"} <= set(trained["metrics"])
    assert gpu.main(call) == 0 and rows_of(out) == rows


def test_a_training_that_runs_out_of_time_is_gone_on_with(gpu, tmp_path):
    options = gpu.parsed(["--dry-run", "cpu", "--out", str(tmp_path)])
    session = gpu.Session(options, torch.device("cpu"), gpu.config_of(options, gpu.SOTU), time.monotonic() - 1)
    assert gpu.STAGES["train qat"](session) and session.rows == []
    session.ends += 1000
    assert gpu.STAGES["train qat"](session)
    assert [row["step"] for row in session.rows if "step" in row] == [4]


@pytest.mark.skipif(not COMPILES, reason="torch.compile reads files of its own as the locale says")
def test_the_costs_of_formats_are_measured(gpu, tmp_path):
    assert gpu.main(["--dry-run", "cpu", "--out", str(tmp_path), "--rounds", "1", "--stages", "formats"]) == 0
    rows = [row for row in rows_of(tmp_path) if not row.get("done")]
    eager = [row for row in rows if row["backend"] is None]
    assert {row["format"] for row in eager} == set(gpu.COMPILED) and len(eager) == 3 * len(gpu.COMPILED)
    assert all(row["ns"] > 0 and row["operations"] > 9 and row["unequal"] == 0 for row in eager)
    # Values on a CPU are at hand, and asked for.
    assert all(row["waits"] > 0 for row in eager if row["operation"] in ("cast", "round"))
    assert [row["graphs"] for row in rows if row["backend"]] == [1, 1, 1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "torch finds no CUDA device; --dry-run cpu"),
        (["--dry-run", "cpu", "--batch", "40"], "--batch: up to 32, or a multiple of 32"),
    ],
)
def test_options_that_cannot_work_are_named(gpu, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.parsed([*arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_device_checks_notice_a_wrong_cast(monkeypatch):
    rows = list(device_checks._rounding(torch.device("cpu"), "int4/absmax/block=32", torch.float32))
    assert device_checks.failed(rows) == ""
    real, calls = device_checks.Quantizer.cast, []

    def wrong(self, w):
        calls.append(1)
        return real(self, w) + (len(calls) == 2) * 1e-3

    monkeypatch.setattr(device_checks.Quantizer, "cast", wrong)
    rows = list(device_checks._rounding(torch.device("cpu"), "int8/absmax/row", torch.float32))
    assert device_checks.failed(rows).startswith("cast int8/absmax/row float32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_computes_what_the_cpu_does():
    assert device_checks.failed(list(device_checks.checks(torch.device("cuda"), compiled=True))) == ""
