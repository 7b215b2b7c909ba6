"""The option --picture of verbs that label every base: predictions over the truth of a region."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_picture(parser: ArgumentParser, where: str = "OUTPUT/picture.png") -> None:
    """Add the option; `where` says in the help where the picture goes."""
    parser.add_argument(
        "--picture", metavar="REGION", default=None, help="draw the predictions of this region (a "
        f"contig or chr1:1,001-2,000) over the truth to {where}; needs --predictions",
    )  # fmt: skip


def check_place(region: str) -> None:
    """Fail before the training where the picture would fail after it.

    Raises
    ------
    MegabaseError
        When matplotlib is missing, or the region cannot be read.
    """
    from megabase.genome.interval import Interval
    from megabase.report.style import require_matplotlib

    require_matplotlib()
    if ":" in region:
        Interval.parse(region)


def draw_place(run: Path, region: str) -> None:
    """Draw a region of the test bases of a run folder to its ``picture.png``, and say so."""
    from megabase.report.nucleotide_plot import save_nucleotide_plot

    picture = run / "picture.png"
    save_nucleotide_plot(run / "predictions.parquet", region, picture, overwrite=True)
    print(f"wrote {picture}")
