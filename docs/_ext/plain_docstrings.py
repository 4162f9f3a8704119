"""Docstrings as the project writes them: shapes such as (n, *w.shape) and magnitudes such as |w| are no markup."""

import re

# An asterisk before one name inside a shape or a call, and in a shell pattern.
ASTERISK = re.compile(r"(?<=[(\s])\*(?=[\w.]+[,)])|(?<=[\"'.])\*|\*(?=[\"'.])")
LITERAL = "``"


def escaped(lines):
    """The lines with such asterisks and bars escaped, outside of literals and of examples after ``>>>``."""
    out, literal = [], False
    for line in lines:
        if line.lstrip().startswith((">>>", "...")):
            out.append(line)
            continue
        parts = line.split(LITERAL)
        for number, part in enumerate(parts):
            # A literal may run on from one line to the next.
            if literal == (number % 2 == 1):
                parts[number] = ASTERISK.sub(r"\\*", part).replace("|", r"\|")
        literal ^= len(parts) % 2 == 0
        out.append(LITERAL.join(parts))
    return out


def process(app, what, name, obj, options, lines):
    """Autodoc's hook: change ``lines`` in place."""
    lines[:] = escaped(lines)


def setup(app):
    """Come before napoleon, which writes markup of its own."""
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
