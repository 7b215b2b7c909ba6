"""Verbs that measure a model on held-out DNA, compare several, and make pages of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.cli.parser import (
    MODEL,
    Namespace,
    Verb,
    VerbParser,
    given,
    load_shared,
    refuse_unused,
)
from megabase.cli.streams import note, output, print_table, show_progress
from megabase.errors import ConfigError, MegabaseError, MissingDependencyError
from megabase.genome.files import check_output, file_digest, write_whole
from megabase.options import EvaluateOptions, LongContextOptions

if TYPE_CHECKING:
    import polars as pl

    from megabase.evaluate.results import EvaluationResult, Measure
    from megabase.genome.interval import Interval
    from megabase.genome.store import Genome
    from megabase.models.loading import Loaded
    from megabase.report.genome_page import GenomePage
    from megabase.training.run_folder import RunData

_LONG_ONLY = "segment distances distractors count seed"
"""Options that do nothing without ``--long-context``."""
_PERPLEXITY_ONLY = (
    "train_regions no_baselines no_context stride max_windows context_lengths context_targets "
    "context_blocks max_order"
)
"""Options that do nothing with it."""
_SHOWN_CONTIGS = 10
"""Contigs in the terminal: an assembly may have thousands, and the JSON has them all."""
_MOST_BASES = 500_000  # most bases of model tracks: a page of more is slow to draw
_MOST_SUBSTITUTED = 2_000
"""Most bases of --ism: more take minutes, and then the bigWig of megabase ism is for."""
_AROUND = 24  # bases on either side of a variant that its own logo shows


def _add_evaluate(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", type=str, help=MODEL)
    add("--genome", type=str, help="genome store or FASTA")
    parser.add_regions("what to score")
    add("--train-regions", nargs="+", default=[], metavar="REGION", help="where the Markov "
        "baselines are trained (default: those of the run)")  # fmt: skip
    add("--no-baselines", action="store_true", help="score the model alone")
    add("--no-context", action="store_true", help="leave the context curve out")
    parser.add_keywords(EvaluateOptions, skip="baselines")
    add("--device", type=str, help="cpu, cuda, cuda:1 or mps")
    parser.add_context_parallel("window")
    add("--json", action="store_true", help="print everything as JSON")
    add("-o", "--output", type=str, help="folder to write evaluation.json and the plots to "
        "(default for a run: its folder), or a .json file for the result alone; with "
        "--long-context a .tsv or .parquet file")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier evaluation")
    group = parser.add_argument_group("use of long context, in place of perplexity")
    group.add_argument("--long-context", action="store_true", help="repeat segments of the genome "
        "at several distances, and measure how much a first copy helps")  # fmt: skip
    parser.add_keywords(LongContextOptions, "window batch_tokens", group)


def _evaluate(args: Namespace) -> None:
    """Measure the perplexity of a language model on held-out DNA, against its baselines.

    With --long-context: how far back it finds a copy of what it reads, in place of perplexity.
    Regions are contigs (chr20), parts of them (chr20:50,000,001-55,000,000: 1-based, both ends
    included) or BED files. For a model inside a run folder, genome and training regions are those
    of the run, and the regions evaluated are its test regions unless others are named.
    """
    from megabase.genome.store import Genome
    from megabase.training.run_folder import RunData

    if args.long_context:
        refuse_unused(args, _PERPLEXITY_ONLY, "not for --long-context")
    else:
        refuse_unused(args, _LONG_ONLY, "for --long-context")
    model_run = None if args.model is None else RunData.find(args.model)
    files = _files(args, model_run)
    genome = None if args.genome is None else Genome(args.genome)
    store, regions, train = RunData.evaluated(model_run, genome, args.regions, args.train_regions)

    from megabase.evaluate.perplexity import evaluate

    loaded, first = load_shared(args, "language")
    asked = given(args, LongContextOptions if args.long_context else EvaluateOptions)
    if loaded.longest is None and model_run and model_run.longest:
        asked.setdefault("window", model_run.longest)  # the model reads any length
    if args.long_context:
        from megabase.evaluate.long_context import long_context

        chosen = LongContextOptions(**asked)
        with show_progress("rows") if first else contextlib.nullcontext() as progress:
            table = long_context(loaded, store, regions, chosen, progress)
        if first:
            _finish_long_context(args, table, loaded, store, chosen)
        return
    if args.no_context:
        asked["context_lengths"] = []
    options = EvaluateOptions(**asked, baselines=not args.no_baselines)
    with show_progress("windows") if first else contextlib.nullcontext() as progress:
        result = evaluate(
            loaded.model, store, regions, options, name=args.model or loaded.name,
            train_regions=train, progress=progress,
        )  # fmt: skip
    if not first:
        return  # every process has the same result
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)
    _write(result, *files)


def _files(args: Namespace, model_run: RunData | None) -> tuple[Path | None, Path | None]:
    """Give the file and the folder of the plots, checked before any work is done."""
    if args.long_context:
        if args.output is None:
            return None, None
        from megabase.inference.parts import require_suffix

        require_suffix(args.output)
        check_output(Path(args.output), args.overwrite, seeks=True)
        return Path(args.output), None
    place = args.output if args.output is not None else model_run and model_run.path
    if place is None:
        return None, None
    target = Path(place)
    if target.suffix.lower() == ".json":
        check_output(target, args.overwrite)
        return target, None
    file = target / "evaluation.json"
    if target.is_dir():
        check_output(file, args.overwrite)
    return file, target


def _finish_long_context(
    args: Namespace, table: pl.DataFrame, loaded: Loaded, store: Genome, options: LongContextOptions
) -> None:
    """Show what :func:`megabase.evaluate.long_context.long_context` found, and write it."""
    from megabase.inference.parts import Provenance

    if args.json:
        print(table.write_json())
    else:
        output().print(
            f"model    {args.model or loaded.name}\n"
            f"genome   {store.name} (sha256 {store.checksum[:12]})\n"
            f"rows     {options.count:,} segments of {options.segment:,} bases, forward strand, "
            f"seed {options.seed}; with a first copy, and with other DNA in its place"
        )
        head = ("first copy", "distance", "nats a base", "95 % interval", "recovery", "without")
        _table(head, [_long_cells(row) for row in table.rows(named=True)])
    if args.output is not None:
        about = {"long_context": True, "regions": args.regions, **dataclasses.asdict(options)}
        del about["batch_tokens"]  # changes no number
        where = store.name, store.checksum, Provenance.digests(*args.regions), about
        provenance = Provenance("evaluate", loaded.name, loaded.digest, *where)
        provenance.write(table, Path(args.output), overwrite=args.overwrite)
        note(f"wrote {args.output}")


def _long_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = f"needle of {row['copies']}" if row["test"] == "needle" else row["test"]
    interval = f"{row['low']:.4f} to {row['high']:.4f}"
    shares = f"{row['recovery']:.3f}", f"{row['recovery_without']:.3f}"
    return name, f"{row['distance']:,}", f"{row['advantage']:.4f}", interval, *shares


def _write(result: EvaluationResult, file: Path | None, folder: Path | None) -> None:
    from megabase.report.plots import save_plots

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if file is not None:
        result.save(file)
        note(f"wrote {file}")
    try:
        for path in () if folder is None else save_plots(result.to_dict(), folder):
            note(f"wrote {path}")
    except MissingDependencyError as error:  # the numbers are written; only the plots are missing
        note(f"no plots: {error}")


def _print(result: EvaluationResult) -> None:
    console, more = output(), result.region_count - 3
    shown = ", ".join(result.regions[:3]) + (f" and {more:,} more" if more > 0 else "")
    console.print(
        f"model    {result.model} ({result.parameters or 0:,} parameters)\n"
        f"genome   {result.genome} (sha256 {result.genome_checksum[:12]})\n"
        f"regions  {shown}: {result.region_bases:,} bases\n"
        f"scored   {result.overall.targets:,} bases in {result.windows:,} windows, each base with "
        f"{result.window - result.stride + 1:,} to {result.window:,} bases of context; "
        f"{result.skipped:,} others (not A, C, G, T) skipped\n"
        f"time     {result.seconds:,.1f} s"
    )
    if result.objective == "masked":
        console.print("pseudo-perplexity: each base from both sides, itself hidden")
    if result.train_overlap:
        console.print(
            f"NOT HELD OUT: {result.train_overlap:,} of {result.region_bases:,} bases lie in the "
            "training regions",
            style="bold",
        )
    _print_baselines(result)
    parts = list(result.by_soft_mask.items()) if len(result.by_soft_mask) > 1 else []
    contigs = list(result.by_contig.items()) if len(result.by_contig) > 1 else []
    rows = [(name, *_cells(part)) for name, part in parts + contigs[:_SHOWN_CONTIGS]]
    _table(("part", "bases", "perplexity A,C,G,T", "all tokens"), rows)
    if len(contigs) > _SHOWN_CONTIGS:
        console.print(f"... and {len(contigs) - _SHOWN_CONTIGS:,} more contigs (in the JSON)")
    _print_context(result)


def _print_baselines(result: EvaluationResult) -> None:
    """Show the model under its baselines, and how far it is from the best of them."""
    console = output()
    model, baselines = result.overall, result.baselines
    fitted = {one.order: _acgt(one.measure) for one in baselines if one.fitted}
    rows = [
        (one.name, _acgt(one.measure), fitted.get(one.order, ""), "")
        for one in baselines
        if not one.fitted
    ]
    rows.append(("model", _acgt(model), "", _with_error(model.perplexity, model.perplexity_se)))
    _table(("", "perplexity A,C,G,T", "rates fitted", "all tokens"), rows, strong=True)
    if len(baselines) == 1:
        console.print("no Markov baselines (they need --train-regions)", style="dim")
        return
    best = min(baselines, key=lambda one: one.measure.nats_acgt)
    console.print(
        f"best baseline: {best.name}; against it the model "
        f"{'saves' if best.margin_nats > 0 else 'costs'} "
        f"{_bits(abs(best.margin_nats), best.margin_nats_se)} bits a base (paired)"
    )
    console.print(
        f"the Markov models counted {result.baseline_bases:,} bases of the training regions; the "
        f"next shorter context weighs {baselines[1].rates[0]:g} counts, or as fitted by order",
        style="dim",
    )


def _print_context(result: EvaluationResult) -> None:
    rows: list[tuple[str, ...]] = []
    for number, point in enumerate(result.context):
        least = f"{point.context_min:,}-" if point.context_min < point.context else ""
        saved = _bits(point.saved_nats, point.saved_nats_se) if number else ""
        rows.append((f"{least}{point.context:,}", *_cells(point.measure), saved))
    _table(("bases of context", "bases", "perplexity A,C,G,T", "all tokens", "bits saved"), rows)
    pairs = [(one.context_measure, one.name) for one in result.baselines if one.context_measure]
    if pairs:
        measure, name = min(pairs, key=lambda pair: pair[0].nats_acgt)
        text = f"best baseline on these bases: {name}, {measure.perplexity_acgt:.3f}"
        output().print(text, style="dim")


def _table(head: Sequence[str], rows: list[tuple[str, ...]], strong: bool = False) -> None:
    """Print a table of numbers below an empty line, nothing without rows."""
    if rows:
        print()
        print_table((head[0], *(f">{name}" for name in head[1:])), rows, strong=strong)


def _cells(measure: Measure) -> tuple[str, str, str]:
    every = _with_error(measure.perplexity, measure.perplexity_se)
    return f"{measure.targets:,}", _acgt(measure), every


def _acgt(measure: Measure) -> str:
    return _with_error(measure.perplexity_acgt, measure.perplexity_acgt_se)


def _bits(nats: float, error: float | None) -> str:
    return _with_error(nats / math.log(2), error and error / math.log(2), 4)


def _with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """Write a number and its standard error, as far as there are any."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _add_compare(parser: VerbParser) -> None:
    add = parser.add_argument
    add("evaluations", nargs="+", type=str, metavar="EVALUATION", help="run folders with an "
        "evaluation.json, or such files")  # fmt: skip
    add("-o", "--output", type=str, metavar="FILE", help="write the table (Markdown)")
    add("--overwrite", action="store_true", help="replace a file that exists")


