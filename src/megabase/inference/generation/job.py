"""Writing sequences into a file: chunks of prompts, parts on disk, one FASTA."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance
from megabase.genome.files import is_stream
from megabase.inference.generation.generate import Generated, Prompt, Task, Writer, task_chunks
from megabase.inference.generation.sampling import SamplingOptions
from megabase.inference.input_stream import SequenceInput
from megabase.inference.jobs import Progress, RunOptions, Work, map_file
from megabase.inference.tables import require_table_suffix
from megabase.models.loading import ModelSpec, choose_device, load

__all__ = ["GenerateOptions", "fasta_record", "generate_file", "generate_records"]

_LINE = 80
_PLAIN = (".fa", ".fasta", ".fna", ".ffn")
FASTA_SUFFIXES = (*_PLAIN, *(f"{end}{more}" for end in _PLAIN for more in (".gz", ".bgz")))
"""Endings of an output, plain or bgzip."""


@dataclass(frozen=True)
class GenerateOptions:
    """What decides the letters; see :func:`megabase.inference.generation.generate.generate`."""

    length: int = 1_000
    """Bases to write after each prompt, at most."""
    samples: int = 1
    """Sequences for each prompt."""
    stop: tuple[str, ...] = ()
    """Motifs that end a sequence."""
    batch_size: int | None = None
    """Sequences written side by side: it decides the last bits of scores, and what a chunk is."""
    with_prompt: bool = False
    """Write the prompt before what follows it."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How letters are drawn."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.samples < 1 or (self.batch_size or 1) < 1:
            raise InputError(
                "length, samples and batch_size must be 1 or more, found "
                f"{self.length}, {self.samples} and {self.batch_size}"
            )


def fasta_record(one: Generated, provenance: Provenance, options: GenerateOptions) -> str:
    """Give the FASTA record of a sequence; its header carries what decides it."""
    sampling, sha256 = options.sampling, provenance.genome_sha256
    facts: dict[str, Any] = {
        "model": _word(provenance.model),
        "model_sha256": provenance.model_sha256[:16],
        "seed": sampling.seed,
        "number": one.number,
        "temperature": f"{sampling.temperature:g}",
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "letters": None if sampling.letters == "ACGT" else sampling.letters,
        "genome": None if provenance.genome is None else _word(provenance.genome),
        "genome_sha256": None if sha256 is None else sha256[:16],
        "prompt": _word(one.name) or None,
        "prompt_bases": len(one.prompt),
        "written": len(one.sequence),
        "stopped": one.stopped,
        "log_prob": f"{one.log_prob:.4f}",
    }
    text = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    letters = one.prompt + one.sequence if options.with_prompt else one.sequence
    lines = [letters[i : i + _LINE] for i in range(0, len(letters), _LINE)]
    return "\n".join((f">generated_{one.number} {text}", *lines, ""))


def _word(text: str) -> str:
    return "_".join(text.split())


def generate_file(
    model: ModelSpec,
    output: str | Path,
    prompts: str | SequenceInput = "",
    options: GenerateOptions | None = None,
    *,
    keep: Callable[[Generated, Provenance], object] | None = None,
    **running: Unpack[RunOptions],
) -> Path:
    """Write sequences with a causal language model into a FASTA file.

    Parameters
    ----------
    model
        Model folder, run folder, preset or Hub name; None for the packaged model; or a model.
    output
        The FASTA file; bgzip when it ends in ``.gz``.
    prompts
        What sequences begin with: letters, or the records of a file.
    options
        What decides the letters.
    keep
        Called with every sequence in order, once all are there, and what it was made from.
    **running
        See :class:`megabase.inference.jobs.RunOptions`; the items of ``progress`` are bases.

    Returns
    -------
    pathlib.Path
        The output.

    Raises
    ------
    MegabaseError
        For prompts, a model or an output that cannot be used.
    """
    output, options = Path(output), options or GenerateOptions()
    if not is_stream(output):
        require_table_suffix(output, FASTA_SUFFIXES)
    _refuse_variants(prompts)
    show = running.get("progress")
    bases = _Bases(show)
    if show is not None:
        running["progress"] = bases.chunk_done

    def describe(writer: Writer) -> Provenance:
        writer.progress = bases.wrote
        return _describe(prompts, options, writer)

    def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
        with _open_fasta(target) as file:
            for part in parts:
                for line in part.read_text(encoding="utf-8").splitlines():
                    one = Generated(**json.loads(line))
                    file.write(fasta_record(one, provenance, options).encode())
                    if keep is not None:
                        keep(one, provenance)

    work = Work(
        _write, partial(_writer, model, options), partial(_chunks, prompts, options),
        partial(_count, options.length), ".jsonl",
    )  # fmt: skip
    return map_file(work, output, describe, merge, **running)


