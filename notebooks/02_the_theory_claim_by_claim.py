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
# # The theory, claim by claim
#
# **Question:** which statements about randomized rounding and the smoothed loss are proved, which are checked on
# numbers only, and which fail for real number formats?

# %%
from fractions import Fraction as F

import numpy as np

import lotion_theory as lt
from testbeds.figures.verdicts import figure_verdicts
from testbeds.notebook import picture, table

formats = ["int4/absmax/block=32", "int4full/absmax7.5/block=32", "nvfp4"]
rows = lt.verify(formats=formats, evidence=["exhaustive"])
picture(
    figure_verdicts(rows),
    "Verdicts of the claims for three formats: all hold for INT4 with absmax, several fail for the other two",
)

# %% [markdown]
# The picture was computed just now: each `E` stands for the production code run on `fractions.Fraction`, over all small
# blocks of a set of values that includes every breakpoint. The formats that fail clip (`absmax7.5`) or round their
# scale (`nvfp4`). Over all 52 formats, with the proofs and the random tests, the table is `results/theory/verify.csv`,
# made by `lotion reproduce`.

# %%
failed = {}
for r in rows:
    if r.verdict == "fails":
        failed.setdefault((r.format, r.claim, r.title), r.counterexample)
table(["format", "claim", "", "simplest counterexample found"], [(*key, text) for key, text in failed.items()])

# %% [markdown]
# ## Proofs
#
# sympy is given the very functions that round (one file of operator-only formulas), with symbols in place of arrays,
# and reduces a difference to zero. z3 does the same for inequalities, for blocks of any length, and for facts of
# half-precision arithmetic. Everything sympy proves, and z3's proofs for a few claims:

# %%
from lotion_theory.theory import smt, symbolic

proofs = symbolic.run_all() + smt.run_all(["C5", "C6", "C7", "C9", "C11", "C12"])
assert all(result.proved for _, result in proofs)
table(["claim", "engine", "scope", "statement"], [(p.claim, p.method, p.scope, p.statement) for p, _ in proofs])

# %% [markdown]
# Scopes: *any*: adjacent levels, fixed or moving but not drawn; *uniform*: a uniform grid; *absmax*: the largest weight
# of the block is a level; *fixed-scale*: a frozen lattice; *sr-scale*: the scale itself is drawn.
#
# ## The same claims as numbers
#
# A proof covers the formulas, not the code around them. Below, both sides of each claim come from different public
# functions, in exact rational arithmetic, for one block of three weights on INT4 whose lattice moves with them, and the
# loss `½ (w - c)ᵀ H (w - c)`. "Equal" means equal, without tolerance.

# %%
q = lt.Quantizer.parse("int4")
w = np.array([F(7), F(3, 10), F(-5, 2)], dtype=object)
hessian = np.array([[F(2), F(1), F(0)], [F(1), F(3), F(1, 2)], [F(0), F(1, 2), F(1)]], dtype=object)
loss = lt.Quadratic(hessian, np.array([F(6), F(1, 3), F(-2)], dtype=object))
law = lt.law(w, q)
lo, hi = q.bracket(w)


def mean(values):
    return (law.probs.reshape(-1, *[1] * (np.ndim(values) - 1)) * values).sum(axis=0)


def smoothed(point):
    return lt.smoothed_loss(loss, point, q).value


def central_differences(step=F(1, 2**90)):
    steps = step * np.eye(3, dtype=int)
    return np.array([(smoothed(w + e) - smoothed(w - e)) / (2 * step) for e in steps], dtype=object)


def interpolated():
    """Multilinear interpolation of the loss at the cell's corners (all of this block's lattice, held where it is)."""
    up = (w - lo) / np.where(hi > lo, hi - lo, F(1))
    corners = [(np.where(bits, hi, lo), np.where(bits, up, 1 - up).prod()) for bits in np.ndindex(2, 2, 2)]
    return sum(weight * loss(corner[None])[0] for corner, weight in corners)


def difference_quotients():
    quotients = []
    for i in np.flatnonzero(hi > lo):
        ends = [np.where(np.arange(3) == i, end, law.points) for end in (hi, lo)]
        quotients.append(mean(loss(ends[0]) - loss(ends[1])) / (hi[i] - lo[i]))
    return np.array(quotients, dtype=object)


detached = lt.smoothed_gradient(loss, w, q, lattice="detached").value
moving = lt.smoothed_gradient(loss, w, q).value
pairs = [
    ("C1", "mean of RR(w), w", mean(law.points), w),
    ("C2", "variance, (hi - w)(w - lo)", mean((law.points - w) ** 2), (hi - w) * (w - lo)),
    ("C4", "variance at all support points, 0", np.array([q.variance(p).max() for p in law.points]), np.zeros(4, int)),
    ("C8", "smoothed loss by enumeration, closed form", smoothed(w), lt.smoothed_loss(loss, w, q, "closed_form").value),
    ("C10", "smoothed loss, interpolation at corners", smoothed(w), interpolated()),
    ("C13", "gradient on the fixed lattice, difference quotients", detached[1:], difference_quotients()),
    ("C14", "mean of ∇L(RR(w)), ∇L(w)", mean(loss.gradient(law.points)), loss.gradient(w[None])[0]),
    ("C15", "gradient with moving lattice, central differences of 2⁻⁹⁰", moving, central_differences()),
]


def text(value):
    return ", ".join(str(v) for v in np.atleast_1d(value))