def _compare(args: Namespace) -> None:
    """Put evaluations of several models on the same bases into one table.

    Reads what `megabase evaluate` wrote. Causal models have a perplexity, masked ones a
    pseudo-perplexity; the table says which number is which and what each model saw of a base's
    neighbors.
    """
    from megabase.evaluate.results import EvaluationResult

    files = []
    for name in args.evaluations:
        files.append(Path(name, "evaluation.json") if Path(name).is_dir() else Path(name))
        if not files[-1].is_file():
            raise MegabaseError(
                f"{files[-1]} does not exist; make it with: megabase evaluate {name}"
            )
    text = EvaluationResult.compare([EvaluationResult.load(file) for file in files])
    print(text, end="")
    if args.output is not None:
        write_whole(Path(args.output), text, args.overwrite)
        note(f"wrote {args.output}")


def _add_report(parser: VerbParser) -> None:
    add = parser.add_argument
    add("run", nargs="?", type=str, help="run folder of `megabase pretrain` or `finetune`; for a "
        "genome page any language model (default: the model in the package)")  # fmt: skip
    add("-o", "--output", type=str, metavar="FILE", help="the page (default: report.html in the "
        "run folder, or genome.html)")  # fmt: skip
    add("--evaluation", type=str, metavar="JSON", help="result of `megabase evaluate` (default: "
        "evaluation.json in the run folder, if there)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace a page that exists")
    add = parser.add_argument_group("genome page").add_argument
    add("--region", type=str, metavar="REGION", help="what to show: a contig, or chr1:1,001-2,000")
    add("--vcf", type=str, metavar="FILE", help="variants to show (without --region: what is "
        "around them)")  # fmt: skip
    add("--genome", type=str, help="genome store or FASTA")
    add("--genes", type=str, metavar="GFF", help="GFF3 or GTF")
    add("--track", nargs="+", default=[], metavar="NAME=FILE", help="more tracks: bigWig or "
        "bedGraph (numbers), BED, narrowPeak or GFF (intervals)")  # fmt: skip
    add("--info", nargs="+", default=[], metavar="KEY", help="INFO fields of the VCF for the table "
        "(default: all with one number an allele)")  # fmt: skip
    add("--ism", type=str, metavar="REGION", help="score every substitution of this region")
    add("--flank", type=int, default=250, help="bases shown beside each variant")
    add("--window", type=int, help="bases the model reads at once (default: up to 1,024)")
    add("--no-model", action="store_true", help="show no model")
    add("--strict", action="store_true", help="refuse the first row of a file that cannot be used, "
        "instead of leaving it out")  # fmt: skip
    add("--device", type=str, help="cpu, cuda, cuda:1 or mps")
    add("--batch-tokens", type=int, default=65_536, help="positions of a batch: time and memory")


