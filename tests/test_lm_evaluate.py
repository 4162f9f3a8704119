"""Evaluation of a language model: casts as the library makes them, standard errors, and weights left as they were."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lotion_theory import Quantizer, Stream
from testbeds.lm.loop.config import EvaluationConfig
from testbeds.lm.loop.distributed import World
from testbeds.lm.loop.evaluate import Estimate, estimate, estimate_crossed, evaluate, metrics, sequence_losses
from testbeds.lm.model.casts import Casting, check_blocks, quantized_names, replaced
from testbeds.lm.model.decoder import Decoder
from testbeds.lm.text.sequences import fixed_sequences, load_tokens
from tests.lm_cases import SMALL

CONFIG = EvaluationConfig(windows=6, samples=3)
CPU = World(torch.device("cpu"))
HELD_OUT = load_tokens(SMALL.data)[1]
NUMBERS = fixed_sequences(HELD_OUT, 16, 6, 0)


@pytest.fixture(scope="module")
def model():
    """Weights ten times the usual, so that rounding them is felt."""
    made = Decoder(SMALL.model)
    made.initialize(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 10 if parameter.ndim == 2 else 1
    return made


NAMES = tuple(quantized_names(Decoder(SMALL.model), ["blocks.*"]))
INT4 = Casting(Quantizer.parse("int4"), NAMES)


def losses(model, batch=6):
    return sequence_losses(model, HELD_OUT, NUMBERS, 16, batch, CPU)


@pytest.mark.parametrize(
    "text", ["int4/absmax/block=16", "int3", "e2m1/absmax/row", "e2m1/e8m0-sr/block=16", "nvfp4/sr"]
)
def test_casts_are_those_of_the_quantizer(model, text):
    quantizer = Quantizer.parse(text)
    found = evaluate(model, HELD_OUT, CONFIG, 16, Casting(quantizer, NAMES))
    cast = copy.deepcopy(model)
    with torch.no_grad():
        for name in NAMES:
            w = cast.get_parameter(name)
            w.copy_(quantizer.cast(w.detach()))
    assert found["rtn"] == estimate(losses(cast)) and found["float"] == estimate(losses(model))
    assert found["gap"] == estimate(losses(cast) - losses(model))
    rows = []
    for sample in range(3):
        rounded = copy.deepcopy(model)
        for name in NAMES:
            w = rounded.get_parameter(name).detach()
            stream = Stream(0, "lm/evaluation/rounding").spawn(name)
            scale = None
            if quantizer.scale.is_drawn:
                scale = stream.spawn("scale").uniforms(w.numel() // 16, sample, like=w)
            w.copy_(quantizer.round(w, stream.uniforms(tuple(w.shape), sample, like=w), scale))
        rows.append(losses(rounded))
    assert found["rr"] == estimate_crossed(np.stack(rows))
    assert len({row.mean() for row in rows}) == 3


def test_weights_mode_and_generators_are_untouched(model):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for training in (True, False):
        model.train(training)
        evaluate(model, HELD_OUT, CONFIG, 16, INT4)
        assert model.training is training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("where", ["inside", "while replacing"])
def test_weights_come_back_after_an_error(model, where):
    weights = {name: model.get_parameter(name) for name in NAMES}
    before = {name: p.detach().clone() for name, p in weights.items()}

    def change(name, w):
        if where == "while replacing" and name == NAMES[3]:
            raise RuntimeError
        return w * 0

    with pytest.raises(RuntimeError), replaced(weights, change):
        assert not any(p.any() for p in weights.values())
        raise RuntimeError
    assert all(torch.equal(before[name], p) for name, p in weights.items())


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 100])
def test_batches_do_not_matter(model, batch):
    # Matrix products of other shapes add in other orders: some units in the last place of float32.
    assert losses(model, batch) == pytest.approx(losses(model), rel=1e-5)


def test_noise_is_the_same_for_every_model_and_differs_by_sample():
    w = torch.linspace(-1, 1, 64).view(4, 16)
    first = [INT4.rounding(0, sample)("a", w) for sample in (0, 1)]
    assert torch.equal(first[0], INT4.rounding(0, 0)("a", w)) and not torch.equal(*first)
    assert not torch.equal(first[0], INT4.rounding(0, 0)("b", w))
    assert not torch.equal(first[0], INT4.rounding(1, 0)("a", w))


def test_losses_that_are_no_numbers_end_the_evaluation(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.norm.weight.fill_(math.nan)
    found = evaluate(broken, HELD_OUT, CONFIG, 16, INT4)
    assert set(found) == {"float"} and math.isnan(found["float"].mean)


# --- standard errors -------------------------------------------------------------------------------------------------


def test_estimate_and_interval_by_hand():
    found = estimate(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found == (3.0, pytest.approx(math.sqrt(14 / 3 / 4)), 4)
    # Student's quantile of 0.975 with 3 degrees of freedom, from tables.
    assert found.interval == pytest.approx(
        (3 - 3.18245 * found.standard_error, 3 + 3.18245 * found.standard_error), rel=1e-5
    )


def test_crossed_standard_error_covers_both_sources():
    """Random effects of roundings, sequences and their pairs, with known variances.

    The estimate of the variance has the mean a²/R + b²/n + 2 c²/(R n). Its relative standard deviation over
    replications is below sqrt(2 / (R - 1)), so the mean of 4000 lies within 5 sqrt(2 / 3 / 4000) = 6.5 % of it.
    """
    a, b, c, rounds, texts, repeats = 0.7, 1.3, 0.9, 4, 6, 4000
    generator = np.random.default_rng(0)
    squares = []
    for _ in range(repeats):
        values = (
            a * generator.standard_normal((rounds, 1))
            + b * generator.standard_normal((1, texts))
            + c * generator.standard_normal((rounds, texts))
        )
        squares.append(estimate_crossed(values).standard_error ** 2)
    expected = a**2 / rounds + b**2 / texts + 2 * c**2 / (rounds * texts)
    assert np.mean(squares) == pytest.approx(expected, rel=0.065)


def test_metrics_are_flat_and_perplexities_are_exponentials():
    row = metrics({"float": Estimate(1.0, 0.1, 1000), "gap": Estimate(0.2, 0.01, 1000), "rr": Estimate(800.0, 1.0, 9)})
    assert row["float_perplexity"] == pytest.approx(math.e)
    assert row["float_perplexity_low"] == pytest.approx(math.exp(1 - 1.9623 * 0.1), rel=1e-4)
    assert (row["gap"], row["gap_standard_error"], row["rr_perplexity"]) == (0.2, 0.01, math.inf)


# --- which weights ---------------------------------------------------------------------------------------------------


def test_all_matrices_of_blocks_and_nothing_else_by_default():
    model = Decoder(replace(SMALL.model, tied=False))
    assert len(NAMES) == 2 * 7 and all(name.startswith("blocks.") for name in NAMES)
    assert [n for n, p in model.named_parameters() if p.ndim == 2 and n not in NAMES] == [
        "embedding.weight",
        "head.weight",
    ]
    recurrent = Decoder(replace(SMALL.model, mixer="recurrence"))
    names = quantized_names(recurrent, ["blocks.*"])
    assert len(names) == 14 and not any("convolution" in name or "decay" in name for name in names)


def test_patterns_choose():
    model = Decoder(SMALL.model)
    names = quantized_names(model, ["*.feed.*", "embedding.*"], ["*.down.weight", "blocks.0.*"])
    assert names == ["embedding.weight", "blocks.1.feed.gate.weight", "blocks.1.feed.up.weight"]


@pytest.mark.parametrize(
    "include, exclude, message",
    [
        (
            ["blocks.*", "head.*"],
            [],
            r"method\.include: pattern 'head\.\*' matches no matrix; valid: embedding\.weight, blocks\.\*",
        ),
        (["blocks.*"], ["*.norm.*"], r"method\.exclude: pattern '\*\.norm\.\*' matches no matrix"),
        (["*mixer_norm*"], [], r"matches no matrix"),
        (["*.up.*"], ["blocks.*"], r"method\.exclude = \['blocks\.\*'\] leaves nothing of method\.include"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(include, exclude, message):
    with pytest.raises(ValueError, match=message):
        quantized_names(Decoder(SMALL.model), include, exclude)


def test_blocks_that_do_not_fit_name_the_weight():
    with pytest.raises(ValueError, match=r"'int4/block=32': b: block=32 does not divide the row length 16"):
        check_blocks(Quantizer.parse("int4/block=32"), {"a": torch.empty(2, 32), "b": torch.empty(2, 16)})
