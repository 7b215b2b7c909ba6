"""Sphinx configuration."""

from pathlib import Path
from typing import Any

from megabase import __version__

project = "megabase"
author = "The megabase developers"
copyright = "The megabase developers"
release = version = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # make notebooks runs them
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute in a docstring and in the code is described once
# Two packages have a CheckpointError; a page may mean either, and names its own in the text.
suppress_warnings = ["ref.python"]
html_theme = "furo"
html_title = "megabase"
exclude_patterns = ["_build", "api"]


def _keep_attribute_whole(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading "auto: one process" as the type and text of an attribute."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def _write_verbs(app: Any) -> None:
    """Write the help of every verb, which docs/command_line.md includes."""
    import os

    from megabase.cli.main import VERBS
    from megabase.cli.parser import build_parser

    os.environ["COLUMNS"] = "100"
    parts: list[str] = []
    for verb, (module, _) in VERBS.items():
        parser, _ = build_parser(verb, f"megabase.cli.verbs.{module}")
        parts.append(f"## {verb}\n\n```none\n{parser.format_help()}```\n")
    folder = Path(__file__).parent / "api" / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verbs.md").write_text("\n".join(parts))


def setup(app: Any) -> None:
    """Connect before napoleon (500) reads docstrings."""
    app.connect("builder-inited", _write_verbs)
    app.connect("autodoc-process-docstring", _keep_attribute_whole, priority=400)
