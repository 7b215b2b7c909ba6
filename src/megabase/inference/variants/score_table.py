"""The look-up table of scores of substitutions: bgzip text with a tabix index, and its tracks.

``##megabase=`` and the provenance, lines of ``##`` about the columns, ``#Chrom Pos Ref Alt score
percentile`` (tabs between, 1-based), and three rows for each position in the order of the genome. A
bgzip block begins with a row and holds one contig, so a row is found without reading others. Tracks
are a bigWig for each alternative base, which a hub for UCSC draws as a logo. Variants that a table
does not hold are scored by the model.
"""

from __future__ import annotations

import gzip
import json
import math
import mmap
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import BASES
from megabase.genome.files import BGZF_END, atomic_file, check_output, write_whole
from megabase.genome.interval import one_based, shared_ends
from megabase.genome.left_out import Reason
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import BATCH_TOKENS
from megabase.inference.parts import Provenance
from megabase.inference.variants.scorer import AlleleScore, VariantOptions, VariantScorer
from megabase.inference.writers import Run, require_bigwig, write_bigwig
from megabase.models.loading import Loaded
from megabase.untrusted import parsing

_COLUMNS = ("#Chrom", "Pos", "Ref", "Alt", "score", "percentile")
"""As in the tables of CADD, whose readers take these too."""
_BLOCK = 1 << 14
"""Bytes of text of a block: as small as level 1 compresses well, since a look-up reads one."""
_DECIMALS = 5
"""Of a score: two passes over the same bases differ by less than the last of them."""
_TBI_LIMIT = 1 << 29
"""Longest contig of a tabix index, by its format; csi takes longer ones."""
_PERCENTILES = [f"{tenths / 10:.1f}" for tenths in range(1_001)]
"""Texts of the percentiles, of which there are few."""
_HEAD = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
"""Beginning of a bgzip block: flags, no time, an extra field of 6 bytes with the size of it."""
_STEPS = 16
"""Blocks that a look-up passes one by one, before it halves the rest of the file."""
_COLORS = ("0,128,0", "0,0,255", "255,166,0", "255,0,0")
"""Of A, C, G and T in a logo, as everywhere."""
_CONTAINER = (
    "container multiWig", "type bigWig -10 10", "noInherit on", "aggregate stacked", "logo on",
    "autoScale on", "visibility full", "maxHeightPixels 128:80:16",
)  # fmt: skip
"""Settings of a track that UCSC draws as letters, each as high as its score."""
Missing = Literal["leave", "score"]
"""What is done with alleles that a table does not hold."""
_METHOD = "llr_site"
"""What a table holds."""
_NONE = (math.nan, math.nan)  # neither a score nor a percentile


def pack_rows(
    contig: str, at: NDArray[np.int64], ref: NDArray[np.uint8], alt: NDArray[np.int64],
    scores: NDArray[np.float32], quantiles: NDArray[np.float32],
) -> bytes:  # fmt: skip
    """Give the rows of substitutions (n,) at 0-based positions `at`, as bgzip blocks."""
    letters = pl.Series(list(BASES))
    percentiles: pl.Series = pl.Series(["."]).new_from_index(0, len(at))
    if len(quantiles):
        below = np.maximum(np.searchsorted(quantiles, scores) - 1, 0)
        percentiles = pl.Series(_PERCENTILES).gather(below)
    columns = (
        pl.Series([contig]).new_from_index(0, len(at)), pl.Series(one_based(at)),
        letters.gather(ref), letters.gather(alt), pl.Series(scores), percentiles,
    )  # fmt: skip
    frame = pl.DataFrame(dict(zip(_COLUMNS, columns, strict=True)))
    form: Any = {"separator": "\t", "float_precision": _DECIMALS, "quote_style": "never"}
    return _bgzip(frame.write_csv(include_header=False, **form).encode())


def _bgzip(text: bytes) -> bytes:
    """Compress lines into bgzip blocks (SAM specification, section 4.1), each of whole lines."""
    packed, at = [], 0
    while at < len(text):
        end = text.rfind(b"\n", at, at + _BLOCK) + 1 or len(text)
        part, at = text[at:end], end
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = deflate.compress(part) + deflate.flush()
        packed += [_HEAD, struct.pack("<H", len(body) + 25), body]
        packed.append(struct.pack("<2I", zlib.crc32(part), len(part)))
    return b"".join(packed)


def merge_table(about: Sequence[str], parts: list[Path], target: Path, made: Provenance) -> None:
    """Write the header, with what the columns are, and parts that are bgzip blocks."""
    head = [f"##megabase={made.to_json()}", *(f"##{line}" for line in about)]
    text = "".join(f"{line}\n" for line in (*head, "\t".join(_COLUMNS)))
    with target.open("wb") as file:
        file.write(_bgzip(text.encode()))
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
        file.write(BGZF_END)


