"""Tables of whole networks that were quantized, each number computed from a stored run."""

from __future__ import annotations

from pathlib import Path

from testbeds.results.quantized import QuantizedLine, quantized_table
from testbeds.results.rows import grouped
from testbeds.results.statistics import format_interval, format_number, format_signed
from testbeds.sweep.results import stored_rows

ARCHIVE = Path(__file__).resolve().parent.parent / "results" / "sweeps" / "quantize.jsonl.xz"


def lines(experiment: str) -> list[QuantizedLine]:
    """The table's lines of one experiment; none where nothing is stored."""
    rows = [r for r in stored_rows(ARCHIVE) if r["experiment"] == experiment]
    return quantized_table(rows, experiment) if rows else []


def table(experiment: str, unit: str) -> str:
    """Schemes by format."""
    out = [
        f"| format | scheme | {unit} | gap − GPTQ's | output error / RTN's | bits | draws |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for format, found in grouped(lines(experiment), lambda line: line.format).items():
        for line in found:
            difference = "0" if line.reference else "" if line.difference is None else _signed(line)
            out.append(
                f"| `{format}` | {line.method} | {format_interval(line.gap)} | {difference} | "
                f"{format_interval(line.error)} | {format_number(line.bits, 3)} | {line.draws} |"
            )
    return "\n".join(out)


def _signed(line: QuantizedLine) -> str:
    assert line.difference is not None, "only compared lines are shown"
    text = format_signed(line.difference)
    if line.difference.low is None or line.difference.high is None:
        return text
    return f"**{text}**" if line.difference.low * line.difference.high > 0 else text


def minilm() -> str:
    """all-MiniLM-L6-v2."""
    return table("quantize-minilm", "relative error of hidden states")


def smollm2() -> str:
    """SmolLM2-135M."""
    found = lines("quantize-smollm2")
    float_loss = next((line.float_loss for line in found), None)
    head = "" if float_loss is None else f"Float loss {format_number(float_loss, 4)} nats per token.\n\n"
    return head + table("quantize-smollm2", "gap to float, nats per token")
