"""What the rows say, in sentences: every number in them is computed from the rows, and each names its command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lotion_theory.theory.verification import NO_FORMAT, summary, surprises
from lotion_theory.theory.verification import Row as Verdict

from .leaderboard import Line
from .lines import (
    LANGUAGE,
    Boards,
    command,
    difference,
    final_lines,
    lotion_line,
    named,
    ramp_words,
    regression,
    span,
    three,
)
from .quantized import quantized_table
from .rounders import case_ratios
from .rows import Row, at_best, by_method, excess, final_runs, grouped, ratio, values
from .statistics import (
    Interval,
    average,
    format_interval,
    format_number,
    format_signed,
    geometric_interval,
    mean_interval,
)

HEADLINES = ("claims", "promises", "regression", "int2", "network", "language", "quantize-minilm")
"""Topics that come first: theory, formats, LOTION against QAT, where it loses, language models, whole networks."""
PROMISES = ("unbiased", "continuous", "support fixed")


@dataclass(frozen=True)
class Finding:
    """``topic``: its name; ``text``: what was found; ``measured``: the numbers; ``command``: what makes their rows."""

    topic: str
    text: str
    measured: str
    command: str

    @property
    def headline(self) -> bool:
        """Whether it belongs to the few that come first."""
        return self.topic in HEADLINES


def findings(
    verify: Sequence[Verdict], layers: Sequence[Mapping[str, Any]], rows: Sequence[Row], boards: Boards
) -> list[Finding]:
    """Every finding that the rows allow, those where LOTION loses among them.

    ``verify``: verdicts on formats; ``layers``: losses on trained layers; ``rows``: runs of sweeps; ``boards``: their
    leaderboards.
    """
    out = [
        *theory(verify),
        *trained_layers(layers),
        *training(rows, boards),
        *rounding(rows),
        *whole_networks(rows),
        *language_models(rows),
    ]
    return [found for found in out if found is not None]


# --- theory ----------------------------------------------------------------------------------------------------------


def theory(verify: Sequence[Verdict]) -> list[Finding | None]:
    """What the claims say over the formats."""
    if not verify:
        return []
    table = summary(verify)
    cases = sum(r.checked for r in verify)
    kept = sum(all(line.get(p) == "yes" for p in PROMISES) for line in table)
    count = len({r.format for r in verify} - {NO_FORMAT})
    drawn = {f for f in {r.format for r in verify} if "-sr" in f or f.endswith("/sr")}
    broken, whole = (
        {r.format for r in verify if (r.claim, r.verdict) == wanted} & drawn
        for wanted in (("C8", "fails"), ("C8b", "holds"))
    )
    return [
        Finding(
            "claims",
            "Claims that should hold, do; predicted failures are found",
            f"{len(verify):,} rows, {cases:,} cases, {len(surprises(verify))} against expectation",
            "lotion verify",
        ),
        None if not any(p in line for line in table for p in PROMISES) else Finding(
            "promises",
            "Formats that keep all three promises (unbiased, continuous, support fixed)",
            f"{kept} of {count}; a counterexample is stored for each of the others",
            "lotion verify --claims C1 C4 C6",
        ),
        None if not broken and not whole else Finding(
            "drawn scales",
            "Drawing the stored scale (`-sr`) repairs MXFP4 and NVFP4, but couples the weights of a block: the "
            "diagonal closed form of quadratics fails, the one with the full covariance is exact",
            f"of {len(drawn)} drawn formats C8 fails for {len(broken)}, C8b holds for {len(whole)}",
            "lotion verify --claims C8",
        ),
    ]  # fmt: skip


def trained_layers(losses: Sequence[Mapping[str, Any]]) -> list[Finding | None]:
    """Rounding on layers of a trained network; ratios are geometric means over the layers."""
    four, others = "int4/absmax/block=32", (("int3/absmax/block=32", "int3"), ("nf4/absmax/block=64", "nf4"))
    by_format = grouped(losses, lambda r: r["format"])
    if four not in by_format:
        return []
    count = len({r["layer"] for r in losses})

    def mean(format: str, value: Callable[[Mapping[str, Any]], float]) -> float:
        return geometric_interval(value(r) for r in by_format[format]).value

    def conditional(format: str) -> str:
        return f"× {mean(format, lambda r: r['conditional_relative'] / r['rtn_relative']):.2f}"

    noise = mean(four, lambda r: r["rr_over_rtn_diagonal"])
    known = [(f, name) for f, name in ((four, four), *others) if f in by_format]
    known = [(f, name) for f, name in known if all(r.get("conditional_relative") for r in by_format[f])]
    clipped = [r["rr_bias"] / r["rr"] for r in by_format.get("mxfp4", ())]
    return [
        Finding(
            "noise",
            "On trained layers randomized rounding has twice the noise of round-to-nearest (C16)",
            f"× {noise:.2f} ({four}, {count} MiniLM layers)",
            "lotion reproduce",
        ),
        None if not known else Finding(
            "conditional",
            "Rounding by conditional expectation (C12) beats round-to-nearest there",
            "output error " + ", ".join(f"{conditional(f)} ({name})" for f, name in known),
            "lotion reproduce",
        ),
        None if not clipped else Finding(
            "clipping",
            "MXFP4's floor scale clips: part of its smoothed loss is bias that no smoothing removes",
            f"{min(clipped):.1%} to {max(clipped):.1%}, by layer",
            "lotion reproduce",
        ),
    ]  # fmt: skip


# --- training --------------------------------------------------------------------------------------------------------


def training(rows: Sequence[Row], boards: Boards) -> list[Finding | None]:
    """Linear regression and number formats."""
    board = regression(boards)
    four = [line for line in board if line.format == "int4"]
    if not four:
        return [_formats(rows)]
    attached, detached = (lotion_line(four, "int4", scale) for scale in ("attached", "detached"))
    later = [line for line in final_lines(boards, "rivals") if line.format == "int4"]
    return [
        _against_qat(rows, board), _scale_alone(rows, later), _detached(four, attached, detached),
        _noise(four, attached), _best_rival([*four, *later]), _lowest_bits(rows), _formats(rows), _network(rows),
    ]  # fmt: skip


def _against_qat(rows: Sequence[Row], board: Sequence[Line]) -> Finding | None:
    lines = [line for format in ("int4", "int8") if (line := lotion_line(board, format, "attached")) is not None]
    if not lines:
        return None
    told = []
    for line in lines:
        runs = at_best([r for r in _final(rows, line.experiment) if r["config"]["format"] == line.format])
        same = _ratio(runs, line.method, "qat (attached)")
        part = [f"{span(same)} of attached QAT's"] if same is not None else []
        part += [f"{span(line.over_reference)} of detached QAT's"] if line.over_reference is not None else []
        told.append(f"at {line.format.upper()} × " + ", × ".join(part) + f" ({three(line)})")
    return Finding(
        "regression",
        f"Linear regression ({lines[0].problem.partition(' ')[2]}, {lines[0].seeds} seeds): LOTION with attached "
        f"scale, {ramp_words(lines[0])}, against QAT",
        "RTN loss " + "; ".join(told),
        command(lines[0]),
    )


def _scale_alone(rows: Sequence[Row], later: Sequence[Line]) -> Finding | None:
    alone = named(later, "int4", "best_scale")
    if alone is None:
        return None
    told = []
    for format in ("int4", "int8"):
        runs = at_best([r for r in _final(rows, "rivals") if r["config"]["format"] == format])
        ours = min((m for m in runs if m.startswith("lotion")), key=lambda m: _mean_rtn(runs[m]), default=None)
        if ours is not None and "best_scale" in runs:
            mean = mean_interval(values(runs["best_scale"], "rtn_loss").values())
            ratio = span(_ratio(runs, ours, "best_scale"))
            told.append(f"{format.upper()} {format_interval(mean)}, of which {ours} has × {ratio}")
    return Finding(
        "scale alone",
        "What that problem rewards: the float optimum rounded on the best single clipping scale, with no training",
        "RTN loss at " + "; ".join(told),
        command(alone),
    )


def _mean_rtn(runs: Sequence[Row]) -> float:
    return average(values(runs, "rtn_loss").values())


def _detached(board: Sequence[Line], attached: Line | None, detached: Line | None) -> Finding | None:
    plain = named(board, "int4", "ptq")
    if detached is None or plain is None or detached.over_reference is None:
        return None
    return Finding(
        "detached",
        "Without the gradient through the scale (detached) its RTN loss is that of rounding the float optimum",
        f"RTN × {span(detached.over_reference)} of detached QAT's, PTQ × {span(plain.over_reference)}; RR "
        f"{format_interval(detached.rr_loss)} against {format_interval(plain.rr_loss)}",
        command(detached),
    )


def _noise(board: Sequence[Line], attached: Line | None) -> Finding | None:
    noisy = named(board, "int4", "diffq (attached)")
    if noisy is None or attached is None:
        return None
    return Finding(
        "plain noise",
        "Plain noise through the moving scale (DiffQ) against LOTION at INT4",
        f"DiffQ {three(noisy)}; LOTION {three(attached)}",
        command(noisy),
    )


def _best_rival(board: Sequence[Line]) -> Finding | None:
    own = ("lotion", "best_scale")
    rivals = [line for line in board if not line.method.startswith(own) and line.rtn_loss is not None]
    if not rivals:
        return None
    best = min(rivals, key=lambda line: line.rtn_loss.value if line.rtn_loss else 0.0)
    return Finding(
        "best rival", f"The best other method there by RTN loss is {best.method}", three(best), command(best)
    )


def _lowest_bits(rows: Sequence[Row]) -> Finding | None:
    runs = at_best([r for r in _final(rows, "formats") if r["config"]["format"] == "int2"])
    lost = _ratio(runs, "lotion (attached)", "qat (attached)")
    if lost is None:
        return None
    verb = "loses to" if lost.value > 1 else "beats"
    return Finding(
        "int2",
        f"At INT2 with one scale LOTION without a ramp {verb} QAT with an attached scale",
        f"RTN loss × {span(lost)}",
        "lotion sweep paper --only formats",
    )


def _formats(rows: Sequence[Row]) -> Finding | None:
    table = over_best_other(rows, "formats", "lotion (attached)")
    known = {format: found for format, (_, found) in table.items() if found is not None}
    if not known:
        return None
    better = [f for f, found in known.items() if found.high is not None and found.high < 1]
    worse = [f for f, found in known.items() if found.low is not None and found.low > 1]
    return Finding(
        "formats",
        f"Over {len(known)} formats and block sizes LOTION (attached, no ramp) against the best other method of each",
        f"lower RTN loss on {len(better)} by intervals that exclude 1, higher on {len(worse)}"
        + (f" ({', '.join(worse)})" if worse else ""),
        "lotion sweep paper --only formats",
    )


def _network(rows: Sequence[Row]) -> Finding | None:
    ours = "lotion (fisher, attached)"
    tables = [(loss, over_best_other(rows, "digits", ours, f"{loss}_loss")) for loss in ("rtn", "rr")]
    told = [
        f"{format.upper()} "
        + ", ".join(f"{loss.upper()} × {span(table[format][1])} of {table[format][0]}'s" for loss, table in tables)
        for format in tables[0][1]
    ]
    if not told:
        return None
    lost = [f for f, (_, found) in tables[0][1].items() if found is not None and (found.low or 0) > 1]
    verb = f"has a higher RTN loss than the best other method at {', '.join(map(str.upper, lost))}" if lost else "holds"
    return Finding(
        "network",
        f"On a ReLU network for handwritten digits LOTION (attached, Fisher) {verb}; its RR loss beside it",
        "; ".join(told),
        "lotion sweep paper --only digits",
    )


def over_best_other(
    rows: Iterable[Row], experiment: str, wanted: str, metric: str = "rtn_loss"
) -> dict[str, tuple[str, Interval | None]]:
    """Per format: the best other method by the mean of ``metric``, by default RTN loss, and what the method labelled
    ``wanted`` has of it over its.

    Variants of the wanted method are not others. Formats on which either is missing are left out.
    """
    losses = partial(excess, metric=metric)
    name = wanted.split(" ")[0]
    out: dict[str, tuple[str, Interval | None]] = {}
    for format, mine in grouped(_final(rows, experiment), lambda r: str(r["config"]["format"])).items():
        methods = at_best(mine)
        others = {label: of for label, of in methods.items() if label.split(" ")[0] != name}
        if wanted in methods and others:
            best = min(others, key=lambda label: average(losses(others[label]).values()))
            out[format] = best, ratio(losses(methods[wanted]), losses(others[best]))
    return out


# --- rounding and language models ------------------------------------------------------------------------------------


def rounding(rows: Sequence[Row]) -> list[Finding | None]:
    """LOTION as a rounding scheme on trained layers."""
    told = []
    for format in ("int4/absmax/row", "int3/absmax/block=32"):
        found = layer_ratios(rows, "lotion_ramp", "gptq (curvature)", format)
        told += [f"{format}: " + ", ".join(f"{v:.2f}" for v in found.values())] if found else []
    if not told:
        return []
    return [
        Finding(
            "rounding",
            "As a rounding scheme: output error of LOTION with its weight ramped up over that of GPTQ (by decreasing "
            "curvature) on three trained layers",
            "by layer, 5 choices of rows each: " + "; ".join(told),
            "lotion sweep paper --only real-layers",
        )
    ]


def layer_ratios(rows: Iterable[Row], label: str, other: str, format: str) -> dict[str, float]:
    """Geometric mean over choices of rows of the loss of one scheme over that of another, by layer."""
    runs = [r for r in rows if r["experiment"] == "real-layers" and r["config"].get("format") == format]
    found = grouped(case_ratios(runs, other).get(label, ()), lambda one: one.problem["layer"])
    return {layer: geometric_interval(one.value for one in mine).value for layer, mine in found.items()}


NETWORKS = {
    "minilm": "all-MiniLM-L6-v2 quantized as a whole, relative error of its hidden states",
    "smollm2": "SmolLM2-135M (its weights carry an earlier 4-bit rounding) quantized as a whole, nats per token",
}
"""What networks that sweeps quantize are, and what their losses."""


def whole_networks(rows: Sequence[Row]) -> list[Finding | None]:
    """LOTION by operator splitting against GPTQ on networks quantized as a whole."""
    out: list[Finding | None] = []
    for experiment in dict.fromkeys(r["experiment"] for r in rows if r["kind"] == "quantize"):
        found = quantized_table((r for r in rows if r["experiment"] == experiment), experiment)
        parts = []
        for format, lines in grouped(found, lambda line: line.format).items():
            mine = next((line for line in lines if line.method == "lotion_splitting" and line.difference), None)
            other = next((line for line in lines if line.reference), None)
            if mine is not None and other is not None and other.gap is not None:
                parts.append(
                    f"{format} {format_signed(mine.difference)} (GPTQ {format_number(other.gap.value, 3)}, "
                    f"{mine.draws} calibration draws)"
                )
        if parts:
            name = found[0].problem.split()[0]
            text = (
                f"{NETWORKS.get(name, name)}: what LOTION rounding adds on held-out text, minus what GPTQ in the order "
                "of curvature adds"
            )
            out.append(Finding(experiment, text, "; ".join(parts), f"lotion sweep quantize --only {experiment}"))
    return out


def language_models(rows: Sequence[Row]) -> list[Finding | None]:
    """LOTION against QAT and PTQ on small language models, in equal steps and in equal time."""
    experiment = next((name for name in LANGUAGE if _final(rows, name)), None)
    if experiment is None:
        return []
    methods = at_best(_final(rows, experiment))
    told = _like_with_like(methods)
    if not told:
        return []
    one = next(iter(methods.values()))
    config = one[0]["config"]
    return [
        Finding(
            "language",
            f"Small language model ({_parameters(one)}{config['steps']:,} steps), {config['format'].upper()}: "
            "LOTION minus QAT",
            f"{'; '.join(told)} nats",
            f"lotion sweep lm --only {experiment}" if experiment != "lm-quick" else "lotion sweep lm-quick",
        ),
        _equal_time(rows),
    ]


def _like_with_like(methods: Mapping[str, Sequence[Row]]) -> list[str]:
    """Differences of LOTION to QAT with the same scale; where QAT with attached scale was not run, of LOTION with that
    scale to detached QAT too."""
    ours = {
        "attached": next((m for m in ("lotion (ramp=0, attached)", "lotion (attached)") if m in methods), None),
        "detached": "lotion (detached)" if "lotion (detached)" in methods else None,
    }
    theirs = {
        "attached": "qat (attached)" if "qat (attached)" in methods else None,
        "detached": next((m for m in ("qat", "qat (detached)") if m in methods), None),
    }
    pairs = [(f"both with {scale} scale", ours[scale], theirs[scale]) for scale in ("attached", "detached")]
    if theirs["attached"] is None:
        pairs.append(("LOTION with attached scale, QAT with detached", ours["attached"], theirs["detached"]))
    told = []
    for words, a, b in pairs:
        if a is not None and b is not None:
            losses = (
                f"{name} {difference(values(methods[a], f'{loss}_loss'), values(methods[b], f'{loss}_loss'))}"
                for loss, name in (("rtn", "RTN"), ("rr", "RR"), ("float", "float"))
            )
            told.append(f"{words} {', '.join(losses)}")
    return told


def _equal_time(rows: Sequence[Row]) -> Finding | None:
    runs = [r for r in rows if (r["experiment"], r["phase"], r["status"]) == ("lm-equal-time", "equal_time", "ok")]
    timed = by_method(runs)
    slow = next((part for label, part in timed.items() if label.startswith("lotion")), None)
    if slow is None or not {"qat", "ptq"} <= timed.keys():
        return None
    steps = {label: part[0]["config"]["steps"] for label, part in timed.items()}
    mine = values(slow, "rtn_loss")
    told = ", ".join(f"over {m.upper()} {difference(mine, values(timed[m], 'rtn_loss'))}" for m in ("qat", "ptq"))
    return Finding(
        "equal time",
        "In equal time on so small a model, where LOTION's step costs "
        f"{steps['ptq'] / slow[0]['config']['steps']:.1f} × a plain one",
        f"RTN {told} nats",
        "lotion sweep lm --only lm-equal-time",
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def _final(rows: Iterable[Row], experiment: str) -> list[Row]:
    return final_runs((r for r in rows if r["experiment"] == experiment), "train")


def _ratio(methods: Mapping[str, Sequence[Row]], a: str, b: str) -> Interval | None:
    return ratio(excess(methods[a]), excess(methods[b])) if a in methods and b in methods else None


def _parameters(runs: Sequence[Row]) -> str:
    count = runs[0]["metrics"].get("parameters")
    return f"{count:,} parameters, " if count else ""
