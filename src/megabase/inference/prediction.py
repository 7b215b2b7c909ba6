"""Predictions of fine-tuned models: by sequence, by base, and along a genome into bigWig or BED."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.regions import Regions
from megabase.data.sources import Sequence as Given
from megabase.data.sources import SequenceInput, genome_store
from megabase.errors import InputError, OutputError
from megabase.evaluate.sequences import (
    Span,
    Stitch,
    named_sequences,
    plan_windows,
    record_name,
    require_readable,
    run_batched,
    stitched,
)
from megabase.genome.alphabet import BASE_BITS, PAD, T, reverse_complement
from megabase.genome.files import atomic_file, check_output
from megabase.genome.interval import Interval, one_based
from megabase.genome.store import Genome
from megabase.inference.embedding import Averaged
from megabase.inference.jobs import (
    BATCH_TOKENS,
    Work,
    check_run,
    map_file,
    map_sequences,
    split_options,
)
from megabase.inference.parts import Provenance, Run, merge_tables, require_suffix, write_bigwig
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import ModelSpec, find_class, inference_mode, load, track_names
from megabase.objectives.labels import Units
from megabase.options import PassOptions, PredictOptions, RunOptions

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]
TRACK_SUFFIXES = (".bw", ".bigwig", ".bed")  # endings of a track, or of the regions called in it
_LISTED = 20  # regions that a provenance lists: it is one line of the header of an output
_BLOCK = 1 << 17  # bases that one chunk answers for: seconds of work, and several a contig


@dataclass(frozen=True, repr=False)
class Predictions:
    """What a model says about sequences."""

    values: Floats
    """(sequences, classes): probabilities, or numbers for a regression."""
    classes: tuple[str, ...]
    """Names of the columns."""
    problem: str
    """``single_label_classification``, ``multi_label_classification`` or ``regression``."""
    model: str
    model_sha256: str
    """Over configuration and weights."""
    both_strands: bool
    """Whether both strands were averaged."""

    def __repr__(self) -> str:
        names = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        return f"Predictions({len(self.values):,} sequences, {names or self.problem}, {self.model})"

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of each sequence: the most likely class; empty for a regression.

        When several may hold, those of at least one half, joined by commas.
        """
        return _labels(self.values, self.classes, self.problem)


def _labels(values: Floats, classes: Sequence[str], problem: str) -> tuple[str, ...]:
    """Name the class of each row of probabilities, as :attr:`Predictions.labels`."""
    if problem == "regression":
        return ("",) * len(values)
    if problem == "multi_label_classification":
        return tuple(
            ",".join(name for name, value in zip(classes, row, strict=True) if value >= 0.5)
            for row in values
        )
    return tuple(classes[int(number)] for number in values.argmax(axis=1))


