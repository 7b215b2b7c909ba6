"""Colours and sizes of the plots: every picture is drawn for light and dark, wide and narrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "LIGHT", "NARROW", "SIZES", "THEMES", "WIDE", "Size", "Theme", "settings"]


@dataclass(frozen=True)
class Theme:
    """Colours of a plot on one background.

    Parameters
    ----------
    name
        "light" or "dark".
    ink
        Text and axes.
    muted
        Secondary text and lines.
    faint
        Grid and bands.
    model
        What belongs to the model.
    floor
        What belongs to the floors.
    background
        Colour of the page, for files that stand alone.
    """

    name: str
    ink: str
    muted: str
    faint: str
    model: str
    floor: str
    background: str


LIGHT = Theme("light", "#1b1f24", "#636c76", "#e4e7eb", "#1a56c4", "#b4530a", "#ffffff")
DARK = Theme("dark", "#e6e9ee", "#98a2af", "#2c323a", "#7fb0ff", "#f2a65a", "#14171b")
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Size:
    """Size of a picture in CSS pixels, and of its text."""

    name: str
    width: int
    height: int
    text: float


WIDE = Size("wide", 720, 360, 13.0)
NARROW = Size("narrow", 350, 300, 12.0)
SIZES = (WIDE, NARROW)


def settings(theme: Theme, size: Size) -> dict[str, Any]:
    """Give matplotlib's settings for a theme and a size."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "megabase",
        "font.family": "DejaVu Sans",
        "font.size": size.text,
        "text.parse_math": False,  # names may hold dollar signs
        "axes.titlesize": size.text,
        "axes.labelsize": size.text,
        "xtick.labelsize": size.text - 1,
        "ytick.labelsize": size.text - 1,
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.muted,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "grid.color": theme.faint,
        "grid.linewidth": 1.0,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.0,
        "xtick.minor.size": 0.0,
        "ytick.minor.size": 0.0,
        "lines.solid_capstyle": "round",
        "lines.linewidth": 2.0,
    }
