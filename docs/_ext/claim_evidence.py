"""The directive ``claim``: what the program knows of a claim, and what the stored rows say.

It prints title, kind, the statement as it is checked, the verdicts over formats from ``results/theory/verify.csv``, and
the checks and proofs with the files they are in.
"""

import inspect
import re
import sys
from functools import cache
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "results" / "theory" / "verify.csv"


@cache
def stored_rows():
    """The rows of the stored verification."""
    from lotion_theory import csv_text

    return [row for _, row in csv_text.lines(ROWS)]


@cache
def proofs():
    """Proofs by claim, of both engines."""
    from lotion_theory.theory import smt, symbolic

    found = {}
    for engine in (symbolic, smt):
        modules = [module for name, module in sys.modules.items() if name.startswith(f"{engine.__name__}.")]
        for claim, entries in engine.PROOFS.items():
            for proof in entries:
                module = next(m for m in modules if hasattr(m, proof.name))
                found.setdefault(claim, []).append((proof, inspect.getsourcefile(module)))
    return found


def verdicts(claim):
    """One sentence about the stored rows of a claim."""
    rows = [row for row in stored_rows() if row["claim"] == claim]
    if not rows:
        raise ExtensionError(f"claim {claim}: no stored rows in {ROWS.name}")
    formats = {}
    for row in rows:
        formats.setdefault(row["format"], []).append(row)
    cases = sum(int(row["checked"]) for row in rows)
    holds = sum(all(row["verdict"] == "holds" for row in group) for group in formats.values())
    if set(formats) == {"any"}:
        result = "holds" if holds else f"fails, as predicted: {formats['any'][0]['counterexample']}"
        return f"{result} ({cases:,} cases)"
    named = [name for name, group in formats.items() if name != "any" and any(r["verdict"] == "fails" for r in group)]
    surprises = [r["format"] for r in rows if r["expected"] != "open" and r["verdict"] != r["expected"]]
    total = len(formats) - ("any" in formats)
    kept = f"holds for {total - len(named)} of {total} formats"
    against = f"{len(surprises)} rows against expectation" if surprises else "none against expectation"
    return f"{kept}, {against} ({cases:,} cases)"


def described(claim):
    """The lines of Markdown for one claim."""
    from lotion_theory.theory.claims import CLAIMS

    if claim not in CLAIMS:
        raise ExtensionError(f"unknown claim {claim!r}; valid: {', '.join(CLAIMS)}")
    found = CLAIMS[claim]
    by_evidence, files = {}, set()
    for evidence, name, function in found.checks:
        by_evidence.setdefault(evidence, []).append(name)
        files.add(Path(inspect.getsourcefile(function)).relative_to(ROOT).as_posix())
    for proof, file in proofs().get(claim, []):
        by_evidence.setdefault(f"proved by {proof.method}", []).append(proof.statement)
        files.add(Path(file).relative_to(ROOT).as_posix())
    lines = [f"- **{claim}, {found.title}** ({found.kind}): {plain(found.statement)}"]
    lines.append(f"  - *rows:* {plain(verdicts(claim))}")
    lines += [f"  - *{evidence}:* {plain('; '.join(names))}" for evidence, names in by_evidence.items()]
    lines.append(f"  - *code:* {', '.join(f'`{file}`' for file in sorted(files))}")
    return lines


def plain(text):
    """``text`` without meaning in Markdown."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


class ClaimEvidence(SphinxDirective):
    """``{claim} ID ...``."""

    required_arguments = 1
    optional_arguments = 8
    final_argument_whitespace = False

    def run(self):
        """The list of the claims named."""
        lines = [line for claim in self.arguments for line in described(claim)]
        self.env.note_dependency(str(ROWS))
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Register the directive."""
    app.add_directive("claim", ClaimEvidence)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