def write_index(path: Path, longest: int, in_order: bool = True) -> Path | None:
    """Write the index of a table, bgzip VCF or BCF with a longest contig; an old one goes away.

    A file that is not in order has none.
    """
    import pysam.bcftools

    for old in (".tbi", ".csi"):
        path.with_name(path.name + old).unlink(missing_ok=True)
    if not in_order:
        return None
    name = path.name.lower()
    kind = "csi" if name.endswith(".bcf") or longest > _TBI_LIMIT else "tbi"
    if ".vcf" in name or name.endswith(".bcf"):
        pysam.bcftools.index("--force", f"--{kind}", str(path), catch_stdout=False)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        pysam.tabix_index(
            str(path), force=True, seq_col=0, start_col=1, end_col=1, meta_char="#",
            csi=kind == "csi", keep_original=True,
        )  # fmt: skip
    return path.with_name(f"{path.name}.{kind}")


class _ScoreTable:
    """A table, opened for look-ups; `order` numbers the contigs of its genome."""

    def __init__(self, path: Path, order: Mapping[str, int]) -> None:
        self.path, self.order = path, {name.encode(): n for name, n in order.items()}
        with parsing(path, InputError, "expected a table of megabase variants --all"):
            with gzip.open(path) as text:
                first = text.readline()
            if not first.startswith(b"##megabase="):
                raise ValueError("no line ##megabase")
            self.provenance = Provenance(**json.loads(first[11:]))
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._map[-len(BGZF_END) :] != BGZF_END:
                raise ValueError("the block that ends a bgzip file is missing")
        self._end = len(self._map) - len(BGZF_END)
        self._text, self._first = lru_cache(4)(self._read), lru_cache(64)(self._peek)

    def look_up(
        self, contig: str, positions: Sequence[int]
    ) -> dict[int, dict[str, tuple[float, float]]]:
        """Find score and percentile (NaN without) by 0-based position and alternative base.

        Ascending positions are found fast.
        """
        found: dict[int, dict[str, tuple[float, float]]] = {}
        at, rank, room = 0, self.order[contig.encode()], 3 * (len(contig) + 48)
        for position in positions:
            key = rank, one_based(position)
            at = self._before(at, key)
            blocks = (block for block in (at, self._next(at)) if self._first(block) <= key)
            text = b"".join(self._text(b) for b in blocks if self._first(b)[0] == rank)
            start = text.find(b"\t%d\t" % key[1])
            if start < 0:
                continue
            rows: dict[str, tuple[float, float]] = {}
            for line in text[start : start + room].split(b"\n", 3)[:3]:
                fields = line.split(b"\t")[-5:]
                if int(fields[0]) == key[1]:
                    percentile = math.nan if fields[4] == b"." else float(fields[4])
                    rows[fields[2].decode()] = float(fields[3]), percentile
            found[position] = rows
        return found

    def _before(self, at: int, key: tuple[int, int]) -> int:
        """Find the last block whose first row is before `key`, from the block `at` on if it is."""
        at = at if self._first(at) < key else 0
        for _ in range(_STEPS):
            if self._first(behind := self._next(at)) >= key:
                return at
            at = behind
        low, high = at + 1, self._end
        while low < high:
            middle = (low + high) // 2
            block = self._map.find(_HEAD, middle, self._end)
            if block < 0 or self._first(block) >= key:
                high = middle
            else:
                at, low = block, block + 1
        return at

    def _next(self, at: int) -> int:
        """Give where the block behind one begins; the end has none."""
        if at >= self._end:
            return at
        return at + 1 + int.from_bytes(self._map[at + 16 : at + 18], "little")

    def _peek(self, at: int) -> tuple[int, int]:
        """Give contig and position (1-based) of the first row; the header is before all."""
        if at >= self._end:
            return len(self.order), 0
        text = zlib.decompressobj(-zlib.MAX_WBITS).decompress(self._map[at + 18 : at + 1024], 512)
        if text.startswith(b"#"):
            return -1, 0
        with parsing(self.path, InputError, "expected bgzip blocks as megabase wrote them"):
            contig, position = text.split(b"\t", 2)[:2]
            return self.order[contig], int(position)

    def _read(self, at: int) -> bytes:
        return zlib.decompress(self._map[at + 18 : self._next(at) - 8], -zlib.MAX_WBITS)


class ScoreTracks:
    """The files of tracks that are asked for: PREFIX.A.bw, ... and a folder for a hub."""

    def __init__(
        self, bigwig: str | None, hub: str | Path | None, assembly: str | None, overwrite: bool
    ) -> None:
        if assembly is not None and hub is None:
            raise InputError("hub_genome names the genome of a hub; name its folder with hub")
        self.assembly, self.hub = assembly, None if hub is None else Path(hub)
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
        made = [path for _, path in self.paths]
        if self.hub is None:
            return made
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
            made.append(self.hub / name)
        return made


