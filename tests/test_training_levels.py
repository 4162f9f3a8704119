"""Levels, nearest levels and noise of the torch path against the quantizer and the stream, bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lotion_theory import Quantizer, Stream
from lotion_theory.formats.codebooks import codebook
from lotion_theory.methods.quest import midrise
from lotion_theory.training import LotionPenalty, Monitor, StraightThrough, fake
from lotion_theory.training._tensors import blocks as _blocks
from lotion_theory.training._tensors import noise
from lotion_theory.training.rules import METHODS
from tests import strategies
from tests.strategies import as_torch, examples, probes

FORMATS = (
    "int2/absmax", "int3/absmax", "int4/absmax", "int8/absmax", "ternary/absmax", "binary/absmax", "e2m1/absmax",
    "e3m2/absmax", "e4m3/absmax", "e5m2/absmax", "nf4/absmax", "pot4/absmax", "int4/gauge",
)  # fmt: skip
# Range of a block's largest magnitude in which no level or quotient is rounded as a subnormal number or overflows.
SAFE = {"float64": (1e-290, 1e300), "float32": (1e-30, 1e34), "bfloat16": (1e-30, 1e34), "float16": (0.5, 6e4)}


def _safe(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rows of ``x`` whose largest magnitude is zero or in the safe range."""
    top = np.abs(strategies.wide(x)).max(axis=1)
    low, high = SAFE[dtype]
    return x[(top == 0) | ((top >= low) & (top <= high))]


def _levels(q: Quantizer, w: torch.Tensor) -> fake.Levels:
    return fake.levels_of(q.codebook, w.dtype, w.device)


def _agrees(q: Quantizer, w: torch.Tensor) -> None:
    levels = _levels(q, w)
    x = q.partition.to_blocks(w.to(fake.working_type(w.dtype)))
    top = _blocks.absmax(x)
    sides = levels.sides(x, top)
    lo, hi = q.bracket(w)
    found = [part.to(w.dtype).reshape(w.shape) for part in (*fake.ordered(sides), levels.nearest(x, top))]
    for name, value, expected in zip(("lo", "hi", "near"), found, (lo, hi, q.cast(w)), strict=True):
        assert torch.equal(value, expected), f"{name} of {q}: {value[value != expected]}"
    units = torch.tensor([float(v) for v in q.codebook.units], dtype=x.dtype)
    for level, unit in zip(fake.ordered(sides), fake.ordered_units(sides), strict=True):
        # Units are levels of the codebook, and times the top the level itself.
        assert torch.isin(unit, units).all()
        assert torch.equal(levels.level(top, unit), level)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("text", FORMATS)
def test_agrees_with_the_quantizer_on_probes(text, dtype):
    w = as_torch(_safe(probes(text, dtype, rows=60, size=16, seed=1), dtype))
    for partition in ("row", "block=4"):
        _agrees(Quantizer.parse(f"{text}/{partition}"), w)


@examples(50)
@given(data=st.data(), text=st.sampled_from(FORMATS), dtype=st.sampled_from(strategies.FLOATS))
def test_agrees_with_the_quantizer(data, text, dtype):
    x = _safe(data.draw(strategies.blocks(text, dtype)), dtype)
    assume(x.size)
    q = Quantizer.parse(f"{text}/{data.draw(st.sampled_from(['row', 'tensor']))}")
    _agrees(q, as_torch(x))


