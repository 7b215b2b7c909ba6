"""Tracks of every substitution: a bigWig for each alternative base, and a hub that draws them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from megabase.errors import InputError
from megabase.genome.alphabet import BASES
from megabase.genome.files import atomic_file, check_output, write_whole
from megabase.inference.variants.prescored.table import COLUMNS
from megabase.inference.writers import Run, require_bigwig, write_bigwig

_COLORS = ("0,128,0", "0,0,255", "255,166,0", "255,0,0")
"""Of A, C, G and T in a logo, as everywhere."""
_CONTAINER = (
    "container multiWig", "type bigWig -10 10", "noInherit on", "aggregate stacked", "logo on",
    "autoScale on", "visibility full", "maxHeightPixels 128:80:16",
)  # fmt: skip
"""Settings of a track that UCSC draws as letters, each as high as its score."""


class ScoreTracks:
    """The files of tracks that are asked for: PREFIX.A.bw, ... and a folder for a hub."""

    def __init__(
        self, bigwig: str | None, hub: str | Path | None, assembly: str | None, overwrite: bool
    ) -> None:
        if assembly is not None and hub is None:
            raise InputError("hub_genome names the genome of a hub; name its folder with hub")
        self.assembly = assembly
        self.hub = None if hub is None else Path(hub)
        self.paths = [(base, Path(f"{bigwig}.{base}.bw")) for base in BASES if bigwig]
        if self.hub is not None:
            self.paths += [(base, self.hub / f"{base}.bw") for base in BASES]
        if self.paths:
            require_bigwig()
        for _, path in self.paths:
            if path.exists():  # the folder of a hub need not be there
                check_output(path, overwrite, seeks=True)

    def write(
        self, parts: Sequence[Path], contigs: Mapping[str, int], genome: str, model: str
    ) -> list[Path]:
        """Write all from the parts of a table; give the files."""
        if self.hub is not None:
            self.hub.mkdir(parents=True, exist_ok=True)
        for base, path in self.paths:
            with atomic_file(path, overwrite=True, seeks=True) as file:
                write_bigwig(Path(file.name), contigs, _runs(parts, base))
        return [path for _, path in self.paths] + self._write_hub(genome, model)

    def _write_hub(self, genome: str, model: str) -> list[Path]:
        """Write what UCSC reads beside the bigWigs of a hub."""
        if self.hub is None:
            return []
        what = f"log-probability of a base minus that of the reference, {model}"
        labels = f"shortLabel substitutions\nlongLabel {what}\n"
        tracks = ["track substitutions", labels + "\n".join(_CONTAINER), ""]
        for base, color in zip(BASES, _COLORS, strict=True):
            tracks += [
                f"    track substitutions{base}", "    parent substitutions", "    type bigWig",
                f"    bigDataUrl {base}.bw", f"    color {color}", f"    shortLabel {base}",
                f"    longLabel {base}: {what}", "",
            ]  # fmt: skip
        texts = {
            "hub.txt": f"hub megabase\n{labels}genomesFile genomes.txt\n",
            "genomes.txt": f"genome {self.assembly or genome}\ntrackDb trackDb.txt\n",
            "trackDb.txt": "\n".join(tracks),
        }
        for name, text in texts.items():
            write_whole(self.hub / name, text)
        return [self.hub / name for name in texts]


def _runs(parts: Sequence[Path], base: str) -> Iterator[Run]:
    """Read the scores of one alternative base, 0 where it is that of the genome."""
    kinds = dict.fromkeys(COLUMNS, pl.String) | {"Pos": pl.Int64, "score": pl.Float32}
    for part in parts:
        text = gzip.decompress(part.read_bytes())
        if not text:
            continue
        rows = pl.read_csv(text, separator="\t", has_header=False, schema=kinds)
        for (contig,), own in rows.group_by("#Chrom", maintain_order=True):
            # Each position has three rows.
            at = own["Pos"].to_numpy()[::3] - 1
            scores = np.where(own["Alt"] == base, own["score"], np.float32(0)).reshape(-1, 3).sum(1)
            cuts = np.flatnonzero(np.diff(at) > 1) + 1
            for some, values in zip(np.split(at, cuts), np.split(scores, cuts), strict=True):
                yield Run(str(contig), int(some[0]), values)
