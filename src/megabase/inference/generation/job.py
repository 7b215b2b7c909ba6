"""Generated sequences as FASTA: into a file, chunk by chunk, or one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from megabase.data.sources import SequenceInput
from megabase.errors import InputError
from megabase.evaluate.sequences import as_codes
from megabase.genome.files import is_stream
from megabase.inference.generation.generate import (
    Generated,
    GenerateOptions,
    Prompt,
    SequenceGenerator,
)
from megabase.inference.jobs import Work, map_file
from megabase.inference.parts import Provenance
from megabase.inference.writers import require_suffix
from megabase.models.loading import ModelSpec, choose_device, load
from megabase.options import Progress, RunOptions

_LINE = 80  # letters of a line of FASTA, as NCBI writes it
_PLAIN = (".fa", ".fasta", ".fna", ".ffn")  # the endings of nucleotides that NCBI uses
_FASTA_SUFFIXES = (*_PLAIN, *(f"{end}{more}" for end in _PLAIN for more in (".gz", ".bgz")))
"""Endings of an output that readers of FASTA know, plain or bgzip."""


def _record(one: Generated, provenance: Provenance, options: GenerateOptions) -> str:
    """Give the FASTA record of a sequence; its header holds what determines it."""
    genome, sha256 = provenance.genome, provenance.genome_sha256
    facts: dict[str, Any] = {
        "model": _one_word(provenance.model), "model_sha256": provenance.model_sha256[:16],
        "seed": options.seed, "number": one.number, "temperature": f"{options.temperature:g}",
        "top_k": options.top_k, "top_p": options.top_p, "min_p": options.min_p,
        "letters": None if options.letters == "ACGT" else options.letters,
        "genome": None if genome is None else _one_word(genome),
        "genome_sha256": None if sha256 is None else sha256[:16],
        "prompt": _one_word(one.name) or None, "prompt_bases": len(one.prompt),
        "written": len(one.sequence), "stopped": one.stopped, "log_prob": f"{one.log_prob:.4f}",
    }  # fmt: skip
    text = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    letters = one.prompt + one.sequence if options.with_prompt else one.sequence
    lines = [letters[i : i + _LINE] for i in range(0, len(letters), _LINE)]
    return "\n".join((f">generated_{one.number} {text}", *lines, ""))


def _one_word(text: str) -> str:
    """Join words, since blanks separate the facts of a header."""
    return "_".join(text.split())


_Keep = Callable[[Generated, Provenance], object]
"""Called with every sequence in order, and what it was made from."""


def generate_file(
    model: ModelSpec, output: str | Path, prompts: str | SequenceInput = "",
    options: GenerateOptions | None = None, *, keep: _Keep | None = None,
    **running: Unpack[RunOptions],
) -> Path:  # fmt: skip
    """Generate sequences as :func:`generate` of the same package into FASTA, plain or bgzip.

    `prompts` are letters, or the records of a file. `keep` is called with every sequence in order,
    once all are there, and what it was made from. The items of ``progress`` are bases.
    """
    output, options = Path(output), options or GenerateOptions()
    if not is_stream(output):
        require_suffix(output, _FASTA_SUFFIXES)
    running.pop("batch_tokens", None)  # a batch is as long as its sequences
    show = running.get("progress")
    bases = _Bases(show)
    if show is not None:
        running["progress"] = bases.chunk_done

    def describe(generator: SequenceGenerator) -> Provenance:
        generator.progress = bases.generated
        return _describe(prompts, generator)

    def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
        import pysam

        packed = target.suffix in (".gz", ".bgz")
        with pysam.BGZFile(str(target), "wb", None) if packed else target.open("wb") as file:
            for part in parts:
                for line in part.read_text(encoding="utf-8").splitlines():
                    one = Generated(**json.loads(line))
                    file.write(_record(one, provenance, options).encode())
                    if keep is not None:
                        keep(one, provenance)

    work = Work(
        _part, partial(_load, model, options), partial(_chunks, prompts, options),
        partial(_count, options.length), ".jsonl",
    )  # fmt: skip
    return map_file(work, output, describe, merge, **running)


def generate_records(
    model: ModelSpec, prompts: str | SequenceInput = "", options: GenerateOptions | None = None, *,
    device: str | None = None, keep: _Keep | None = None, progress: Progress | None = None,
) -> Iterator[str]:  # fmt: skip
    """Give the records of :func:`generate_file`, each as soon as its chunk is generated."""
    options = options or GenerateOptions()
    generator = _load(model, options, choose_device(device))
    provenance = _describe(prompts, generator)
    generator.progress = _Bases(progress).generated
    for chunk in _chunks(prompts, options):
        for one in generator.generate(chunk):
            yield _record(one, provenance, options)
            if keep is not None:
                keep(one, provenance)


class _Bases:
    """Progress base by base, for work that is done in this process: a chunk may take hours."""

    def __init__(self, show: Progress | None) -> None:
        self.show = show or (lambda what, done, total: None)
        self.done = self.within = 0

    def generated(self, count: int) -> None:
        self.within += count
        self.show("model", self.done + self.within, None)

    def chunk_done(self, what: str, count: int, total: int | None) -> None:
        if what == "model":
            self.done, self.within = count, 0
        self.show(what, count, total)


def _read(prompts: str | SequenceInput) -> Iterator[Prompt]:
    """Stream the prompts, in file order."""
    if isinstance(prompts, str):
        yield Prompt(as_codes(prompts, "the prompt"))
    else:
        yield from (Prompt(one.codes, one.name) for one in prompts.read())


def _chunks(prompts: str | SequenceInput, options: GenerateOptions) -> Iterator[list[Prompt]]:
    """Give the prompts of all sequences in chunks; refuse a file without any."""
    chunk: list[Prompt] | None = None
    for chunk in options.chunks(_read(prompts)):
        yield chunk
    if chunk is None and isinstance(prompts, SequenceInput):
        raise InputError(f"{prompts.path}: holds no prompt")


def _count(length: int, chunk: list[Prompt]) -> int:
    return len(chunk) * length


def _load(model: ModelSpec, options: GenerateOptions, device: Any = None) -> SequenceGenerator:
    return SequenceGenerator(load(model, head="language", device=device), options)


def _describe(prompts: str | SequenceInput, generator: SequenceGenerator) -> Provenance:
    """Check the prompts against the model, before the first base is generated."""
    if isinstance(prompts, SequenceInput):
        prompts.refuse_variants()
    for prompt in _read(prompts):
        generator.check(prompt)
    model, options = generator.model, asdict(generator.options)
    if isinstance(prompts, SequenceInput):
        return Provenance.of("generate", model, prompts, options)
    options["prompt"] = prompts
    return Provenance("generate", model.name, model.digest, options=options)


def _part(generator: SequenceGenerator, chunk: list[Prompt]) -> str:
    """Generate a chunk, a line of JSON for each sequence."""
    return "".join(json.dumps(asdict(one)) + "\n" for one in generator.generate(chunk))
