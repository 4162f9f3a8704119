"""Copy the rows and figures of a `lotion reproduce` run into results/ and docs/, and fill the tables from them.

    python scripts/publish.py reproduced
    python scripts/publish.py --pages      # the tables alone

Every number between the markers of README.md and docs/results/ is computed here from a stored row.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import curvature_digest as curvature  # noqa: E402
import experiments_digest as digest  # noqa: E402
import language_digest as language  # noqa: E402
import quantized_digest as quantized  # noqa: E402
import speed_digest as speeds  # noqa: E402

from lotion_theory.files import write_text  # noqa: E402
from lotion_theory.theory.verification import summary  # noqa: E402
from testbeds.report.sources import Material, default_sources, read  # noqa: E402
from testbeds.results.findings import HEADLINES, PROMISES, Finding, findings  # noqa: E402
from testbeds.text.experiments import all_boards  # noqa: E402

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


@cache
def material() -> Material:
    """All stored rows, as the report reads them."""
    return read(default_sources(ROOT / "results"))


def format_table() -> str:
    """Formats that break a promise, each with its simplest counterexample; the others in one line."""
    lines = summary(material().verify)
    keep = [f"`{line['format']}`" for line in lines if all(line[p] == "yes" for p in PROMISES)]
    out = [
        f"{len(keep)} of the {len(lines)} catalogued formats keep all three promises: {', '.join(keep)}.",
        "",
        "| the others | unbiased | continuous | support fixed | simplest counterexamples found |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        if f"`{line['format']}`" not in keep:
            verdicts = " | ".join("**no**" if line[p] == "no" else line[p] for p in PROMISES)
            shown = "; ".join(line[f"{p}: counterexample"] for p in PROMISES if f"{p}: counterexample" in line)
            out.append(f"| `{line['format']}` | {verdicts} | {shown} |")
    return "\n".join([*out, "", "Rows: `results/theory/verify.csv`, made by `python3 bootstrap.py reproduce`."])


@cache
def found() -> dict[str, Finding]:
    """Every finding of the stored rows, by topic."""
    rows = material().rows
    boards = {name: lines for name, (lines, _) in all_boards(rows).items()}
    return {one.topic: one for one in findings(material().verify, material().real_losses, rows, boards)}


def table(topics: Iterable[str]) -> list[str]:
    """Findings as a table, each with the command behind it."""
    shown = [found()[topic] for topic in topics]
    return [
        "| finding | measured | command |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | `{one.command}` |" for one in shown),
    ]


def all_findings() -> str:
    """The whole table of findings."""
    made = about()
    return "\n".join(
        [
            *table(found()),
            "",
            "Ratios of `lotion reproduce` are geometric means over layers (rows in `results/theory/`), those of `lotion sweep` over seeds, with 95 % intervals (`results/sweeps/`). Deterministic but for the sampled checks, whose",
            f"false-alarm rate is 10⁻⁶ each. Machine of the theory's rows: {made['machine']}, Python {made['python']}, numpy {made['numpy']}, {made['date']}.",
        ]
    )


def headlines() -> str:
    """The README's few, and where each was measured."""
    return "\n".join(table(HEADLINES))


def about() -> dict:
    """When, where and with what the stored rows of the theory were made."""
    return material().summary


def minutes() -> str:
    """How long the whole of `reproduce` took when the stored rows were made, and where."""
    made = about()
    if made["seconds"] is None:
        raise ValueError("the stored run was a resumed one, which has no running time: reproduce into a new folder")
    return f"{max(1, round(made['seconds'] / 60))} minutes ({made['machine']}, {made['date']}; `seconds` in `results/theory/summary.json`)"


SECTIONS: dict[str, Callable[[], str]] = {
    "findings": all_findings, "headlines": headlines, "formats": format_table, "minutes": minutes, "training": digest.training,
    "by_format": digest.formats, "widths": digest.widths, "rounders": digest.rounders, "ramp": digest.ramp, "layers": digest.layers, "studies": digest.studies,
    "rivals": digest.rivals, "network": digest.network,
    "speed": speeds.speed, "speed_formats": speeds.speed_formats, "speed_kinds": speeds.speed_kinds, "speed_libraries": speeds.speed_libraries,
    "places": curvature.verdict, "fine_tuning": curvature.fine_tuning, "followed": curvature.followed,
    "language": language.language, "language_formats": language.language_formats, "language_studies": language.language_studies,
    "quantized_minilm": quantized.minilm, "quantized_smollm2": quantized.smollm2,
}  # fmt: skip
INLINE = ("minutes", "ramp")
PAGES = (
    "README.md",
    "docs/results/findings.md",
    "docs/results/comparisons.md",
    "docs/results/fine-tuning.md",
    "docs/results/formats.md",
    "docs/results/language-models.md",
    "docs/results/quantized.md",
    "docs/results/speed.md",
)


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
        write_text(path, filled(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.argv[1] == "--pages":
        fill_pages()
    else:
        main(Path(sys.argv[1]))
