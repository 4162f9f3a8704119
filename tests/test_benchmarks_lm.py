"""The benchmark scripts of language models run, on models small enough for a test."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.lm_cases import SMALL

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
    assert by_name["nanoGPT"]["parameters"] == {"embedding": 256 * width, "blocks": width**2, "total": 256 * width + width**2}
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