table(
    ["claim", "left side, right side", "left", "right", "equal"],
    [(claim, what, text(a), text(b), bool(np.all(a == b))) for claim, what, a, b in pairs],
)

# %% [markdown]
# The last row is the gradient that needs care. Detached, the first weight's entry is the fixed lattice's; moving, it
# differs, because that weight sets the scale of the whole block:

# %%
table(["gradient", "weight 1 (sets the scale)", "weight 2", "weight 3"],
      [("moving lattice", *map(str, moving)), ("detached", *map(str, detached)),
       ("∇L, which RR-STE follows", *map(str, loss.gradient(w[None])[0]))])

# %% [markdown]
# ## Beyond quadratics: the second-order form is off by the third power of the spacing (C9)
#
# `L(w) = log cosh(3 (w - 0.4))` summed over two weights on a frozen lattice of spacing s. Its third derivative is at
# most `M = 3³ · 4 / (3 √3)`, and z3's statement bounds the remainder by `M s³ / 48` per weight.

# %%
from testbeds.figures.style import BLUE, GREY, new_figure, styled


class LogCosh:
    def __call__(self, points):
        return np.log(np.cosh(3 * (points - 0.4))).sum(axis=1)


point, spacings = np.array([0.237, 0.611]), 2.0 ** -np.arange(1, 8)
curvature = 9 / np.cosh(3 * (point - 0.4)) ** 2
gaps = []
for s in spacings:
    lattice = lt.Quantizer.parse("int8").with_scale(s)
    exact = lt.smoothed_loss(LogCosh(), point, lattice).value
    gaps.append(abs(exact - lt.smoothed_loss(LogCosh(), point, lattice, "second_order", curvature=curvature).value))
bound = 2 * 27 * 4 / (3 * 3**0.5) * spacings**3 / 48
with styled():
    figure, axes = new_figure(1, 1, 2.8, 4.8)
    ax = axes[0, 0]
    ax.loglog(spacings, gaps, "D-", color=BLUE, ms=4, label="smoothed loss minus second-order form")
    ax.loglog(spacings, bound, color=GREY, ls="--", label="bound, $2\\,M s^3/48$")
    ax.set(xlabel="lattice spacing $s$", ylabel="difference")
    ax.legend()
assert (np.array(gaps) <= bound).all()
picture(figure, "The remainder of the second-order form against the lattice spacing, below its bound of slope three")

# %% [markdown]
# ## Rounding without loss, and RTN (C12)
#
# Rounding weight by weight, each to the end with the lower conditional expectation, never ends above the smoothed loss.
# RTN may. On 1,000 random quadratics of six weights, INT3:

# %%
from lotion_theory.rounders import Case, rounder
from lotion_theory.rounders.lotion_cell import smoothed_losses

stream = lt.Stream(0, "notebooks/conditional")
above = dict.fromkeys(("conditional_expectation", "rtn"), 0)
for k in range(1000):
    generator = stream.numpy_generator(k)
    root = generator.standard_normal((6, 6))
    case = Case.make(root @ root.T, generator.standard_normal(6), "int3")
    bound = float(smoothed_losses(case, case.weights, *case.grid.bracket(case.weights))[0])
    for name in above:
        above[name] += bool(case.loss(rounder(name)(case, stream)[None])[0] > bound * (1 + 1e-12))
table(["rounding", "losses above the smoothed loss, of 1,000"], list(above.items()))

# %% [markdown]
# ## Where straight-through training never settles (C18b)
#
# One weight, `h = 2`, `w* = 0.83`, levels 0.25 apart. The best level is 0.75. STE's gradient points to the threshold
# 0.875 from both sides; the smoothed loss's points to the level.

# %%
from lotion_theory import landscape as ls
from testbeds.figures.style import METHODS

parabola = lt.Quadratic(np.array([2.0]), np.array([0.83]))
quarter = lt.Quantizer.parse("int4").with_scale(0.25)
with styled():
    figure, axes = new_figure(1, 1, 2.8, 5.6)
    ax = axes[0, 0]
    for name in ("rtn_straight_through", "lotion"):
        path = ls.trajectory(parabola, np.array([0.6]), quarter, name, 120, lambda k: 0.1 / (1 + k) ** 0.5)
        ax.plot(path.positions[:, 0], color=METHODS[name].color, lw=1.4, label=METHODS[name].label)
    for level in (0.75, 1.0):
        ax.axhline(level, color=GREY, lw=0.8)
    ax.axhline(0.875, color=GREY, lw=0.8, ls=(0, (2, 2)))
    ax.set(xlabel="step $k$, with rate $0.1/\\sqrt{1+k}$", ylabel="weight $w$", xlim=(0, 142))
    for height, words in ((0.75, "best level"), (0.875, "threshold"), (1.0, "next level")):
        ax.text(121, height + 0.005, words, fontsize=8.5, va="bottom")
    ax.legend(loc="lower right")
picture(figure, "STE keeps crossing the rounding threshold; the smoothed loss leads to rest at the best level")

# %% [markdown]
# With a decaying rate the chatter shrinks around the threshold, where the rounded weight still flips between two
# levels.
#
# ## What is not known
#
# - C18 for many weights: that (sub)gradient descent with decaying steps converges to a stationary point rests on a
#   cited theorem. What is checked here is its rate in one dimension.
# - Which stationary point: a stationary point need not be a minimum (C18c has an example), nor a good minimum.
# - The exhaustive checks cover small blocks and a chosen set of values, not all blocks; scopes of proofs are stated,
#   and a format outside every scope has numbers only.
