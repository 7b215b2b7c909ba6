"""All substitutions in one pass against a pass for each base; the table; look-ups; tracks."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.errors import InputError
from megabase.genome.store import Genome
from megabase.inference.variants.every_snv import score_all
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

IDS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
PAIRS = str.maketrans("ACGTN", "TGCAN")
WINDOW, CONTEXT = 48, 20


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    rng = np.random.default_rng(7)
    one = "".join(rng.choice(list("ACGTacgt"), 400))
    return {"chr1": one[:100] + "N" * 60 + one[160:], "short": "ACGTTGCAACGGTAC", "one": "A"}


@pytest.fixture(scope="module")
def genome(contigs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genome")
    text = "".join(f">{name}\n{bases}\n" for name, bases in contigs.items())
    (folder / "toy.fa").write_text(text)
    return Genome.build(folder / "toy.fa", folder / "toy.mb").path


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(2)
    small = {"d_model": 16, "n_layer": 2}
    hyena = HyenaDNAForCausalLM(HyenaDNAConfig(**small, filter_order=8, max_seq_len=66))
    gpt = GPTForCausalLM(GPTConfig(**small, max_position_embeddings=66))
    for parameter in (*hyena.parameters(), *gpt.parameters()):
        if parameter.dim() > 1:  # the first weights are small: make every base count
            parameter.data.mul_(4)
    return {"hyena": hyena.eval(), "gpt": gpt.eval()}


def rows_of(path: Path) -> list[tuple[str, ...]]:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert lines[0].startswith("##megabase={")
    table = [tuple(line.split("\t")) for line in lines if not line.startswith("##")]
    assert table[0] == ("#Chrom", "Pos", "Ref", "Alt", "score", "percentile")
    return table[1:]


def expected(model: torch.nn.Module, bases: str, at: int, strand: str) -> dict[str, float] | None:
    """Score one base by a pass over no more than the window that answers for it."""
    if strand == "reverse":
        bases, at = bases.translate(PAIRS)[::-1], len(bases) - 1 - at
    if at == 0:
        return None
    start = max(0, (at - CONTEXT) // (WINDOW - CONTEXT)) * (WINDOW - CONTEXT)
    ids = torch.tensor([[IDS[base] for base in bases[start:at]]])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1, 7:11].log_softmax(-1).tolist()
    values = {base: logits["ACGT".index(base)] for base in "ACGT"}
    if strand == "reverse":
        values = {base.translate(PAIRS): value for base, value in values.items()}
    own = bases[at] if strand == "forward" else bases[at].translate(PAIRS)
    return {base: value - values[own] for base, value in values.items()}


@pytest.mark.parametrize("name", ["hyena", "gpt"])
@pytest.mark.parametrize("strands", ["forward", "reverse", "both"])
def test_every_row_is_that_of_its_own_pass(
    name: str, strands: str, models: dict[str, torch.nn.Module], contigs: dict[str, str],
    genome: Path, tmp_path: Path,
) -> None:  # fmt: skip
    model, out = models[name], tmp_path / "all.tsv.gz"
    options = {"strands": strands, "window": WINDOW, "context": CONTEXT, "batch_tokens": 150}
    with pytest.warns(match="60 REF_NOT_BASES.* NO_BASE_BEFORE"):
        found = score_all(model, genome, out, workers=1, **options)
    rows = iter(rows_of(out))
    count = 0
    for contig, text in contigs.items():
        bases = text.upper()
        for at, ref in enumerate(bases):
            read = ["forward", "reverse"] if strands == "both" else [strands]
            if ref == "N":
                continue
            each = [expected(model, bases, at, strand) for strand in read]
            if None in each:
                continue
            for alt in "ACGT".replace(ref, ""):
                row = next(rows)
                assert row[:4] == (contig, str(at + 1), ref, alt)
                value = sum(one[alt] for one in each) / len(each)
                assert float(row[4]) == pytest.approx(value, abs=2e-5)
                count += 1
    assert next(rows, None) is None
    assert found == (count, [out, Path(f"{out}.tbi")])


def test_regions_workers_and_percentiles(
    models: dict[str, torch.nn.Module], genome: Path, tmp_path: Path
) -> None:
    options = {"window": WINDOW, "context": CONTEXT}
    with pytest.warns(match="have no substitutions"):
        score_all(models["hyena"], genome, tmp_path / "all.tsv.gz", workers=1, **options)
    rows = rows_of(tmp_path / "all.tsv.gz")
    score_all(
        models["hyena"], genome, tmp_path / "some.tsv.gz", regions=["chr1:211-260", "chr1:31-40"],
        workers=1, **options,
    )  # fmt: skip
    some = [
        row
        for row in rows
        if row[0] == "chr1" and int(row[1]) in (*range(31, 41), *range(211, 261))
    ]
    assert rows_of(tmp_path / "some.tsv.gz") == some
    scores = np.array([float(row[4]) for row in rows])
    percentiles = np.array([float(row[5]) for row in rows])
    assert (np.diff(percentiles[np.argsort(scores, kind="stable")]) >= 0).all()
    assert percentiles.min() >= 0
    assert percentiles.max() <= 100
    assert np.median(percentiles) > 20


def test_what_cannot_be(models: dict[str, torch.nn.Module], genome: Path, tmp_path: Path) -> None:
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1))
    with pytest.raises(InputError, match="causal model; score a VCF"):
        score_all(masked, genome, tmp_path / "a.tsv.gz")
    with pytest.raises(InputError, match="context of 48"):
        score_all(models["hyena"], genome, tmp_path / "a.tsv.gz", window=48, context=48)
