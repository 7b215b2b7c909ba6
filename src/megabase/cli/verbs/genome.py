"""The verb that makes, describes and verifies genome stores."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.parser import Namespace, Verb, VerbParser
from megabase.cli.streams import note, output, print_table, show_progress

if TYPE_CHECKING:
    from megabase.genome.store import Genome


_SHOWN_CONTIGS = 50  # a screenful; an assembly may have a million


def _add_genome(parser: VerbParser) -> None:
    actions = parser.add_subcommands(required=True, dest="action")

    def action(name: str, short: str, description: str) -> VerbParser:
        made = type(parser)(formatter_class=parser.formatter_class, description=description)
        made.outer = parser
        actions.add_subcommand(name, made, help=short)
        return made

    build = action("build", "FASTA files into one store", "Stream FASTA files into one store.")
    build.add_argument("sources", nargs="+", metavar="FASTA", help="FASTA files: plain, gzip or "
        "bgzip, told apart by their content; - is standard input")  # fmt: skip
    build.add_argument("-o", "--output", required=True, help="the store file to write")
    build.add_argument("--name", type=str, help="name of the genome, written into every output "
        "(default: from the file name)")  # fmt: skip
    build.add_argument("--overwrite", action="store_true", help="replace the output if it exists "
        "already")  # fmt: skip
    info = action("info", "what a store holds", "Say what a genome store holds.")
    info.add_argument("store", help="the store file")
    info.add_argument("--json", action="store_true", help="print everything as JSON")
    info.add_argument("--all", action="store_true", help=f"list every contig, not the first "
        f"{_SHOWN_CONTIGS}")  # fmt: skip
    verify = action("verify", "compare a store with its checksums",
        "Read every base of a genome store and compare it with the recorded sha256.")  # fmt: skip
    verify.add_argument("store", help="the store file")


def _genome(args: Namespace) -> None:
    """Build, describe and verify genome stores: one memory-mapped file for each genome."""
    {"build": _build, "info": _info, "verify": _verify}[args.action](args[args.action])


def _build(args: Namespace) -> None:
    from megabase.genome.store import Genome

    begin = time.perf_counter()
    with show_progress("bytes") as progress:
        store = Genome.build(
            args.sources, args.output, name=args.name, overwrite=args.overwrite,
            progress=progress and partial(progress, "reading FASTA"),
        )  # fmt: skip
    seconds = time.perf_counter() - begin
    note(f"wrote {args.output}")
    _print_summary(store)
    speed = store.total_length / max(seconds, 1e-9) / 1e6
    output().print(f"built in {seconds:.1f} s ({speed:,.0f} million bases/s)")


def _info(args: Namespace) -> None:
    store = _opened(args.store)
    if args.json:
        record = {"path": str(store.path), "total_length": store.total_length}
        print(json.dumps(record | asdict(store.metadata), indent=2))
        return
    _print_summary(store)
    _print_contigs(store, None if args.all else _SHOWN_CONTIGS)


def _verify(args: Namespace) -> None:
    store = _opened(args.store)
    with show_progress("bases") as progress:
        store.verify(progress and partial(progress, "reading the store"))
    output().print(
        f"{args.store}: all {len(store.contigs):,} contigs ({store.total_length:,} bases) have "
        "their recorded sha256 and counts"
    )


def _opened(path: str) -> Genome:
    """Open a store; of FASTA none is built for this, unlike by ``Genome``."""
    from megabase.genome.format import Metadata
    from megabase.genome.store import Genome

    Metadata.read(Path(path))
    return Genome(path)


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.2%})" if part else "0"


def _print_summary(store: Genome) -> None:
    from megabase.genome.alphabet import describe_ambiguous

    contigs, total = store.contigs, store.total_length
    letters = store.metadata.iupac_letters
    iupac = _share(sum(letters.values()), total)
    if letters:
        iupac += f": {describe_ambiguous(letters)}"
    facts = {
        "genome": store.name,
        "sources": ", ".join(store.metadata.sources),
        "contigs": f"{len(contigs):,}",
        "bases": f"{total:,}",
        "N": _share(sum(contig.n_count for contig in contigs), total),
        "IUPAC letters turned into N": iupac,
        "soft-masked (lower case)": _share(sum(c.soft_masked_count for c in contigs), total),
        "sha256 of the genome": store.checksum,
        "written by": store.metadata.created_by,
    }
    print_table(("", ""), list(facts.items()))


def _print_contigs(store: Genome, limit: int | None) -> None:
    rows: list[tuple[str, ...]] = []
    for one in store.contigs[:limit]:
        counts = (one.length, one.n_count, one.iupac_count, one.soft_masked_count)
        text = one.description if len(one.description) <= 40 else f"{one.description[:37]}..."
        rows.append((one.name, *(f"{n:,}" for n in counts), one.sha256[:12], text))
    print()
    head = ("contig", ">length", ">N", ">IUPAC to N", ">soft-masked", "sha256", "description")
    print_table(head, rows)
    if limit is not None and len(store.contigs) > limit:
        print(f"... and {len(store.contigs) - limit:,} more (--all lists them)")


# fmt: off
VERBS = {
    "genome": Verb(_add_genome, _genome, (
        "megabase genome build hg38.fa.gz -o hg38.mb",
        "megabase genome info hg38.mb",
    )),
}
