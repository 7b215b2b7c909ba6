"""Verbs of a language model: scores of sequences and variants, new sequences; and shards."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from megabase import options
from megabase.cli.parser import (
    MODEL,
    Namespace,
    Verb,
    VerbParser,
    build_parser,
    given,
    refuse_unused,
    running,
    source_of,
)
from megabase.cli.streams import note
from megabase.errors import InputError, OutputError
from megabase.genome.files import write_json
from megabase.options import GenerationOptions
from megabase.untrusted import read_json

if TYPE_CHECKING:
    from megabase.genome.store import Genome
    from megabase.inference.generation.generate import Generated
    from megabase.inference.parts import Provenance


def _add_score(parser: VerbParser) -> None:
    parser.add_source(".parquet or .tsv", variants=False)
    parser.add_keywords(options.ScoreOptions)
    parser.add_context_parallel("sequence")
    parser.add_running()


def _score(args: Namespace) -> None:
    """Compute log-likelihood and perplexity of sequences (FASTA, tables) or intervals (BED).

    Writes one row for each sequence, to Parquet or TSV by the ending of the output.
    """
    from megabase.inference.scoring import score_file

    source = source_of(args, variants=False)
    with running(args, "sequences", "language") as how:
        target = score_file(
            args.model, source, args.output, **given(args, options.ScoreOptions), **how
        )
        note(f"wrote {target}")


def _add_variants(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", type=str, help=MODEL)
    add("variants", metavar="VCF", nargs="?", type=str, help="VCF (plain, bgzip) or BCF file")
    add("genome", metavar="GENOME", nargs="?", type=str, help="genome store, or FASTA file")
    add("-o", "--output", type=str, help="OUT.vcf, .vcf.gz, .bcf (with scores in INFO), .parquet "
        "or .tsv; of --all .tsv.gz; of --calibrate .npz (default: in the folder of the "
        "model)")  # fmt: skip
    for kind in (options.VariantScoring, options.CalibratedScoring, options.VariantFileScoring):
        parser.add_keywords(kind)
    add("--all", type=str, metavar="GENOME", help="in place of VCF and GENOME: score every "
        "substitution of this genome by llr_site, into a table with a tabix index")  # fmt: skip
    add("--context", type=int, help="of --all: bases before each that are read at least, but at "
        "ends of contigs (default: half a window)")  # fmt: skip
    add("--bigwig", type=str, metavar="PREFIX", help="of --all: write PREFIX.A.bw, ...: the score "
        "of each alternative base along the genome")  # fmt: skip
    add("--hub", type=str, metavar="DIR", help="of --all: write such tracks into a folder that "
        "UCSC draws as a logo (hub.txt)")  # fmt: skip
    add("--hub-genome", type=str, metavar="NAME", help="of --hub: the genome as UCSC names it, "
        "such as hg38 (default: the name of the store)")  # fmt: skip
    add("--calibrate", type=str, metavar="GENOME", help="in place of VCF and GENOME: score random "
        "variants of this genome, and keep mean and spread by context and quantiles")  # fmt: skip
    parser.add_keywords(options.CalibrationOptions)
    parser.add_regions("score and write only what overlaps these; draw random variants "
        "from these")  # fmt: skip
    parser.add_running()


def _variants(args: Namespace) -> None:
    """Score the variants of a VCF or BCF file: how a language model rates ALT against REF.

    Every record is written again with its scores as INFO fields (or as a row of a table); one that
    cannot be scored keeps its line, with the reason. --calibrate scores random variants, by which
    --calibration then standardizes scores. --all scores a genome before it is asked for.
    """
    needed = {"model": "MODEL"}
    if args.all is None and args.calibrate is None:
        needed |= {"variants": "VCF", "genome": "GENOME"}
    if args.calibrate is None:
        needed |= {"output": "--output"}
    if lacking := [shown for name, shown in needed.items() if args[name] is None]:
        text = " and ".join(filter(None, (", ".join(lacking[:-1]), lacking[-1])))
        raise InputError(
            f"{text} {'is' if len(lacking) == 1 else 'are'} missing; expected MODEL "
            "VCF GENOME -o FILE, MODEL --all GENOME -o FILE or MODEL --calibrate GENOME"
        )
    if args.all is not None:
        return _every_snv(args)
    from megabase.inference.variants.random_variants import calibrate_variants
    from megabase.inference.variants.vcf_file import score_variants_file

    if args.calibrate is not None:
        refuse_unused(args, "variants genome calibration genes prefix allow_mismatches "
            "strict", "not for --calibrate")  # fmt: skip
        with running(args, "records") as how:
            path = calibrate_variants(
                args.model, args.calibrate, args.output, regions=args.regions,
                **given(args, options.CalibrationOptions), **how,
            )  # fmt: skip
        note(f"wrote {path}")
        return
    refuse_unused(args, "count others seed", "for --calibrate")
    refuse_unused(args, "context bigwig hub hub_genome", "for --all")
    with running(args, "records") as how:
        written = score_variants_file(
            args.model, args.variants, args.genome, args.output, regions=args.regions,
            **given(args, options.VariantFileScoring), **how,
        )  # fmt: skip
    if isinstance(written, Path):
        note(f"wrote {written}")
        return
    found, index = written
    note(f"wrote {args.output}: {found.records:,} records")
    if index is not None:
        note(f"wrote {index}")
    elif args.output.lower().endswith((".gz", ".bgz", ".bcf")) and Path(args.output).is_file():
        note("no index: the records are not in order (bcftools sort)")


def _every_snv(args: Namespace) -> None:
    from megabase.inference.variants.every_snv import score_all

    refuse_unused(args, "variants genome methods placement calibration genes calibrate count "
        "others seed prefix allow_mismatches strict", "not for --all")  # fmt: skip
    with running(args, "positions") as how:
        written = score_all(
            args.model, args.all, args.output, regions=args.regions, bigwig=args.bigwig,
            hub=args.hub, hub_genome=args.hub_genome,
            **given(args, options.EverySnvScoring), **how,
        )  # fmt: skip
    count, paths = (0, [written]) if isinstance(written, Path) else written
    note(f"wrote {paths[0]}" + (f": {count:,} substitutions" if count else ""))
    for path in paths[1:]:
        note(f"wrote {path}")


def _add_ism(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", type=str, help=MODEL)
    add("region", metavar="REGION", type=str, help="CONTIG:START-END, 1-based with both ends "
        "included, such as chr1:1,001-1,200")  # fmt: skip
    add("genome", metavar="GENOME", type=str, help="genome store, or FASTA file")
    add("-o", "--output", required=True, type=str, help="OUT.parquet, .npz, or .tsv (with neither "
        "--bigwig nor --plot)")  # fmt: skip
    parser.add_keywords(options.VariantScoring)
    add("--bigwig", type=str, metavar="PREFIX", help="write PREFIX.METHOD.bw: at each base the "
        "mean loss of its three substitutions")  # fmt: skip
    add("--plot", type=str, metavar="FILE", help="draw a heat map of the first method under a "
        "sequence logo (.svg, .png or .pdf)")  # fmt: skip
    parser.add_running()


def _ism(args: Namespace) -> None:
    """In-silico mutagenesis (ISM): score every substitution of a region of a genome.

    Writes the scores as a table or as matrices, and on request tracks (bigWig) and a picture.
    """
    from megabase.data.sources import genome_store
    from megabase.inference.ism import Mutagenesis, ism_file
    from megabase.inference.parts import require_suffix

    with contextlib.ExitStack() as stack:
        genome = args.genome
        if args.plot:
            from megabase.report.logos import check_logo

            require_suffix(args.output, (".parquet", ".npz"))
            store = stack.enter_context(genome_store(genome))
            length = store.region(args.region).length
            check_logo(Path(args.plot), length, args.overwrite, "a heat map")
            genome = store.path
        how = stack.enter_context(running(args, "bases"))
        found = ism_file(
            args.model, args.region, genome, args.output, bigwig=args.bigwig,
            **given(args, options.VariantScoring), **how,
        )  # fmt: skip
    for path in found:
        note(f"wrote {path}")
    if args.plot and not args.shard:
        from megabase.report.logos import save_heat_map

        read = Mutagenesis.read(found[0])
        method = next(iter(read.scores))
        save_heat_map(
            Path(args.plot), read.ref, read.scores[method], title=str(read.interval),
            label=method, first=read.interval.start + 1, overwrite=args.overwrite,
        )  # fmt: skip
        note(f"wrote {args.plot}")


def _add_merge(parser: VerbParser) -> None:
    add = parser.add_argument
    add("shards", metavar="SHARD", nargs="+", type=str, help="folders that --shard made: "
        "OUTPUT.shard-1-of-3, ...")  # fmt: skip
    add("-o", "--output", type=str, metavar="FILE", help="what to write (default: OUTPUT, beside "
        "the first shard)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an existing output")


def _merge(args: Namespace) -> int:
    """Merge the shards of a run into the output that one run would have written.

    Needs the model and the inputs where the command names them, and computes nothing. A shard that
    is missing, unfinished, given twice or of another run is refused. The shards stay.
    """
    from megabase.cli.main import COMMAND, VERBS
    from megabase.inference.parts import gather_shards

    folders = [Path(path) for path in args.shards]
    target = Path(args.output or str(folders[0]).rpartition(".shard-")[0] or folders[0])
    if not folders[0].is_dir():
        raise InputError(f"there is no shard {folders[0]}")
    held = next((path / COMMAND for path in folders if (path / COMMAND).is_file()), None)
    if held is None:
        raise InputError(
            f"{folders[0]} does not hold the command of a shard; of shards made in Python call "
            "megabase.gather_shards, and the method again with resume=True"
        )
    command: list[str] = read_json(held, OutputError)["command"]
    parser, verb = build_parser(command[0], f"megabase.cli.verbs.{VERBS[command[0]][0]}")
    again = parser.instantiate(parser.parse_args(command[1:]))
    if target.suffix.lower() != (was := Path(again.output).suffix).lower():
        raise InputError(f"{target}: the shards are of a {was} file; name one that ends so")
    again.shard, again.output, again.resume = None, str(target), True
    # Nothing is computed: neither workers nor an accelerator are needed.
    again.overwrite, again.workers, again.device = args.overwrite, 1, "cpu"
    gather_shards(folders, target, args.overwrite)
    return verb.run(again) or 0


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

    with contextlib.ExitStack() as stack:
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
    "score": Verb(_add_score, _score, (
        "megabase score default genes.fa -o genes.tsv",
        "megabase score runs/mine peaks.bed --genome hg38.mb --context 512 --strands both -o "
        "p.parquet",
    )),
    "variants": Verb(_add_variants, _variants, (
        "megabase variants default in.vcf.gz hg38.mb -o out.vcf.gz",
        "megabase variants runs/mine in.bcf hg38.fa -o out.tsv --window 4096 --methods "
        "llr_window l2",
        "megabase variants runs/mine --calibrate hg38.fa --regions chr20 --methods llr_site",
        "megabase variants default --all hg38.mb --regions chr20 -o chr20.tsv.gz",
    )),
    "ism": Verb(_add_ism, _ism, (
        "megabase ism default chr20:1,000,001-1,000,200 hg38.mb -o r.parquet --plot r.svg",
    )),
    "merge": Verb(_add_merge, _merge, ("megabase merge scored.vcf.gz.shard-*-of-8",)),
    "generate": Verb(_add_generate, _generate, (
        "megabase generate --length 2000 --samples 4 --seed 1 -o generated.fa",
        "megabase generate runs/mine --prompts starts.bed --genome hg38.mb -o generated.fa",
    )),
}
