"""Sphinx configuration."""

from megabase import __version__

project = "megabase"
author = "The megabase developers"
copyright = "The megabase developers"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
templates_path = ["_templates"]
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute in a docstring and in the code is described once
html_theme = "furo"
html_title = "megabase"
exclude_patterns = ["_build", "_templates"]