class Predictor:
    """A model with a head for labels; options are :class:`megabase.options.PredictOptions`."""

    def __init__(
        self, spec: ModelSpec, *, prompt: str | Path | None = None,
        strands: Averaged | None = None, batch_tokens: int = BATCH_TOKENS,
        device: str | torch.device | None = None,
    ) -> None:  # fmt: skip
        self._loaded = loaded = load(spec, prompt=prompt, device=device)
        if loaded.kind not in ("sequence-classification", "token-classification"):
            raise InputError(
                f"{loaded.name} is a {loaded.kind} model, which predicts no labels; fine-tune it "
                "first (megabase finetune), or give it a prompt (megabase prompt)"
            )
        self.by_base = loaded.kind == "token-classification"
        self.name, self.digest = loaded.name, loaded.digest
        self.classes = loaded.class_names()
        problem = getattr(loaded.model.config, "problem_type", None)
        one = "regression" if len(self.classes) == 1 else "single_label_classification"
        self.problem: str = problem or one
        self.units = Units.of_model(loaded.model.config)
        self.batch_tokens = batch_tokens
        if strands not in (None, "forward", "both"):
            raise InputError(f"strands is one of forward, both; found {strands!r}")
        self.both_strands = loaded.both_strands if strands is None else strands == "both"
        if self.both_strands and self.by_base and not loaded.encoder.per_base:
            raise InputError(
                f"{self.name} labels tokens of several bases, which do not lie alike on both "
                "strands; read one strand"
            )
        # DeepSEA reads the other strand itself, and averages probabilities as published.
        forward = getattr(loaded.model, "forward", loaded.model)
        self._own_average = "strand_average" in inspect.signature(forward).parameters

    @property
    def longest(self) -> int | None:
        """Longest sequence in bases that fits for certain; None without a limit."""
        longest = self._loaded.longest
        return None if longest is None else self._loaded.encoder.bases_for(longest)

    def sequences(
        self, items: Sequence[Codes], names: Sequence[str] | None = None, logits: bool = False
    ) -> Floats:
        """Predict the labels of sequences of base codes: float32 (sequences, classes).

        A model that labels every base gives the mean over the bases of each sequence; with `logits`
        these are not made into probabilities. InputError for a sequence without a base, or longer
        than the model reads.
        """
        advice = "cut it, or predict along it with windows (a track)"
        for number, codes in enumerate(items):
            require_readable(self._loaded, codes, record_name(names, number), advice)

        def probabilities(codes: Codes, rows: NDArray[np.int64]) -> list[Floats]:
            values, mask = self._probabilities(
                codes, lambda row: record_name(names, int(rows[row])), logits
            )
            if self.by_base and self.units is not None:
                pairs = zip(values.cpu().numpy(), mask.cpu().numpy(), strict=True)
                return [self.units.by_base(row[real]).mean(0) for row, real in pairs]
            if self.by_base:
                weights = mask[..., None].to(values.dtype)
                values = (values * weights).sum(1) / weights.sum(1)
            return list(values.cpu().numpy())

        # The mean over real positions, and so every prediction, leaves padding out; a model that
        # looks ahead could still see it, so its batches hold sequences of one length.
        found = run_batched(
            items, probabilities, batch_tokens=self.batch_tokens, pad=self._loaded.padded
        )
        return np.stack(found) if found else np.zeros((0, len(self.classes)), dtype=np.float32)

    def _probabilities(
        self, codes: Codes, record: Callable[[int], str], plain: bool = False
    ) -> tuple[Tensor, Tensor]:
        batch = self._loaded.encoder.batch(codes, self._loaded.device)
        with inference_mode(self._loaded.model):
            logits = self._logits(batch.inputs())
            if self.both_strands and not self._own_average:
                lengths = ((codes & BASE_BITS) != PAD).sum(axis=1)
                other = self._loaded.encoder.batch(_turned(codes, lengths), self._loaded.device)
                turned = self._logits(other.inputs())
                if self.by_base:
                    turned = _turned_back(turned, batch.bases)
                logits = 0.5 * (logits + turned)
            # Before they become probabilities, where infinity would look like certainty.
            known = batch.bases[..., None] if self.by_base else None
            require_finite(logits, self.name, "outputs", record, known)
            if self.problem == "single_label_classification" and not plain:
                logits = logits.softmax(-1)
            elif self.problem == "multi_label_classification" and not plain:
                logits = logits.sigmoid()
            elif self.units is not None and not self.by_base:
                logits = self.units.values(logits)
        return logits, batch.bases

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        averages = {"strand_average": self.both_strands} if self._own_average else {}
        return self._loaded.model(**inputs, **averages).logits.float()

    def along(
        self, codes: Codes, *, window: int | None = None, overlap: int | None = None,
        stitch: Stitch = "center", part: tuple[int, int] | None = None, name: str = "the sequence",
    ) -> Floats:  # fmt: skip
        """Predict every base along a sequence of any length: float32 (bases of the part, classes).

        A model that labels sequences is asked about windows; the answer of a window is given to the
        part of it that counts. A model of tracks gives each base the number of its bin, which is
        taken of the mean output of its bases. The window is the longest possible when None, and
        half of it is shared. `part` is the first base to predict and the one after the last, with
        the windows of the whole sequence.
        """
        most, encoder = self.longest, self._loaded.encoder
        if not encoder.per_base and self.by_base:
            what = "labels tokens of several bases, not bases; predict whole sequences"
            raise InputError(f"{self.name} {what}")
        if window is None:
            window = len(codes) if most is None else min(most, len(codes))
        if window < 1:
            raise InputError(f"a window needs 1 base or more, found {window}")
        if most is not None and window > most:
            reads = f"{self.name}, which reads {most:,}"
            raise InputError(f"a window of {window:,} bases does not fit {reads}")

        def answer(spans: Sequence[Span]) -> Floats:
            rows = np.stack([codes[span.start : span.end] for span in spans])

            def record(row: int) -> str:
                span = spans[row]
                return f"{name}, bases {one_based(span.start):,} to {span.end:,}"

            values = self._probabilities(rows, record)[0].cpu().numpy()
            width = rows.shape[1]
            if self.by_base:
                return values[:, encoder.before : encoder.before + width]
            return np.broadcast_to(values[:, None], (len(rows), width, values.shape[-1]))

        shared = window // 2 if overlap is None else overlap
        low, high = part or (0, len(codes))
        tracks = self.units if self.by_base else None
        size = tracks.bin if tracks is not None else 1
        whole = low // size * size, min(-(-high // size) * size, len(codes))  # bins
        spans = plan_windows(len(codes), window, shared, stitch, whole)
        found = stitched(spans, whole, self.batch_tokens, answer)
        if tracks is not None:
            found = tracks.by_base(found).astype(np.float32)
        return found[low - whole[0] :][: high - low]


