"""What is made of a file of attributions: a table of seqlets, and the arrays of TF-MoDISco."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from megabase.data.sources import Sequence, SequenceInput
from megabase.errors import InputError, OutputError
from megabase.genome.alphabet import BASE_BITS
from megabase.genome.files import atomic_file, check_output
from megabase.genome.interval import Strand
from megabase.genome.tables import write_bed
from megabase.inference.motifs.seqlets import find_seqlets, read_motifs
from megabase.inference.parts import Provenance
from megabase.inference.writers import TABLE_SUFFIXES, merge_tables, require_suffix

_PLACE = ("name", "contig", "start", "end", "strand")
"""First columns of the table of a file."""
_TURNED = str.maketrans("+-", "-+")  # strands of what is read from the reverse strand


@dataclass(frozen=True)
class SeqletFiles:
    """A table of seqlets, the MEME file that names them, and the prefix of two arrays; or None.

    The arrays are float32 (sequences, 4, length) ``arr_0``: bases, and what each of A, C, G, T
    would contribute.
    """

    source: SequenceInput
    table: str | None
    motifs: str | None
    modisco: str | None
    overwrite: bool

    @property
    def paths(self) -> list[Path]:
        """What is written."""
        arrays = [f"{self.modisco}.{one}.npz" for one in ("ohe", "attr") if self.modisco]
        return [Path(one) for one in (*arrays, self.table) if one is not None]

    def check(self, output: str | Path, options: Mapping[str, Any]) -> None:
        """Refuse what cannot be made of attributions at `output`, before any work is done."""
        if (self.paths or self.motifs) and not str(output).lower().endswith((".parquet", ".npz")):
            raise OutputError(f"{output}: seqlets and arrays are made of .parquet or .npz only")
        if self.table is not None:
            placed = [".bed"] if self.source.found_kind == "bed" else []
            require_suffix(self.table, (*TABLE_SUFFIXES, *placed))
        for path in self.paths:
            check_output(path, self.overwrite, seeks=True)
        if self.motifs is not None:
            find_seqlets([], [], read_motifs(self.motifs))  # refuses what it lacks
        if self.modisco is None:
            return
        if options.get("baseline", "uniform") != "uniform":
            raise InputError(
                "integrated gradients from N do not tell TF-MoDISco what other bases would "
                "contribute: use baseline uniform, or gradient_input"
            )
        lengths = {len(one.codes): one.name for one in self.source.read()}
        if len(lengths) > 1:
            shown = " and ".join(f"{lengths[n]} {n:,}" for n in (min(lengths), max(lengths)))
            raise InputError(
                f"{self.source.path}: TF-MoDISco needs sequences of one length, and {shown} bases "
                "are there: cut them, or make intervals of one size"
            )

    def write(self, output: Path) -> pl.DataFrame | None:
        """Write the files; give the seqlets, if any are wanted, by places in their sequences."""
        if not self.paths and not self.motifs:
            return None
        items = list(self.source.read())
        values, letters, about = _read(output)
        if self.modisco is not None:
            codes = np.stack([one.codes for one in items]) & BASE_BITS
            bases = (codes[..., None] == np.arange(4)).astype(np.float32)
            slopes = np.stack(letters)
            if about.options["method"] == "integrated_gradients":
                # Letters are (X - X') times slopes, with X' a quarter; for another base in X their
                # sum would be its slope minus a quarter of all four.
                slopes = slopes / (bases - 0.25)
                slopes -= slopes.mean(-1, keepdims=True)
            for path, array in zip(self.paths[:2], (bases, slopes), strict=True):
                with atomic_file(path, self.overwrite) as file:
                    np.savez_compressed(file, array.transpose(0, 2, 1))
        motifs = None if self.motifs is None else read_motifs(self.motifs)
        found = find_seqlets(values, [one.codes for one in items], motifs)
        if self.table is not None:
            rows = _placed(found, items, self.source.found_kind == "bed")
            path = Path(self.table)
            if path.suffix.lower() == ".bed":
                share = pl.col("contribution").abs() / pl.col("contribution").abs().max()
                motif = pl.col("motif").str.replace_all(" ", "_")
                score = (1000 * share).round().cast(pl.Int64)
                write_bed(rows.with_columns(name=motif, score=score), path, self.overwrite)
                return found
            used = {} if self.motifs is None else Provenance.digests(self.motifs)
            about = replace(about, inputs={**about.inputs, **used})
            with tempfile.TemporaryDirectory() as folder:
                part = Path(folder) / "part.parquet"
                rows.write_parquet(part)
                with atomic_file(path, self.overwrite, seeks=True) as file:
                    merge_tables([part], Path(file.name), about)
        return found


def _read(path: Path) -> tuple[list[Any], list[Any], Provenance]:
    """Read values (length,) and letters (length, 4) of the sequences of a file of attributions."""
    if path.suffix.lower() == ".parquet":
        frame = pl.read_parquet(path, columns=["values", "letters"], glob=False)
        both = [[np.array(x, dtype=np.float32) for x in frame[one]] for one in frame.columns]
        about = pl.read_parquet_metadata(path)["megabase"]
    else:
        with np.load(path) as file:
            cuts, about = file["offsets"][1:-1], str(file["megabase"])
            both = [np.split(file[one], cuts) for one in ("values", "letters")]
    return both[0], [one.reshape(-1, 4) for one in both[1]], Provenance(**json.loads(about))


def _placed(found: pl.DataFrame, items: list[Sequence], on_genome: bool) -> pl.DataFrame:
    """Give seqlets the names of their sequences and, of intervals, places on the genome."""
    rows: list[Any] = []
    for number, start, end, strand in found.select("number", "start", "end", "strand").iter_rows():
        one, contig = items[number], None
        if on_genome and one.interval is not None:
            contig, offset = one.interval.contig, one.interval.start
            if one.interval.strand is Strand.REVERSE:
                start, end = one.length - end, one.length - start
                strand = strand.translate(_TURNED)
            start, end = offset + start, offset + end
        rows.append((one.name, contig, start, end, strand))
    schema = {name: pl.Int64 if name in ("start", "end") else pl.String for name in _PLACE}
    placed = pl.DataFrame(rows, schema, orient="row")
    return (placed if on_genome else placed.drop("contig")).hstack(found[:, 4:])
