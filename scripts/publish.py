"""Copy the rows and figures of a `lotion reproduce` run into results/ and docs/, and fill the tables from them.

    python scripts/publish.py reproduced
    python scripts/publish.py --pages      # the tables alone

Every number between the markers of README.md and docs/results/ is computed here from a stored row.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import experiments_digest as digest
import language_digest as language

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("verify.csv", "real.csv", "real_losses.csv", "summary.json")
FIGURES = {
    "int4_2d/int4_2d_trajectories.png": "int4_trajectories.png",
    "int4_2d/int4_2d_losses.png": "int4_losses.png",
    "int4_2d/int4_2d_fields.png": "int4_fields.png",
    "int4_1d/int4_1d_losses.png": "int4_1d_losses.png",
    "verdicts.png": "verdicts.png",
    "real_losses.png": "real_losses.png",
}


SWEPT = {
    "paper/linear-regression-linear-regression-d-12000-exponent-1.1-int4.png": "linear_regression_curves.png",
    "paper/lambda.png": "lambda.png",
    "paper/two-layer.png": "widths.png",
    "paper/rounding-int4.png": "rounding.png",
    "paper/minima-steep.png": "minima.png",
    "paper/estimators.png": "estimators.png",
}


def rows(name: str) -> list[dict[str, str]]:
    """The stored rows of one table."""
    with (ROOT / "results" / "theory" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def promises() -> list[dict[str, str]]:
    """Per format, the verdicts on C1, C6 and C4 and the first counterexample, from verify.csv."""
    table: dict[str, dict[str, str]] = {}
    for row in rows("verify.csv"):
        if row["claim"] in ("C1", "C6", "C4") and row["format"] != "any":
            line = table.setdefault(row["format"], {"format": row["format"]})
            failed = row["verdict"] == "fails"
            line[row["claim"]] = "**no**" if failed or line.get(row["claim"]) == "**no**" else "yes"
            if failed:
                line.setdefault("why " + row["claim"], row["counterexample"])
    return list(table.values())


def format_table() -> str:
    """Formats that break a promise, each with its simplest counterexample; the others in one line."""
    lines = promises()
    keep = [f"`{line['format']}`" for line in lines if all(line[c] == "yes" for c in ("C1", "C6", "C4"))]
    out = [
        f"{len(keep)} of the {len(lines)} catalogued formats keep all three promises: {', '.join(keep)}.",
        "",
        "| the others | unbiased | continuous | support fixed | simplest counterexamples found |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        if f"`{line['format']}`" not in keep:
            shown = "; ".join(line["why " + c] for c in ("C1", "C6", "C4") if "why " + c in line)
            out.append(f"| `{line['format']}` | {line['C1']} | {line['C6']} | {line['C4']} | {shown} |")
    return "\n".join([*out, "", "Rows: `results/theory/verify.csv`, made by `python3 bootstrap.py reproduce`."])


def _mean(values: list[float]) -> float:
    product = 1.0
    for v in values:
        product *= v
    return product ** (1 / len(values))


def findings() -> str:
    """The README's short table of results, each with the command behind it."""
    verdicts, losses, summary = (
        rows("verify.csv"),
        rows("real_losses.csv"),
        json.loads((ROOT / "results/theory/summary.json").read_text(encoding="utf-8")),
    )
    lines = promises()
    kept = sum(all(line[c] == "yes" for c in ("C1", "C6", "C4")) for line in lines)
    cases = sum(int(r["checked"]) for r in verdicts)
    drawn = {r["format"] for r in verdicts if "sr" in r["format"].split("/")[1 % len(r["format"].split("/"))]}
    broken = {r["format"] for r in verdicts if r["claim"] == "C8" and r["verdict"] == "fails"} & drawn
    whole = {r["format"] for r in verdicts if r["claim"] == "C8b" and r["verdict"] == "holds"} & drawn
    layers = sorted({r["layer"] for r in losses})

    def ratio(name: str, over: str, under: str) -> float:
        return _mean([float(r[over]) / float(r[under]) for r in losses if r["format"] == name])

    four = "int4/absmax/block=32"
    noise = _mean([float(r["rr_over_rtn_diagonal"]) for r in losses if r["format"] == four])
    clipped = [float(r["rr_bias"]) / float(r["rr"]) for r in losses if r["format"] == "mxfp4"]
    out = [
        "| finding | measured | command |",
        "|---|---|---|",
        f"| Claims that should hold, do; predicted failures are found | {len(verdicts):,} rows, {cases:,} cases, {summary['surprises']} against expectation | `lotion verify` |",
        f"| Formats that keep all three promises (unbiased, continuous, support fixed) | {kept} of {len(lines)} | `lotion verify --claims C1 C4 C6` |",
        f"| Drawing the stored scale (`-sr`) repairs MXFP4 and NVFP4, but couples the weights of a block: the diagonal closed form of quadratics fails, the one with the full covariance is exact | of {len(drawn)} drawn formats C8 fails for {len(broken)}, C8b holds for {len(whole)} | `lotion verify --claims C8` |",
        f"| On trained layers randomized rounding has twice the noise of round-to-nearest (C16) | × {noise:.2f} ({four}, {len(layers)} MiniLM layers) | `lotion reproduce` |",
        f"| Rounding by conditional expectation (C12) beats round-to-nearest there | output error × {ratio(four, 'conditional', 'rtn'):.2f} ({four}), × {ratio('int3/absmax/block=32', 'conditional', 'rtn'):.2f} (int3), × {ratio('nf4/absmax/block=64', 'conditional', 'rtn'):.2f} (nf4) | `lotion reproduce` |",
        f"| MXFP4's floor scale clips: part of its smoothed loss is bias that no smoothing removes | {min(clipped):.1%} to {max(clipped):.1%}, by layer | `lotion reproduce` |",
    ]
    return "\n".join(
        [
            *out,
            *digest.headlines(),
            *language.headlines(),
            "",
            "Ratios of `lotion reproduce` are geometric means over layers 0.query, 2.mix, 3.up, 5.down (rows in `results/theory/`), those of `lotion sweep` over seeds, with 95 % intervals (`results/sweeps/`). Deterministic but for the sampled checks, whose",
            f"false-alarm rate is 10⁻⁶ each. Machine: {summary['machine']}, Python {summary['python']}, numpy {summary['numpy']}, {summary['date']}.",
        ]
    )


