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
# # A small language model
#
# **Question:** train a small decoder with and without quantization in mind: what are its losses as floats, rounded to
# nearest and rounded at random? And is the file that is shipped the network that was measured?

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from testbeds.figures.style import BLACK, BLUE, GREY, VERMILLION, new_figure, styled
from testbeds.lm.loop.config import EvaluationConfig, MethodConfig, OptimizerConfig, RunConfig, TrainConfig
from testbeds.lm.loop.train import train
from testbeds.lm.model.config import ModelConfig
from testbeds.notebook import picture, table

FORMAT = "int3"                                                 # one scale per matrix
base = TrainConfig(
    model=ModelConfig(width=48, depth=1, heads=2, hidden=96, context=32),
    optimizer=OptimizerConfig(lr=1e-2, warmup=20),
    evaluation=EvaluationConfig(windows=128, samples=2, batch=64),
    run=RunConfig(device="cpu", log_every=700),
    steps=700, batch=8,
)
methods = {"PTQ": ("ptq", {}), "QAT": ("qat", {}), "LOTION": ("lotion", {"scale": "attached"})}
folder = TemporaryDirectory()
results, places = {}, {}
for label, (name, settings) in methods.items():
    config = replace(base, method=MethodConfig(name, FORMAT, settings=settings))
    places[label] = Path(folder.name) / label
    results[label] = train(config, places[label])

KINDS = {"float": "o", "rtn": "s", "rr": "^"}
COLOURS = dict(zip(methods, (BLACK, VERMILLION, BLUE), strict=True))
with styled():
    figure, axes = new_figure(1, 1, 2.5, 6.4)
    ax = axes[0, 0]
    for y, label in enumerate(methods):
        for k, (kind, marker) in enumerate(KINDS.items()):
            m, colour = results[label]["metrics"], COLOURS[label]
            ax.errorbar(m[f"{kind}_loss"], y + 0.2 * (k - 1), xerr=1.96 * m[f"{kind}_standard_error"], fmt=marker, ms=6,
                        color=colour, mfc="white" if kind == "float" else colour, lw=1.2)
    names = {"float": "float weights", "rtn": "rounded to nearest (RTN)", "rr": "rounded at random (RR)"}
    for kind, marker in KINDS.items():
        ax.plot([], [], marker, color=GREY, ms=6, mfc="white" if kind == "float" else GREY, label=names[kind])
    ax.set(yticks=range(len(methods)), yticklabels=list(methods), xlabel="held-out loss, nats per byte")
    ax.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
picture(figure, "Float, RTN and RR losses of a small language model trained by three methods, with intervals")

# %% [markdown]
# Trained just now, on one thread: a decoder of one block of width 48 on the embedded text (bytes as tokens), all
# matrices of the block in INT3 with one scale each, 700 steps of 8 sequences. One learning rate for all, tuned for
# none, and one seed: this shows how the three losses relate, and ranks nothing. Bars are 95 % over held-out sequences;
# they say nothing of other seeds. The same from the shell, larger: `lotion train --preset tiny --method lotion --format
# int3`.

# %%
counts, quantized = results["PTQ"]["parameters"], results["PTQ"]["quantized_parameters"]
print(f"{counts['total']:,} parameters, {quantized:,} of them quantized")
columns = ("float_loss", "rtn_loss", "rr_loss", "gap", "gap_standard_error")
table(["method", "float loss", "RTN loss", "RR loss", "RTN - float", "its standard error"],
      [(label, *(r["metrics"][c] for c in columns)) for label, r in results.items()], digits=4)

# %% [markdown]
# A loss of `ln 256 = 5.55` would be guessing. The methods differ in *which* loss they train: PTQ the float one, QAT
# that of the one network that RTN makes, LOTION the average over randomized roundings. The bars overlap because texts
# differ in difficulty; `RTN - float`, paired by sequence, is known far better than either.
#
# ## Where the weights went
#
# The place of every quantized weight in its cell, 0 and 1 being the levels below and above.

# %%
from lotion_theory import Quantizer
from testbeds.lm.loop import checkpoint
from testbeds.lm.model.casts import quantized_names
from testbeds.lm.model.decoder import Decoder

q = Quantizer.parse(FORMAT)


def trained(label):
    """The model of a run, with its float weights."""
    model = Decoder(base.model)
    model.load_state_dict(checkpoint.load(places[label] / "checkpoints").parts["model"])
    return model


