"""Formulas as MathML, which browsers draw themselves: no script, no font and no network.

Docutils translates the LaTeX; what it cannot translate is an error of the build.
"""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError


def translated(text, as_block):
    """The LaTeX ``text`` as MathML; ExtensionError with the formula for LaTeX beyond docutils."""
    try:
        return tex2mathml(text, as_block=as_block)
    except MathError as error:
        raise ExtensionError(f"formula {text!r}: {error}") from error


def inline(translator, node):
    """Write a formula within a line."""
    translator.body.append(translated(node.astext(), as_block=False))
    raise nodes.SkipNode


def display(translator, node):
    """Write a formula on lines of its own."""
    translator.body.append(f'<div class="formula">{translated(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer and make it the one in use."""
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