def speed() -> str:
    """One paragraph from the rounding benchmark."""
    stored = json.loads((ROOT / "results" / "benchmarks" / "rounding.json").read_text(encoding="utf-8"))
    found = {r["name"]: r for r in stored["rows"] if r["format"].startswith("int4")}
    peers = [r for r in stored["rows"] if r["library"] in ("pychop", "qtorch", "gfloat")]
    ours_round, ours_cast, fresh_round = found["round, out="], found["cast, out="], found["round"]
    fastest = min(peers, key=lambda r: r["ns_per_value"])
    return (
        f"Speed, one core of an {stored['machine']['cpu']}, 10⁷ float32 weights, INT4 with blocks of 32: `round` with `out=` {ours_round['ns_per_value']:.2f} ns a weight, "
        f"{ours_round['ratio']:.1f} × `np.copyto` of the same bytes (validation included; {fresh_round['ratio']:.1f} × into new memory), `cast` with `out=` {ours_cast['ratio']:.1f} ×; "
        f"the fastest other library, {fastest['library']}, takes {fastest['ns_per_value']:.0f} ns, its own random numbers included. "
        "Command: `python3 bootstrap.py bench`; rows and caveats: `benchmarks/README.md`."
    )


def minutes() -> str:
    """How long the whole of `reproduce` took when the stored rows were made."""
    summary = json.loads((ROOT / "results/theory/summary.json").read_text(encoding="utf-8"))
    if summary["seconds"] is None:
        raise ValueError("the stored run was a resumed one, which has no running time: reproduce into a new folder")
    return f"{max(1, round(summary['seconds'] / 60))} minutes"


SECTIONS: dict[str, Callable[[], str]] = {
    "findings": findings, "formats": format_table, "speed": speed, "minutes": minutes, "training": digest.training,
    "by_format": digest.formats, "widths": digest.widths, "rounders": digest.rounders, "ramp": digest.ramp, "layers": digest.layers, "studies": digest.studies,
    "language_finding": language.finding, "language": language.language, "language_formats": language.language_formats, "language_studies": language.language_studies,
}  # fmt: skip
INLINE = ("minutes", "ramp")
PAGES = ("README.md", "docs/results/comparisons.md", "docs/results/formats.md", "docs/results/language-models.md")


def marked(text: str) -> list[str]:
    """Names of the marked sections of a page; ValueError for one that nothing fills or that does not end."""
    names = re.findall(r"<!-- (\w+) -->", text)
    for name in names:
        if name not in SECTIONS or f"<!-- /{name} -->" not in text:
            raise ValueError(f"section <!-- {name} -->: valid: {', '.join(SECTIONS)}, each with an end")
    return names


def filled(text: str) -> str:
    """A page with every marked section computed anew."""
    for name in marked(text):
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        gap, body = "" if name in INLINE else "\n", SECTIONS[name]()
        before, _, rest = text.partition(start)
        text = before + start + gap + body + gap + end + rest.partition(end)[2]
    return text


def main(source: Path) -> None:
    """Publish the run in ``source``."""
    target, pictures = ROOT / "results" / "theory", ROOT / "docs" / "figures"
    target.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    for name in ROWS:
        shutil.copy(source / name, target / name)
    for name, short in FIGURES.items():
        shutil.copy(source / "figures" / name, pictures / short)
    for archive in source.glob("*.jsonl.xz"):
        (ROOT / "results" / "sweeps").mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, ROOT / "results" / "sweeps" / archive.name)
    for name, short in SWEPT.items():
        if (source / "figures" / name).exists():
            shutil.copy(source / "figures" / name, pictures / short)
    fill_pages()


def fill_pages() -> None:
    """Compute every marked section of every page anew."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--pages":
        fill_pages()
    else:
        main(Path(sys.argv[1]))
