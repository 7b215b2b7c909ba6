"""Write DNA with a causal language model, base by base.

Writes FASTA, or prints it without --output. Prompts come from --prompt, from a FASTA file, or from
a BED file over a genome; without any, the first base is drawn evenly. The header of each record
carries what decides it: model, seed, number and options. --check adds a table of what was written
beside a genome: composition, words, longest exact copy.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from megabase.genome.store import GenomeStore
    from megabase.inference.generation import Generated, Prompt
    from megabase.inference.model import LanguageModel
    from megabase.inference.sampling import SamplingOptions

__all__ = ["add_arguments", "run"]

_LINE = 80


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase generate``."""
    parser.add_argument(
        "model", nargs="?", default=None, type=str,
        help="model folder, run folder, preset or Hub name (default: the model in the package)",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=str, default=None, help="FASTA file to write")
    parser.add_argument("--length", type=int, default=1_000, help="bases to write, at most")
    parser.add_argument("--samples", type=int, default=1, help="sequences for each prompt")
    parser.add_argument("--prompt", type=str, default=None, help="letters to begin with")
    parser.add_argument(
        "--prompts", type=str, default=None, metavar="FILE",
        help="prompts: a FASTA file; with --genome a BED file",
    )  # fmt: skip
    parser.add_argument(
        "--genome", type=str, default=None, help="genome store (or FASTA) of the BED file"
    )
    parser.add_argument(
        "--with-prompt", action="store_true", help="write the prompt before what follows it"
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=1.0, help="0 takes the most probable base"
    )
    group.add_argument("--top-k", type=int, default=None, help="keep so many most probable bases")
    group.add_argument(
        "--top-p", type=float, default=None, help="keep the fewest bases of this probability"
    )
    group.add_argument(
        "--min-p", type=float, default=None,
        help="keep bases of at least this share of the most probable one's probability",
    )  # fmt: skip
    group.add_argument("--letters", type=str, default="ACGT", help="letters that may be written")
    group.add_argument("--seed", type=int, default=0, help="decides all draws")
    group.add_argument(
        "--stop", nargs="+", default=[], metavar="MOTIF",
        help="end a sequence after one of these motifs (IUPAC letters)",
    )  # fmt: skip
    check = parser.add_argument_group("a look at the result")
    check.add_argument(
        "--check", type=str, default=None, metavar="GENOME",
        help="compare with this genome (store or FASTA), such as that of the training",
    )  # fmt: skip
    check.add_argument("--kmer", type=int, default=6, help="size of the words compared")
    check.add_argument(
        "--json", type=str, default=None, metavar="FILE", help="write the findings as JSON"
    )
    parser.add_argument(
        "--batch-size", type=int, default=None,
        help="sequences written side by side (default: by their length)",
    )  # fmt: skip
    parser.add_argument("--device", type=str, default=None, help="cpu, cuda, cuda:1 or mps")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from pathlib import Path

    from megabase.inference.errors import InputFileError, OutputError
    from megabase.inference.parts import refuse_existing

    if args.prompt is not None and args.prompts is not None:
        raise InputFileError("give --prompt or --prompts, not both")
    if args.genome is not None and args.prompts is None:
        raise InputFileError("--genome names the genome of a BED file: --prompts is missing")
    if args.json is not None and args.check is None:
        raise OutputError("--json holds the findings of --check GENOME, which is missing")
    if not 1 <= args.kmer <= 10:
        raise InputFileError(f"--kmer must lie between 1 and 10, found {args.kmer}")
    files = [Path(name) for name in (args.output, args.json) if name is not None]
    for file in files:
        refuse_existing(file, args.overwrite)
    if len({file.absolute() for file in files}) < len(files):
        raise OutputError(f"--output and --json are one file, {files[0]}")

    from megabase.inference.generation import generate_stream
    from megabase.inference.model import choose_device, load_language_model
    from megabase.inference.sampling import SamplingOptions
    from megabase.inference.sources import genome_store

    options = SamplingOptions(
        args.temperature, args.top_k, args.top_p, args.min_p, args.letters.upper(), args.seed
    )
    model = load_language_model(args.model, choose_device(args.device))
    written: list[Generated] = []
    with contextlib.ExitStack() as stack:
        prompts = _prompts(args, stack)
        genome = None if args.check is None else stack.enter_context(genome_store(args.check))
        progress = stack.enter_context(_progress())
        found = generate_stream(
            model.model,
            prompts,
            length=args.length,
            samples=args.samples,
            options=options,
            stop=args.stop,
            batch_size=args.batch_size,
            progress=progress,
        )
        with _output(args.output, args.overwrite) as file:
            for one in found:
                file.write(_record(one, model, options, args).encode())
                if genome is not None:
                    written.append(one)
        if args.output is not None:
            print(f"wrote {args.output}", file=sys.stderr)
        if genome is not None:
            _check(args, written, genome, model, options)
    return 0


