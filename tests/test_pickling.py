"""What is pickled, copied or sent to another process does there what it does here, to the last bit."""

import copy
import io
import multiprocessing
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import lotion_theory as lt
from lotion_theory import methods, rounders
from lotion_theory.export import decode, encode
from lotion_theory.formats.scale_protocol import ScaleRule
from lotion_theory.formats.scaling import scale_rule
from lotion_theory.rounders.base import Case
from lotion_theory.theory.claims import CLAIMS
from lotion_theory.training import LotionPenalty, Monitor, StraightThrough
from lotion_theory.training.rules import METHODS
from testbeds.descent import Optimizer, train
from testbeds.problems import names as problem_names
from testbeds.problems import training_problem
from tests import strategies
from tests.strategies import as_torch
from tests.torch_models import COMPILES

WEIGHTS = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)


def saved(o):
    """Through ``torch.save`` and back."""
    file = io.BytesIO()
    torch.save(o, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


WAYS = {"pickle": lambda o: pickle.loads(pickle.dumps(o)), "deepcopy": copy.deepcopy, "torch": saved}
ways = pytest.mark.parametrize("there", WAYS.values(), ids=WAYS)


@ways
def test_every_format(there):
    for text in (*strategies.every_format(), "mxfp4/sr", "q4_0", "int4/frozen", "int4/absmax7.5", "int4/channel"):
        q = lt.Quantizer.parse(text)
        back = there(q)
        assert back == q and hash(back) == hash(q) and str(back) == str(q)
        # Codebooks and rules with a name are those of the registry: tables made for them once serve on.
        assert back.codebook is q.codebook and back.scale is q.scale


@ways
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_lattices_that_do_not_move(there, library):
    w = WEIGHTS if library == "numpy" else as_torch(WEIGHTS)
    for text in ("int4/block=8", "e2m1/e8m0-sr/row", "uint4/zp-real/block=8", "dynamic8/gauge/row", "q4_0"):
        q = lt.Quantizer.parse(text)
        frozen = [q.freeze(w)]
        if text == "int4/block=8":
            scale = abs(w).reshape(-1, 8).max(1)
            scale = (scale if library == "numpy" else scale.values).reshape(-1, 1) / 7
            frozen += [q.with_scale(0.25), q.with_scale(scale), q.with_top(7 * scale)]
        for lattice in frozen:
            back = there(lattice)
            assert strategies.same(back.cast(w), lattice.cast(w)), text
            assert strategies.same(back.variance(w), lattice.variance(w)), text
            assert back.canonical == lattice.canonical


def test_exact_lattices():
    w = strategies.as_fractions(WEIGHTS[:1, :3])
    for q in (lt.Quantizer.parse("int3").freeze(w), lt.Quantizer.parse("int3").with_scale(Fraction(1, 3))):
        assert (WAYS["pickle"](q).variance(w) == q.variance(w)).all()


def test_a_lattice_keeps_its_own_scale():
    q = lt.Quantizer.parse("int4/row")
    for give, times in ((q.with_scale, 1), (q.with_top, 7)):
        for scale in (np.full((4, 1), 0.1, np.float32), torch.full((4, 1), 0.1)):
            w = WEIGHTS if isinstance(scale, np.ndarray) else as_torch(WEIGHTS)
            scale *= times
            lattice = give(scale)
            before = lattice.cast(w)
            scale *= 2
            assert strategies.same(lattice.cast(w), before)
    # A learned scale is followed: it is what the optimizer moves.
    learned = torch.full((4, 1), 0.1, requires_grad=True)
    lattice, w = q.with_scale(learned), as_torch(WEIGHTS)
    frozen = lattice.freeze(w)
    before = lattice.cast(w).detach()
    (gradient,) = torch.autograd.grad(lattice.variance(w).sum(), learned)
    assert bool((gradient != 0).any())
    with torch.no_grad():
        learned *= 2
    assert not torch.equal(lattice.cast(w).detach(), before) and torch.equal(frozen.cast(w), before)
    tops = torch.ones(4, 1, requires_grad=True)
    kept = q.with_top(tops).freeze(w)
    before = kept.cast(w)
    with torch.no_grad():
        tops *= 2
    assert torch.equal(kept.cast(w), before)


def twice_absmax(x, book, kind):
    """The scale of a rule that no format string knows."""
    draws = scale_rule("absmax").draws(x, book, kind)
    return [replace(draw, lattice=replace(draw.lattice, top=2 * draw.lattice.top)) for draw in draws]


def jacobian(x, book, kind):
    return scale_rule("absmax").jacobian(x, book, kind)


def promise(book):
    return scale_rule("absmax").promise(book)


def check(book):
    return None


@ways
def test_codebooks_and_rules_of_ones_own(there):
    levels = tuple(Fraction(k, 2) for k in (-7, -4, -2, -1, 0, 1, 2, 4, 7))
    # A name that is taken: what counts is the codebook.
    book = lt.Codebook("int4", levels, (True, False) * 4 + (True,), 4, "denser at zero")
    rule = ScaleRule("absmax", "twice", twice_absmax, jacobian, promise, check)
    q = lt.Quantizer(book, rule, lt.Partition("row"))
    assert book.units and book.values.size  # tables that are made on use do not travel
    back = there(q)
    assert back == q and np.array_equal(back.cast(WEIGHTS), q.cast(WEIGHTS))
    assert not back.codebook.values.flags.writeable


def test_a_spawned_process_rounds_to_the_same_bits():
    q = lt.Quantizer.parse("mxfp4/sr")
    u, v = lt.Stream(0, "u").uniforms(WEIGHTS.shape), lt.Stream(0, "v").uniforms(4)
    tasks = [(lt.Quantizer.round, (q, WEIGHTS, u, v)), (lt.Quantizer.cast, (q.freeze(WEIGHTS), WEIGHTS))]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for function, arguments in tasks:
            assert np.array_equal(pool.apply(function, arguments), function(*arguments))


@ways
def test_encoded_weights(there):
    for w in (WEIGHTS, as_torch(WEIGHTS)):
        encoded = encode(w, "uint4/zp-int/block=8")
        assert strategies.same(decode(there(encoded)), decode(encoded))


@ways
def test_what_the_experiments_are_made_of(there):
    objects = [methods.method(name) for name in methods.names()]
    objects += [rounders.rounder(name) for name in rounders.names()]
    objects += [Case.make(np.eye(4), np.ones((2, 4)), "int4"), lt.Quadratic(np.eye(2), center=np.zeros(2))]
    objects += list(CLAIMS.values())
    for o in objects:
        assert type(there(o)) is type(o)


@pytest.mark.parametrize("name", problem_names(lambda found: found.make))
def test_problems(name):
    settings = {"linear_regression": {"d": 64}, "two_layer": {"d": 4, "k": 3, "m": 2}}.get(name, {})
    problem = training_problem({"name": name, **settings}, seed=0)
    points = np.stack([problem.start, 0.5 * problem.start])
    assert np.array_equal(WAYS["pickle"](problem)(points), problem(points))


@pytest.mark.parametrize("name", methods.names())
def test_a_rule_trains_on_after_the_journey(name):
    problem, rule = training_problem({"name": "linear_regression", "d": 16}, seed=0), methods.method(name)()
    ends = [
        train(problem, r, "int4/row", Optimizer(lr=0.01), steps=4, engine="plain").state.w
        for r in (rule, WAYS["pickle"](rule))
    ]
    assert np.array_equal(*ends)


# --- in torch --------------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("curvature", ["fisher", "gnb", "kfac", "adam", "given"])
def test_penalties_with_their_model(there, curvature):
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    optimizer = torch.optim.Adam(model.parameters())
    more = {"optimizer": optimizer, "batch_size": 2} if curvature == "adam" else {}
    penalty = LotionPenalty(model, "int4/absmax/row", curvature=curvature, **more)
    if curvature == "fisher" and COMPILES:
        penalty.compile()
    if curvature == "kfac":
        penalty.watch(model)
    if curvature == "given":
        penalty.set_curvature_({"0.weight": torch.ones(4, 8)})
    model(torch.ones(2, 8)).square().sum().backward()
    if curvature in ("fisher", "kfac"):
        penalty.observe(2)
    back = there({"model": model, "penalty": penalty, "optimizer": optimizer})
    other = back["penalty"]
    assert other.items[0].parameter is back["model"][0].weight
    if penalty.curvature.ready:
        assert torch.equal(other(), penalty())
    if curvature == "kfac":
        # The hooks of the copied model feed the copied penalty.
        back["model"](3 * torch.ones(2, 8)).square().sum().backward()
        other.observe(2)
        assert not torch.equal(other(), penalty())
    if curvature == "given":
        Monitor(other).measure()


@ways
@pytest.mark.parametrize("method", METHODS)
def test_straight_through_trainers_with_their_model(there, method):
    model = nn.Linear(8, 4, bias=False)
    st = StraightThrough(model, "int4/absmax/row", method=method, total_steps=9)
    if method == "qat" and COMPILES:
        st.compile()
        st.write_ = torch.compile(st.write_)
    back = there({"model": model, "st": st})
    other = back["st"]
    assert other.items[0].parameter is back["model"].weight
    ends = []
    for m, s in ((model, st), (back["model"], other)):
        optimizer = torch.optim.SGD([*m.parameters(), *s.parameters()], 0.1)
        for site in s.sites:
            site.nearest = None
        s.__dict__.pop("write_", None)
        with s:
            m(torch.ones(2, 8)).square().mean().backward()
        s.before_step_(optimizer)
        optimizer.step(), s.step()
        ends.append(m.weight.detach())
    assert torch.equal(*ends)


def test_nothing_is_copied_while_the_weights_are_replaced():
    model = nn.Linear(8, 4, bias=False)
    st = StraightThrough(model, "int4/absmax/row")
    with (
        st,
        pytest.raises(
            RuntimeError, match="holds other values: copy or pickle the model and its trainer after the block"
        ),
    ):
        copy.deepcopy(st)
    copy.deepcopy(st)