def test_large_tensors_are_cut_into_pieces():
    # Larger than one piece, as one block and as many; a few weights sit at midpoints exactly.
    torch.manual_seed(0)
    w = torch.randn(4, 3 * _blocks.CHUNK // 8)
    w[1, :7] = w[1].abs().max() / 7 * (torch.arange(7) - 3.5)
    for text in ("int4/absmax/tensor", "int8/absmax/row", "e2m1/absmax/block=32", "int4/absmax/block=8"):
        _agrees(Quantizer.parse(text), w)


@pytest.mark.parametrize("name", ["int4", "nf4", "midrise16"])
def test_clips_beyond_a_given_top(name):
    book = midrise(codebook("int4")) if name == "midrise16" else codebook(name)
    levels = fake.levels_of(book, torch.float32, torch.device("cpu"))
    top = torch.tensor([[0.7], [2.0]])
    # Beside every midpoint: 0 is one, and which side of it the middle of a line is on depends on the processor.
    x = (torch.linspace(-3, 3, 101) + 1e-3).repeat(2, 1)
    table = top * levels.units
    sides = levels.sides(x, top)
    near = levels.nearest(x, top)
    # The nearest level by brute force, clipped weights included; there are no ties on this line of weights.
    expected = table.gather(1, (x[:, :, None] - table[:, None]).abs().argmin(dim=2))
    assert torch.equal(near, expected)
    beyond = x.abs() >= top
    assert torch.equal(sides.first[beyond], (top * x.sign())[beyond])
    assert torch.equal(sides.second[beyond], sides.first[beyond])


NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("bad", NOT_FINITE)
def test_weights_that_are_not_finite_are_not_hidden(text, dtype, bad, monkeypatch):
    """They give NaN, in what is worked out op by op and in what generated code does; other blocks are not touched."""
    w = torch.linspace(-1, 1, 24).reshape(3, 8).to(getattr(torch, dtype))
    levels, x = _levels(Quantizer.parse(text), w), w.to(fake.working_type(w.dtype))
    good = [levels.nearest(x, _blocks.absmax(x)), *levels.sides(x, _blocks.absmax(x), clips=False)[:4]]
    x[1, 5] = bad
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda now=compiling: now)
        top = x.abs().amax(dim=1, keepdim=True)
        for clips in (False, True):
            found = [levels.nearest(x, top), *levels.sides(x, top, clips=clips)[:4]]
            for value, before in zip(found, good, strict=True):
                assert torch.isnan(value[1, 5])
                assert torch.equal(value[::2], before[::2])


@pytest.mark.parametrize("bad", NOT_FINITE)
@pytest.mark.parametrize("text", ["int4/absmax/row", "nf4/absmax/row", "e5m2/absmax/row", "mxfp4"])
@pytest.mark.parametrize("method", [*METHODS])
def test_trainers_show_a_weight_that_is_not_finite(method, text, bad):
    """The loss sees NaN, or a sentence is raised; also where the lattice is learned and does not grow to infinity."""
    model = torch.nn.Linear(32, 3, bias=False)
    given = {"weight": torch.ones(3, 32)}
    try:
        trainer = StraightThrough(model, text, method=method, total_steps=10)
    except ValueError:
        return  # not for this format
    penalty = LotionPenalty(model, text, curvature=given)
    with torch.no_grad():
        model.weight[1, 5] = bad
    try:
        seen = trainer.points()["weight"]
        assert torch.isnan(seen[1, 5]) or method in ("diffq", "crown_q")  # those add to the weight, and show it
        assert not torch.isfinite(seen[1, 5])
    except ValueError as error:
        assert "NaN or infinite" in str(error)
    try:
        assert not torch.isfinite(penalty())
        penalty.add_gradient_()
        assert not torch.isfinite(model.weight.grad[1]).all()
        assert torch.isfinite(model.weight.grad[0]).all()
    except ValueError as error:
        assert "NaN or infinite" in str(error)


@pytest.mark.parametrize("text", ["int4/absmax/row", "nf4/absmax/row", "mxfp4"])
def test_monitors_look_at_a_model_that_diverged(text):
    model = torch.nn.Linear(32, 2, bias=False)
    with torch.no_grad():
        model.weight[:, 3] = float("nan")
    found = Monitor(model, text).measure()
    assert found["on_grid"] == found["outer_tenth"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1, 0x7F800001])
def test_every_nan_stays_one_in_storage_written_out_for_compiled_code(dtype, bits, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(fake.to_storage(x, dtype)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_storage_rounding_written_out_for_compiled_code(dtype, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    scale = 2.0 ** torch.arange(-20, 10)
    x = (torch.linspace(-1.7, 1.7, 1001)[:, None] * scale).reshape(-1)
    # Exact midpoints of the narrow type, subnormal ones of float16 included.
    ties = (x.to(dtype).float() + torch.nextafter(x.to(dtype), torch.tensor(9e3, dtype=dtype)).float()) / 2
    for part in (x, ties, torch.zeros(3)):
        assert torch.equal(fake.to_storage(part, dtype), part.to(dtype).float())


@examples(20)
@given(step=st.integers(0, 2**63 - 1), start=st.integers(0, 2**40), rows=st.integers(1, 4), n=st.integers(1, 9))
def test_noise_is_that_of_the_stream(step, start, rows, n):
    stream = Stream(7, "test")
    found = noise.uniforms(stream.key(), (rows, n), torch.tensor(step), start, torch.device("cpu"))
    assert torch.equal(found, stream.uniforms((rows, n), step, like=found, start=start))


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="float8"):
        fake.working_type(torch.float8_e4m3fn)
