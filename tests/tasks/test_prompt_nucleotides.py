"""A soft prompt that answers for every base: learned from a genome, saved, and used by predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from megabase.cli.main import main
from megabase.genome.store import Genome
from megabase.models.adapt.prompt import load_prompt
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer

BASES, PIECE, WIDTH, VECTORS = 1_600, 40, 16, 4


@pytest.fixture
def genome(tmp_path: Path) -> tuple[str, str]:
    """Two contigs whose pieces of 40 bases are rich in A and T (features) or in C and G."""
    rng = np.random.default_rng(0)
    fasta, rows = [], []
    for name in ("a", "b"):
        letters = ""
        for i in range(BASES // PIECE):
            weights = [0.45, 0.05, 0.05, 0.45] if i % 2 else [0.05, 0.45, 0.45, 0.05]
            letters += "".join(rng.choice(list("ACGT"), size=PIECE, p=weights))
            if i % 2:
                rows.append(f"{name}\t{PIECE * i}\t{PIECE * i + PIECE}")
        fasta.append(f">{name}\n{letters}")
    (tmp_path / "g.fa").write_text("\n".join(fasta) + "\n")
    (tmp_path / "genes.bed").write_text("\n".join(rows) + "\n")
    Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    return str(tmp_path / "g.mb"), str(tmp_path / "genes.bed")


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = HyenaDNAConfig(
        d_model=WIDTH, n_layer=2, max_seq_len=80, filter_order=8, embed_dropout=0.0
    )
    folder = tmp_path / "model"
    HyenaDNAForCausalLM(config).save_pretrained(folder)
    DNATokenizer().save_pretrained(folder)
    return str(folder)


def test_from_a_genome_to_called_stretches(
    tmp_path: Path, genome: tuple[str, str], model: str
) -> None:
    store, features = genome
    before = (Path(model) / "model.safetensors").read_bytes()
    run = tmp_path / "run"
    assert main([
        "prompt", model, "--train", store, "--genome.features", json.dumps([features]),
        "--genome.test", "[b]", "--genome.length", "64", "--prompt.answer", "head",
        "--prompt.length", str(VECTORS), "--head.strand-average", "--predictions",
        "--epochs", "12", "--global-batch", "8", "--optim.lr", "0.03",
        "--devices.accelerator", "cpu", "--devices.devices", "1", "--output", str(run),
    ]) == 0  # fmt: skip

    result = json.loads((run / "result.json").read_text())
    assert result["kind"] == "nucleotides"
    assert result["rows"] == {"train": 23, "valid": 3, "test": 25}
    assert result["trained_parameters"] == VECTORS * WIDTH + 2 * WIDTH + 2
    assert result["prompt_bytes"] < 4_000
    assert result["test"]["auroc"] > 0.85
    assert result["test"]["auprc"] > 0.85
    assert (Path(model) / "model.safetensors").read_bytes() == before

    table = pl.read_parquet(run / "predictions.parquet")
    assert table["position"].to_list() == list(range(BASES))
    truth = np.arange(BASES) // PIECE % 2 == 1
    said = table[:, -1].to_numpy() > 0.5
    assert (said == truth).mean() == pytest.approx(result["test"]["accuracy"])

    # The vectors take part in the answer: without them it is another one.
    prompted = load_prompt(run).eval()
    ids = torch.randint(7, 11, (1, 64))
    with torch.no_grad():
        whole = prompted(ids).logits
        prompted.vectors.zero_()
        bare = prompted(ids).logits
    assert whole.shape == (1, 64, 2)
    assert (whole - bare).abs().max() > 1e-3

    out = tmp_path / "calls.bed"
    assert main([
        "predict", model, "--prompt", str(run), "--genome", store, "--regions", "b",
        "--strands", "both", "--threshold", "0.5", "--join", "2", "--min-length", "8",
        "-o", str(out),
    ]) == 0  # fmt: skip
    called = np.zeros(BASES, dtype=bool)
    rows = [line for line in out.read_text().splitlines() if "\t" in line]
    for contig, start, end, *_ in (row.split("\t") for row in rows):
        assert contig == "b"
        called[int(start) : int(end)] = True
    assert (called == truth).mean() > 0.85
