"""Motifs: seqlets, what is made of a file of attributions, and what-ifs.

Seqlets are runs of bases whose contributions stand out, named by motifs that they resemble; motifs
come from files of MEME (https://meme-suite.org/meme/doc/meme-format.html, the minimal one).

The rule is that of recursive seqlets (Schreiber, https://github.com/jmschrei/tangermeme): the
p-value of a run is the chance that as many bases, drawn independently from all bases of all
sequences, sum to as much (here also: to as little); a run is a seqlet when it and every run inside
it, down to the shortest, stay below a threshold. Of seqlets that overlap the longest is kept, then
the least probable. Sums are of whole thousandths of the range of contributions, so that their
distribution, a convolution of that of one base, is exact.

Motifs are compared with a seqlet by Tomtom (Gupta et al. 2007, doi:10.1186/gb-2007-8-2-r24) on both
strands, as tomtom-lite computes it (Schreiber 2025, doi:10.1101/2025.05.27.656386). The query is
what stands there, each base with its share of the largest contribution of the seqlet and the rest
even over A, C, G, T: else bases beside a motif, which a long run takes in, hide it.

What-ifs are an output of a model with and without a motif, and with and without an interval: that
of a class, averaged over all bases for a model that labels each; or, of a language model, the
log-likelihood of the bases outside the motif or interval: its own bases, which differ, count
neither before nor after.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.sources import Sequence as Given
from megabase.data.sources import SequenceInput
from megabase.errors import InputError, InputWarning, MissingDependencyError, OutputError, warn
from megabase.evaluate.sequences import named_sequences
from megabase.genome.alphabet import BASE_BITS, BASES, T, decode, dinucleotide_shuffle, encode
from megabase.genome.files import atomic_file, check_output, numbered_lines
from megabase.genome.interval import Strand
from megabase.genome.tables import write_bed
from megabase.inference.jobs import split_options
from megabase.inference.parts import TABLE_SUFFIXES, Provenance, require_suffix
from megabase.inference.prediction import Predictor
from megabase.inference.scoring import score
from megabase.models.loading import ModelSpec, find_class, load
from megabase.options import EffectOptions

Matrix = NDArray[np.float64]
_Codes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Changed = tuple[int, _Codes, int, int]
"""Number of a sequence, and what it becomes by other bases from a start to an end."""
_NAMED = 0.05  # largest q-value of a motif that names a seqlet: at most one name in twenty is wrong
_LEVELS = 1000  # steps of the range, as in tangermeme: far finer than what tells seqlets apart
_FEW = 25  # motifs: with fewer, tomtom-lite calls its own p-values rough
_SCHEMA: dict[str, Any] = {
    "number": pl.Int64, "start": pl.Int64, "end": pl.Int64, "strand": pl.String,
    "bases": pl.String, "contribution": pl.Float64, "p": pl.Float64,
    "motif": pl.String, "motif_p": pl.Float64, "motif_q": pl.Float64,
}  # fmt: skip
"""Columns of a table of seqlets, stated so that an empty table has them too."""
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)  # not below 0
_ROUNDING = 0.02  # by which a row of printed probabilities may miss 1
_PLACE = ("name", "contig", "start", "end", "strand")  # first columns of the table of a file
_TURNED = str.maketrans("+-", "-+")  # strands of what is read from the reverse strand


def read_motifs(path: str | Path) -> dict[str, Matrix]:
    """Read the motifs of a MEME file, plain or gzip.

    The names are those of the MOTIF lines (``MA0099.3 FOS::JUN``), the matrices float64 (width, 4),
    rows of probabilities of A, C, G, T. InputError, with the line, for a row of others, a name that
    is there twice, and a file without motifs.
    """
    found: dict[str, list[list[float]]] = {}
    name, inside = "", False
    for number, line in numbered_lines(Path(path)):
        words, where = line.split(), f"{path}, line {number:,}"
        inside = inside and bool(words) and words[0][0] in "0123456789.+-"
        if words[:1] == ["MOTIF"]:
            name = " ".join(words[1:])
            if not name or name in found:
                raise InputError(f"{where}: expected a name of a motif of its own, found {name!r}")
            found[name] = []
        elif inside and name:
            row = [float(word) for word in words if _NUMBER.fullmatch(word)]
            if len(row) != len(words) or len(row) != 4 or not abs(sum(row) - 1) < _ROUNDING:
                raise InputError(
                    f"{where}: expected probabilities of A, C, G, T, found {line.strip()[:60]!r}"
                )
            found[name].append(row)
        inside = inside or line.startswith("letter-probability matrix")
    if not found or not all(found.values()):
        bare = "".join(f" of {name}" for name, rows in found.items() if not rows)
        raise InputError(f"{path}: holds no letter-probability matrix{bare} (MEME format)")
    return {name: np.array(rows) / np.sum(rows, 1, keepdims=True) for name, rows in found.items()}


def find_seqlets(
    contributions: Sequence[_Floats], sequences: Iterable[str | _Codes],
    motifs: Mapping[str, Matrix] | None = None, *,
    threshold: float = 0.01, lengths: tuple[int, int] = (4, 25),
) -> pl.DataFrame:  # fmt: skip
    """Find the runs of bases whose contributions stand out, and name them by motifs.

    Parameters
    ----------
    contributions
        For each sequence float (length,): ``values`` of an attribution.
    sequences
        The sequences, letters or base codes.
    motifs
        What :func:`read_motifs` gave; no names when None.
    threshold
        Largest p-value of a seqlet and of every run of bases inside it.
    lengths
        Fewest and most bases of a seqlet; all of them are A, C, G, T.

    Returns
    -------
    polars.DataFrame
        A row for each seqlet, in order: number (of the sequence, from 0), start and end in it
        (0-based half-open), strand, bases, contribution (their sum) and p. motif_p is Tomtom's of
        the nearest motif, and motif_q that of Benjamini and Hochberg over all seqlets, of motif_p
        times the number of motifs. Where it is at most 0.05, motif is the name, and strand the one
        on which it reads as in its file; elsewhere they are null and ``.``.
    """
    codes = [(one.codes & BASE_BITS).astype(np.uint8) for one in named_sequences(sequences)]
    if [len(one) for one in contributions] != [len(one) for one in codes]:
        raise InputError("expected a contribution for each base of each sequence, in their order")
    if motifs:
        MissingDependencyError.load("memelite", "motifs", "naming seqlets by motifs")
    rows: list[Any] = []
    queries: list[Matrix] = []
    for number, start, end, p in _runs(contributions, codes, threshold, lengths):
        values, bases = contributions[number][start:end].astype(float), codes[number][start:end]
        total = float(values.sum())
        weights = np.maximum(values * np.sign(total), 0)[:, None] / np.abs(values).max()
        queries.append((0.25 + weights * (np.eye(4)[bases] - 0.25)).T)
        rows.append((number, start, end, ".", decode(bases), total, p, None, None, None))
    table = pl.DataFrame(rows, _SCHEMA, orient="row")
    return _named(table, queries, motifs) if rows and motifs else table


def _runs(
    contributions: Sequence[_Floats], codes: list[_Codes], threshold: float,
    lengths: tuple[int, int],
) -> list[tuple[int, int, int, float]]:  # fmt: skip
    """Give number of the sequence, start, end and p of all seqlets, in order."""
    every = np.concatenate([np.zeros(0), *contributions])
    low, span = every.min(initial=np.inf), np.ptp(every) if len(every) else 0
    if not span:
        return []
    levels = [np.rint((one - low) * (_LEVELS / span)).astype(int) for one in contributions]
    one = np.bincount(np.concatenate(levels), minlength=_LEVELS + 1) / len(every)
    shortest, longest = lengths
    tails, chances = {}, np.ones(1)  # of sums as large, and as small, by the number of bases
    for length in range(1, longest + 1):
        chances = np.convolve(chances, one)
        tails[length] = chances[::-1].cumsum()[::-1], chances.cumsum()
    found: list[tuple[int, int, int, float]] = []
    for number, (level, bases) in enumerate(zip(levels, codes, strict=True)):
        sums, odd = (np.concatenate(([0], np.cumsum(x))) for x in (level, bases > T))
        runs: list[tuple[int, float, int]] = []
        for side in (0, 1):
            inner = np.zeros(len(level) - shortest + 2)  # largest p of a run and all inside it
            for length in range(shortest, min(longest, len(level)) + 1):
                p = tails[length][side][sums[length:] - sums[:-length]]
                p[odd[length:] > odd[:-length]] = 1
                inner = np.maximum(p, np.maximum(inner[:-1], inner[1:]))
                runs += [(-length, float(p[k]), int(k)) for k in np.flatnonzero(inner < threshold)]
        taken, kept = np.zeros(len(level), dtype=bool), list[tuple[int, int, int, float]]()
        for length, p, start in sorted(runs):
            if not taken[start : start - length].any():
                taken[start : start - length] = True
                kept.append((number, start, start - length, p))
        found += sorted(kept)
    return found


def _named(
    table: pl.DataFrame, queries: list[Matrix], motifs: Mapping[str, Matrix]
) -> pl.DataFrame:
    """Give each seqlet its nearest motif."""
    from memelite import tomtom

    if len(motifs) < _FEW:
        warn(
            f"seqlets are compared with {len(motifs)} motifs; the p-values of Tomtom come from the "
            f"columns of all of them, and are rough with fewer than {_FEW}", InputWarning,
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says the same
        found = tomtom(queries, [one.T for one in motifs.values()], n_nearest=1)[:, :, 0]
    p, other, which = found[0], found[4], found[5].astype(int)
    order, ranks = np.argsort(-p), np.arange(len(p), 0, -1)  # the least likely last
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(np.minimum(1, p[order] * len(motifs)) * len(p) / ranks)
    sure, names = q <= _NAMED, np.array([*motifs], dtype=object)
    return table.with_columns(
        strand=pl.Series(np.where(sure, np.where(other == 1, "-", "+"), ".")),
        motif=pl.Series(
            [name if known else None for name, known in zip(names[which], sure, strict=True)],
            dtype=pl.String,
        ),
        motif_p=pl.Series(p), motif_q=pl.Series(q),
    )  # fmt: skip


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
        values, letters, about = _read_attributions(output)
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
                scores = (1000 * share).round().cast(pl.Int64)
                write_bed(rows.with_columns(name=motif, score=scores), path, self.overwrite)
                return found
            used = {} if self.motifs is None else Provenance.digests(self.motifs)
            about = replace(about, inputs={**about.inputs, **used})
            about.write(rows, path, overwrite=self.overwrite)
        return found


def _read_attributions(path: Path) -> tuple[list[Any], list[Any], Provenance]:
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


def _placed(found: pl.DataFrame, items: list[Given], on_genome: bool) -> pl.DataFrame:
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


@dataclass(frozen=True, repr=False)
class Effect:
    """An output of a model before and after changes: float64 (sequences, changes).

    ``output`` says what it is (``logit of promoter``), ``difference`` is after minus before, and
    ``mean`` and ``spread`` (the standard deviation; NaN for one) are over all differences.
    """

    before: Matrix
    after: Matrix
    output: str

    @property
    def difference(self) -> Matrix:  # noqa: D102
        return self.after - self.before

    @property
    def mean(self) -> float:  # noqa: D102
        return float(self.difference.mean())

    @property
    def spread(self) -> float:  # noqa: D102
        return float(self.difference.std(ddof=1)) if self.difference.size > 1 else float("nan")

    def __repr__(self) -> str:
        shape = "{} sequences x {} changes".format(*self.after.shape)
        return f"Effect({shape}, {self.output}: {self.mean:+.4g}, spread {self.spread:.2g})"


def marginalize(
    model: ModelSpec, motif: str | Matrix, backgrounds: Iterable[str | _Codes],
    at: int | Sequence[int] | None = None, **options: Unpack[EffectOptions],
) -> Effect:  # fmt: skip
    """Put a motif into backgrounds, as :meth:`megabase.Model.marginalize`."""
    letters = motif if isinstance(motif, str) else "".join(BASES[b] for b in motif.argmax(1))
    letters = letters.upper()
    if not letters or set(letters) - set(BASES):
        raise InputError(f"a motif is letters A, C, G, T, or a matrix; found {motif!r}")
    given = [one.codes for one in named_sequences(backgrounds)]
    rng = np.random.default_rng(options.get("seed", 0))
    if shuffles := options.get("shuffles", 0):
        given = [dinucleotide_shuffle(one, rng) for one in given for _ in range(shuffles)]
    changes: list[_Changed] = []
    for number, codes in enumerate(given):
        places = (len(codes) - len(letters)) // 2 if at is None else np.asarray(at)
        for start in np.atleast_1d(places).tolist():
            changes.append(_changed(number, codes, encode(letters), start, start + len(letters)))
    return _effect(model, given, changes, options)


def ablate(
    model: ModelSpec, sequences: Iterable[str | _Codes], start: int | Sequence[int],
    end: int | Sequence[int], **options: Unpack[EffectOptions],
) -> Effect:  # fmt: skip
    """Take an interval out of sequences, as :meth:`megabase.Model.ablate`."""
    given = [one.codes for one in named_sequences(sequences)]
    rng = np.random.default_rng(options.get("seed", 0))
    for one in (start, end):
        if np.ndim(one) and np.shape(one) != (len(given),):
            raise InputError(f"expected one start and end, or {len(given)}, found {one}")
    bounds = (np.broadcast_to(one, len(given)).tolist() for one in (start, end))
    changes = [
        _changed(number, codes, dinucleotide_shuffle(codes, rng)[first:last], first, last)
        for number, (codes, first, last) in enumerate(zip(given, *bounds, strict=True))
        for _ in range(options.get("shuffles", 20))
    ]
    return _effect(model, given, changes, options)


def _changed(number: int, codes: _Codes, bases: _Codes, start: int, end: int) -> _Changed:
    if not 0 <= start < end <= len(codes):
        raise InputError(
            f"sequence {number + 1} has {len(codes):,} bases: expected an interval inside them, "
            f"found {start:,} to {end:,} (0-based, half-open)"
        )
    return number, np.concatenate((codes[:start], bases, codes[end:])), start, end


def _effect(
    model: ModelSpec, given: list[_Codes], changes: list[_Changed], options: EffectOptions
) -> Effect:
    if not changes:
        raise InputError("expected a sequence and a change of it or more, found none")
    answers, output = _answers(model, [*given, *(one[1] for one in changes)], options)

    def outside(answer: Any, start: int, end: int) -> float:
        return float(np.nansum(np.delete(answer, slice(start, end)) if answer.ndim else answer))

    before = [outside(answers[number], *span) for number, _, *span in changes]
    after = [outside(x, *one[2:]) for x, one in zip(answers[len(given) :], changes, strict=True)]
    shape = len(given), -1
    return Effect(np.array(before).reshape(shape), np.array(after).reshape(shape), output)


def _answers(
    model: ModelSpec, items: list[_Codes], options: EffectOptions
) -> tuple[list[Any], str]:
    """Give the output for each sequence, of a language model one for each base; and its name."""
    own, run = split_options(options, EffectOptions)
    target, kind, strands = own.get("target"), own.get("output"), own.get("strands")
    if kind not in (None, "logit", "probability"):
        raise InputError(f"output is one of logit, probability; found {kind!r}")
    loaded = load(model, device=run.pop("device", None))
    if "classification" in loaded.kind:
        ready = Predictor(loaded, strands=strands, **run)
        column = find_class(ready.classes, target, ready.name)
        values = ready.sequences(items, logits=kind != "probability")[:, column]
        shown = "value" if ready.problem == "regression" else kind or "logit"
        return list(values.astype(np.float64)), f"{shown} of {ready.classes[column]}"
    if target is not None or kind is not None:
        raise InputError(
            f"{loaded.name} is a language model: what changes is the log-likelihood of the bases "
            "around; leave target and output out"
        )
    named = [Given(str(number), one) for number, one in enumerate(items)]
    table = score(loaded, named, per_base=True, strands=strands or "forward", **run).table
    return [np.array(one, dtype=np.float64) for one in table["log_probs"]], "log-likelihood around"
