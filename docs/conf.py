"""Sphinx configuration. The site needs no network, neither to be built nor to be read."""

import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

project = "lotion-theory"
author = "The lotion-theory authors"
copyright = "the lotion-theory authors, MIT licence"
try:
    release = metadata.version("lotion-theory")
except metadata.PackageNotFoundError:
    import lotion_theory

    release = lotion_theory.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_parser",
    "claim_evidence",
    "offline_math",
    "package_tables",
    "plain_docstrings",
]
exclude_patterns = ["_build", "_ext"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# Tables of names only: pages say which objects stand where.
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Docstrings write code in double backticks; single ones are code too, not the title of a work.
default_role = "code"
# Dashes, but quotation marks as they are written.
smartquotes_action = "D"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "lotion-theory"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
# The icons beside code, and the theme's own, are part of its files.
html_theme_options = {"navigation_with_keys": True}
