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
# # What rounding does to a loss
#
# **Question:** a network is trained with real weights and deployed with rounded ones. What does the loss look like
# from the weights' side, and what is left of it after smoothing?

# %%
import numpy as np

import lotion_theory as lt
from lotion_theory import landscape as ls
from testbeds.figures.gallery import DoubleWell, rotated_quadratic, unit_step
from testbeds.figures.landscapes import figure_1d, figure_lambda
from testbeds.figures.planes import figure_2d
from testbeds.notebook import picture, table

frozen, middle, _ = unit_step(lt.Quantizer.parse("int4"))     # INT4 with levels ..., -1, 0, 1, ...: a frozen lattice
start, along = np.array([0.0]), np.array([1.0])
quadratic = lt.Quadratic(np.array([2.0]), np.array([0.3]))      # L(w) = (w - 0.3)^2
well = DoubleWell(0.05, 1.3)
methods = ("rtn_straight_through", "straight_through", "lotion")
slices = [
    ls.slice_1d(quadratic, start, along, frozen, (-1.6, 2.1), fields=methods),
    ls.slice_1d(well, start, along, frozen, (-1.9, 1.9), curvature=well.curvature, fields=methods),
]
picture(
    figure_1d(slices, ["quadratic, $w^*=0.3$", "tilted double well"]),
    "Raw quantized, smoothed and float loss of one weight, above the slopes that three methods follow",
)

# %% [markdown]
# One weight on a lattice of spacing 1. The deployed loss `L(cast(w))` (black) is a staircase: its slope is zero
# wherever it has one, so there is nothing to descend. Randomized rounding `RR(w)` goes to the level above with
# probability `(w - lo) / (hi - lo)`; its expected loss (blue) is LOTION's smoothed loss.
#
# - It is continuous, and equal to the staircase **on the levels**: rounding has nothing to do there.
# - Between two levels it is a straight line, *whatever* the loss (claim C10): hence kinks at the levels, and minima
#   only there. The second-order form `L + ½ L″ Var` (orange) is the same for a quadratic, and not for the double well.
# - The lower panels show what is followed. STE is the loss's slope at the rounded weight. RR-STE, its mean over
#   randomized rounding, is the slope of the *float* loss: it knows nothing of the levels (claim C14).
#
# The numbers behind the picture, by enumeration of all support points of `RR(w)`:


# %%
def slopes(w):
    point = np.array([w])

    def slope(method, **options):
        return float(lt.smoothed_gradient(quadratic, point, frozen, method, **options).value[0])

    levels = lt.law(point, frozen).points.ravel()
    difference = float(np.diff(quadratic(levels[:, None]))[0] / np.diff(levels)[0])
    draws = slope("straight_through", samples=20_000)
    return (
        w, float(quadratic(point[None])[0]), float(quadratic(frozen.cast(point)[None])[0]),
        lt.smoothed_loss(quadratic, point, frozen).value, slope("exact"), difference, draws,
        slope("rtn_straight_through"),
    )


table(
    ["w", "float loss", "RTN loss", "smoothed loss", "its slope", "(L(hi) - L(lo)) / gap", "RR-STE, 20,000 draws",
     "STE"],
    [slopes(w) for w in (0.1, 0.3, 0.6, 0.8)],
)

# %% [markdown]
# The slope of the smoothed loss is the difference quotient between the two levels (claim C13). RR-STE agrees with the
# float slope `2 (w - 0.3)` up to its sampling error, and at `w = 0.1` points the other way.
#
# ## From float to smoothed
#
# LOTION may weight its smoothing by λ. At λ = 0 it descends the float loss; at λ = 1 the smoothed loss itself.

# %%
ramp = ls.slice_1d(quadratic, start, along, frozen, (-0.7, 1.3), lambdas=[k / 10 for k in range(11)])
picture(
    figure_lambda(ramp, title="quadratic: from float to smoothed"),
    "The loss for eleven values of lambda, and the place of its lowest point, which moves from 0.3 to the level 0",
)

# %% [markdown]
# The lowest point leaves the float optimum, reaches the level 0 *before* λ = 1 and stays there: ramping λ up is a way
# of rounding (notebook 07). Next to a level the penalty's slope is ± ½ λ h times the gap, so a λ far above 1 makes a
# local minimum of every level whose float slope is smaller than that: it holds weights where they are.
#
# ## Two weights, one lattice that moves with them
#
# In a real format the spacing is set by the largest weight of a block, so the lattice moves while weights are
# trained. With two weights in a block the quantized points lie on rays from the origin.

