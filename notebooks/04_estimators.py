# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Estimators
#
# **Question:** every method says that it handles rounding in its gradient. Which gradient does each really follow, how
# far is it from that of the smoothed loss, and how noisy is it?

# %%
import numpy as np

import lotion_theory as lt
from testbeds.figures.estimators import figure_estimators
from testbeds.notebook import picture, table
from testbeds.sweep.archive import read_archive

rows = read_archive("../results/sweeps/paper.jsonl.xz")
estimators = [r for r in rows if r["experiment"] == "estimators"]
picture(
    figure_estimators(estimators),
    "Bias and standard deviation of the directions that methods follow, over the norm of the exact gradient",
)

# %% [markdown]
# Stored rows: `lotion sweep paper --only estimators`, linear regression with d = 64, ten instances, 1,000 draws around
# the optimum. Zero bias means: on average this is the gradient of the smoothed loss, the moving lattice included.
# LOTION with attached scale has none, and no noise either: its penalty is in closed form, and exact for a quadratic (C8
# and C15, checked against enumeration in notebook 02; here it is the reference). RR-STE is exactly as biased as no
# smoothing at all (`ptq`). The table has the medians.

# %%
from testbeds.results.rows import by_method, values


def medians(format):
    runs = by_method([r for r in estimators if r["config"]["format"] == format], ())
    both = ("bias", "deviation")
    return {m: tuple(float(np.median(list(values(v, k).values()))) for k in both) for m, v in runs.items()}


four, eight = medians("int4"), medians("int8")
table(
    ["method", "bias, INT4", "deviation, INT4", "bias, INT8", "deviation, INT8"],
    [(m, *four[m], *eight[m]) for m in sorted(four, key=four.get)], digits=2,
)

# %% [markdown]
# The same computed here and now, for one instance, equals its stored row:

# %%
from testbeds.kinds import run

names = (("lotion", "attached"), ("lotion", "detached"), ("qat", "detached"))
stored = {
    (r["config"]["method"]["name"], r["config"]["method"]["scale"]): r for r in estimators
    if r["seed"] == 0 and r["config"]["format"] == "int4" and "scale" in r["config"]["method"]
}
again = [run("estimator", stored[name]["config"], 0)["bias"] for name in names]
table(["method", "bias, stored", "bias, now"],
      [(f"{n} ({s})", stored[n, s]["metrics"]["bias"], now) for (n, s), now in zip(names, again, strict=True)],
      digits=6)

# %% [markdown]
# ## Why RR-STE sees nothing
#
# RR-STE takes the loss's gradient at the randomly rounded weights. For a quadratic the gradient is linear and the
# rounding unbiased, so its mean is the float gradient `∇L(w)` (claim C14). The same holds for noise of RR's variance
# that is not differentiated. Below: the exact mean over all support points, eight weights of INT3.

# %%
generator = lt.Stream(1, "notebooks/estimators").numpy_generator()
root = generator.standard_normal((8, 8))
loss = lt.Quadratic(root @ root.T / 8, generator.standard_normal(8))
w = loss.center + 0.2 * generator.standard_normal(8)
law = lt.law(w, "int3")
followed = {
    "exact gradient of the smoothed loss": lt.smoothed_gradient(loss, w, "int3").value,
    "the same, scale detached": lt.smoothed_gradient(loss, w, "int3", lattice="detached").value,
    "RR-STE, exact mean": law.probs @ loss.gradient(law.points),
    "float gradient": loss.gradient(w[None])[0],
    "STE on RTN (QAT)": lt.smoothed_gradient(loss, w, "int3", "rtn_straight_through").value,
    "CAGE, λ = 1": lt.smoothed_gradient(loss, w, "int3", "cage", strength=1.0).value,
}
truth = followed["exact gradient of the smoothed loss"]
assert np.allclose(followed["RR-STE, exact mean"], followed["float gradient"], rtol=0, atol=1e-12)


def angle(v):
    return float(np.degrees(np.arccos(np.clip(v @ truth / np.linalg.norm(v) / np.linalg.norm(truth), -1, 1))))


table(["direction", "distance / norm of the exact", "angle to it, degrees"],
      [(name, float(np.linalg.norm(v - truth) / np.linalg.norm(truth)), angle(v)) for name, v in followed.items()])

