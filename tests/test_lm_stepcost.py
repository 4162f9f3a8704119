"""Measuring steps: what is counted adds up, contenders are what they say, and medians have their intervals."""

import math
import random

import pytest
import torch

from testbeds.lm.measure.stepcost import (
    METHODS,
    TORCHAO,
    Contender,
    Lap,
    compile_once,
    laps,
    median,
    peak_bytes,
    summary,
)
from tests.lm_cases import SMALL, small

CPU = torch.device("cpu")
FORMAT = "int4/absmax/block=16"


def test_intervals_hold_the_median_as_often_as_they_say():
    rng = random.Random(5)
    for n in (3, 5, 6, 9, 20):
        hits = 0
        for _ in range(2000):
            m = median([rng.random() for _ in range(n)])
            assert m.low <= m.middle <= m.high
            hits += m.low <= 0.5 <= m.high
        level = 0.95 if n >= 6 else 1 - 2 ** (1 - n)
        # Five standard errors below: a false alarm in 10^6 at most.
        assert hits / 2000 > level - 5 * math.sqrt(level * (1 - level) / 2000)


def test_contenders_take_the_trainers_steps_and_time_their_parts():
    pytest.importorskip("torchao")
    contenders = [Contender(name, SMALL, FORMAT, CPU) for name in METHODS]
    found = laps(contenders, rounds=2)
    assert {len(one) for one in found.values()} == {2}
    for contender in contenders:
        assert contender.trainer.done == 3
        for lap in found[contender.name]:
            assert 0 <= lap.own and 0 < lap.optimizer and lap.own + lap.optimizer < lap.seconds
    by_name = {contender.name: contender for contender in contenders}
    weights = {name: one.trainer.model.get_parameter(one.trainer.names[0]) for name, one in by_name.items()}
    assert len({w.data_ptr() for w in weights.values()}) == len(METHODS)
    # All but the plain one have trained with something else than the loss gradient at the weights.
    different = [name for name, w in weights.items() if not torch.equal(w, weights["plain"])]
    assert different == [name for name in METHODS if name != "plain"]
    sizes = {name: one.memory() for name, one in by_name.items()}
    whole = sizes["plain"]["quantized"]
    assert sizes["plain"]["held"] == 0 and sizes["qat"]["peak"] >= whole
    # One buffer of curvature and two counters.
    assert whole <= sizes["lotion"]["held"] <= whole + 64
    assert sizes[TORCHAO]["peak"] >= whole
    rows = {row["contender"]: row for row in summary(found, SMALL, small(batch=40))}
    assert rows["plain"]["ratio"] == 1
    assert all(row["overhead_at_batch"] < row["overhead"] for name, row in rows.items() if "lotion" in name)


def test_overhead_at_the_batch_of_the_preset_is_per_step():
    # 2 s of passes over 4 sequences and 1 s of optimizer; a method of 0.5 s per step.
    found = {"plain": [Lap(3.0, 0.0, 1.0)] * 3, "lotion": [Lap(3.5, 0.5, 1.0)] * 3, TORCHAO: [Lap(3.6, 0.0, 1.0)] * 3}
    rows = {row["contender"]: row for row in summary(found, SMALL, small(batch=40, run__micro_batch=20))}
    assert rows["lotion"]["overhead"] == pytest.approx(0.5 / 3)
    assert rows["lotion"]["overhead_at_batch"] == pytest.approx(0.5 / 21)
    assert rows[TORCHAO]["overhead"] == pytest.approx(0.2)
    assert rows[TORCHAO]["overhead_at_batch"] == pytest.approx(2 * 0.6 / 21)


def test_peak_of_what_a_call_allocates():
    def call():
        a = torch.empty(1000)
        b = torch.empty(500)
        del a
        return b, torch.empty(700)

    assert 6000 <= peak_bytes(call, CPU) <= 6000 + 3 * 64


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Contender("lotoin", SMALL, FORMAT, CPU), "contender = 'lotoin'; valid: plain, lotion"),
        (lambda: Contender(TORCHAO, SMALL, "int4/absmax", CPU), "torchao's fake quantizer is for int4/absmax, by row"),
    ],
)
def test_what_cannot_be_measured_is_named(make, message):
    pytest.importorskip("torchao")
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "lotion", "qat"])
def test_nothing_is_compiled_after_the_second_step(name):
    found = compile_once(name, small(model__depth=1), FORMAT, CPU, steps=4)
    assert found["graphs"] >= 1 and found["later"] == 0
