"""The model object whose methods are the verbs.

Everything here is exported by ``megabase`` itself::

    import megabase as mb

    model = mb.load("runs/mine")
    model.score(["ACGTACGT"]).perplexity
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from megabase.data.sources import Sequence as SequenceItem
from megabase.data.sources import SequenceInput
from megabase.errors import InputError
from megabase.evaluate.long_context import long_context
from megabase.evaluate.perplexity import evaluate
from megabase.genome.interval import Interval, Variant
from megabase.genome.store import Genome
from megabase.inference.attribution import Attribution, attribute, attribute_file
from megabase.inference.embedding import Embeddings, embed, embed_file
from megabase.inference.generation.generate import (
    Generated,
    GenerateOptions,
    Prompt,
    generate,
    generate_file,
)
from megabase.inference.ism import Mutagenesis, ism, ism_file
from megabase.inference.jobs import split_options
from megabase.inference.motifs import Effect, Matrix, ablate, marginalize
from megabase.inference.prediction import (
    Predictions,
    TrackOptions,
    predict,
    predict_file,
    predict_track,
)
from megabase.inference.scoring import SequenceScores, score, score_file
from megabase.inference.variants.every_snv import score_all
from megabase.inference.variants.random_variants import calibrate_variants
from megabase.inference.variants.scorer import VariantScores, score_variants
from megabase.inference.variants.vcf_file import score_variants_file
from megabase.models.loading import Loaded, ModelSpec, choose_device
from megabase.models.loading import load as load_model
from megabase.options import (
    AttributeOptions,
    CalibratedScoring,
    CalibrationOptions,
    EffectOptions,
    EmbedOptions,
    EvaluateOptions,
    EverySnvScoring,
    GenerationOptions,
    LongContextOptions,
    PredictOptions,
    RunOptions,
    ScoreOptions,
    VariantFileScoring,
    VariantScoring,
)
from megabase.training.run_folder import RunData

if TYPE_CHECKING:
    from polars import DataFrame
    from torch import dtype as DType
    from transformers import PreTrainedModel

    from megabase.data.regions import Regions
    from megabase.evaluate.results import EvaluationResult

File = str | Path
"""Path of a file: what is read with ``out=``, and what is written."""
Sequences = File | Mapping[str, str] | Iterable[str]
"""A file (FASTA, table; BED or VCF with a genome), one sequence, several, or by name."""
Prompts = File | Iterable[str]
"""A prompt, several, or a FASTA file of them."""
Variants = File | Iterable[Variant | str]
"""A VCF or BCF file, or variants such as ``"chr1:1001:A>G"`` (1-based)."""
GenomeLike = Genome | File
"""An open genome, or the path of a store or FASTA file."""
MaybeGenome = GenomeLike | None
"""The genome of a BED or VCF file; None where the sequences are given themselves."""

_FILE_ONLY = (RunOptions.__optional_keys__ - {"batch_tokens", "device"}) | (
    VariantFileScoring.__optional_keys__ - CalibratedScoring.__optional_keys__
)
"""Keywords that do nothing to a result in memory, and so need ``out=``."""
_NO_SEQUENCE = re.compile(r"[./\\\d_-]")  # what names of files hold and sequences do not
_LONGEST_NAME = 255
"""Letters of the name of a file at most; the system refuses to look for a longer one."""


def load(
    model: ModelSpec = None, *, prompt: str | Path | None = None, device: str | None = "auto",
    dtype: DType | None = None,
) -> Model:  # fmt: skip
    """Load a model: the first step of everything else.

    Parameters
    ----------
    model
        Model folder, run folder, preset or Hub name; None or ``default`` for the packaged causal
        model, ``default-masked`` for the masked one;
        or a transformers model of megabase as it is.
    prompt
        Folder of a soft prompt for this model; :meth:`Model.predict` then answers as it says.
    device
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    dtype
        Type of the weights; float32 when None.

    Raises
    ------
    ModelError, CheckpointError, NotFiniteError, InputError
        When there is no such model, it cannot be loaded, or a weight is not finite.
    """
    where = choose_device(None if device == "auto" else device)
    in_memory = isinstance(model, Loaded) or hasattr(model, "forward")
    found = load_model(model, prompt=prompt, device=None if in_memory else where, dtype=dtype)
    return Model(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})


@dataclass(frozen=True)
class Model(Loaded):
    """A loaded model; its methods are the verbs of the command line.

    ``sequences`` are a file (FASTA, a table; BED or VCF with its ``genome``) or sequences in memory
    (:data:`Sequences`); further keywords are those of the class that a signature unpacks, in
    :mod:`megabase.options`. With ``out=`` a verb writes a file instead of giving the result: in
    chunks, shared out over ``workers`` processes, resumable with ``resume=True``; the ending says
    the format. Coordinates are 0-based and half-open, but in region strings (``chr1:1,001-2,000``),
    VCF and GFF, which are 1-based.
    """

    def __repr__(self) -> str:
        """One line; ``hf`` shows all modules."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        what = f"{type(self.model).__name__}, {count:,} parameters, {self.device}"
        return f"Model({self.name!r}, {what})"

    @property
    def hf(self) -> PreTrainedModel:
        """The transformers model itself, with ``generate``, ``save_pretrained`` and the rest."""
        return self.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers that belongs to the model."""
        return self.encoder.tokenizer

    @overload
    def score(
        self, sequences: Sequences, genome: MaybeGenome = None, **options: Unpack[ScoreOptions]
    ) -> SequenceScores: ...
    @overload
    def score(self, sequences: File, genome: MaybeGenome = None, *, out: File,
              **options: Unpack[ScoreOptions]) -> Path: ...  # fmt: skip
    def score(self, sequences: Sequences, genome: MaybeGenome = None, *, out: File | None = None,
              **options: Unpack[ScoreOptions]) -> SequenceScores | Path:  # fmt: skip
        """Score sequences: log-likelihood and perplexity; into ``.tsv`` or ``.parquet``."""
        given = _checked(options, out)
        if out is not None:
            return score_file(self, _file(sequences, genome), out, **given)
        return score(self, _read(sequences, genome, given.pop("context", 0)), **given)

    @overload
    def score_variants(
        self, variants: Variants, genome: GenomeLike, **options: Unpack[VariantFileScoring]
    ) -> VariantScores: ...
    @overload
    def score_variants(self, variants: File, genome: GenomeLike, *, out: File,
                       **options: Unpack[VariantFileScoring]) -> Path: ...  # fmt: skip
    def score_variants(self, variants: Variants, genome: GenomeLike, *, out: File | None = None,
                       **options: Unpack[VariantFileScoring]) -> VariantScores | Path:  # fmt: skip
        """Score variants: what the model gives the alternative allele against the reference.

        Parameters
        ----------
        variants
            VCF or BCF file, or variants such as ``"chr1:1001:A>G"`` (1-based).
        genome
            The genome that they lie on.
        out
            ``.vcf``, ``.vcf.gz`` or ``.bcf`` with scores in INFO, or ``.parquet`` or ``.tsv``.
        """
        given = _checked(options, out)
        if out is None:
            return score_variants(self, variants, genome, **given)
        if not isinstance(variants, str | Path):
            raise InputError("out= needs the variants as a file (VCF or BCF)")
        found = score_variants_file(self, variants, _path(genome), out, **given)
        return found if isinstance(found, Path) else Path(out)

    def calibrate_variants(
        self, genome: GenomeLike, *, out: File | None = None, regions: Sequence[str] = (),
        **options: Unpack[CalibrationOptions],
    ) -> Path:  # fmt: skip
        """Score random variants of a genome, for ``calibration=`` of :meth:`score_variants`.

        They are drawn from `regions`, everywhere when empty. `out` is ``.npz``; in the folder of
        the model when None.
        """
        return calibrate_variants(self, _path(genome), out, regions=regions, **options)

    def score_all(
        self, genome: GenomeLike, *, out: File, regions: Sequence[str] = (),
        bigwig: str | None = None, hub: File | None = None, hub_genome: str | None = None,
        **options: Unpack[EverySnvScoring],
    ) -> Path:  # fmt: skip
        """Score every substitution of a genome by ``llr_site``, with a causal model.

        Parameters
        ----------
        out
            ``.tsv.gz``: a bgzip table; its tabix index lies beside it.
        regions
            Contigs, region strings or BED files; the whole genome when empty.
        bigwig
            Prefix of a bigWig file for each alternative base.
        hub
            Folder for such tracks that UCSC draws as a logo.
        hub_genome
            The genome of the hub as UCSC names it (``hg38``); the name of the store when None.
        """
        tracks = {"bigwig": bigwig, "hub": hub, "hub_genome": hub_genome}
        made = score_all(self, _path(genome), out, regions=regions, **tracks, **options)
        return made if isinstance(made, Path) else Path(out)

    @overload
    def ism(
        self, region: str | Interval, genome: GenomeLike, **options: Unpack[VariantScoring]
    ) -> Mutagenesis: ...
    @overload
    def ism(self, region: str | Interval, genome: GenomeLike, *, out: File,
            **options: Unpack[VariantScoring]) -> Path: ...  # fmt: skip
    def ism(self, region: str | Interval, genome: GenomeLike, *, out: File | None = None,
            **options: Unpack[VariantScoring]) -> Mutagenesis | Path:  # fmt: skip
        """Score every substitution of a region (in-silico mutagenesis).

        `region` is a region string, 1-based inclusive, or an interval; `out` ``.tsv``, ``.npz`` or
        ``.parquet``.
        """
        given = _checked(options, out)
        if out is None:
            return ism(self, region, genome, **given)
        return ism_file(self, region, _path(genome), out, **given)[0]

    @overload
    def embed(
        self, sequences: Sequences, genome: MaybeGenome = None, **options: Unpack[EmbedOptions]
    ) -> Embeddings: ...
    @overload
    def embed(self, sequences: File, genome: MaybeGenome = None, *, out: File,
              **options: Unpack[EmbedOptions]) -> Path: ...  # fmt: skip
    def embed(self, sequences: Sequences, genome: MaybeGenome = None, *, out: File | None = None,
              **options: Unpack[EmbedOptions]) -> Embeddings | Path:  # fmt: skip
        """Embed sequences: hidden states of a layer, float32 (n, width) in ``.vectors``.

        `out` is ``.npy``, ``.npz``, ``.zarr``, ``.h5ad`` or ``.parquet``.
        """
        given = _checked(options, out)
        if out is not None:
            return embed_file(self, _file(sequences, genome), out, **given)
        return embed(self, _read(sequences, genome), **given)

    @overload
    def predict(
        self, sequences: Sequences, genome: MaybeGenome = None, **options: Unpack[PredictOptions]
    ) -> Predictions: ...
    @overload
    def predict(self, sequences: File, genome: MaybeGenome = None, *, out: File,
                **options: Unpack[PredictOptions]) -> Path: ...  # fmt: skip
    def predict(self, sequences: Sequences, genome: MaybeGenome = None, *, out: File | None = None,
                **options: Unpack[PredictOptions]) -> Predictions | Path:  # fmt: skip
        """Predict with the model's head: probabilities, labels or numbers, one row a sequence.

        `out` is ``.tsv`` or ``.parquet``.
        """
        given = _checked(options, out)
        if out is not None:
            return predict_file(self, _file(sequences, genome), out, **given)
        return predict(self, _read(sequences, genome), **given)

    def predict_track(
        self, genome: GenomeLike, *, out: File, regions: Sequence[str] | None = None,
        options: TrackOptions | None = None, calls: str | Path | None = None,
        **run: Unpack[RunOptions],
    ) -> list[Path]:  # fmt: skip
        """Predict every base along a genome, into bigWig or BED; give the files.

        Parameters
        ----------
        out
            ``.bw`` (of several tracks one each, ``OUT.NAME.bw``) or ``.bed``.
        regions
            Contigs, region strings or BED files; the whole genome when None.
        options
            Windows, stitching and class.
        calls
            BED file of the regions called positive.
        """
        return predict_track(
            self, _path(genome), out, regions=regions, options=options, calls=calls, **run
        )

    @overload
    def attribute(
        self, sequences: Sequences, genome: MaybeGenome = None, **options: Unpack[AttributeOptions]
    ) -> list[Attribution]: ...
    @overload
    def attribute(self, sequences: File, genome: MaybeGenome = None, *, out: File,
                  **options: Unpack[AttributeOptions]) -> Path: ...  # fmt: skip
    def attribute(self, sequences: Sequences, genome: MaybeGenome = None, *,
                  out: File | None = None, **options: Unpack[AttributeOptions],
                  ) -> list[Attribution] | Path:  # fmt: skip
        """Attribute an output of the model to the bases of its input; ``.npz`` or ``.parquet``."""
        given = _checked(options, out)
        if out is not None:
            return attribute_file(self, _file(sequences, genome), out, **given)
        return attribute(self, _read(sequences, genome), **given)

    def marginalize(
        self, motif: str | Matrix, backgrounds: Sequences, genome: MaybeGenome = None, *,
        at: int | Sequence[int] | None = None, **options: Unpack[EffectOptions],
    ) -> Effect:  # fmt: skip
        """Put a motif into backgrounds and give what it does to an output of the model.

        Parameters
        ----------
        motif
            Bases, or the matrix of a motif of :func:`read_motifs`, whose consensus is taken.
        backgrounds, genome
            File or sequences (:data:`Sequences`), and the genome of a BED file.
        at
            First base of the motif (0-based), or several, each tried alone; the middle when None.
        """
        return marginalize(self, motif, _read(backgrounds, genome), at, **options)

    def ablate(
        self, sequences: Sequences, start: int | Sequence[int], end: int | Sequence[int],
        genome: MaybeGenome = None, **options: Unpack[EffectOptions],
    ) -> Effect:  # fmt: skip
        """Take an interval out of sequences and give what that does to an output of the model.

        Its bases, `start` to `end` (0-based half-open, in all sequences or in each), become those
        that stand there in dinucleotide shuffles of the whole sequence: a shuffle of a short
        interval alone often gives it back.
        """
        return ablate(self, _read(sequences, genome), start, end, **options)

    @overload
    def generate(
        self, prompts: Prompts = "", **options: Unpack[GenerationOptions]
    ) -> tuple[Generated, ...]: ...
    @overload
    def generate(
        self, prompts: File = "", *, out: File, **options: Unpack[GenerationOptions]
    ) -> Path: ...
    def generate(self, prompts: Prompts = "", *, out: File | None = None,
                 **options: Unpack[GenerationOptions]) -> tuple[Generated, ...] | Path:  # fmt: skip
        """Generate DNA with a causal model, from a prompt, several, or a FASTA file of them.

        `out` is a FASTA file.
        """
        own, run = split_options(_checked(options, out), GenerationOptions)
        settings = GenerateOptions(**own)
        if out is None:
            given = _read(prompts, None)
            read = [Prompt(p.codes, p.name) if isinstance(p, SequenceItem) else p for p in given]
            return generate(self, read, settings)
        if not isinstance(prompts, str | Path):
            raise InputError("out= needs one prompt, or a FASTA file of prompts")
        source = SequenceInput(prompts) if _is_file(prompts) else str(prompts)
        return generate_file(self, out, source, settings, **run)

    def evaluate(
        self, genome: MaybeGenome = None, *, regions: Sequence[str] | None = None,
        train_regions: Sequence[str] | None = None, options: EvaluateOptions | None = None,
    ) -> EvaluationResult:  # fmt: skip
        """Measure the perplexity on held-out DNA, against Markov baselines.

        For a model in a run folder, what is None is that of the run.

        Parameters
        ----------
        regions
            Where the target bases lie: contigs, region strings or BED files (the test regions).
        train_regions
            Where the Markov baselines are trained; without them the uniform model is the only one.
        options
            Windows, context curve and baselines.

        Raises
        ------
        InputError, ConfigError
            When it is not known where to evaluate, and as the command line does.
        """
        given = options or EvaluateOptions()
        store, where, seen, asked = self._evaluated(genome, regions, train_regions, given)
        return evaluate(self.model, store, where, asked, name=self.name, train_regions=seen)

    def evaluate_long_context(
        self, genome: MaybeGenome = None, *, regions: Sequence[str] | None = None,
        options: LongContextOptions | None = None,
    ) -> DataFrame:  # fmt: skip
        """Measure how far back the model finds a copy of what it reads.

        Segments of the genome are repeated at several distances, exactly, mutated, as reverse
        complement, and among distractors. Columns and errors are those of
        :func:`megabase.evaluate.long_context.long_context`.

        Parameters
        ----------
        regions
            Where the segments lie: contigs, region strings or BED files (the test regions of a
            run).
        options
            Segments, distances, distractors, and the seed.
        """
        given = options or LongContextOptions()
        store, where, _, asked = self._evaluated(genome, regions, None, given)
        return long_context(self, store, where, asked)

    def _evaluated(
        self, genome: MaybeGenome, regions: Sequence[str] | None, train: Sequence[str] | None,
        options: Any,
    ) -> tuple[Genome, Regions, Regions | None, Any]:  # fmt: skip
        """Settle genome, regions, training regions and window of an evaluation."""
        run = RunData.find(self.folder) if self.folder is not None else None
        if options.window is None and self.longest is None and run is not None:
            options = dataclasses.replace(options, window=run.longest)
        given = Genome(genome) if isinstance(genome, str | Path) else genome
        return *RunData.evaluated(run, given, regions, train), options


def _checked(options: Mapping[str, Any], out: object) -> dict[str, Any]:
    """Give the keywords of a verb; refuse those that do nothing without a file to write."""
    only_files = sorted(options.keys() & _FILE_ONLY)
    if out is None and only_files:
        raise InputError(f"{', '.join(only_files)}: for work on a file; name it with out=")
    return dict(options)


def _is_file(given: object) -> bool:
    """Tell the name of a file from a sequence: it exists, or holds what no sequence holds."""
    if not isinstance(given, str):
        return isinstance(given, Path)
    if _NO_SEQUENCE.search(given):
        return True
    return len(given) <= _LONGEST_NAME and Path(given).is_file()


def _path(genome: GenomeLike) -> str | Path:
    return genome.path if isinstance(genome, Genome) else genome


def _file(sequences: Sequences, genome: GenomeLike | None) -> SequenceInput:
    if not isinstance(sequences, str | Path):
        raise InputError("out= needs the sequences as a file")
    return SequenceInput(sequences, None if genome is None else _path(genome))


def _read(sequences: Sequences, genome: GenomeLike | None, context: int = 0) -> Any:
    """Give sequences in memory, read from their file where that is named."""
    if _is_file(sequences) or genome is not None:
        return list(_file(sequences, genome).read(context=context))
    return [sequences] if isinstance(sequences, str) else sequences
