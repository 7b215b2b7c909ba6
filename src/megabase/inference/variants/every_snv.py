"""Scores of every substitution of a genome by a causal model, from one pass over each window.

A causal model gives all four bases of a position their probability at once, so one pass over a
window holds `llr_site` of three substitutions for each base. Windows of W bases lie on the contig
at multiples of W - C; each answers for all its bases but the first C, which are context, and the
first window of a contig for those too. So a base is read with C to W - 1 bases before it (fewer in
the first C bases of a contig), the same ones whatever the regions. The other strand is read the
same way from the other end. What lies behind a base has no part in its score: windows reach over
the end of a contig.

The table is bgzip text with a tabix index: ``##megabase=`` and the provenance, lines of ``##``
about the columns, ``#Chrom Pos Ref Alt score percentile`` (tabs between, 1-based), and three rows
for each position in the order of the genome. Tracks are a bigWig for each alternative base, which a
hub for UCSC draws as a logo.

Shape suffixes: B windows, W bases of a window, N positions; 4 are A, C, G, T.
"""

import gzip
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

import numpy as np
import polars as pl
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from megabase.data.regions import Regions
from megabase.data.sources import genome_store
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import base_logits, predict_tokens
from megabase.genome.alphabet import BASE_BITS, BASES, N, T, reverse_complement
from megabase.genome.files import BGZF_END, atomic_file, check_output, is_stream, write_whole
from megabase.genome.interval import Interval, one_based
from megabase.genome.left_out import LeftOut, Reason
from megabase.genome.signal import bigwigs
from megabase.genome.store import Genome
from megabase.inference.jobs import BATCH_TOKENS, Work, check_run, map_file, split_options
from megabase.inference.parts import Provenance, Run, require_suffix, write_bigwig
from megabase.inference.scoring import STRANDS, Strands
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.prefix import HyenaPrefix
from megabase.inference.variants.score_table import BLOCK_HEAD, write_index
from megabase.inference.variants.scorer import DEFAULT_WINDOW
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, ModelSpec, inference_mode, load, threads
from megabase.options import EverySnvScoring

_BLOCK = 1 << 16
"""Positions of a chunk: a second or more of work, and 50,000 parts of a human genome."""
_SAMPLES = 512
"""Blocks of half a window that random substitutions come from: about 800,000, far more than
tenths of a percent need, for seconds of work."""
_COLUMNS = ("#Chrom", "Pos", "Ref", "Alt", "score", "percentile")
"""As in the tables of CADD, whose readers take these too."""
_TEXT = 1 << 14
"""Bytes of text of a block: as small as level 1 compresses well, since a look-up reads one."""
_DECIMALS = 5  # of a score: two passes over the same bases differ by less than the last of them
_PERCENTILES = [f"{tenths / 10:.1f}" for tenths in range(1_001)]
"""Texts of the percentiles, of which there are few."""
_COLORS = ("0,128,0", "0,0,255", "255,166,0", "255,0,0")
"""Of A, C, G and T in a logo, as everywhere."""
_CONTAINER = (
    "container multiWig", "type bigWig -10 10", "noInherit on", "aggregate stacked", "logo on",
    "autoScale on", "visibility full", "maxHeightPixels 128:80:16",
)  # fmt: skip
"""Settings of a track that UCSC draws as letters, each as high as its score."""

_Codes = NDArray[np.uint8]
_Values = NDArray[np.float32]
_NONE: _Values = np.empty(0, np.float32)  # quantiles before any score was drawn


@dataclass(frozen=True)
class _Options:
    """What decides the scores: keywords of :class:`megabase.options.EverySnvScoring`."""

    window: int | None = None
    context: int | None = None
    strands: Strands = "both"

    def resolved(self, model: Loaded) -> Self:
        """Fill in what depends on the model; InputError for what does not fit it."""
        if model.masked:
            raise InputError(
                f"{model.name} predicts hidden bases, one at a time: all substitutions in one pass "
                "need a causal model; score a VCF file, or regions with `megabase ism`"
            )
        if self.strands not in STRANDS:
            raise InputError(f"strands is one of {', '.join(STRANDS)}; found {self.strands!r}")
        window = self.window or min(DEFAULT_WINDOW, model.longest or DEFAULT_WINDOW)
        model.require_length(window, "a window")
        context = window // 2 if self.context is None else self.context
        if window < 2 or not 1 <= context < window:
            raise InputError(
                "a window needs 2 bases or more, and a context of 1 or more that is shorter; found "
                f"a window of {window:,} and a context of {context:,}"
            )
        return replace(self, window=window, context=context)