def _turned(codes: Codes, lengths: NDArray[np.int64]) -> Codes:
    """Give the reverse complement of each row, padding still on the right."""
    turned = codes.copy()
    for row, length in zip(turned, lengths.tolist(), strict=True):
        row[:length] = reverse_complement(row[:length])
    return turned


def _turned_back(logits: Tensor, bases: Tensor) -> Tensor:
    """Give each base of a row the logits of its position on the other strand: (rows, tokens, K)."""
    place = torch.arange(bases.shape[1], device=bases.device).expand_as(bases)
    ends = place.masked_fill(~bases, bases.shape[1]).amin(1) + place.masked_fill(~bases, -1).amax(1)
    other = torch.where(bases, ends[:, None] - place, place)
    return logits.gather(1, other[..., None].expand_as(logits))


def predict(
    model: ModelSpec | Predictor, sequences: Iterable[str | Codes],
    **options: Unpack[PredictOptions],
) -> Predictions:  # fmt: skip
    """Predict the labels of sequences, letters or base codes.

    The model has a head for sequences or for bases, or a prompt is given with the one that it was
    made for. A predictor keeps its own options.
    """
    own, run = split_options(options, PredictOptions)
    ready = model if isinstance(model, Predictor) else Predictor(model, **own, **run)
    values = ready.sequences([one.codes for one in named_sequences(sequences)])
    model_of = ready.name, ready.digest
    return Predictions(values, ready.classes, ready.problem, *model_of, ready.both_strands)


def predict_file(
    model: ModelSpec, source: SequenceInput | str | Path, output: str | Path,
    **options: Unpack[PredictOptions],
) -> Path:  # fmt: skip
    """Predict the labels of the sequences of a file as :func:`predict`, into Parquet or TSV.

    There is one row for each sequence, with its label and a probability for each class.
    """
    require_suffix(output)
    own, run = split_options(options, PredictOptions)
    work = Work(_rows, partial(Predictor, model, **own), SequenceInput.chunks)
    return map_sequences(
        "predict", work, source, output, lambda ready: {"both_strands": ready.both_strands},
        merge_tables, **run,
    )  # fmt: skip


def _rows(ready: Predictor, chunk: list[Given]) -> pl.DataFrame:
    values = ready.sequences([item.codes for item in chunk], [item.name for item in chunk])
    columns, prefix = Given.columns(chunk), ""
    if ready.problem != "regression":
        columns["label"], prefix = list(_labels(values, ready.classes, ready.problem)), "p_"
    found = zip(ready.classes, values.T, strict=True)
    return pl.DataFrame({**columns, **{f"{prefix}{name}": column for name, column in found}})


