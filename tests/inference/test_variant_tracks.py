"""What alleles do to predicted tracks, against whole windows written out and summed by a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
import torch

from megabase.api import load
from megabase.errors import InputError
from megabase.genome.store import Genome
from megabase.inference.ism import ism
from megabase.inference.variants.random_variants import calibrate_variants
from megabase.inference.variants.scorer import score_variants
from megabase.inference.variants.vcf_file import score_variants_file
from megabase.models.auto import load_model
from megabase.models.mamba import MambaConfig, MambaForTokenClassification
from megabase.models.tokenizers.character import DNATokenizer

WINDOW, BIN = 64, 5
IDS = {"A": 7, "C": 8, "G": 9, "T": 10}
COMPLEMENT = str.maketrans("ACGT", "TGCA")


@pytest.fixture(scope="module")
def letters() -> str:
    return "".join(np.random.default_rng(0).choice(list("ACGT"), 400))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, letters: str) -> Path:
    folder = tmp_path_factory.mktemp("variants")
    (folder / "g.fa").write_text(f">chr1\n{letters}\n")
    Genome.build(folder / "g.fa", folder / "g.mb")
    for both in (False, True):
        for loss, statistic in (("poisson", "mean"), ("mse", "sum")):
            torch.manual_seed(3)
            config: Any = MambaConfig(d_model=8, n_layer=1, id2label={0: "up", 1: "Down"})
            model: Any = MambaForTokenClassification(config)
            torch.nn.init.normal_(model.score.weight, std=1.0)
            config.problem_type, config.label_kind = "regression", "tracks"
            config.strand_average = both
            config.units = {
                "loss": loss, "scale": "linear", "center": [3.0, 50.0], "spread": [2.0, 7.0],
                "bin": BIN, "statistic": statistic,
            }  # fmt: skip
            model.save_pretrained(folder / f"{loss}-{both}")
            DNATokenizer().save_pretrained(folder / f"{loss}-{both}")
    return folder


def slow_sums(path: Path, text: str, both: bool) -> np.ndarray:
    """Predict every base, bin by bin, and add all of them up."""
    model: Any = load_model(path)
    units = model.config.units

    def outputs(bases: str) -> np.ndarray:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([[IDS[base] for base in bases]])).logits[0]
        return found.double().numpy()

    raw = outputs(text)
    if both:
        raw = (raw + outputs(text.translate(COMPLEMENT)[::-1])[::-1]) / 2
    total = np.zeros(2)
    for start in range(0, len(text), BIN):
        members = raw[start : start + BIN]
        x = np.sum(members, axis=0) / len(members)
        if units["loss"] == "poisson":
            value = np.array(units["center"]) * np.exp(x)
        else:
            value = np.array(units["center"]) + np.array(units["spread"]) * x
        for _ in members:
            total += value / BIN if units["statistic"] == "sum" else value
    return total


CASES = [  # 0-based position, REF length, ALT: substitutions, an insertion, a deletion, a mixture
    (200, 1, "other"), (200, 3, "GATT"), (150, 1, "keep+ACGTACG"), (150, 9, "keep"),
    (333, 2, "TTTTT"),
]  # fmt: skip


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("loss", ["poisson", "mse"])
def test_sums_over_both_windows(folder: Path, letters: str, loss: str, both: bool) -> None:
    path = folder / f"{loss}-{both}"
    variants, expected = [], []
    for position, size, what in CASES:
        ref = letters[position : position + size]
        alt = what.replace("keep+", ref).replace("keep", ref[0])
        alt = "ACGT"[("ACGT".index(ref[0]) + 1) % 4] if what == "other" else alt
        variants.append(f"chr1:{position + 1}:{ref}>{alt}")
        front = 0  # alleles are compared without what they share
        while front < min(len(ref), len(alt)) and ref[front] == alt[front]:
            front += 1
        start = position + front - WINDOW // 2
        grows = len(alt) - len(ref)
        changed = letters[:position] + alt + letters[position + size :]
        one = letters[start : start + WINDOW - max(0, grows)]
        two = changed[start : start + WINDOW - max(0, -grows)]
        assert one[-20:] == two[-20:]  # both end at one base of the genome
        expected.append([slow_sums(path, text, both) for text in (one, two)])
    found = score_variants(path, variants, folder / "g.mb", window=WINDOW).table
    assert found.columns[-5:-1] == [
        f"track_{kind}_{track}" for kind in ("delta", "lfc") for track in ("up", "Down")
    ]
    for row, (ref_sum, alt_sum) in zip(found.iter_rows(named=True), expected, strict=True):
        for track, name in enumerate(("up", "Down")):
            delta, total = alt_sum[track] - ref_sum[track], ref_sum[track]
            assert row[f"track_delta_{name}"] == pytest.approx(delta, abs=2e-5 * abs(total))
            lfc = np.log2((1 + max(0, alt_sum[track])) / (1 + max(0, total)))
            assert row[f"track_lfc_{name}"] == pytest.approx(lfc, abs=1e-4)


def test_a_vcf_has_a_key_for_each_track(folder: Path, letters: str) -> None:
    ref = letters[200]
    alt = "A" if ref != "A" else "C"
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    row = f"chr1\t201\t.\t{ref}\t{alt}\t.\t.\t."
    (folder / "in.vcf").write_text(f"##fileformat=VCFv4.2\n{columns}\n{row}\n")
    model = folder / "poisson-False"
    score_variants_file(
        model, folder / "in.vcf", folder / "g.mb", folder / "out.vcf", window=WINDOW,
        methods=["track_lfc", "abs_track_delta"], workers=1, overwrite=True,
    )  # fmt: skip
    table = score_variants(model, f"chr1:201:{ref}>{alt}", folder / "g.mb", window=WINDOW).table
    with pysam.VariantFile(str(folder / "out.vcf")) as file:
        assert "forward strand" in str(file.header.info["MB_TRACK_LFC_UP"].description)
        (record,) = list(file)
        (lfc,), (delta,) = record.info["MB_TRACK_LFC_UP"], record.info["MB_ABS_TRACK_DELTA_DOWN"]
    assert lfc == pytest.approx(table["track_lfc_up"][0], rel=1e-4)
    assert delta == pytest.approx(abs(table["track_delta_Down"][0]), rel=1e-4)
    with pytest.raises(InputError, match="has INFO field MB_TRACK_LFC already"):
        score_variants_file(model, folder / "out.vcf", folder / "g.mb", folder / "again.vcf")
    found = ism(model, "chr1:201-203", folder / "g.mb", window=WINDOW)
    assert found.scores["track_delta_up"][0, "ACGT".index(alt)] == pytest.approx(
        table["track_delta_up"][0], rel=1e-3
    )


def test_random_variants_calibrate_each_track(folder: Path) -> None:
    model, one = folder / "mse-False", (["chr1:201:N>C", "chr1:101:A>C"], folder / "g.mb")
    options: dict[str, Any] = {"window": WINDOW, "methods": ["track_delta"]}
    file = calibrate_variants(
        model, folder / "g.mb", folder / "c.npz", count=300, workers=1, **options
    )
    found = score_variants(model, *one, calibration=file, **options).table
    named = [f"track_delta_{t}{end}" for end in ("_z", "_percentile") for t in ("up", "Down")]
    assert {"track_delta_up", "track_delta_Down", *named} <= set(found.columns)
    assert np.load(file)["methods"].tolist() == ["track_delta_up", "track_delta_Down"]


def test_methods_and_models_have_to_fit(folder: Path) -> None:
    one = (["chr1:201:A>C"], folder / "g.mb")
    with pytest.raises(InputError, match=r"'llr_site' does not fit a model of tracks"):
        score_variants(folder / "mse-True", *one, methods=["llr_site"])
    with pytest.raises(InputError, match=r"'track_lfc' does not fit a language model, .*use llr_w"):
        load().score_variants(*one, methods=["track_lfc"])
    with pytest.raises(InputError, match="tracks are read on the strand forward, or on both"):
        score_variants(folder / "mse-True", *one, strands="reverse")
