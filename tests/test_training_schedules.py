"""Ramps, gates, and the split of training into a float and a quantized phase."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lotion_theory.methods.rule import Shares, ramped
from lotion_theory.training import Gate, Ramp, Split, optimal_share
from tests.strategies import examples


@examples(30)
@given(total=st.integers(1, 50), ends=st.tuples(st.integers(0, 10), st.integers(0, 10)), weight=st.floats(0.1, 10))
def test_ramps_are_those_of_the_numpy_trainers(total, ends, weight):
    start, end = sorted(x / 10 for x in ends)
    ramp, rows = Ramp(start, end, total), ramped(weight, start, end)(np.arange(total) / total)
    found = [weight * float(ramp.at(torch.tensor(step))) for step in range(total)]
    np.testing.assert_allclose(found, rows[:, 0], atol=1e-12 * weight)


@examples(50)
@given(total=st.integers(1, 400), percent=st.integers(0, 100))
def test_a_share_is_reached_at_the_same_step_everywhere(total, percent):
    """``step / total >= share``, as the engines of the test problems count: 0.55 of 100 steps are 55."""
    share = percent / 100
    gate, expected = Gate(share, total_steps=total), Shares(np.arange(total) / total).since(share)
    for step in range(total):
        gate.update(step)
        assert gate.on == bool(expected[step])
    for k in range(total + 1):
        gate = Gate(k / total, total_steps=total)
        assert gate.start == k


def test_a_ramp_of_no_length_is_a_step():
    assert [float(Ramp(2, 2).at(torch.tensor(k))) for k in range(4)] == [0, 0, 1, 1]
    assert float(Ramp().at(torch.tensor(0))) == 1


def test_gates_follow_steps_and_hands():
    gate = Gate(0.25, 3, total_steps=8)
    seen = []
    for step in range(5):
        gate.update(step)
        assert bool(gate.tensor) == gate.on
        seen.append(gate.on)
    assert seen == [False, False, True, False, False]
    gate.set(True)
    assert bool(gate.tensor)
    assert Gate().on


def test_bad_moments():
    for arguments, message in [
        ((0.5,), "start = 0.5 is a share of training: give total_steps"),
        ((1.5, 2, 10), "start = 1.5; a share"),
        ((-1,), "start = -1; a step is not negative"),
        ((True,), "start = True"),
        ((0, "end", 10), "end = 'end'"),
        ((5, 3), "ends before it starts"),
        ((0, 0, 0), "total_steps = 0"),
        ((0, 0, 2.0), "total_steps = 2.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Ramp(*arguments)


def test_optimal_share():
    # The examples of the paper: 10-15 % at small ratios of tokens to bytes, 55 % at large ones.
    assert optimal_share(36, 1, 8) == pytest.approx(0.153, abs=1e-3)
    assert optimal_share(3.3e4, 1, 8) == pytest.approx(0.524, abs=1e-3)
    assert optimal_share(100e9, 1e9, 4) == pytest.approx(math.exp(-6.7297 / math.log(200)))
    ratios = np.geomspace(2, 1e6, 30)
    assert (np.diff([optimal_share(r, 1, 8) for r in ratios]) > 0).all()
    with pytest.raises(ValueError, match="more than 1"):
        optimal_share(1, 1, 8)
    with pytest.raises(ValueError, match="bits = 0"):
        optimal_share(1, 1, 0)


def _factors(plan):
    return [plan.factor(step) for step in range(plan.total_steps)]


@examples(50)
@given(
    total=st.integers(10, 200), share=st.floats(0.05, 0.95), fused=st.booleans(),
    decay=st.sampled_from(["cosine", "linear"]), floor=st.sampled_from([0.0, 0.1]), warm=st.floats(0, 1),
)  # fmt: skip
def test_split(total, share, fused, decay, floor, warm):
    start = total - round(share * total)
    plan = Split(
        total, share, fused, warmup=int(warm * start), decay=decay, floor=floor, rewarm=int(warm * (total - start))
    )
    assert plan.start == start
    assert [plan.active(step) for step in range(total)] == [step >= start for step in range(total)]
    rates = np.array(_factors(plan))
    assert ((rates >= floor - 1e-12) | (np.arange(total) < plan.warmup) | ~np.isfinite(rates) | (rates > 0)).all()
    assert (rates <= 1).all()
    if fused:
        # Warm-up, peak rate up to the switch, one decay from there on.
        assert (rates[plan.warmup : start] == 1).all()
        assert start == total or rates[start] == 1
        assert (np.diff(rates[start:]) < 0).all()
    else:
        quantized = rates[start:]
        assert (np.diff(quantized[: plan.rewarm]) > 0).all()
        assert (np.diff(quantized[max(plan.rewarm, 1) :]) <= 0).all()


def test_split_by_hand():
    np.testing.assert_allclose(_factors(Split(8, 0.5, warmup=2, decay="linear")), [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    unfused = Split(10, 0.4, fused=False, cooldown=0.5, rewarm=2, decay="linear", floor=0.1)
    np.testing.assert_allclose(
        _factors(unfused), [1, 1, 1, 1, 0.7, 0.4, 0.5, 1, 1, 0.55], err_msg="three, cool down, two up, down"
    )
    assert _factors(Split(5, 0.0)) == [1] * 5
    np.testing.assert_allclose(_factors(Split(4, 1.0, warmup=2, decay="linear")), [0.5, 1, 1, 0.5])
    assert Split(8, 0.25).ramp == (6, 6)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, Split(4, 0.5, decay="linear").factor)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, [0.3, 0.3, 0.3, 0.15])


def test_split_may_forget_the_optimizers_state():
    for keep in (True, False):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(model.parameters())
        plan = Split(4, 0.5, keep_state=keep)
        for step in range(3):
            plan.begin_step(step, optimizer)
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        assert float(optimizer.state[model.weight]["step"]) == (3 if keep else 1)


def test_bad_splits():
    for settings, message in [
        ({"share": 1.2}, "share = 1.2"),
        ({"share": 0.5, "decay": "step"}, "decay = 'step'; valid: cosine, linear"),
        ({"share": 0.5, "warmup": 6}, "warmup = 6; must lie within the float phase of 5 steps"),
        ({"share": 0.5, "rewarm": 6}, "rewarm = 6"),
        ({"share": 0.5, "total_steps": 0}, "total_steps = 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            Split(**{"total_steps": 10, **settings})