@dataclass(frozen=True)
class TrackOptions:
    """What decides the numbers along a genome."""

    output: str | None = None
    """Class whose probability is wanted, or track, by name or number; the second of two classes,
    and all tracks, when None."""
    window: int | None = None
    """Bases that the model reads at once; as many as it can when None."""
    overlap: int | None = None
    """Bases that neighboring windows share; half of the window when None."""
    stitch: Stitch = "center"
    """Which window answers for a base: center, before or average."""
    strands: Averaged | None = None
    """forward, or both for the mean; as in training when None."""
    threshold: float = 0.5
    """Smallest probability of a called base."""
    shortest: int = 1
    """Shortest called region in bases."""
    join: int = 0
    """Called regions with at most this many bases between them become one."""


_Call = tuple[str, int, int, float]
"""A region whose bases all reach a threshold: contig, start, end, and the mean of its bases."""


class _Tracker(NamedTuple):
    """A model, the genome, and the outputs of the model that are followed along it."""

    predictor: Predictor
    store: Genome
    options: TrackOptions
    columns: list[int]


def predict_track(
    model: ModelSpec, genome: str | Path, output: str | Path, *,
    regions: Sequence[str] | None = None, options: TrackOptions | None = None,
    prompt: str | Path | None = None, calls: str | Path | None = None, strict: bool = False,
    **running: Unpack[RunOptions],
) -> list[Path]:  # fmt: skip
    """Predict along a genome (a store or FASTA), or regions of it, with a model as for `predict`.

    ``.bw`` or ``.bigwig``: the probability of one class at every base that is A, C, G or T, or the
    number of a track, in its unit; of several tracks one file each, ``OUTPUT.NAME.bw``.
    ``.bed``: the regions where it reaches the threshold, with 1000 times its mean as score; `calls`
    is such a file beside a bigWig. Regions are contigs, ``chr1:1,001-2,000`` or BED files; `strict`
    refuses their rows that are not on the genome.
    """
    output, options = Path(output), options or TrackOptions()
    overwrite = running.get("overwrite", False)
    as_bed = require_suffix(output, TRACK_SUFFIXES) == ".bed"
    if calls is not None:
        if as_bed:
            raise OutputError("calls are a BED file beside a bigWig; the output is BED already")
        if not str(calls).lower().endswith(".bed"):
            raise OutputError(f"{calls}: called regions are written as BED; name a file ending so")
        check_output(Path(calls), overwrite)
    names = track_names(model) if options.output is None and prompt is None and not as_bed else ()
    targets = [output]
    if len(names) > 1:
        if calls is not None or running.get("shard"):
            raise OutputError(f"calls and shards are of one track; name it: {', '.join(names)}")
        targets = [output.with_name(f"{output.stem}.{name}{output.suffix}") for name in names]
        for path in targets[1:]:
            check_output(path, overwrite)
    check_run(targets[0], **running)
    with genome_store(genome) as store:
        kept = Regions.whole(store.lengths)
        if regions:
            kept = Regions.read(store, regions, strict=strict)
        columns = (one.tolist() for one in (kept.contig, kept.start, kept.end))
        chosen = [(store.contigs[i].name, *span) for i, *span in zip(*columns, strict=True)]

        def describe(ready: _Tracker) -> Provenance:
            predictor, asked = ready.predictor, asdict(options)
            asked["output"] = ", ".join(predictor.classes[column] for column in ready.columns)
            asked["regions"] = _region_texts(chosen)
            asked["both_strands"] = predictor.both_strands
            del asked["strands"]
            places = store.name, store.checksum, {}
            return Provenance("predict", predictor.name, predictor.digest, *places, asked)

        def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
            if as_bed:
                with target.open("wb") as file:
                    _write_calls(parts, file, options, provenance)
                return
            contigs = {contig.name: contig.length for contig in store.contigs}
            write_bigwig(target, contigs, Run.read(parts))
            for number, path in enumerate(targets[1:], start=1):
                with atomic_file(path, overwrite, seeks=True) as file:
                    write_bigwig(Path(file.name), contigs, Run.read(parts, f"values_{number}"))
            if calls is not None:
                with atomic_file(Path(calls), overwrite) as file:
                    _write_calls(parts, file, options, provenance)

        work = Work(
            _block, partial(_tracker, model, prompt, store.path, options),
            partial(_blocks, chosen), attrgetter("length"),
        )  # fmt: skip
        map_file(work, targets[0], describe, merge, **running)
    return targets