def _report(args: Namespace) -> None:
    """Write a self-contained HTML page, in one file that works without a network.

    `megabase report RUN` is about a training run: learning curve, perplexity against context,
    baselines, data, settings; the numbers on held-out DNA come from `megabase evaluate RUN`. Of
    fine-tuning it shows the metrics. With --region or --vcf it is a genome browser: the sequence,
    genes, what a model predicts at every base, tracks, and a table of variants.
    """
    output = None if args.output is None else Path(args.output)
    if output is not None and output.suffix.lower() not in (".html", ".htm", ""):
        raise ConfigError(f"{output}: the page is HTML; give a name that ends in .html")
    if args.region is not None or args.vcf is not None:
        refuse_unused(args, "evaluation", "for the page of a run")
        if args.vcf is None:
            refuse_unused(args, "info", "for variants, and --vcf is missing")
        page = _genome_page(args)
    elif args.run is None:
        raise ConfigError("name a run folder, or for a genome page --genome with --region or --vcf")
    else:
        why = "for a genome page, and neither --region nor --vcf is given"
        refuse_unused(args, "genome genes track ism window no_model strict info", why)
        from megabase.report.run_page import write_run_page

        page = write_run_page(args.run, args.output, args.evaluation, overwrite=args.overwrite)
    note(f"wrote {page}")


