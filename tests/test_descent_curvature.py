"""Where LOTION's curvature is measured in the test problems, and gradients sampled at RR(w)."""

import numpy as np
import pytest

from lotion_theory import Stream
from lotion_theory.methods import method
from testbeds.descent import plain, prepare
from testbeds.descent.run import measuring_point, train
from testbeds.descent.state import Optimizer
from testbeds.kinds.estimator import estimator_run
from testbeds.problems import training_problem
from testbeds.problems.mlp import digits_mlp

PLACES = ("weight", "rounded", "mixture")
NET = {"name": "two_layer", "d": 4, "k": 3, "m": 4}
FORMAT = "int3/absmax/row"


def trained(problem, settings, engine="compiled", kind="adam", steps=12):
    rule = method("lotion")(**settings)
    return train(problem, rule, FORMAT, Optimizer(kind, 3e-2), steps, seed=3, checkpoints=2, engine=engine).state.w


@pytest.mark.parametrize("curvature", ["gauss_newton", "fisher"])
@pytest.mark.parametrize("extra", [{}, {"gradient_at": "rounded"}], ids=["weight", "sampled"])
def test_both_engines_give_the_same_bits(curvature, extra):
    for place in ("rounded",) if extra else ("rounded", "mixture"):
        settings = {"curvature": curvature, "curvature_at": place, "refresh": 3, **extra}
        problem = training_problem(NET, 0)
        assert np.array_equal(trained(problem, settings), trained(problem, settings, "plain"))


@pytest.mark.parametrize("problem", [{"name": "linear_regression", "d": 12, "exponent": 1.1, "rotation": "dense"},
                                     {"name": "linear_regression", "d": 12, "exponent": 1.1}])  # fmt: skip
def test_on_a_quadratic_the_three_places_coincide(problem):
    made = training_problem(problem, 1)
    found = [
        train(made, method("lotion")(curvature_at=place), "int3", Optimizer("adam", 3e-2), 20, engine="plain").state.w
        for place in PLACES
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_on_a_net_they_do_not():
    problem = training_problem(NET, 0)
    found = [trained(problem, {"curvature_at": place}, "plain") for place in PLACES]
    found.append(trained(problem, {"curvature_at": "rounded", "gradient_at": "rounded"}, "plain"))
    assert all(not np.array_equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_measuring_points():
    """At RR(w) every weight is on a level beside it; a mixture takes each from there or leaves it; a draw is its step's."""
    problem = training_problem(NET, 2)
    points = {}
    for place in PLACES:
        state = prepare(problem, method("lotion")(curvature_at=place), FORMAT)
        points[place] = measuring_point(state, lambda n: Stream(0, "test").uniforms(n, 5, dtype="float64"))
    p = plain.place(state, np.zeros_like(state.w))
    assert np.array_equal(points["weight"], state.w)
    assert ((points["rounded"] == p.lo) | (points["rounded"] == p.hi)).all()
    kept = points["mixture"] == state.w
    assert (kept | (points["mixture"] == points["rounded"])).all() and 0 < kept.sum() < kept.size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature_at": "middle"}, "curvature_at = 'middle'; valid: weight, rounded, mixture"),
        ({"gradient_at": "mixture", "curvature_at": "mixture"}, "gradient_at = 'mixture'; valid: weight, rounded"),
        ({"gradient_at": "rounded"}, "gradient_at = 'rounded' needs curvature_at = 'rounded', not 'weight'"),
        ({"curvature_at": "rounded", "curvature": "exact"}, "curvature 'exact' is that of the expected loss already"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        method("lotion")(**settings)


@pytest.mark.parametrize("lattice", [{}, {"fixed": 1}], ids=["moving", "fixed"])
def test_the_sampled_gradient_has_no_bias_and_the_others_have(lattice):
    """200 draws: the norm of a bias that is zero, over its standard error, is about 1 and beyond 3 with probability below
    10⁻⁶ for 24 directions of comparable size; pairs of the same number of draws spread less."""
    scale = "detached" if lattice else "attached"
    config = {"problem": NET, "format": "int3", "draws": 200, "spread": 0.3, **lattice}
    sampled = {"name": "lotion", "scale": scale, "curvature_at": "rounded", "gradient_at": "rounded"}
    found = estimator_run({**config, "method": sampled}, 0)
    assert found["bias"] <= 3 * found["bias_standard_error"] and found["deviation"] > 0
    pairs = estimator_run({**config, "method": sampled, "pairs": 1}, 0)
    assert pairs["bias"] <= 3 * pairs["bias_standard_error"]
    assert pairs["bias_standard_error"] < found["bias_standard_error"]
    for place in ("weight", "rounded"):
        biased = estimator_run({**config, "method": {"name": "lotion", "scale": scale, "curvature_at": place}}, 0)
        assert biased["bias"] > 5 * biased["bias_standard_error"] and biased["bias"] > 0.01


def test_checkpoints_of_the_digits():
    """Trained weights fit the sample, are the same each time, and are the start of every method."""
    start = digits_mlp((8,), seed=4, batch=64)
    problem = digits_mlp((8,), seed=4, batch=64, trained=300)
    assert "trained=300" in problem.name and np.array_equal(problem.start, digits_mlp((8,), seed=4, trained=300).start)
    assert float(problem(problem.start[None])[0]) < 0.5 < float(start(start.start[None])[0])
    assert np.array_equal(problem.batch_gradient(problem.start, 3), start.batch_gradient(problem.start, 3))
    with pytest.raises(ValueError, match="trained = -1"):
        digits_mlp(seed=0, trained=-1)
