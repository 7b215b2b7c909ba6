"""The option --picture of verbs that label every base: a place, predictions over the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["add_picture", "check_place", "draw_place"]


def add_picture(parser: ArgumentParser, where: str = "OUTPUT/picture.png") -> None:
    """Add the option.

    Parameters
    ----------
    parser
        Of the verb.
    where
        Where the picture goes, for the help.
    """
    parser.add_argument(
        "--picture", metavar="PLACE", default=None, help="draw the predictions of this place (a "
        f"contig or chr1:1,001-2,000) over the truth to {where}; needs --predictions",
    )  # fmt: skip


def check_place(place: str) -> None:
    """Fail before the training where the picture would fail after it.

    Raises
    ------
    MegabaseError
        When matplotlib is missing, or the place cannot be read.
    """
    from megabase.genome.interval import Interval
    from megabase.report.style import require_matplotlib

    require_matplotlib()
    if ":" in place:
        Interval.parse(place)


def draw_place(run: Path, place: str) -> None:
    """Draw a place of a run's test bases to its ``picture.png``, and say so.

    Parameters
    ----------
    run
        Folder that holds ``predictions.parquet``.
    place
        What to draw.
    """
    from megabase.report.nucleotide_plot import save_nucleotide_plot

    picture = run / "picture.png"
    save_nucleotide_plot(run / "predictions.parquet", place, picture, overwrite=True)
    print(f"wrote {picture}")
