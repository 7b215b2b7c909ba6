"""What the recorded cases do not show: the sane defaults, and refusals."""

from __future__ import annotations

import random
from pathlib import Path

import published
import published_tasks
import pytest
from published import PublishedDataError
from published_training import PublishedStages

from megabase.data.vocabulary import text_to_ids
from megabase.errors import ConfigError


def test_letters_are_upper_cased_unless_asked() -> None:
    assert text_to_ids("acgtNR.").tolist() == [7, 8, 9, 10, 11, 6, 6]
    assert text_to_ids("aCGt", case_sensitive=True).tolist() == [6, 8, 9, 6]


def test_published_examples_of_pretraining_items() -> None:
    data, target = published.interval_item("ACGTNA", 0, 6, 6)
    assert data.tolist() == [7, 8, 9, 10, 11]
    assert target.tolist() == [8, 9, 10, 11, 1]
    data, target = published.interval_item("ACG", 0, 3, 6)
    assert data.tolist() == [4, 4, 7, 8, 9]
    assert target.tolist() == [4, 7, 8, 9, 1]


def test_intervals_are_cut_as_published() -> None:
    # 450,000 from 131,072: 159,464 on each side, clipped at the contig's start.
    assert published.cut_interval(100, 131_172, 450_000, 10**6) == (0, 290_636, 159_364, 0)
    assert published.cut_interval(100, 131_172, 1_024, 10**6) == (100, 1_124, 0, 0)


def test_fixed_set_is_that_of_the_paper() -> None:
    windows = published.fixed_windows(1_000_000)
    assert windows[0] == ("chr14", 19_726_402, 20_726_402)
    assert windows[-1] == ("chrX", 143_825_622, 144_342_320)
    assert len(windows) == 87 + 142


def test_windows_of_a_segment_refuse_lengths_that_do_not_fit() -> None:
    with pytest.raises(PublishedDataError, match="divide"):
        published.caduceus_window(0, 0, 1000, 10**7)
    with pytest.raises(PublishedDataError, match="holds no window"):
        published.caduceus_window(0, 0, 1024, 1000)


def make_folder(root: Path) -> Path:
    for split, label, name, text in [
        ("train", "positive", "0", "ACGT"),
        ("train", "negative", "1", "CC"),
        ("train", "negative", "0", "GG"),
        ("test", "positive", "0", "TT"),  # no negative here: labels must not move
    ]:
        path = root / split / label / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_folder_labels_are_sorted_names_and_the_same_in_every_split(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    classes, items = published_tasks.read_folder(root, "train")
    assert classes == ("negative", "positive")
    assert [tuple(item) for item in items] == [
        ("negative/0.txt", "GG", 0),
        ("negative/1.txt", "CC", 0),
        ("positive/0.txt", "ACGT", 1),
    ]
    _, items = published_tasks.read_folder(root, "test")
    assert [item.label for item in items] == [1]
    with pytest.raises(PublishedDataError, match="SPLIT/CLASS/NAME"):
        published_tasks.read_folder(root, "valid")


def test_records_without_a_label_are_refused() -> None:
    assert published_tasks.label_of_record("seq|2") == 2
    with pytest.raises(PublishedDataError, match="digit"):
        published_tasks.label_of_record("seq")


def test_chromatin_tables_are_checked(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("Chr_No,Start,End,y_a\n7,1000,2000,True\n")
    profiles, windows = published_tasks.chromatin_windows(table, 800)
    assert profiles == ("y_a",)
    assert windows == [("chr8", 1100, 1900, (1,))]
    with pytest.raises(PublishedDataError, match="even"):
        published_tasks.chromatin_windows(table, 801)
    table.write_text("Start,End\n1,2\n")
    with pytest.raises(PublishedDataError, match="Chr_No"):
        published_tasks.chromatin_windows(table, 800)


def test_species_samples_are_full_by_default_and_published_ones_need_not_be() -> None:
    genomes = {"human": {"1": "acgt" * 30, "3": "C" * 60}, "mouse": {"1": "G" * 7}}
    rng = random.Random(1)
    sampler = published_tasks.SpeciesSampler(genomes, 20, weighted_by_bp=True)
    assert sampler.chromosome_weights("human") == pytest.approx([2 / 3, 1 / 3])
    assert sampler.species_weights() == pytest.approx([180 / 187, 7 / 187])
    for _ in range(200):
        label, text = sampler.sample(rng)
        assert text == "G" * 7 + "N" * 13 if label else "N" not in text
        assert len(text) == 20
        assert text == text.upper()
    cut = published_tasks.SpeciesSampler(
        {"human": {"1": "N" * 10 + "A" * 80 + "N" * 10}}, 20, cutoff=0.1
    )
    assert all(set(cut.sample(rng).text) == {"A"} for _ in range(200))
    quirk = published_tasks.SpeciesSampler({"human": {"1": "A" * 50}}, 20, published_end=True)
    assert any("N" in quirk.sample(rng).text for _ in range(50))


def test_published_stages_by_hand() -> None:
    stages = PublishedStages(epochs=(1, 0, 2), batch_sizes=(8, 4, 2), global_batch=16)
    assert stages.cumulative == [1, 1, 3]
    assert [stages.at(epoch) for epoch in range(5)] == [0, 1, 2, 2, 2]
    assert stages.on_resume(1) == 2
    assert stages.accumulation == {0: 2, 1: 8}
    with pytest.raises(ConfigError, match="past the last stage"):
        stages.on_resume(3)
    assert PublishedStages((1,), (None,), 16).accumulation is None