# %%
q = lt.Quantizer.parse("int3")
loss, shape = rotated_quadratic(seed=0)
levels = q.codebook.values
pairs = np.stack([g.ravel() for g in np.meshgrid(levels, levels)], axis=1) / levels[-1]
rays = pairs[np.abs(pairs).max(axis=1) == 1]                    # code pairs that attain the scale
plane = ls.slice_2d(loss, np.zeros(2), (np.eye(2)[0], np.eye(2)[1]), q, (-0.45, 1.45), points=181)
picture(
    figure_2d(plane, rays, title="INT3, one block of two weights: curvatures 1 and 20"),
    "Float, raw quantized and smoothed loss over two weights; quantized points lie on rays from the origin",
)

# %% [markdown]
# The valley of the float loss is straight. Rounded, it falls apart into sectors of constant direction. Smoothed, it is
# one surface again, with creases along the rays. The least quantized value is kept (claim C7):

# %%
best = ls.global_minimum_quantized(loss, q, shape)
minima = ls.local_minima_moving(loss, q)
table(
    ["what", "value"],
    [
        ("least loss over all quantized points, by enumeration", best.value),
        ("smoothed loss at that point", lt.smoothed_loss(loss, best.point, q).value),
        ("least smoothed loss in the picture above", float(plane.smoothed.min())),
        ("RTN loss of the float optimum", float(loss(q.cast(loss.center)[None])[0])),
        ("strict local minima of the smoothed loss", len(minima)),
    ],
    digits=5,
)

# %% [markdown]
# Smoothing does not make the loss convex: it has several local minima, and descent may end in a wrong one.
#
# ## Bits, blocks and λ
#
# Four weights with a dense Hessian, along a line through the float optimum, at λ = 1, for 2 to 4 bits and blocks of two
# or four weights.

# %%
from testbeds.figures.style import BLACK, BLUE, GREY, new_figure, styled
from testbeds.problems import linear_regression

problem = linear_regression(4, seed=3, rotation="dense")
direction = np.array([0.5, -0.5, 0.5, 0.5])


def draw(ax, bits, block, weight):
    s = ls.slice_1d(problem, problem.optimum, direction, f"int{bits}/absmax/block={block}", 1.2, 301, lambdas=[weight])
    ax.plot(s.t, s.quantized, color=BLACK, lw=1.1, label="RTN")
    ax.plot(s.t, s.loss, color=GREY, ls=(0, (1, 1.2)), label="float")
    ax.plot(s.t, s.blends[0], color=BLUE, lw=2.2, label=f"$L+\\lambda\\,(L_{{smooth}}-L)$, $\\lambda={weight:g}$")
    ax.set_title(f"INT{bits}, blocks of {block}", loc="left")


def explore(bits=3, block=4, weight=1.0):
    with styled():
        figure, axes = new_figure(1, 1, 2.8, 5.0)
        draw(axes[0, 0], bits, block, weight)
        axes[0, 0].set(xlabel="position $t$ on the line", ylabel="loss")
        axes[0, 0].legend()
    return picture(figure, f"Losses along a line, {bits} bits, blocks of {block}, lambda {weight}")


with styled():
    figure, axes = new_figure(2, 3, 4.4, sharex=True, sharey="col")
    for row, block in zip(axes, (2, 4), strict=True):
        for ax, bits in zip(row, (2, 3, 4), strict=True):
            draw(ax, bits, block, 1.0)
        row[0].set_ylabel("loss")
    for ax in axes[-1]:
        ax.set_xlabel("position $t$ on the line")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
picture(figure, "Losses along a line for 2, 3 and 4 bits and blocks of two and four weights")

# %% [markdown]
# More bits or smaller blocks bring all three curves together: the penalty is proportional to the squared spacing.
#
# The cell below shows the same with sliders. They need a running kernel, so nothing is stored for it here: a picture
# that works without one would have to carry a plotting library of several megabytes.

# %% tags=["live"]
from ipywidgets import FloatSlider, interact

sliders = interact(explore, bits=[2, 3, 4, 8], block=[1, 2, 4], weight=FloatSlider(1.0, min=0, max=3, step=0.1))

# %% [markdown]
# ## What is not known
#
# - How many of the local minima matter: in high dimensions they cannot be enumerated, and nothing here says how good
#   the one is that training finds. On small problems the number grows with the dimension (`lotion sweep paper --only
#   minima`).
# - Which λ, and which ramp, is best for a given loss: the pictures are of toy losses, and tuned for none.
# - How far the second-order form is off on a trained network. For losses with bounded third derivative there is a bound
#   (C9), which is of no use where that derivative is not known.