def generate_records(
    model: ModelSpec,
    prompts: str | SequenceInput = "",
    options: GenerateOptions | None = None,
    *,
    device: str | None = None,
    keep: Callable[[Generated, Provenance], object] | None = None,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Give the records of :func:`generate_file` one after the other, as soon as they are there."""
    options = options or GenerateOptions()
    _refuse_variants(prompts)
    writer = _writer(model, options, choose_device(device))
    provenance = _describe(prompts, options, writer)
    writer.progress = _Bases(progress).wrote
    for chunk in _chunks(prompts, options):
        for one in writer.write(chunk):
            yield fasta_record(one, provenance, options)
            if keep is not None:
                keep(one, provenance)


class _Bases:
    """Progress base by base, for work that is done in this process: a chunk may take hours."""

    def __init__(self, show: Progress | None) -> None:
        self.show = show or (lambda what, done, total: None)
        self.done = self.within = 0

    def wrote(self, count: int) -> None:
        """Count bases of the chunk that is being written."""
        self.within += count
        self.show("model", self.done + self.within, None)

    def chunk_done(self, what: str, count: int, total: int | None) -> None:
        """Count the bases of finished chunks."""
        if what == "model":
            self.done, self.within = count, 0
        self.show(what, count, total)


def _refuse_variants(prompts: str | SequenceInput) -> None:
    """Refuse a file of variants."""
    if isinstance(prompts, SequenceInput):
        prompts.refuse_variants()


def _read(prompts: str | SequenceInput) -> Iterator[Prompt]:
    """Stream the prompts, in file order."""
    if isinstance(prompts, str):
        yield Prompt.of(prompts)
    else:
        yield from (Prompt(one.codes, one.name) for one in prompts.read())


def _chunks(prompts: str | SequenceInput, options: GenerateOptions) -> Iterator[list[Task]]:
    """Give the sequences to write in chunks."""
    chunk: list[Task] | None = None
    for chunk in task_chunks(_read(prompts), options.samples, options.length, options.batch_size):
        yield chunk
    if chunk is None and isinstance(prompts, SequenceInput):
        raise InputError(f"{prompts.path}: holds no prompt")


def _count(length: int, chunk: list[Task]) -> int:
    """Count bases to write."""
    return len(chunk) * length


def _writer(
    model: ModelSpec, options: GenerateOptions, device: str | torch.device | None = None
) -> Writer:
    """Load the model."""
    loaded = load(model, head="language", device=device)
    return Writer(loaded, options.length, options.sampling, options.stop, options.batch_size)


def _describe(prompts: str | SequenceInput, options: GenerateOptions, writer: Writer) -> Provenance:
    """Check the prompts against the model, before the first base is written."""
    for prompt in _read(prompts):
        writer.check(prompt)
    asked = {**asdict(options), "stop": list(options.stop)}
    if isinstance(prompts, SequenceInput):
        return prompts.provenance("generate", writer.name, writer.digest, **asked)
    return Provenance("generate", writer.name, writer.digest, options={**asked, "prompt": prompts})


def _write(writer: Writer, chunk: list[Task]) -> str:
    """Write the sequences of a chunk, a line of JSON for each."""
    return "".join(json.dumps(asdict(one)) + "\n" for one in writer.write(chunk))


def _open_fasta(target: Path) -> Any:
    """Open the output, bgzip by its ending."""
    if target.suffix not in (".gz", ".bgz"):
        return target.open("wb")
    import pysam

    return pysam.BGZFile(str(target), "wb", None)