def _genome_page(args: Namespace) -> Path:
    from megabase.data.sources import genome_store
    from megabase.genome.interval import Interval
    from megabase.models.loading import load
    from megabase.report.genome_page import (
        GenomePage,
        genes_track,
        read_track,
        read_variants,
        variants_track,
    )

    if args.genome is None:
        raise ConfigError("--genome is missing: a page of a region or of variants needs a genome")
    if args.ism is not None and args.no_model:
        raise ConfigError("--ism needs the model; remove --no-model")
    target = Path(args.output or "genome.html")
    check_output(target, args.overwrite)
    with genome_store(args.genome) as store:
        region = variants = genes = None
        if args.region is not None:
            region = store.region(args.region)
            region = Interval(region.contig, region.start, region.end)
        if args.vcf is not None:
            variants = read_variants(args.vcf, store, region, info=args.info, strict=args.strict)
        regions = [region] if region is not None else _around(variants, store, args.flank)
        total = sum(one.length for one in regions)
        if total > _MOST_BASES:
            raise ConfigError(
                f"the page would carry {total:,} bases, more than {_MOST_BASES:,}; take a smaller "
                "--region, fewer variants, or a smaller --flank"
            )
        model = None if args.no_model else load(args.run, head="language", device=args.device)
        page = GenomePage(store, regions)
        where = str(region)
        page.numbers.append((f"{total:,}", "", "bases shown"))
        page.facts += [("genome", store.name), ("genome sha256", store.checksum)]
        if args.genes is not None:
            genes = genes_track(args.genes, "genes", store, regions, strict=args.strict)
            page.tracks.append(genes)
            page.facts.append(("genes", Path(args.genes).name))
        if variants is not None:
            track, page.columns, page.rows = variants_track(variants, genes)
            page.tracks.append(track)
            number = variants["record"].n_unique()
            records = f"{number:,} VCF record{'s' if number != 1 else ''}"
            where = records if region is None else where
            alleles = variants["alt"].count()  # a record without an alternative has a row too
            page.numbers.append((f"{alleles:,}", f"in {records}", "alternative alleles"))
            about = f"{Path(str(args.vcf)).name}, sha256 {file_digest(str(args.vcf))}"
            page.facts.append(("variants", about))
        # A bad file is reported before the model works.
        more = [read_track(text, store, regions, strict=args.strict) for text in args.track]
        if model is not None:
            _expect(page, model, variants, args)
            if args.ism is not None:
                _substitute(page, model, args)
        for track, fact in more:
            page.tracks.append(track)
            page.facts.append(fact)
        page.title = f"{where} of {store.name}"
        if variants is not None:
            page.lead = f"{page.lead} A click on a row of the table shows the variant.".lstrip()
        page.lead = page.lead or "The genome, and tracks along it."
        write_whole(target, page.html(), args.overwrite)
    return target


