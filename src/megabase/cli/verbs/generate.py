"""The verb that generates DNA."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from megabase.cli.parser import MODEL, Namespace, Verb, VerbParser, given, refuse_unused, running
from megabase.cli.streams import note
from megabase.errors import InputError
from megabase.options import GenerationOptions

if TYPE_CHECKING:
    from megabase.genome.store import Genome
    from megabase.inference.generation.generate import Generated
    from megabase.inference.parts import Provenance


def _add_generate(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", type=str, help=MODEL)
    add("-o", "--output", type=str, help="FASTA file to write, bgzip when it ends in .gz (default, "
        "or -: standard output)")  # fmt: skip
    add("--prompt", type=str, help="letters to begin with")
    add("--prompts", type=str, metavar="FILE", help="prompts: a FASTA file or a table; with "
        "--genome a BED file")  # fmt: skip
    add("--genome", type=str, help="genome store (or FASTA) of the BED file")
    parser.add_kinds(variants=False)
    add("--with-prompt", action="store_true", help="write the prompt before its continuation")
    add("--batch-size", type=int, help="sequences generated side by side (default: by their "
        "length)")  # fmt: skip
    parser.add_keywords(GenerationOptions)
    add = parser.add_argument_group("quality checks").add_argument
    add("--check", type=str, metavar="GENOME", help="compare with this genome (store or FASTA), "
        "such as that of the training")  # fmt: skip
    add("--kmer", type=int, default=6, help="size of the k-mers that are compared")
    add("--findings", type=str, metavar="FILE", help="write what --check finds as JSON")
    parser.add_running(skip="batch_tokens")


def _generate(args: Namespace) -> None:
    """Generate DNA with a causal language model, base by base.

    Writes FASTA, or prints it without --output. Prompts come from --prompt, from a FASTA file or a
    table, or from a BED file over a genome; without any, the first base is drawn evenly. The header
    of each record holds everything that determines it: model, seed, number and options. --check
    compares the sequences with a genome: composition, k-mers, longest exact match.
    """
    if args.output == "-":
        args.output = None
    _refuse(args)

    from contextlib import ExitStack

    from megabase.data.sources import SequenceInput, genome_store
    from megabase.inference.generation.generate import (
        GenerateOptions,
        generate_file,
        generate_records,
    )
    from megabase.models.loading import threads

    args.stop = tuple(motif.upper() for motif in args.stop or ())
    args.letters = args.letters and args.letters.upper()
    options = GenerateOptions(
        **given(args, GenerationOptions), batch_size=args.batch_size, with_prompt=args.with_prompt
    )
    prompts: str | SequenceInput = args.prompt or ""
    if args.prompts is not None:
        prompts = SequenceInput(
            args.prompts, args.genome, args.kind or "auto", column=args.sequence, strict=args.strict
        )
    generated: list[tuple[Generated, Provenance]] = []

    def keep(one: Generated, provenance: Provenance) -> None:
        if args.check is not None:
            generated.append((one, provenance))

    with ExitStack() as stack:
        genome = None if args.check is None else stack.enter_context(genome_store(args.check))
        how = stack.enter_context(running(args, "bases"))
        if args.output is None:
            stack.enter_context(threads(how.get("threads", 1)))
            for record in generate_records(
                args.model, prompts, options, keep=keep,
                device=args.device, progress=how.get("progress"),
            ):  # fmt: skip
                sys.stdout.write(record)
                sys.stdout.flush()
        else:
            target = generate_file(args.model, args.output, prompts, options, keep=keep, **how)
            note(f"wrote {target}")
        if genome is not None and not args.shard:
            _check(args, generated, genome)


def _refuse(args: Namespace) -> None:
    """Refuse options that contradict each other, before the slow imports."""
    from pathlib import Path

    from megabase.errors import OutputError
    from megabase.inference.parts import refuse_existing

    if args.prompt is not None and args.prompts is not None:
        raise InputError("give --prompt or --prompts, not both")
    if args.genome is not None and args.prompts is None:
        raise InputError("--genome names the genome of a BED file: --prompts is missing")
    if args.prompts is None:
        refuse_unused(args, "kind sequence strict", "for a file of prompts (--prompts)")
    if args.findings is not None and args.check is None:
        raise OutputError("--findings holds the findings of --check GENOME, which is missing")
    if not 1 <= args.kmer <= 10:
        raise InputError(f"--kmer must lie between 1 and 10, found {args.kmer}")
    if args.output is None and (args.resume or (args.workers or 1) > 1):
        raise OutputError("--resume and --workers need --output: parts of the work lie beside it")
    files = [Path(name) for name in (args.output, args.findings) if name is not None]
    for file in files:
        refuse_existing(file, args.overwrite)
    if len({file.absolute() for file in files}) < len(files):
        raise OutputError(f"--output and --findings are one file, {files[0]}")


def _check(args: Namespace, generated: list[tuple[Generated, Provenance]], genome: Genome) -> None:
    """Print the comparison with a genome, and keep it as JSON."""
    from dataclasses import asdict

    from megabase.genome.files import write_json
    from megabase.inference.generation.checks import check_generated

    check = check_generated([one for one, _ in generated], genome, args.kmer)
    if args.findings is not None:
        write_json(args.findings, {**asdict(generated[0][1]), **asdict(check)})
    lines = {
        "bases generated": f"{check.bases:,} in {len(check.sequences):,} sequences",
        "G and C": f"{check.gc:.3f} (genome {check.genome_gc:.3f})",
        f"{check.kmer}-mer distance": f"{check.kmer_distance:.4f} bits (regions of the genome "
        f"{check.kmer_distance_genome:.4f}, random letters {check.kmer_distance_uniform:.4f})",
        "longest exact match": f"{check.longest_copy:,} bases (random letters "
        f"{check.longest_copy_uniform:,})",
    }
    for row in sorted(check.sequences, key=lambda row: -row.copy.length)[:5]:
        match = row.copy
        if match.contig is not None and match.start is not None:
            region = f"{match.contig}:{match.start + 1:,}-{match.end:,}({match.strand})"
            lines[f"  generated_{row.number}"] = f"{match.length:,} bases of {region}"
    for name, text in lines.items():
        print(f"{name:<24}{text}", file=sys.stderr if args.output is None else sys.stdout)
    if args.findings is not None:
        note(f"wrote {args.findings}")


# fmt: off
VERBS = {
    "generate": Verb(_add_generate, _generate, (
        "megabase generate --length 2000 --samples 4 --seed 1 -o generated.fa",
        "megabase generate runs/mine --prompts starts.bed --genome hg38.mb -o generated.fa",
    )),
}