class _Cut(NamedTuple):
    """The windows that answer for a part of a contig on one strand."""

    windows: _Codes
    is_first: bool  # whether the first of them begins the contig, and answers for its context too
    at: slice  # where the part lies in what they answer for


class _Scorer:
    """Scores all substitutions of parts of a genome with one model."""

    def __init__(
        self, model: Loaded, store: Genome, options: _Options, quantiles: _Values = _NONE,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:  # fmt: skip
        self.model, self.store, self.options = model, store, options.resolved(model)
        self.window, self.context = self.options.window or 0, self.options.context or 0
        both = self.options.strands == "both"
        self.strands = STRANDS[:2] if both else (self.options.strands,)
        self._prefix = None
        if HyenaPrefix.fits(model.model):
            self._prefix = HyenaPrefix(model, {"log_probs"}, batch_tokens, self.window)
            batch_tokens = self._prefix.tokens
        self.rows = max(1, batch_tokens // self.window)
        self.quantiles = quantiles
        """Scores that each tenth of a percent of random substitutions is below."""

    @classmethod
    def load(
        cls, model: ModelSpec, genome: Path, *rest: Any, device: str | None = None, **more: Any
    ) -> Self:
        return cls(load(model, head="language", device=device), Genome(genome), *rest, **more)

    def score(self, parts: Sequence[Interval]) -> list[_Values]:
        """Give the log-probability of each base minus that of REF, float32 (N, 4) for each part.

        NaN for REF itself, where that is not A, C, G or T, and where a strand has nothing before.
        """
        cuts = [self.cut(part, strand == "reverse") for part in parts for strand in self.strands]
        logits_BW4 = self._predict(cuts)
        found, row = [], 0
        for number, part in enumerate(parts):
            total_N4: Any = 0
            for index, strand in enumerate(self.strands):
                cut = cuts[number * len(self.strands) + index]
                own, row = logits_BW4[row : row + len(cut.windows)], row + len(cut.windows)
                along_N4 = own[:, self.context :].reshape(-1, 4)
                if cut.is_first:
                    along_N4 = np.concatenate((own[0, : self.context], along_N4))
                along_N4 = along_N4[cut.at]
                # Turned round, the columns are those of the complements.
                total_N4 = total_N4 + (along_N4[::-1, ::-1] if strand == "reverse" else along_N4)
            ref_N, read_N = self.bases(part)
            own_N1 = np.where(read_N, ref_N, 0)[:, None].astype(np.intp)
            llr_N4 = total_N4 - np.take_along_axis(total_N4, own_N1, 1)
            llr_N4 /= np.float32(len(self.strands))
            require_finite(
                llr_N4, self.model.name, "log-probabilities",
                lambda n, part=part: f"{part.contig}:{one_based(part.start + n):,}",
                read_N[:, None],
            )  # fmt: skip
            np.put_along_axis(llr_N4, own_N1, np.float32(np.nan), 1)
            llr_N4[~read_N] = np.nan
            found.append(llr_N4)
        return found

    def bases(self, part: Interval) -> tuple[_Codes, NDArray[np.bool_]]:
        """Give the codes of a part (N,), and which are A, C, G or T with a base before them."""
        codes = self.store.view(part.contig)
        ref_N = codes[part.start : part.end] & np.uint8(BASE_BITS)
        read_N = ref_N <= T
        for strand, end in zip(STRANDS, (0, len(codes) - 1), strict=False):
            if strand in self.strands and part.start <= end < part.end:
                read_N[end - part.start] = False
        return ref_N, read_N

    def cut(self, part: Interval, reverse: bool) -> _Cut:
        """Cut windows; coordinates are those of the strand."""
        codes, step = self.store.view(part.contig), self.window - self.context
        length, start, end = len(codes), part.start, part.end
        if reverse:
            start, end = length - end, length - start
        first, last = (max(0, (at - self.context) // step) for at in (start, end - 1))
        low, behind = first * step, last * step + self.window
        high = min(length, behind)
        span = codes[low:high]
        if reverse:
            span = reverse_complement(codes[length - high : length - low])
        span = np.pad(span & np.uint8(BASE_BITS), (0, behind - high), constant_values=N)
        answered = low + (self.context if first else 0)
        windows_BW = sliding_window_view(span, self.window)[::step]
        return _Cut(windows_BW, first == 0, slice(start - answered, end - answered))

    def _predict(self, cuts: Sequence[_Cut]) -> _Values:
        """Give logits of the bases of all windows, (B, W, 4): NaN where none was computed."""
        codes_BW = np.concatenate([cut.windows for cut in cuts])
        logits_BW4 = np.full((*codes_BW.shape, 4), np.nan, np.float32)
        first = np.concatenate([cut.is_first & (np.arange(len(cut.windows)) == 0) for cut in cuts])
        with inference_mode(self.model.model):
            for low, which in ((1, first), (self.context, ~first)):
                rows = np.flatnonzero(which)
                for begin in range(0, len(rows), self.rows):
                    some = rows[begin : begin + self.rows]
                    if self._prefix is not None:
                        found = self._prefix.predict(codes_BW[some], low).float()
                    else:
                        found = predict_tokens(
                            self.model.model,
                            codes_to_ids(torch.from_numpy(codes_BW[some]).to(self.model.device)),
                            "causal", lambda logits, _: base_logits(logits),
                            columns=slice(low, self.window),
                        )[:, low:]  # fmt: skip
                    logits_BW4[some, low:] = found.cpu().numpy()
        return logits_BW4

    def draw_quantiles(self) -> int:
        """Score random substitutions for :attr:`quantiles`; give their number.

        They are all those of blocks that begin at multiples of window less context; every
        position is as likely. Of a small genome there are blocks for a quarter of it.
        """
        step, ends = self.window - self.context, np.cumsum(self.store.lengths)
        count = max(1, min(_SAMPLES, int(ends[-1]) // (4 * step)))
        found = []
        for at in np.random.default_rng(0).integers(0, ends[-1], count):
            index = int(np.searchsorted(ends, at, side="right"))
            length = int(self.store.lengths[index])
            start = (int(at - ends[index]) + length) // step * step
            part = Interval(self.store.contigs[index].name, start, min(start + step, length))
            found.append(self.score([part])[0].ravel())
        scores = np.concatenate(found)
        scores = scores[~np.isnan(scores)]
        if len(scores):
            self.quantiles = np.quantile(scores, np.linspace(0, 1, 1_001)).astype(np.float32)
        return len(scores)


def _rows(scorer: _Scorer, chunk: Sequence[Interval]) -> bytes:
    """Score a chunk into bgzip blocks of rows, none of which holds two contigs."""
    packed = []
    chunk = [part for part in chunk if scorer.bases(part)[1].any()]
    for part, llr_N4 in zip(chunk, scorer.score(chunk) if chunk else (), strict=True):
        at, alt = np.nonzero(~np.isnan(llr_N4))
        ref = scorer.bases(part)[0][at]
        scores = llr_N4[at, alt], scorer.quantiles
        packed.append(_pack_rows(part.contig, part.start + at, ref, alt, *scores))
    return b"".join(packed)


def _pack_rows(
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
        end = text.rfind(b"\n", at, at + _TEXT) + 1 or len(text)
        part, at = text[at:end], end
        deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = deflate.compress(part) + deflate.flush()
        packed += [BLOCK_HEAD, struct.pack("<H", len(body) + 25), body]
        packed.append(struct.pack("<2I", zlib.crc32(part), len(part)))
    return b"".join(packed)


def _merge_table(about: Sequence[str], parts: list[Path], target: Path, made: Provenance) -> None:
    """Write the header, with what the columns are, and parts that are bgzip blocks."""
    head = [f"##megabase={made.to_json()}", *(f"##{line}" for line in about)]
    text = "".join(f"{line}\n" for line in (*head, "\t".join(_COLUMNS)))
    with target.open("wb") as file:
        file.write(_bgzip(text.encode()))
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
        file.write(BGZF_END)


def _chunks(store: Path, kept: Regions) -> Iterator[list[Interval]]:
    """Cut regions into parts, as many as there are positions for a chunk; at least one chunk."""
    genome, room = Genome(store), _BLOCK
    chunk: list[Interval] = []
    columns = (one.tolist() for one in (kept.contig, kept.start, kept.end))
    for index, start, end in zip(*columns, strict=True):
        while start < end:
            stop = min(end, start + room)
            chunk.append(Interval(genome.contigs[index].name, start, stop))
            room, start = room - (stop - start), stop
            if not room:
                yield chunk
                chunk, room = [], _BLOCK
    if chunk:
        yield chunk


def _positions(chunk: Sequence[Interval]) -> int:
    return sum(part.length for part in chunk)


def _survey(ready: _Scorer, genome: Path, chunks: Iterator[list[Interval]]) -> int:
    """Count the substitutions, and report the positions that have none."""
    used, left_out = 0, LeftOut(genome, "position")
    reasons: tuple[Reason, ...] = ("REF_NOT_BASES", "NO_BASE_BEFORE")
    for part in chain.from_iterable(chunks):
        ref, read = ready.bases(part)
        for reason, which in zip(reasons, (ref > T, (ref <= T) & ~read), strict=True):
            if which.any():
                first = one_based(part.start + int(which.argmax()))
                text = f"{part.contig}:{first:,}"
                left_out.add(reason, first, lambda text=text: text, count=int(which.sum()))
        used += int(read.sum())
    left_out.report(used, "positions", "have no substitutions")
    return 3 * used


class _Tracks:
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
            bigwigs("writing bigWig")
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


def score_all(
    model: ModelSpec, genome: str | Path, output: str | Path, *, regions: Sequence[str] = (),
    bigwig: str | None = None, hub: str | Path | None = None, hub_genome: str | None = None,
    **options: Unpack[EverySnvScoring],
) -> tuple[int, list[Path]] | Path:  # fmt: skip
    """Score every substitution of a genome, or of regions of it, with a causal language model.

    The output is a bgzip table ``.tsv.gz`` in the order of the genome with its tabix index.
    `bigwig` is the prefix of a track for each alternative base, PREFIX.A.bw, ...; `hub` a folder of
    such tracks that UCSC draws as a logo, on the genome that UCSC calls `hub_genome` (the name of
    the store when None). Gives the number of substitutions and the files written; of a shard its
    folder. InputError when model, window and context do not fit.
    """
    output = Path(output)
    own, run = split_options(options, EverySnvScoring)
    settings = _Options(**own)
    require_suffix(output, (".tsv.gz", ".tsv.bgz"))
    check_run(output, **run)
    again = run.get("overwrite", False) or run.get("resume", False)
    tracks, count, written = _Tracks(bigwig, hub, hub_genome, again), 0, [output]
    with genome_store(genome) as store:
        kept = Regions.read(store, regions) if regions else Regions.whole(store.lengths.tolist())
        passes = {name: run[name] for name in ("batch_tokens", "device") if name in run}
        with threads(run.get("threads", 1)):  # as in the processes: equal numbers
            drawing = _Scorer.load(model, store.path, settings, **passes)
            settings, drawn = drawing.options, drawing.draw_quantiles()
        chunks = partial(_chunks, store.path, kept)

        def describe(ready: _Scorer) -> Provenance:
            nonlocal count
            count = _survey(ready, Path(genome), chunks())
            more = {"regions": list(regions)} if regions else {}
            return Provenance(
                "variants", ready.model.name, ready.model.digest, store.name, store.checksum,
                Provenance.digests(*regions),
                {**asdict(settings), "methods": ["llr_site"], "random": drawn, **more},
            )  # fmt: skip

        def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
            strands = f"{settings.strands} strand"
            strands = "mean of both strands" if settings.strands == "both" else strands
            about = [
                f"score=llr_site: {METHODS['llr_site'].description}; {strands}; window of "
                f"{settings.window:,} bases, {settings.context:,} or more of context but at ends "
                "of contigs",
                f"percentile=percent of random substitutions of the genome that score lower "
                f"({drawn:,} at random places)",
            ]
            _merge_table(about, parts, target, provenance)
            contigs = {contig.name: contig.length for contig in store.contigs}
            written.extend(tracks.write(parts, contigs, store.name, provenance.model))

        make = partial(_Scorer.load, model, store.path, settings, drawing.quantiles)
        work = Work(_rows, make, chunks, _positions, suffix=".tsv.gz")
        made = map_file(work, output, describe, merge, **run)
    if made != output:
        return made
    if not is_stream(output):
        index = write_index(output, max(contig.length for contig in store.contigs))
        written[1:1] = [index] if index is not None else []
    return count, written