def _tracker(
    model: ModelSpec, prompt: str | Path | None, genome: Path, options: TrackOptions,
    **passes: Unpack[PassOptions],
) -> _Tracker:  # fmt: skip
    ready = Predictor(model, prompt=prompt, strands=options.strands, **passes)
    names = ready.classes
    if options.output is not None:
        columns = [find_class(names, options.output, ready.name)]
    elif ready.by_base and ready.units is not None:
        columns = list(range(len(names)))
    elif len(names) in (1, 2):
        columns = [len(names) - 1]
    else:
        raise InputError(
            f"{ready.name} has {len(names)} outputs; name the one whose track is wanted: "
            f"{', '.join(names[:20])}"
        )
    return _Tracker(ready, Genome(genome), options, columns)


def _blocks(regions: Iterable[tuple[str, int, int]]) -> Iterator[Interval]:
    for contig, start, end in regions:
        for low in range(start, end, _BLOCK):
            yield Interval(contig, low, min(low + _BLOCK, end))


def _block(ready: _Tracker, block: Interval) -> pl.DataFrame:
    """Answer for the bases of a block; NaN where the genome has no A, C, G or T.

    The grid of windows is that of the whole contig, so a region has the numbers that it has in a
    track of the whole genome, and blocks only share out the windows.
    """
    contig, low, high = block.contig, block.start, block.end
    options, codes = ready.options, ready.store.view(contig)
    values = ready.predictor.along(
        codes, window=options.window, overlap=options.overlap, stitch=options.stitch,
        part=(low, high), name=contig,
    )[:, ready.columns]  # fmt: skip
    values[(codes[low:high] & BASE_BITS) > T] = np.nan
    names = ["values", *(f"values_{number}" for number in range(1, len(ready.columns)))]
    kind = pl.List(pl.Float32)
    columns = [pl.Series(n, [v], dtype=kind) for n, v in zip(names, values.T, strict=True)]
    return pl.DataFrame({"contig": contig, "start": low, "strand": "+"}).with_columns(columns)


def _write_calls(parts: list[Path], file: Any, options: TrackOptions, made: Provenance) -> None:
    name = made.options["output"].replace("\t", " ")
    file.write(f"#megabase: {made.to_json()}\n".encode())
    wanted = {"shortest": options.shortest, "join": options.join}
    for call in _call_regions(Run.read(parts), options.threshold, **wanted):
        score = round(1000 * min(max(call[-1], 0.0), 1.0))
        place = "\t".join(map(str, call[:3]))
        file.write(f"{place}\t{name}\t{score}\t.\n".encode())


def _region_texts(regions: Sequence[tuple[str, int, int]]) -> list[str] | dict[str, Any]:
    """Give regions as text, 1-based with both ends, or their number and sha256 if they are many."""
    texts = [f"{contig}:{one_based(start)}-{end}" for contig, start, end in regions]
    if len(texts) <= _LISTED:
        return texts
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"count": len(texts), "sha256": digest}


def _call_regions(
    runs: Iterable[Run], threshold: float, *, shortest: int = 1, join: int = 0
) -> Iterator[_Call]:
    """Call regions of at least `shortest` bases that all reach a threshold.

    Runs come in the order of the genome without overlap; a region goes on over their borders.
    Regions with at most `join` bases between them become one, whose mean is over the bases that
    reach it.
    """
    contig, start, end, total, count = "", 0, 0, 0.0, 0

    def finished() -> Iterator[_Call]:
        if count and end - start >= shortest:
            yield contig, start, end, total / count

    for run in runs:
        above = np.concatenate(([False], run.values >= threshold, [False]))
        edges = np.flatnonzero(above[1:] != above[:-1])
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            amount = float(run.values[first:last].astype(np.float64).sum())
            begin, stop = run.start + first, run.start + last
            if not (count and run.contig == contig and begin - end <= join):
                yield from finished()
                contig, start, total, count = run.contig, begin, 0.0, 0
            end, total, count = stop, total + amount, count + (stop - begin)
    yield from finished()