def _around(variants: pl.DataFrame | None, store: Genome, flank: int) -> list[Interval]:
    """Give what lies around variants, joined where it meets."""
    from megabase.genome.interval import Interval, union

    assert variants is not None
    spans: dict[str, list[tuple[int, int]]] = {}
    for contig, start, end in sorted(variants.select("contig", "start", "end").rows()):
        high = min(store.contig(contig).length, end + flank)
        spans.setdefault(contig, []).append((max(0, start - flank), high))
    return [Interval(contig, *span) for contig, own in spans.items() for span in union(own)]


def _expect(
    page: GenomePage, model: Loaded, variants: pl.DataFrame | None, args: Namespace
) -> None:
    import numpy as np

    from megabase.evaluate.log_probs import allele_views, base_probabilities, log_likelihood
    from megabase.genome.interval import shared_ends
    from megabase.report.genome_page import Logo, Overlay, Segment, Track

    options = {"window": args.window, "batch_tokens": args.batch_tokens}
    above: list[Segment] = []
    for region in page.regions:
        found = base_probabilities(model, page.store, region, **options)
        own = log_likelihood(found, page.store.fetch(region))
        # Against knowing nothing (1/4 for every base), so that the line at zero means something.
        above.append(Segment(region.contig, region.start, own + np.log(4)))
        text = "Letters as high as their information in bits."
        page.logos.append(
            Logo("What the model expects", text, region.contig, region.start, found, "probability")
        )
    name = "log-likelihood above uniform (nats)"
    page.tracks.append(Track(name, segments=tuple(above), below="#b4530a", height=80))
    every = np.concatenate([segment.values for segment in above])
    perplexity = 4 * float(np.exp(-np.nanmean(every))) if np.isfinite(every).any() else np.nan
    page.numbers.append((f"{perplexity:.3f}", "of 4", "perplexity of the model here"))
    page.facts += [("model", model.name), ("model sha256", model.digest)]
    view = "both sides of" if model.masked else "what stands before"
    page.lead = (
        f"What the model {model.name} expects at every base, from {view} it. Zoom in for letters: "
        "they follow the view."
    )
    rows = (
        [] if variants is None else variants.select("contig", "start", "end", "ref", "alt").rows()
    )
    for view in allele_views(model, page.store, rows, around=_AROUND, **options):
        contig, _, _, ref, alt = rows[view.number]
        shift = "" if len(ref) == len(alt) else " Places after it are those of the alternative."
        text = f"The same with {alt[:20]} in place of {ref[:20]}.{shift}"
        name, found = "With the variant", view.probabilities
        page.logos.append(Logo(name, text, contig, view.start, found, "probability", view.number))
        front, back = shared_ends(ref, alt)
        own = ref[front : len(ref) - back], alt[front : len(alt) - back]
        before, after = view.before + ref[:front], ref[len(ref) - back :] + view.after
        page.overlays.append(
            Overlay(view.number, view.start, before, own, after, view.ref, view.alt)
        )


