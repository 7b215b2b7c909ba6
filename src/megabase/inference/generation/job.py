"""Writing sequences into a file: chunks of prompts, parts on disk, one FASTA."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance
from megabase.genome.files import is_stream
from megabase.inference.generation.generate import Generated, Prompt, Task, Writer, task_chunks
from megabase.inference.generation.sampling import SamplingOptions
from megabase.inference.input_stream import SequenceInput
from megabase.inference.sharding import Progress, run_job
from megabase.inference.tables import require_table_suffix
from megabase.models.loading import load
from megabase.models.scored_model import choose_device

__all__ = ["GenerateJob", "GenerateOptions", "PromptInput", "fasta_record", "generate_file"]

_LINE = 80
_PLAIN = (".fa", ".fasta", ".fna", ".ffn")
FASTA_SUFFIXES = (*_PLAIN, *(f"{end}{more}" for end in _PLAIN for more in (".gz", ".bgz")))
"""Endings of an output, plain or bgzip."""


@dataclass(frozen=True)
class PromptInput:
    """What sequences begin with: letters, or the records of a file.

    Parameters
    ----------
    text
        Letters; none when empty.
    source
        File of prompts: FASTA, a table, or BED with a genome.

    Raises
    ------
    InputError
        For letters beside a file, or a file of variants.
    """

    text: str = ""
    source: SequenceInput | None = None

    def __post_init__(self) -> None:
        if self.source is None:
            return
        if self.text:
            raise InputError("prompts are letters or a file, not both")
        self.source.refuse_variants()

    def read(self) -> Iterator[Prompt]:
        """Stream the prompts, in file order."""
        if self.source is None:
            yield Prompt.of(self.text)
        else:
            yield from (Prompt(one.codes, one.name) for one in self.source.read())


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


@dataclass
class GenerateJob:
    """The work of ``megabase generate``.

    Parameters
    ----------
    prompts
        What is read.
    model
        As for :func:`megabase.inference.generation.generate.generate`.
    options
        What decides the letters.
    keep
        Called by :meth:`merge` with each sequence, in order.
    wrote
        Called with the number of bases written since the last call, by this process.
    """

    prompts: PromptInput = field(default_factory=PromptInput)
    model: str | None = None
    options: GenerateOptions = field(default_factory=GenerateOptions)
    keep: Callable[[Generated], object] | None = None
    wrote: Callable[[int], object] | None = None
    suffix: str = ".jsonl"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this process: its callbacks, and anything that is loaded."""
        return {**self.__dict__, "keep": None, "wrote": None}

    def writer(self, device: str | None = None) -> Writer:
        """Load the model."""
        model = load(self.model, head="language", device=choose_device(device))
        options = self.options
        return Writer(
            model, options.length, options.sampling, options.stop, options.batch_size, self.wrote
        )

    def provenance(self) -> Provenance:
        """Check the prompts against the model, and give what is computed.

        Raises
        ------
        InputError
            For a prompt that does not fit: found before the first base is written.
        """
        return self._provenance

    @cached_property
    def _provenance(self) -> Provenance:
        ready = load(self.model, head="language")
        options = self.options
        writer = Writer(ready, options.length, options.sampling, options.stop)
        for prompt in self.prompts.read():
            writer.check(prompt)
        asked = {**asdict(options), "stop": list(options.stop)}
        if self.prompts.source is not None:
            return self.prompts.source.provenance("generate", ready.name, ready.digest, **asked)
        asked["prompt"] = self.prompts.text
        return Provenance("generate", ready.name, ready.digest, options=asked)

    def chunks(self) -> Iterator[list[Task]]:
        """Give the sequences to write in chunks."""
        options = self.options
        yield from task_chunks(
            self.prompts.read(), options.samples, options.length, options.batch_size
        )

    def items(self, chunk: list[Task]) -> int:
        """Count bases to write."""
        return len(chunk) * self.options.length

    def open(self, device: str | None) -> Callable[[list[Task]], list[Generated]]:
        """Load the model and give the function from tasks to sequences."""
        return self.writer(device).write

    def write_part(self, result: list[Generated], path: Path) -> None:
        """Write the sequences of a chunk."""
        lines = (json.dumps(asdict(one)) + "\n" for one in result)
        path.write_text("".join(lines), encoding="utf-8")

    def refuse_empty(self) -> NoReturn:
        """Say that there was no prompt."""
        source = self.prompts.source
        raise InputError(f"{source.path if source else 'the input'}: holds no prompt")

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the FASTA file."""
        if not parts:
            self.refuse_empty()
        if target.suffix in (".gz", ".bgz"):
            import pysam

            file: Any = pysam.BGZFile(str(target), "wb", None)
        else:
            file = target.open("wb")
        with file:
            for part in parts:
                for line in part.read_text(encoding="utf-8").splitlines():
                    one = Generated(**json.loads(line))
                    file.write(fasta_record(one, self.provenance(), self.options).encode())
                    if self.keep is not None:
                        self.keep(one)


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
    target: str | Path,
    prompts: PromptInput | None = None,
    model: str | None = None,
    options: GenerateOptions | None = None,
    *,
    keep: Callable[[Generated], object] | None = None,
    progress: Progress | None = None,
    **running: Any,
) -> Path:
    """Write sequences with a causal language model into a FASTA file.

    Parameters
    ----------
    target
        The FASTA file; bgzip when it ends in ``.gz``.
    prompts
        What sequences begin with; nothing when None.
    model
        Model folder, run folder, preset or Hub name; None for the packaged model.
    options
        What decides the letters.
    keep
        Called with every sequence in order, once all are there.
    progress
        Called with what is being done, bases written, and bases in all (None while unknown).
    **running
        ``workers``, ``device``, ``threads``, ``resume``, ``overwrite``: see
        :func:`megabase.inference.sharding.run_job`.

    Returns
    -------
    pathlib.Path
        The output.

    Raises
    ------
    MegabaseError
        For prompts, a model or an output that cannot be used.
    """
    if not is_stream(Path(target)):
        require_table_suffix(Path(target), FASTA_SUFFIXES)
    job = GenerateJob(prompts or PromptInput(), model, options or GenerateOptions(), keep)
    if progress is None:
        return run_job(job, target, **running)
    show = progress
    done = within = 0

    # A chunk may take hours. Work done in this process is shown base by base.
    def wrote(count: int) -> None:
        nonlocal within
        within += count
        show("model", done + within, None)

    def finished(what: str, count: int, total: int | None) -> None:
        nonlocal done, within
        if what == "model":
            done, within = count, 0
        show(what, count, total)

    job.wrote = wrote
    return run_job(job, target, progress=finished, **running)
