"""Compiled code that is kept between processes: never of other functions than those that would be compiled now."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from lotion_theory import kernels
from lotion_theory.training import LotionPenalty
from lotion_theory.training._tensors import fused as _fused
from lotion_theory.training._tensors.fused import kept, rows
from tests.mutants import Mutant, applied
from tests.torch_models import mlp

needs_numba = pytest.mark.skipif(_fused.loops() is None, reason="numba is not installed")

SCRIPT = """
import sys
import torch
from torch import nn
from lotion_theory.training import LotionPenalty
from lotion_theory.training._tensors import fused
from lotion_theory.training._tensors.fused import pointers
fused.COMPILE_AFTER = fused.LOAD_AFTER = 0
torch.manual_seed(0)
layer = nn.Linear(8, 4)
penalty = LotionPenalty(layer, "int4", curvature={"weight": torch.ones(4, 8)})
penalty.add_gradient_()
(run,) = pointers._made.values()
print(sum(run.stats.cache_hits.values()), layer.weight.grad.double().abs().sum().item())
"""


@needs_numba
def test_changed_functions_have_a_folder_of_their_own():
    folder = kept.kept_in()
    assert kept.kept_in() == folder
    mutants = (
        Mutant(kernels, "return (hi - w) - (w - lo)", "return (hi - w) + (w - lo)", ()),
        Mutant(rows, "part = total / (x.dtype.type(count) * top)", "part = total / top", ()),
        # A constant alone.
        Mutant(rows, "count, place = 0, 0", "count, place = 1, 0", ()),
    )
    for mutant in mutants:
        with applied(mutant):
            assert kept.kept_in() != folder
    assert kept.kept_in() == folder


@needs_numba
def test_kept_code_is_found_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kept.kept_in().is_relative_to(tmp_path)
    assert not kept.is_kept.__wrapped__()
    inner = kept.kept_in() / "place"
    inner.mkdir(parents=True)
    (inner / "code.nbc").touch()
    assert kept.is_kept.__wrapped__()


def test_no_home_and_no_numba_are_no_failure(monkeypatch):
    for wrong in (RuntimeError("no home"), OSError("unreadable"), kept.PackageNotFoundError("numba")):
        with patch.object(kept, "kept_in", side_effect=wrong):
            assert not kept.is_kept.__wrapped__()


@needs_numba
def test_small_models_load_what_is_kept_earlier_than_they_compile():
    w = torch.ones(4, 8)
    for there, demand in ((False, _fused.COMPILE_AFTER), (True, _fused.LOAD_AFTER)):
        penalty = LotionPenalty([("w", nn.Parameter(w))], "int4", curvature={"w": w})
        levels = penalty.items[0].levels
        with patch.multiple(_fused, is_kept=lambda there=there: there, _demand=demand - 33):
            assert [_fused.in_demand(levels, 32) for _ in range(2)] == [False, True]
    assert _fused.LOAD_AFTER < _fused.COMPILE_AFTER


def test_levels_in_16_bits_are_in_no_demand():
    penalty = LotionPenalty(mlp(dtype=torch.bfloat16), "int4")
    with patch.multiple(_fused, COMPILE_AFTER=0, LOAD_AFTER=0):
        assert not _fused.in_demand(penalty.items[0].levels, 32)


@needs_numba
@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]
    told = [
        subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
        ).stdout.split()
        for _ in range(2)
    ]
    assert [int(hits) for hits, _ in told] == [0, 1]
    assert told[0][1] == told[1][1]
