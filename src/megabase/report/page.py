"""A self-contained HTML page: pictures and scripts inside, no request to any host."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from html import escape
from importlib import resources
from string import Template

from megabase.report.style import DARK, LIGHT, NARROW, WIDE, Draw, as_svg

_BREAK = 640
"""CSS pixels: below it the narrow pictures are shown, which are 350 wide and need some margin."""


@cache
def _asset(name: str) -> str:
    """Give a script or style sheet of the pages."""
    return resources.files("megabase.report").joinpath("assets", name).read_text(encoding="utf-8")


def _style() -> str:
    """Give the style sheet of all pages; the colors are those of the pictures."""
    themes = {"light": LIGHT, "dark": DARK}
    colors = {f"{name}_{k}": v for name, one in themes.items() for k, v in asdict(one).items()}
    return Template(_asset("page.css")).substitute(colors, wide=WIDE.width, narrow=_BREAK)


def document(
    title: str, parts: Iterable[str], *, styles: Sequence[str] = (), scripts: Sequence[str] = ()
) -> str:
    """Put parts of HTML together as a page, with style sheets and scripts of the package.

    `title` is plain text; scripts run at the end.
    """
    body = "\n".join(part for part in parts if part)
    # The policy makes the promise binding: even by mistake nothing could be fetched.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if scripts:
        policy += "; script-src 'unsafe-inline'"
    code = "\n".join(f"<script>{_asset(name)}</script>" for name in scripts)
    sheets = "".join(map(_asset, styles))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="{policy}">
<title>{escape(title)}</title>
<style>
{_style()}{sheets}</style>
</head>
<body>
{body}
{code}
</body>
</html>
"""


def section(heading: str, parts: Iterable[str]) -> str:
    """Give a section with a heading (plain text) over parts of HTML."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def statistics(items: Iterable[tuple[str, str, str]]) -> str:
    """Give a row of large numbers: (number, small text next to it, what it is), plain text."""
    cells = ""
    for number, beside, what in items:
        small = f" <small>{escape(beside)}</small>" if beside else ""
        cells += f"<div><dt>{escape(what)}</dt><dd>{escape(number)}{small}</dd></div>"
    return f'<dl class="stats">{cells}</dl>'


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """Give a list of facts: name and value, plain text; items without a value are left out."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(one)}</dd>" for key, one in items if one)
    return f'<dl class="facts">{rows}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Iterable[int] = ()) -> str:
    """Give a table of plain text; the rows with a marked number are set bold."""
    chosen = set(marked)
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body += f'<tr class="model">{cells}</tr>' if number in chosen else f"<tr>{cells}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(draw: Draw, alternative: str, caption: str) -> str:
    """Give a picture in four versions (light and dark, wide and narrow); the browser picks one.

    `alternative`, for those who do not see the picture, and `caption` are plain text.
    """
    dark, narrow = "(prefers-color-scheme: dark)", f"(max-width: {_BREAK}px)"
    sources = "".join(
        f'<source media="{media}" srcset="{_uri(as_svg(draw, theme, size))}"'
        f' width="{size.width}" height="{size.height}">'
        for media, theme, size in (
            (f"{narrow} and {dark}", DARK, NARROW),
            (narrow, LIGHT, NARROW),
            (dark, DARK, WIDE),
        )
    )
    image = (
        f'<img src="{_uri(as_svg(draw))}" width="{WIDE.width}" height="{WIDE.height}"'
        f' alt="{escape(alternative, quote=True)}">'
    )
    return (
        f"<figure><picture>{sources}{image}</picture>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