def _substitute(page: GenomePage, model: Loaded, args: Namespace) -> None:
    import numpy as np

    from megabase.genome.alphabet import BASES
    from megabase.inference.ism import ism
    from megabase.report.genome_page import Logo, Segment, Track

    region = page.store.region(args.ism)
    if not any(shown.contains(region) for shown in page.regions):
        raise ConfigError(f"--ism {region} does not lie in what the page shows")
    if region.length > _MOST_SUBSTITUTED:
        raise ConfigError(
            f"--ism {region} has {region.length:,} bases, more than {_MOST_SUBSTITUTED:,} (three "
            "changes each); take a shorter region, or add the bigWig of megabase ism as a track"
        )
    found = ism(model, region, page.store, window=args.window, batch_tokens=args.batch_tokens)
    method = next(iter(found.scores))
    effects = found.scores[method].copy()
    for number, base in enumerate(found.ref):
        if base in BASES:
            effects[number, BASES.index(base)] = np.nan
    mean = Segment(region.contig, region.start, -found.importance(method))
    name = f"mean effect of a substitution ({method})"
    page.tracks.append(Track(name, segments=(mean,), below="#b4530a", height=80))
    text = (
        f"Letters as high as the mean loss of the three changes ({method}); below, each change: "
        "red for less likely, blue for more."
    )
    what = "What a substitution would change"
    page.logos.append(Logo(what, text, region.contig, region.start, effects, "effects"))
    page.facts.append(("substitutions", f"{region}, {method}, both strands"))


# fmt: off
VERBS = {
    "evaluate": Verb(_add_evaluate, _evaluate, (
        "megabase evaluate runs/mine",
        "megabase evaluate --genome hg38.mb --regions chr20:50,000,001-51,000,000 --no-baselines",
    )),
    "compare": Verb(_add_compare, _compare, (
        "megabase compare runs/causal runs/masked -o table.md",
    )),
    "report": Verb(_add_report, _report, (
        "megabase report runs/mine",
        "megabase report --genome hg38.mb --region chr20:50,000,001-50,020,000 --genes "
        "genes.gff.gz",
        "megabase report runs/mine --genome hg38.mb --vcf scored.vcf.gz -o variants.html",
    )),
}
