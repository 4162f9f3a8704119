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
# # LOTION as a rounding method
#
# **Question:** given trained weights, a Hessian and a fixed lattice, which rounding is best? How close do RTN, GPTQ,
# AdaRound, coordinate descent and descent on the smoothed loss come to the exact optimum?

# %%
import numpy as np

import lotion_theory as lt
from testbeds.figures.rounders import figure_rounders
from testbeds.notebook import picture, table
from testbeds.sweep.archive import read_archive
from testbeds.kinds.oracle import with_optima

rows = with_optima(read_archive("../results/sweeps/paper.jsonl.xz"))
schemes = ("rtn", "conditional_expectation", "coordinate_descent", "gptq", "adaround", "lotion_cell", "lotion_ramp")
rounded = [
    r for r in rows
    if r["experiment"] == "rounding" and r["kind"] == "round" and r["config"]["format"] == "int4"
    and r["config"]["method"]["name"] in schemes and r["config"]["method"].get("start") != "rtn"
    and r["config"]["method"].get("order") != "natural"
]
picture(
    figure_rounders(rounded),
    "Share of exact optima found and mean loss over the optimum for seven rounding schemes in 10, 20 and 40 dimensions",
)

# %% [markdown]
# Stored rows: `lotion sweep paper --only rounding`. Quadratics `½ (q - w)ᵀ H (q - w)` with a rotated power-law spectrum
# `i^-1.1`, one INT4 scale, 50 instances per dimension, the optimum proven by a closest-vector search. Left: how often a
# scheme finds it. Right: its mean loss over the optimum's.
#
# - `lotion_cell` descends the smoothed loss inside the cell of w, so each weight goes one step up or down.
# - `lotion_ramp` lets the weight of the smoothing rise from 0 to 1 while it descends, and may leave the cell.
#
# ## Here and now
#
# Fifteen instances of twelve weights.

# %%
from lotion_theory.rounders import rounder
from testbeds.oracles.closest_vector import closest_vector
from testbeds.oracles.enumeration import best_in_cell
from testbeds.results.statistics import mean_interval
from testbeds.kinds.round import rounding_case

settings = {
    "rtn": {}, "conditional_expectation": {"order": "curvature"}, "gptq": {"damping": 0.0, "order": "curvature"},
    "adaround": {}, "coordinate_descent": {"start": "gptq"}, "lotion_cell": {}, "lotion_ramp": {"steps": 300},
}
ratios = {name: [] for name in (*settings, "best in the cell of w")}
for seed in range(15):
    case = rounding_case({"problem": {"name": "power_law", "d": 12, "exponent": 1.1}, "format": "int4"}, seed)
    optimum = closest_vector(case)
    assert optimum.proven
    for name, options in settings.items():
        point = rounder(name)(case, lt.Stream(seed, f"round/{name}"), **options)
        ratios[name].append(float(case.loss(point[None])[0]) / optimum.loss)
    ratios["best in the cell of w"].append(best_in_cell(case).loss / optimum.loss)
table(
    ["scheme", "information", "loss ÷ optimum, mean", "optima found, of 15", "worst"],
    [(name, "all 2^12 roundings" if name not in settings else rounder(name).information, mean_interval(found),
      int(np.sum(np.array(found) < 1 + 1e-9)), max(found)) for name, found in ratios.items()],
)

# %% [markdown]
# The last line is a floor for every scheme that only rounds up or down: where it is above 1, the optimum lies outside
# the cell of w, and no choice of directions reaches it.
#
# ## What the ramp is worth
#
# With full smoothing from the start, the penalty pushes every weight to its nearest level before the loss has a say.
# With a small weight the objective is nearly convex; ramped, descent follows its minimum from the float optimum on and
# decides late. Sixteen instances of 64 weights, with the same steps:

# %%
from testbeds.figures.style import BLUE, GREY, new_figure, styled
from testbeds.results.statistics import paired

variants = {"no ramp": {"ramp": False}, "ramp": {}, "ramp, then coordinate descent": {"polish": True}}
losses = {name: {} for name in ("GPTQ", *variants)}
for seed in range(16):
    case = rounding_case({"problem": {"name": "power_law", "d": 64, "exponent": 1.1}, "format": "int4"}, seed)
    stream = lt.Stream(seed, "round/ramp")
    points = {"GPTQ": rounder("gptq")(case, stream, **settings["gptq"])}
    points |= {name: rounder("lotion_ramp")(case, stream, steps=300, **options) for name, options in variants.items()}
    for name, point in points.items():
        losses[name][seed] = float(case.loss(point[None])[0])
with styled():
    figure, axes = new_figure(1, 1, 3.2, 3.6)
    ax = axes[0, 0]
    x, y = (np.array([losses[name][s] / losses["GPTQ"][s] for s in range(16)]) for name in ("no ramp", "ramp"))
    ends = min(x.min(), y.min()) - 0.03, max(x.max(), y.max()) + 0.03
    ax.axline((1, 1), slope=1, color=GREY, lw=0.8)
    ax.plot(x, y, "D", color=BLUE, ms=5)
    ax.set(xlabel="loss ÷ GPTQ's, without ramp", ylabel="loss ÷ GPTQ's, ramped", xlim=ends, ylim=ends, aspect="equal")
picture(figure, "Losses of ramped against unramped LOTION rounding, over those of GPTQ, on sixteen instances")

# %%
table(["scheme, d = 64", "loss ÷ GPTQ's"],
      [(name, paired(losses[name], losses["GPTQ"]).geometric) for name in variants])

# %% [markdown]
# ## In more dimensions, and on trained layers
#
# Without a proven optimum, losses over GPTQ's (by decreasing curvature) on the same instances: geometric means with 95
# % intervals. `lotion sweep paper --only rounding-large real-layers`: d = 256, ten instances; layers of a trained
# encoder (all-MiniLM-L6-v2) with the second moment of real inputs, five choices of 32 rows each. GPTQ has its damping
# of 0.01 on the layers.

# %%
from testbeds.results.rows import by_method, grouped, instance, values

lines = []
for experiment in ("rounding-large", "real-layers"):
    runs = [r for r in rows if r["experiment"] == experiment and r["kind"] == "round"]
    for (problem, format), mine in grouped(runs, instance).items():
        found = {label: values(of, "loss") for label, of in by_method(mine, ()).items()}
        reference = next(found[label] for label in found if label.startswith("gptq") and "curvature" in label)
        line = [problem, format]
        for name in ("rtn", "adaround", "coordinate_descent", "lotion_cell", "lotion_ramp"):
            label = next(x for x in found if x.split(" (")[0] == name and x != "coordinate_descent (rtn)")
            line.append(paired(found[label], reference).geometric)
        lines.append(line)
table(["problem", "format", "RTN", "AdaRound", "coordinate descent from GPTQ", "LOTION, cell", "LOTION, ramp"], lines)

# %% [markdown]
# And what they cost, in seconds, medians on the machine that made the rows (they are Python implementations, and say
# little about what optimised ones would take):

# %%
runs = [r for r in rows if r["experiment"] == "rounding-large" and r["config"]["format"] == "int4"]
table(["scheme, d = 256", "seconds"],
      [(name, float(np.median(list(values(mine, "seconds").values())))) for name, mine in by_method(runs, ()).items()])

# %% [markdown]
# ## What is not known
#
# - Settings are defaults, tuned for none of these problems; AdaRound in particular has several that could be.
# - Beyond about 40 weights the optimum is not known here, so ratios to it end there.
# - Less output error of a layer is not yet a better network: nothing here measures a model after rounding all of its
#   layers.
