"""Predictions of fine-tuned models: probabilities or numbers, by sequence or by base."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.sources import Sequence as Given
from megabase.data.sources import SequenceInput
from megabase.errors import InputError
from megabase.evaluate.sequences import (
    Span,
    Stitch,
    codes_of,
    plan_windows,
    record_name,
    require_readable,
    run_batched,
    stitched,
)
from megabase.genome.alphabet import BASE_BITS, PAD, reverse_complement
from megabase.genome.interval import one_based
from megabase.inference.embedding import Averaged
from megabase.inference.jobs import BATCH_TOKENS, Work, map_sequences, split_options
from megabase.inference.writers import merge_tables, require_suffix
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import ModelSpec, inference_mode, load
from megabase.objectives.units import Units
from megabase.options import PredictOptions

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]


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
    values = ready.sequences(codes_of(sequences))
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