def _runs(parts: Sequence[Path], base: str) -> Iterator[Run]:
    """Read the scores of one alternative base, 0 where it is that of the genome."""
    kinds = dict.fromkeys(_COLUMNS, pl.String) | {"Pos": pl.Int64, "score": pl.Float32}
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


class TableScorer(VariantScorer):
    """Gives `llr_site` and its percentile of substitutions from a table of the same model."""

    def __init__(
        self, model: Loaded, store: Genome, options: VariantOptions, table: tuple[Path, Missing],
        batch_tokens: int = BATCH_TOKENS, genes: str | Path | None = None,
    ) -> None:  # fmt: skip
        path, self.missing = table
        order = {contig.name: number for number, contig in enumerate(store.contigs)}
        self.scores = _ScoreTable(path, order)
        made = self.scores.provenance
        wrong = [
            f"{name} {theirs} ({str(digest)[:8]}), not {ours} ({own[:8]})"
            for name, theirs, digest, ours, own in (
                ("genome", made.genome, made.genome_sha256, store.name, store.checksum),
                ("model", made.model, made.model_sha256, model.name, model.digest),
            )
            if digest != own
        ]
        window = made.options.get("window")
        for name, has, asked in (
            ("window", window, options.window),
            ("methods", [_METHOD], options.methods and [*options.methods]),
            ("strands", made.options.get("strands"), options.strands or "both"),
        ):
            if asked not in (None, has):
                wrong.append(f"{name} {has}, not {asked}")
        if wrong:
            raise InputError(
                f"{path} was made with {'; '.join(wrong)}; make another one with megabase variants "
                "MODEL --all GENOME and these options"
            )
        settings = replace(options, window=window, methods=(_METHOD,))
        super().__init__(model, store, settings, batch_tokens, genes)
        self.columns = [_METHOD, f"{_METHOD}_percentile"]

    @property
    def placed(self) -> str:
        """Where windows lie, for headers of outputs."""
        context = self.scores.provenance.options.get("context")
        return (
            f"of the table by a window of {self.options.window} bases with {context} or more of "
            "context, of the model by one that is centered"
        )

    def provenance(self, verb: str, **more: Any) -> Provenance:
        """Describe where scores come from."""
        made = self.scores.provenance
        table = {"options": made.options, "version": made.version}
        return super().provenance(verb, scores=table, missing=self.missing, **more)

    def score(self, records: Sequence[VcfRecord]) -> list[tuple[AlleleScore, ...]]:
        """Look alleles up; see :meth:`VariantScorer.score`."""
        places: dict[int, set[int]] = {}
        plan: list[list[Reason | tuple[int, int, str]]] = []  # why not, or what to look up
        for record in records:
            alleles: list[Reason | tuple[int, int, str]] = []
            for contig, alt, reason in self._alleles(record):
                ref, alt = record.ref.upper(), alt.upper()
                front, back = (0, 0) if len(ref) == len(alt) == 1 else shared_ends(ref, alt)
                if reason or not len(ref) == len(alt) == front + back + 1:
                    alleles.append(reason or "NOT_IN_TABLE")
                else:
                    places.setdefault(contig, set()).add(record.position + front)
                    alleles.append((contig, record.position + front, alt[front]))
            plan.append(alleles)
        names = self.store.contigs
        found = {c: self.scores.look_up(names[c].name, sorted(at)) for c, at in places.items()}

        def score_of(one: Reason | tuple[int, int, str]) -> AlleleScore:
            if isinstance(one, str):
                return AlleleScore(_NONE, one)
            contig, at, alt = one
            values = found[contig].get(at, {}).get(alt)
            if values is None:
                return AlleleScore(_NONE, "NOT_IN_TABLE")
            return AlleleScore(values, None, "table")

        scored = [tuple(map(score_of, alleles)) for alleles in plan]
        if self.missing == "score":
            self._complete(records, scored)
        return scored

    def _complete(self, records: Sequence[VcfRecord], scored: list[Any]) -> None:
        rest = {
            number: lacking
            for number, alleles in enumerate(scored)
            if (lacking := [n for n, one in enumerate(alleles) if one.reason == "NOT_IN_TABLE"])
        }
        asked = [
            replace(records[number], alts=tuple(records[number].alts[n] for n in lacking))
            for number, lacking in rest.items()
        ]
        for (number, lacking), given in zip(rest.items(), super().score(asked), strict=True):
            alleles = list(scored[number])
            for n, one in zip(lacking, given, strict=True):
                values = one.values[0], math.nan
                alleles[n] = AlleleScore(values, one.reason, "" if one.reason else "model")
            scored[number] = tuple(alleles)