# %% [markdown]
# ## Unbiased, but at what price?
#
# Without a closed form one must sample. On a *fixed* lattice there are two unbiased estimators: the conditional
# difference (C13), two losses per weight and draw, and the score function, one loss per draw. On 4,096 common draws:

# %%
from lotion_theory.smoothing import compare

q = lt.Quantizer.parse("int3").freeze(w)
reports = compare(loss, w, q, samples=4096, seed=0)
norm = np.linalg.norm(lt.smoothed_gradient(loss, w, q).value)
table(
    ["estimator", "bias / norm", "its standard error / norm", "deviation of a draw / norm", "calls per draw"],
    [(r.method, *(float(np.linalg.norm(v) / norm) for v in (r.bias, r.bias_standard_error, r.deviation)), r.evaluations)
     for r in reports],
)

# %% [markdown]
# Bias and standard error are norms over all eight weights: a bias below twice its error is not told apart from zero. A
# draw of the score function is far noisier than a conditional difference, which costs 14 losses; CAGE has its authors'
# strength of 10. What a given number of loss calls buys, as root-mean-square distance from the exact gradient on the
# fixed lattice:

# %%
from testbeds.figures.style import BLACK, BLUE, GREEN, ORANGE, new_figure, styled

calls = 2 ** np.arange(4, 17)
names = {
    "conditional_difference": ("conditional difference", BLUE, "D"), "score_function": ("score function", GREEN, "P"),
    "straight_through": ("RR-STE", ORANGE, "^"),
}
with styled():
    figure, axes = new_figure(1, 1, 3.0, 5.2)
    ax = axes[0, 0]
    for r in reports:
        if r.method in names:
            spread, systematic = np.linalg.norm(r.deviation) / norm, np.linalg.norm(r.bias) / norm
            biased = systematic > 4 * np.linalg.norm(r.bias_standard_error) / norm
            errors = np.sqrt(spread**2 * r.evaluations / calls + (systematic**2 if biased else 0))
            label, colour, marker = names[r.method]
            ax.loglog(calls, errors, color=colour, marker=marker, ms=4.5, label=label)
    rtn = next(r for r in reports if r.method == "rtn_straight_through")
    ax.axhline(np.linalg.norm(rtn.bias) / norm, color=BLACK, ls=(0, (5, 2)), lw=1.3, label="STE on RTN, one call")
    ax.set(xlabel="loss or gradient calls", ylabel="error / norm of the gradient")
    ax.legend(fontsize=8)
picture(figure, "Error of estimators against calls: unbiased ones fall, straight-through ones stay at their bias")

# %% [markdown]
# Drawn from the deviations and biases of the table (the errors fall with the square root of the calls). More samples do
# not help a straight-through estimator: it converges to the wrong thing. LOTION's closed form costs one gradient and a
# diagonal curvature, and is exact for quadratics.
#
# ## What follows for training
#
# Linear regression, d = 12,000, INT4, tuned: `lotion sweep paper --only linear-regression`.

# %%
from testbeds.results.leaderboard import leaderboard

kept = ("qat", "rr_ste", "ptq", "diffq", "cage", "lotion")
lines = [
    x for x in leaderboard(rows, "linear-regression")
    if x.phase == "final" and x.format == "int4" and x.method.split(" ")[0] in kept and "fisher" not in x.method
]
table(
    ["method", "float loss", "RTN loss", "RR loss"], [(x.method, x.float_loss, x.rtn_loss, x.rr_loss) for x in lines]
)

# %% [markdown]
# Means over ten seeds with 95 % intervals. RR-STE ends where PTQ does, as it must. The bias does not decide alone: QAT
# with attached and with detached scale have nearly the same bias and end far apart. DiffQ, which sends plain noise
# through the moving scale, has the lowest mean RTN loss, with an interval that overlaps LOTION's, and a higher RR loss.
#
# ## What is not known
#
# - Bias is measured around the optimum of one kind of problem. Along a training path it may be smaller or larger.
# - How the noise of sampled estimators interacts with Adam's normalisation.
# - For networks the exact gradient of the smoothed loss is out of reach: all comparisons here are on losses whose
#   expectation is known in closed form or by enumeration.