def cell_places(model):
    parts = []
    for name in quantized_names(model, base.method.include):
        w = model.get_parameter(name).detach()
        lo, hi = q.bracket(w)
        inside = hi > lo
        parts.append(((w - lo)[inside] / (hi - lo)[inside]).numpy())
    return np.concatenate(parts)


def largest(model):
    names = quantized_names(model, base.method.include)
    return float(np.mean([model.get_parameter(name).detach().abs().max() for name in names]))


models = {label: trained(label) for label in methods}
with styled():
    figure, axes = new_figure(1, 1, 2.6, 5.4)
    for label in methods:
        axes[0, 0].hist(cell_places(models[label]), np.linspace(0, 1, 41), density=True, histtype="step", lw=1.8,
                        color=COLOURS[label], label=label)
    axes[0, 0].set(xlabel="place in the cell, (w - lo) / (hi - lo)", ylabel="density", xlim=(0, 1))
    axes[0, 0].legend(loc="lower center")
picture(figure, "Histogram of the places of weights in their cells after PTQ, QAT and LOTION")

# %%
table(["method", "largest magnitude of a matrix, mean", "weights within a tenth of a cell from a level"],
      [(label, largest(m), f"{np.mean(np.abs(cell_places(m) - 0.5) > 0.4):.0%}") for label, m in models.items()])

# %% [markdown]
# Under LOTION weights gather at the levels, where rounding costs nothing, and the largest shrink, so that the levels
# move together. Under QAT a few gather in the middle of their cells, at the rounding thresholds that straight-through
# gradients point to (C18b, notebook 02).
#
# ## What is shipped is what was measured
#
# `lotion export RUN --out FILE` writes the rounded weights as packed codes. Loaded again, they are the cast of the
# trained weights bit for bit, and the loss of the loaded network is the RTN loss of the table.

# %%
from lotion_theory.export import load_packed
from testbeds.lm.export import export_run
from testbeds.lm.loop.evaluate import evaluate, metrics
from testbeds.lm.text.sequences import load_tokens

label = "LOTION"
file = Path(folder.name) / "model.safetensors"
written = export_run(places[label], file)
loaded = load_packed(file, like="torch")
model = models[label]
names = quantized_names(model, base.method.include)
equal = {
    name: torch.equal(loaded[name], q.cast(tensor) if name in names else tensor)
    for name, tensor in model.state_dict().items()
}
shipped = Decoder(base.model)
shipped.load_state_dict(loaded)
_, held_out = load_tokens(base.data)
loss = metrics(evaluate(shipped, held_out, base.evaluation, base.model.context, batch=64))["float_loss"]
assert all(equal.values())
table(
    ["what", "value"],
    [("tensors equal bit for bit", f"{sum(equal.values())} of {len(equal)}"),
     ("bits per quantized weight, scales included", f"{written['bits']:.3f}"),
     ("bytes of the file, tensors that are not quantized and names included", f"{written['bytes']:,}"),
     ("loss of the loaded network", f"{loss:.12f}"),
     ("RTN loss measured in training", f"{results[label]['metrics']['rtn_loss']:.12f}")],
)

# %% [markdown]
# ## Stored runs
#
# The tuned comparison with several seeds, where its rows are present: `lotion sweep lm`.

# %%
from testbeds.results.leaderboard import leaderboard
from testbeds.sweep.archive import read_archive

folder.cleanup()
archive = Path("../results/sweeps/lm.jsonl.xz")
if archive.exists():
    rows = read_archive(archive)
    boards = [leaderboard(rows, e) for e in dict.fromkeys(r["experiment"] for r in rows if r["kind"] == "train")
              if any(r["phase"] == "final" for r in rows if r["experiment"] == e)]
    lines = [(x.experiment, x.format, x.method, x.seeds, x.float_loss, x.rtn_loss, x.rr_loss)
             for board in boards for x in board if x.phase == "final"]
    shown = table(["experiment", "format", "method", "seeds", "float loss", "RTN loss", "RR loss"], lines, digits=4)
else:
    shown = table(["stored runs of language models"], [("none: results/sweeps/lm.jsonl.xz is not there",)])
shown

# %% [markdown]
# ## What is not known
#
# - Anything about large models: nothing here says how these differences change with size, data or training length.
# - Which method is best here: untuned, one seed, and a learning rate that may suit one more than another.
# - The curvature is an empirical Fisher from batch gradients, which is not the Gauss-Newton matrix that the theory
#   names.
