"""A self-contained HTML page: pictures and scripts inside, no request to any host."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from megabase.report.style import DARK, LIGHT, NARROW, WIDE, Draw, as_svg

_BREAK = 640
"""CSS pixels: below it the narrow pictures are shown, which are 350 wide and need some margin."""

# One style sheet for all pages; the colors are those of the pictures.
_CSS = f"""
:root {{
  color-scheme: light dark;
  --ink: {LIGHT.ink}; --muted: {LIGHT.muted}; --faint: {LIGHT.faint};
  --model: {LIGHT.model}; --baseline: {LIGHT.baseline}; --paper: {LIGHT.background};
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --ink: {DARK.ink}; --muted: {DARK.muted}; --faint: {DARK.faint};
    --model: {DARK.model}; --baseline: {DARK.baseline}; --paper: {DARK.background};
  }}
}}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 47.5rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}}
.kicker {{ margin: 0; color: var(--muted); font-size: .875rem; }}
h1 {{ margin: .25rem 0 .75rem; font-size: 1.875rem; line-height: 1.2; letter-spacing: -.015em;
  overflow-wrap: anywhere; text-wrap: balance; }}
h2 {{ margin: 3rem 0 .5rem; font-size: 1.25rem; line-height: 1.3; letter-spacing: -.01em; }}
h3 {{ margin: 1.75rem 0 .25rem; font-size: 1rem; }}
p {{ margin: .5rem 0; max-width: 42rem; }}
.lead {{ font-size: 1.125rem; }}
.note {{ color: var(--muted); font-size: .875rem; }}
.stats {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
  gap: 1rem 1.5rem; margin: 1.75rem 0 0; padding: 1.25rem 0;
  border-block: 1px solid var(--faint); }}
.stats div {{ display: flex; flex-direction: column-reverse; justify-content: flex-end; }}
.stats dt {{ color: var(--muted); font-size: .875rem; line-height: 1.35; }}
.stats dd {{ margin: 0; font-size: 1.625rem; font-weight: 600; line-height: 1.25;
  letter-spacing: -.015em; }}
.stats small {{ font-size: .875rem; font-weight: 400; color: var(--muted); letter-spacing: 0; }}
.model {{ color: var(--model); }}
figure {{ margin: 1rem 0 0; }}
figure img {{ display: block; width: 100%; max-width: {WIDE.width}px; height: auto; }}
figcaption {{ margin-top: .5rem; color: var(--muted); font-size: .875rem; max-width: 42rem; }}
.scroll {{ overflow-x: auto; margin: .75rem 0; }}
table {{ border-collapse: collapse; font-size: .9375rem; }}
th, td {{ padding: .3rem 1.5rem .3rem 0; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ color: var(--muted); font-weight: 400; font-size: .875rem; vertical-align: bottom; }}
th:last-child, td:last-child {{ padding-right: 0; }}
tbody tr {{ border-top: 1px solid var(--faint); }}
tr.model td {{ font-weight: 600; }}
.facts {{ display: grid; grid-template-columns: minmax(8rem, 11rem) 1fr; gap: .35rem 1.25rem;
  margin: .75rem 0; font-size: .9375rem; }}
.facts dt {{ color: var(--muted); }}
.facts dd {{ margin: 0; overflow-wrap: anywhere; }}
footer {{ margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--faint);
  color: var(--muted); font-size: .875rem; }}
code {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em; }}
@media (max-width: {_BREAK}px) {{
  body {{ padding-top: 1.5rem; }}
  h1 {{ font-size: 1.5rem; }}
  .stats {{ grid-template-columns: 1fr 1fr; }}
  .facts {{ grid-template-columns: 1fr; gap: 0; }}
  .facts dd {{ margin-bottom: .6rem; }}
  table {{ font-size: .875rem; }}
  th, td {{ padding-right: .75rem; }}
}}
@media print {{ body {{ max-width: none; }} figure, tr {{ break-inside: avoid; }} }}
"""


def document(
    title: str, parts: Iterable[str], *, styles: str = "", scripts: Sequence[str] = ()
) -> str:
    """Put parts of HTML together as a page; `title` is plain text, scripts run at its end."""
    body = "\n".join(part for part in parts if part)
    # The policy makes the promise binding: even by mistake nothing could be fetched.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if scripts:
        policy += "; script-src 'unsafe-inline'"
    code = "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="{policy}">
<title>{escape(title)}</title>
<style>{_CSS}{styles}</style>
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


def statistics(items: Sequence[tuple[str, str, str]]) -> str:
    """Give a row of large numbers: (number, small text next to it, what it is), plain text."""
    cells: list[str] = []
    for number, beside, what in items:
        small = f" <small>{escape(beside)}</small>" if beside else ""
        cells.append(f"<div><dt>{escape(what)}</dt><dd>{escape(number)}{small}</dd></div>")
    return f'<dl class="stats">{"".join(cells)}</dl>'


def definitions(items: Iterable[tuple[str, str]]) -> str:
    """Give a list of facts: name and value, plain text; items without a value are left out."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items if value
    )
    return f'<dl class="facts">{rows}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Iterable[int] = ()) -> str:
    """Give a table of plain text; the rows with a marked number are set bold."""
    chosen = set(marked)
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body: list[str] = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(f'<tr class="model">{cells}</tr>' if number in chosen else f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
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
