"""How plots and pages look: colors, sizes, axes, figures as SVG or files, self-contained HTML.

A page has pictures and scripts inside, and makes no request to any host.
"""

import base64
import contextlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from megabase.errors import MissingDependencyError, ReportError
from megabase.genome.files import check_output, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # imported by what draws: it takes half a second, and is optional
    Axes = Figure = Any


@dataclass(frozen=True)
class Theme:
    """Colors of a plot on one background: ``model`` for the model, ``baseline`` for baselines."""

    ink: str
    muted: str
    faint: str
    model: str
    baseline: str
    background: str


LIGHT = Theme("#1b1f24", "#636c76", "#e4e7eb", "#1a56c4", "#b4530a", "#ffffff")
"""For white pages and for files."""
DARK = Theme("#e6e9ee", "#98a2af", "#2c323a", "#7fb0ff", "#f2a65a", "#14171b")
"""For dark pages: the same hues, lighter, so that text keeps its contrast."""


@dataclass(frozen=True)
class Size:
    """Size of a picture in CSS pixels, and of its text."""

    width: int
    height: int
    text: float

    def axes(self, figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
        """Give axes with these margins in pixels."""
        width, height = 1 - (left + right) / self.width, 1 - (bottom + top) / self.height
        return figure.add_axes((left / self.width, bottom / self.height, width, height))


WIDE = Size(720, 360, 13.0)
"""Width of the text of a page."""
NARROW = Size(350, 300, 12.0)
"""Fits on a phone held upright, of 375 pixels."""


Draw = Callable[["Figure", Theme, Size], None]  # draws on a figure, for one page and size
_SUFFIXES = (".svg", ".png", ".pdf")
"""Endings that figures are written with: what matplotlib writes without a display."""
LINE_STYLES = ("-", "--", "-.", ":")
"""Told apart without color; all that matplotlib has by name."""
_BREAK = 640
"""CSS pixels: below it the narrow pictures are shown, which are 350 wide and need some margin."""
# The fonts of the page around a picture, so that both look alike; the page fetches none.
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def _settings(theme: Theme, size: Size) -> dict[str, Any]:
    return {
        "svg.fonttype": "none", "svg.hashsalt": "megabase",
        "font.family": "DejaVu Sans", "font.size": size.text,
        "text.parse_math": False,  # names may hold dollar signs
        "axes.titlesize": size.text, "axes.labelsize": size.text,
        "xtick.labelsize": size.text - 1, "ytick.labelsize": size.text - 1,
        "text.color": theme.ink, "axes.labelcolor": theme.muted, "axes.edgecolor": theme.muted,
        "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
        "xtick.color": theme.muted, "ytick.color": theme.muted,
        "grid.color": theme.faint, "grid.linewidth": 1.0,
        "axes.linewidth": 0.8, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "xtick.major.width": 0.8, "ytick.major.width": 0.0,
        "xtick.minor.size": 0.0, "ytick.minor.size": 0.0,
        "lines.solid_capstyle": "round", "lines.linewidth": 2.0,
    }  # fmt: skip


def require_matplotlib() -> None:
    """Raise a MissingDependencyError that names the extra when matplotlib is not installed."""
    MissingDependencyError.load("matplotlib.figure", "plots", "drawing plots")


def check_picture(path: Path, what: str, overwrite: bool) -> None:
    """Refuse a picture that cannot be written, before any work is done; `what` names it.

    A :class:`ReportError` for another ending, an :class:`OutputError` for a file that exists.
    """
    require_matplotlib()
    if path.suffix.lower() not in _SUFFIXES:
        raise ReportError(f"{path}: {what} is drawn as {', '.join(_SUFFIXES)}")
    check_output(path, overwrite)


@contextlib.contextmanager
def picture(path: Path, width: float, height: float, overwrite: bool) -> Iterator[Figure]:
    """Give a figure of a size in inches to draw on; then write it, atomically, on white."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen: Any = {**_settings(LIGHT, WIDE), "figure.facecolor": LIGHT.background}
    with mpl.rc_context(chosen):
        figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
        yield figure
        kind = path.suffix[1:].lower()
        buffer = io.BytesIO()
        # SVG and PDF name the time of writing, which would make equal pictures differ.
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(buffer, format=kind, facecolor=LIGHT.background, metadata=metadata)
        write_whole(path, buffer.getvalue(), overwrite)


def position_ticks(axes: Axes, last: int, points: float) -> None:
    """Put ticks at whole positions only, as many as fit in `points`, written with commas."""
    from matplotlib.ticker import MaxNLocator

    room = 0.8 * float(axes.xaxis.label.get_fontsize()) * (len(f"{last:,}") + 1)
    most = int(min(12, max(1, points // room)))
    locator = MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def shortened(text: str, points: float, size: float) -> str:
    """Cut a text that would be wider than `points`, with an ellipsis in its middle."""
    most = max(8, int(points / (0.62 * size)))
    if len(text) <= most:
        return text
    return f"{text[: most - most // 3]}\u2026{text[len(text) - most // 3 + 1 :]}"


def as_svg(draw: Draw, theme: Theme = LIGHT, size: Size = WIDE) -> str:
    """Give what a function draws on a figure, as SVG text that refers to nothing outside it."""
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen: Any = _settings(theme, size)
    with mpl.rc_context(chosen):
        # 72 dots per inch: one point of text and of size is one CSS pixel.
        figure = Figure(figsize=(size.width / 72, size.height / 72), dpi=72)
        draw(figure, theme, size)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue().replace("'DejaVu Sans'", _FONTS).replace("DejaVu Sans", _FONTS)
    # The prologue names a DTD on another host, which a page that asks nobody must not do.
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', text, count=2)


def padded(values: Sequence[float], least: float = 0.02) -> tuple[float, float]:
    """Give the limits of an axis that leaves some room around values."""
    low, high = min(values), max(values)
    room = max(0.12 * (high - low), least)
    return low - room, high + room


def shown_name(name: str, most: int = 28) -> str:
    """Give a name as a legend shows it: cut to `most` letters, and never left out."""
    text = shortened(name, 0.62 * most, 1.0)
    return f" {text}" if text.startswith("_") else text


def duration(seconds: float) -> str:
    """Write a time in hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


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
