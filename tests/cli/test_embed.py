"""``megabase embed``, ``predict`` and ``attribute`` from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from drawn import pictures

from megabase.cli.main import main
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForTokenClassification,
)
from megabase.models.tokenizers.character import DNATokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name, model_class in (
        ("lm", HyenaDNAForCausalLM),
        ("bases", HyenaDNAForTokenClassification),
    ):
        model_class(HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=66)).save_pretrained(name)
        DNATokenizer(model_max_length=66).save_pretrained(name)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ACGT"), 40)) for _ in range(12)]
    Path("in.fa").write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
    Path("labels.tsv").write_text(
        "".join(f"s{i}\t{'odd' if i % 2 else 'even'}\n" for i in range(12))
    )
    Path("g.fa").write_text(">chr1\n" + "".join(texts) + "\n")
    return tmp_path


def test_embed_writes_vectors_and_a_map(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["embed", "lm", "in.fa", "-o", "out.parquet", "--workers", "1"]
    arguments += ["--plot", "map.svg", "--map", "pca", "--labels", "labels.tsv"]
    assert main(arguments) == 0
    assert pl.read_parquet("out.parquet")["embedding"].to_numpy().shape == (12, 16)
    drawn = Path("map.svg").read_text()
    assert "even (6)" in drawn
    assert "principal components" in drawn
    assert "same label for" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "map.svg exists" in capsys.readouterr().err


def test_predict_writes_a_table_or_a_track(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "bases", "in.fa", "-o", "out.tsv", "--workers", "1"]) == 0
    assert len(Path("out.tsv").read_text().splitlines()) == 14
    track = ["predict", "bases", "--genome", "g.fa", "--workers", "1", "-o"]
    assert main([*track, "out.bw", "--calls", "out.bed", "--threshold", "0.5"]) == 0
    assert Path("out.bw").stat().st_size > 0
    assert Path("out.bed").read_text().startswith("#megabase: ")
    assert main(["predict", "bases", "in.fa", "--genome", "g.fa", "-o", "y.bw"]) == 2
    assert "name regions with --regions" in capsys.readouterr().err
    assert main(["predict", "bases", "-o", "y.tsv"]) == 2
    assert not list(folder.glob("y.*"))


def test_attribute_writes_numbers_and_a_logo(folder: Path) -> None:
    arguments = ["attribute", "lm", "in.fa", "-o", "out.parquet", "--workers", "1"]
    assert main([*arguments, "--steps", "4", "--logo", "logo.svg", "--logo-of", "s3"]) == 0
    frame = pl.read_parquet("out.parquet")
    sums = [sum(values) for values in frame["values"].to_list()]
    difference = frame["output"] - frame["baseline_output"] + frame["gap"]
    np.testing.assert_allclose(sums, difference, atol=1e-4)
    assert "<svg" in Path("logo.svg").read_text()
    # The base that stands there at the height of its sum; on request all four, by letter.
    read = Path("in.fa").read_text().split(">s3")[1].split("\n")[1]
    for more, marks in ([], len(read)), (["--logo-stack"], 3 * len(read)):
        with pictures() as seen:
            again = [*arguments, "--steps", "4", "--overwrite", *more]
            assert main([*again, "--logo", "logo.png", "--logo-of", "s3"]) == 0
        seen[0].check(marks=marks, across=0.9)
        letters = seen[0].panels[0].axes.patches
        if not more:
            boxes = [patch.get_path().get_extents() for patch in letters]
            boxes.sort(key=lambda box: round(box.x0 + box.x1))
            heights = [box.y1 if box.y1 > 1e-9 else box.y0 for box in boxes]
            (values,) = frame.filter(pl.col("name") == "s3")["values"].to_list()
            np.testing.assert_allclose(heights, values, atol=1e-5)
