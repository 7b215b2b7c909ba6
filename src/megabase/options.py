"""Keywords of the verbs of a model, which an editor completes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megabase.inference.jobs import RunOptions


class ScoreOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.score`."""

    strands: Literal["forward", "reverse", "both"]
    """Strand that is read; both takes the mean. By default forward."""
    context: int
    """Bases before an interval of a BED file that are read but not scored (0)."""
    window: int | None
    """Positions of a forward pass, for longer sequences; the longest of the model when None."""
    stride: int | None
    """By how much windows move; half a window when None."""
    per_base: bool
    """Keep the log-probability of every base."""


class VariantScoring(RunOptions, total=False):
    """Keywords of :meth:`Model.score_variants` and :meth:`Model.ism`."""

    window: int | None
    """Bases of the window of an allele; up to 1,024 when None."""
    methods: Sequence[str] | None
    """llr_window, llr_after, llr_site, masked, cosine, l2; those that fit the model when None."""
    strands: Literal["forward", "reverse", "both"]
    """Strand that is read; both, the default, takes the mean."""
    placement: Literal["centered", "grid"]
    """A window of its own for each variant (default), or windows that neighbors share (faster)."""


class VariantFileScoring(VariantScoring, total=False):
    """Keywords of :meth:`Model.score_variants`; those here are for ``out=``."""

    prefix: str
    """Beginning of the INFO keys (MB)."""
    allow_mismatches: bool
    """Go on although many REF differ from the genome."""
    strict: bool
    """Refuse the first record that cannot be used, instead of leaving it out."""


class EmbedOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.embed`."""

    layer: int
    """Number of the layer whose hidden states are taken; -1, the default, is the last."""
    pooling: Literal["mean", "max", "sum", "first", "last", "none"]
    """Over the positions of a sequence (mean); none, for files, keeps a vector for each base."""
    long: Literal["error", "chunks", "published"]
    """What happens to sequences longer than the model takes (error)."""
    strands: Literal["forward", "both"]
    """Strand that is read; both takes the mean. By default forward."""


class PredictOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.predict`."""

    prompt: str | Path | None
    """Folder of a soft prompt."""
    strands: Literal["forward", "both"] | None
    """Strand that is read; as the metrics of the training were taken when None."""


class AttributeOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.attribute`."""

    target: str | int | None
    """Output to explain, by name or number; the most probable one when None."""
    method: Literal["gradient", "gradient_input", "integrated_gradients"]
    """By default integrated_gradients."""
    baseline: Literal["uniform", "n"]
    """What a sequence without information is (uniform)."""
    steps: int
    """Points of the integral (64)."""


class GenerationOptions(RunOptions, total=False):
    """Keywords of :meth:`Model.generate`."""

    length: int
    """Bases to generate (1,000)."""
    samples: int
    """Sequences for each prompt (1)."""
    stop: Sequence[str]
    """Generation ends after one of these."""
    temperature: float
    """Divides the logits (1); 0 takes the most probable base."""
    top_k: int | None
    """Keep the k most probable bases."""
    top_p: float | None
    """Keep the most probable bases that hold this share of the probability."""
    min_p: float | None
    """Keep bases at least this fraction as probable as the most probable one."""
    letters: str
    """Bases that may be drawn (ACGT)."""
    seed: int
    """Decides every draw (0)."""