@contextlib.contextmanager
def _output(name: str | None, overwrite: bool) -> Iterator[BinaryIO]:
    if name is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from pathlib import Path

    from megabase.genome.files import atomic_file
    from megabase.inference.errors import OutputError

    with atomic_file(Path(name), overwrite, OutputError) as file:
        yield file


def _prompts(args: Namespace, stack: contextlib.ExitStack) -> Iterator[str | Prompt]:
    from megabase.inference.generation import Prompt
    from megabase.inference.sources import genome_store, read_intervals, read_sequences

    if args.prompts is None:
        # Read now, so that a letter that is none is refused before anything is written.
        return iter([Prompt.of(args.prompt or "", "")])
    if args.genome is None:
        sequences = read_sequences(args.prompts)
    else:
        sequences = read_intervals(args.prompts, stack.enter_context(genome_store(args.genome)))
    return (Prompt(one.codes, one.name) for one in sequences)


def _record(one: Generated, model: LanguageModel, options: SamplingOptions, args: Namespace) -> str:
    facts: dict[str, Any] = {
        "model": model.name.replace(" ", "_"),
        "model_sha256": model.digest[:16],
        "seed": options.seed,
        "number": one.number,
        "temperature": f"{options.temperature:g}",
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "letters": None if options.letters == "ACGT" else options.letters,
        "prompt": one.name.replace(" ", "_") or None,
        "prompt_bases": len(one.prompt),
        "written": len(one.sequence),
        "stopped": one.stopped,
        "log_prob": f"{one.log_prob:.4f}",
    }
    text = " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
    letters = one.prompt + one.sequence if args.with_prompt else one.sequence
    lines = [letters[i : i + _LINE] for i in range(0, len(letters), _LINE)]
    return "\n".join((f">generated_{one.number} {text}", *lines, ""))


def _check(
    args: Namespace,
    written: list[Generated],
    genome: GenomeStore,
    model: LanguageModel,
    options: SamplingOptions,
) -> None:
    from dataclasses import asdict

    from megabase.inference.generated_check import check_generated
    from megabase.inference.provenance import Provenance

    check = check_generated(written, genome, kmer=args.kmer)
    provenance = Provenance(
        "generate",
        model.name,
        model.digest,
        genome.name,
        genome.checksum,
        options={**asdict(options), "length": args.length, "stop": list(args.stop)},
    )
    if args.json is not None:
        check.save(args.json, **provenance.to_dict())
    out = sys.stderr if args.output is None else sys.stdout

    def say(name: str, text: str) -> None:
        print(f"{name:<24}{text}", file=out)

    say("bases written", f"{check.bases:,} in {len(check.sequences):,} sequences")
    say("G and C", f"{check.gc:.3f} (genome {check.genome_gc:.3f})")
    say(
        f"{check.kmer}-mer distance",
        f"{check.kmer_distance:.4f} bits (stretches of the genome {check.kmer_distance_genome:.4f},"
        f" random letters {check.kmer_distance_uniform:.4f})",
    )
    say(
        "longest exact copy",
        f"{check.longest_copy:,} bases (random letters {check.longest_copy_uniform:,})",
    )
    for row in sorted(check.sequences, key=lambda row: -(row.copy.length if row.copy else 0))[:5]:
        copy = row.copy
        if copy is not None and copy.contig is not None and copy.start is not None:
            where = f"{copy.contig}:{copy.start + 1:,}-{copy.end:,}({copy.strand})"
            say(f"  generated_{row.number}", f"{copy.length:,} bases of {where}")
    if args.json is not None:
        print(f"wrote {args.json}", file=sys.stderr)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """Show a count of bases on standard error; give None when that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} bases"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("bases", total=None)
        yield lambda count: bar.advance(task, count)
