"""Sphinx configuration."""

import importlib.util
from pathlib import Path
from typing import Any

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
# Two packages have a CheckpointError; a page may mean either, and names its own in the text.
suppress_warnings = ["ref.python"]
html_theme = "furo"
html_title = "megabase"
exclude_patterns = ["_build", "_templates"]


def _keep_attribute_whole(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading "auto: one process" as the type and text of an attribute."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def _remove_stale_pages(app: Any) -> None:
    """Delete generated pages of modules that are gone; autosummary leaves them."""
    for page in (Path(__file__).parent / "api" / "generated").glob("*.rst"):
        try:
            known = importlib.util.find_spec(page.stem) is not None
        except ModuleNotFoundError:
            known = False
        if not known:
            page.unlink()


def setup(app: Any) -> None:
    """Connect before autosummary (500) writes its pages and napoleon (500) reads docstrings."""
    app.connect("builder-inited", _remove_stale_pages, priority=400)
    app.connect("autodoc-process-docstring", _keep_attribute_whole, priority=400)
