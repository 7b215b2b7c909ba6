"""Keywords of the verbs of a model: an editor completes them, the command line makes flags of them.

The text under a keyword is the help of its flag, and says what happens when it is not given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, items done, and items in all (None while unknown)."""


class PassOptions(TypedDict, total=False):
    """How a model is run; the result does not depend on it."""

    batch_tokens: int
    """Positions of a forward pass: time and memory (default: 65536)."""
    device: str | None
    """Where the model goes: cpu, cuda, cuda:1 or mps; worker i takes GPU i of cuda."""


class RunOptions(PassOptions, total=False):
    """How the work on a file is done (``batch_tokens`` not of ``generate``), not what comes out."""

    workers: int | None
    """Number of worker processes (default: one for each GPU, else for each core)."""
    threads: int
    """Threads of each process on the CPU (default: 1)."""
    shard: str | None
    """Share of the work, such as 2/3: parts go to OUTPUT.shard-2-of-3, for `megabase merge`."""
    resume: bool
    """Resume an interrupted run (its parts are in OUTPUT.partial)."""
    overwrite: bool
    """Replace an existing output, or what an interrupted run left."""
    progress: Progress | None
    """Called now and then."""


class ScoreOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.score`."""

    strands: Literal["forward", "reverse", "both"]
    """Strand that is read; both takes the mean (default: forward)."""
    context: int
    """Bases before an interval of a BED file that are read but not scored (default: 0)."""
    window: int | None
    """Positions of a forward pass, for longer sequences (default: the longest of the model)."""
    stride: int | None
    """By how much windows move (default: half a window)."""
    per_base: bool
    """Keep the log-probability of every base."""


class VariantScoring(RunOptions, total=False):
    """Keywords of :meth:`Model.score_variants` and :meth:`Model.ism`."""

    window: int | None
    """Bases of the window of an allele (default: up to 1,024)."""
    methods: Sequence[str] | None
    """llr_window, llr_after, llr_site, masked, each as abs_llr_window too; cosine, l2,
    cosine_flat, l2_flat, jsd (default: the first three; masked for a masked model); track_delta,
    track_lfc of a model of tracks (its default)."""
    strands: Literal["forward", "reverse", "both"]
    """Strand that is read; both takes the mean (default: both; of tracks as in training)."""
    placement: Literal["centered", "grid"]
    """centered: a window around each variant; grid: windows at multiples of half their length,
    shared by neighbors, faster (default: centered)."""
    horizon: int | None
    """Bases that are read behind the variant: fewer are faster (default: all of the window)."""


class CalibratedScoring(VariantScoring, total=False):
    """Keywords of :meth:`Model.score_variants` without ``out=``."""

    calibration: str | Path | None
    """Add METHOD_z and METHOD_percentile by this file of `variants --calibrate`; the word model
    takes the one beside the model (default: none)."""
    genes: str | Path | None
    """GFF3 or GTF: adds the consequence for genes and transcripts of each allele."""


class CalibrationOptions(VariantScoring, total=False):
    """Keywords of :meth:`Model.calibrate_variants`."""

    count: int
    """Random substitutions, of every base drawn all three (default: 30,000)."""
    others: int
    """Random insertions, deletions and longer substitutions: the number of each (default: 0)."""
    seed: int
    """Decides every draw (default: 0)."""


class VariantFileScoring(CalibratedScoring, total=False):
    """Keywords of :meth:`Model.score_variants`; those here are for ``out=``."""

    prefix: str
    """Beginning of the INFO keys (default: MB)."""
    allow_mismatches: bool
    """Go on although many REF differ from the genome."""
    strict: bool
    """Refuse the first record that cannot be used, instead of leaving it out."""
    scores: str | Path | None
    """Table of `--all` by this model on this genome: llr_site is looked up there."""
    missing: Literal["leave", "score"]
    """Alleles that are not in the table of `--scores`: leave, or score by the model (default:
    leave)."""


class EverySnvScoring(RunOptions, total=False):
    """Keywords of :meth:`Model.score_all`."""

    window: int | None
    """Bases that are read at once (default: up to 1,024)."""
    context: int | None
    """Bases before each that are read at least, but at ends of contigs (default: half a window)."""
    strands: Literal["forward", "reverse", "both"]
    """Strand that is read; both takes the mean (default: both)."""


class EmbedOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.embed`."""

    layer: int
    """0 for the token embedding, k for block k, negative from the last (default: the last)."""
    pooling: Literal["mean", "max", "sum", "first", "last", "all", "none"]
    """Over the positions of a sequence; all: mean, maximum and deviation of every layer and of the
    units of its MLP side by side, for linear models; none, for files, keeps every base (default:
    mean)."""
    long: Literal["error", "chunks", "published"]
    """Sequences longer than the model reads: error, chunks (pooled over all positions) or published
    (plain mean of the pieces) (default: error)."""
    strands: Literal["forward", "both"]
    """Strand that is read; both takes the mean (default: forward)."""


class PredictOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.predict`."""

    prompt: str | Path | None
    """Folder of a soft prompt, of `megabase prompt`, made for this model."""
    strands: Literal["forward", "both"] | None
    """Strand that is read; both takes the mean (default: as in training, head.strand_average)."""


class AttributeOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.attribute`."""

    target: str | int | None
    """Class to explain, by name or number (default: the only one)."""
    method: Literal["gradient", "gradient_input", "integrated_gradients"]
    """How an output is attributed (default: integrated_gradients)."""
    baseline: Literal["uniform", "n"]
    """Where integrated gradients begin, without information (default: uniform)."""
    steps: int
    """Points of integrated gradients (default: 64)."""


class EffectOptions(PassOptions, total=False):
    """Keywords of :meth:`Model.marginalize` and :meth:`Model.ablate`."""

    target: str | int | None
    """Class of a classifier, by name or number (default: the only one)."""
    output: Literal["logit", "probability"]
    """What is compared, of a classifier (default: logit)."""
    strands: Literal["forward", "both"] | None
    """Strand that is read; both: the mean (default: forward; of a classifier as in training)."""
    shuffles: int
    """Dinucleotide shuffles of each sequence: in place of a background (default: none), or the
    source of the bases that replace an interval (default: 20)."""
    seed: int
    """Decides shuffles, and bases drawn from a matrix (default: 0)."""


class GenerationOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.generate`."""

    length: int
    """Most bases after each prompt (default: 1000)."""
    samples: int
    """Sequences for each prompt (default: 1)."""
    stop: Sequence[str]
    """End a sequence after one of these motifs (IUPAC letters)."""
    temperature: float
    """Divides the logits; 0 takes the most probable base (default: 1)."""
    top_k: int | None
    """Sample from the k most probable bases."""
    top_p: float | None
    """Sample from the fewest bases that together have this probability."""
    min_p: float | None
    """Sample from bases of at least this share of the most probable one's probability."""
    letters: str
    """Bases that may be drawn (default: ACGT)."""
    seed: int
    """Decides every draw (default: 0)."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured in an evaluation, and with which windows."""

    window: int | None = None
    """Input positions of a forward pass (default: the longest of the model that regions hold)."""
    stride: int | None = None
    """Scored bases of a window, its last ones (default: all)."""
    max_windows: int | None = None
    """Most windows to score, evenly spread (default: all)."""
    context_lengths: Sequence[int] | None = None
    """Contexts of the curve, in bases; no curve for an empty list (default: 64, 128, ... up to the
    longest input of the model, as far as the contigs reach)."""
    context_targets: int = 16
    """Bases of a target block of the curve; 1: exactly the stated context (default: 16)."""
    context_blocks: int | None = None
    """Target blocks of the curve (default: 2048, fewer for contexts above 2,048 bases: about 4
    million positions at the longest context, and at least 32 blocks)."""
    baselines: bool = True
    """Whether Markov models are trained on the training regions."""
    max_order: int = 12
    """Highest order of the Markov baselines (default: 12)."""
    batch_tokens: int = 1 << 16
    """Positions of a batch: time and memory, not the result (default: 65536)."""


@dataclass(frozen=True)
class LongContextOptions:
    """Which segments are repeated, and how far apart, to see whether a model uses its context."""

    segment: int = 64
    """Bases of a copy (default: 64)."""
    distances: Sequence[int] | None = None
    """Bases from the start of the first copy to that of the second (default: powers of two and the
    farthest that fits the longest input of the model, as far as the contigs reach)."""
    distractors: Sequence[int] | None = None
    """Mutated copies between the two of a needle, several numbers for several tests (default: 4,
    where they fit)."""
    count: int = 100
    """Segments (default: 100)."""
    seed: int = 0
    """Decides which segments, and what is substituted (default: 0)."""
    window: int | None = None
    """Longest input in positions (default: that of the model)."""
    batch_tokens: int = 1 << 16
    """Positions of a batch: time and memory, not the result (default: 65536)."""
