"""Predictions: by sequence, along a genome with stitched windows, as table, bigWig and BED."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pybigtools
import pyBigWig
import pysam
import pytest
import torch

from megabase.cli.main import main
from megabase.data.sources import SequenceInput
from megabase.errors import InputError, MegabaseError, OutputError
from megabase.evaluate.sequences import plan_windows
from megabase.genome.alphabet import encode
from megabase.inference.parts import Run, write_bigwig
from megabase.inference.prediction import (
    Predictor,
    TrackOptions,
    _call_regions,
    predict,
    predict_file,
    predict_track,
)
from megabase.models.adapt.prompt import PromptedModel, PromptSpec, save_prompt
from megabase.models.auto import load_model
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
)
from megabase.models.tokenizers.character import DNATokenizer

LONGEST = 66
FLIP = str.maketrans("ACGT", "TGCA")


def _model(by_base: bool = False, **settings: Any) -> Any:
    torch.manual_seed(2)
    config = HyenaDNAConfig(
        d_model=16, n_layer=1, max_seq_len=LONGEST, initializer_range=0.5,
        **{"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}, **settings},
    )  # fmt: skip
    head = HyenaDNAForTokenClassification if by_base else HyenaDNAForSequenceClassification
    return head(config).eval()


def _text(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


def _slow(model: Any, text: str) -> np.ndarray:
    """Probabilities of one sequence, by a plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([["ACGTN".index(c) + 7 for c in text]])).logits[0]
    return logits.softmax(-1).numpy()


@pytest.mark.parametrize("mode", ["none", "two_sided"])
def test_a_prediction_is_that_of_the_sequence_alone(mode: str) -> None:
    model = _model(bidirectional=mode)
    texts = [_text(n, n) for n in (60, 3, 47, 60)]
    found = predict(model, texts, batch_tokens=150)
    np.testing.assert_allclose(found.values, [_slow(model, t) for t in texts], atol=1e-6)
    assert found.labels == tuple(("no", "yes")[int(v.argmax())] for v in found.values)
    assert found.classes == ("no", "yes")


def _both(model: Any, text: str) -> np.ndarray:
    """Probabilities from the mean of the logits of both strands."""
    with torch.no_grad():
        one, two = (
            model(input_ids=torch.tensor([["ACGTN".index(c) + 7 for c in strand]])).logits[0]
            for strand in (text, text.translate(FLIP)[::-1])
        )
    if one.dim() == 2:
        two = two.flip(0)
    return ((one + two) / 2).softmax(-1).numpy()


@pytest.mark.parametrize("by_base", [False, True])
def test_outputs_of_both_strands_are_averaged(by_base: bool) -> None:
    model = _model(by_base)
    texts = [_text(n, n) for n in (50, 44, 3, 50)]
    wanted = [_both(model, text) for text in texts]
    if by_base:
        wanted = [values.mean(0) for values in wanted]
    found = predict(model, texts, strands="both")
    np.testing.assert_allclose(found.values, wanted, atol=1e-6)
    assert found.both_strands


def test_strands_are_read_as_the_figures_of_the_training_were_taken(tmp_path: Path) -> None:
    from megabase.settings import DeviceConfig, HeadConfig, OptimConfig
    from megabase.tasks.config import FinetuneConfig
    from megabase.tasks.finetune import finetune

    rng = np.random.default_rng(0)
    for name in ("train", "valid", "test"):
        rows = [
            ("".join(rng.choice(list("ACGT"), 30, p=p)), label)
            for _ in range(30)
            for label, p in (("a", [0.35, 0.3, 0.15, 0.2]), ("g", [0.2, 0.15, 0.4, 0.25]))
        ]
        table = pl.DataFrame(rows, schema=["seq", "label"], orient="row")
        table.write_csv(tmp_path / f"{name}.csv")
    test = pl.read_csv(tmp_path / "test.csv")
    shape = {"d_model": 16, "n_layer": 1, "filter_order": 8}
    for average in (True, False):
        run = tmp_path / str(average)
        config = FinetuneConfig(
            train=str(tmp_path), output=str(run), family="hyenadna", overrides=shape, epochs=2,
            global_batch=16, head=HeadConfig(strand_average=average),
            optim=OptimConfig(lr=1e-2, warmup_fraction=0.0),
            devices=DeviceConfig(accelerator="cpu", devices=1),
        )  # fmt: skip
        result = finetune(config)
        assert result is not None
        found = predict(run, test["seq"])
        assert found.both_strands is average
        assert (
            np.mean(np.array(found.labels) == test["label"].to_numpy()) == result.test["accuracy"]
        )
        truth = (test["label"] == "g").to_numpy()
        mine, other = found.values[truth, 1], found.values[~truth, 1]
        auroc = np.mean((mine[:, None] > other) + 0.5 * (mine[:, None] == other))
        assert auroc == pytest.approx(result.test["auroc"], abs=1e-6)
        asked = predict(run, test["seq"], strands="forward" if average else "both")
        assert asked.both_strands is not average
        assert np.abs(asked.values - found.values).max() > 1e-3
        (tmp_path / "in.fa").write_text(f">a\n{test['seq'][0]}\n")
        for flag, said in (
            ([], average),
            (["--strands", "both"], True),
            (["--strands", "forward"], False),
        ):
            out = tmp_path / "out.parquet"
            call = ["predict", str(run), str(tmp_path / "in.fa"), "-o", str(out), "--overwrite"]
            assert main([*call, "--workers", "1", *flag]) == 0
            options = json.loads(pl.read_parquet_metadata(out)["megabase"])["options"]
            assert options["both_strands"] is said
            wanted = found if said is average else asked
            assert pl.read_parquet(out)["p_g"][0] == pytest.approx(wanted.values[0, 1], abs=1e-6)


def test_several_labels_and_numbers() -> None:
    several = _model(problem_type="multi_label_classification")
    found = predict(several, [_text(40)])
    assert not np.isclose(found.values.sum(), 1.0)
    named = [n for n, v in zip(found.classes, found.values[0], strict=True) if v >= 0.5]
    assert found.labels == (",".join(named),)
    number = _model(problem_type="regression", id2label={0: "y"}, label2id={"y": 0})
    assert predict(number, [_text(40)]).labels == ("",)


def test_a_language_model_predicts_no_labels() -> None:
    model = HyenaDNAForCausalLM(HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=LONGEST))
    with pytest.raises(InputError, match="predicts no labels"):
        Predictor(model)


@pytest.mark.parametrize("kind", ["classes", "nucleotides"])
@pytest.mark.parametrize("position", ["before", "both"])
def test_a_soft_prompt_answers_as_the_prompted_model(
    tmp_path: Path, kind: Any, position: Any
) -> None:
    torch.manual_seed(4)
    config = HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=LONGEST, initializer_range=0.5)
    HyenaDNAForCausalLM(config).save_pretrained(tmp_path / "lm")
    DNATokenizer(model_max_length=LONGEST).save_pretrained(tmp_path / "lm")
    model = load_model(tmp_path / "lm", "base")
    spec = PromptSpec(length=3, classes=("no", "yes"), kind=kind, position=position, answer="head")
    prompted = PromptedModel(model, spec, start=torch.randn(3, 16)).eval()
    save_prompt(prompted, tmp_path / "prompt", model="lm", facts={"strand_average": False})
    texts = [_text(n, n) for n in (40, 63, 40, 17)]
    ready = Predictor(str(tmp_path / "lm"), prompt=tmp_path / "prompt", batch_tokens=130)
    found = ready.sequences([encode(text) for text in texts])
    assert (ready.by_base, ready.classes) == (kind == "nucleotides", ("no", "yes"))
    assert ready.longest == LONGEST - 3
    for text, values in zip(texts, found, strict=True):
        slow = _slow(prompted, text)
        slow = slow.mean(0) if kind == "nucleotides" else slow
        np.testing.assert_allclose(values, slow, atol=1e-5)
    with pytest.raises(InputError, match="64 bases"):
        ready.sequences([encode(_text(64))])
    if kind == "nucleotides":
        along = ready.along(encode(texts[0]), window=40, overlap=0)
        np.testing.assert_allclose(along, _slow(prompted, texts[0]), atol=1e-5)
    save_prompt(prompted, tmp_path / "both", model="lm", facts={"strand_average": True})
    both = Predictor(str(tmp_path / "lm"), prompt=tmp_path / "both")
    slow = _both(prompted, texts[0])
    slow = slow.mean(0) if kind == "nucleotides" else slow
    np.testing.assert_allclose(both.sequences([encode(texts[0])])[0], slow, atol=1e-5)
    assert (both.both_strands, ready.both_strands) == (True, False)
    other = HyenaDNAForCausalLM(HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=LONGEST))
    with pytest.raises(MegabaseError, match="another model"):
        Predictor(other, prompt=tmp_path / "prompt")


# -- windows --------------------------------------------------------------------------------------


def test_windows_tile_every_length() -> None:
    for length, window, overlap in itertools.product(range(1, 30), range(1, 9), range(8)):
        if overlap >= window:
            continue
        for rule in ("center", "before"):
            spans = plan_windows(length, window, overlap, rule)
            assert [s.first for s in spans] == [0] + [s.last for s in spans[:-1]]
            assert spans[-1].last == length
            assert all(s.start <= s.first < s.last <= s.end for s in spans)
            assert {s.end - s.start for s in spans} == {min(window, length)}
            part = (length // 3, length // 3 + 1)
            wanted = [s for s in spans if s.first < part[1] and s.last > part[0]]
            assert plan_windows(length, window, overlap, rule, part) == wanted


@pytest.mark.parametrize("rule", ["center", "before", "average"])
@pytest.mark.parametrize("both", [False, True])
def test_bases_of_a_long_sequence_come_from_the_window_of_the_rule(rule: Any, both: bool) -> None:
    model = _model(by_base=True)
    text = _text(130)
    ready = Predictor(model, strands="both" if both else "forward", batch_tokens=100)
    found = ready.along(encode(text), window=50, overlap=20, stitch=rule)
    starts = [0, 30, 60, 80]
    values = np.zeros((4, 130, 2))
    seen = np.zeros((4, 130, 1))
    for i, start in enumerate(starts):
        window = text[start : start + 50]
        rows = _both(model, window) if both else _slow(model, window)
        values[i, start : start + 50], seen[i, start : start + 50] = rows, 1
    for place in range(130):
        covering = [i for i in range(4) if seen[i, place]]
        if rule == "average":
            expected = values[covering, place].mean(0)
        elif rule == "before":
            expected = values[covering[0], place]
        else:  # farthest from both ends; a window at an end of the sequence counts as open there

            def depth(i: int, place: int = place) -> int:
                left = place - starts[i] if i else 1000
                right = starts[i] + 49 - place if i < 3 else 1000
                return min(left, right)

            best = max(depth(i) for i in covering)
            choices = [values[i, place] for i in covering if depth(i) == best]
            assert any(np.allclose(found[place], choice, atol=1e-6) for choice in choices)
            continue
        np.testing.assert_allclose(found[place], expected, atol=1e-6)


def test_a_model_of_sequences_answers_for_the_centres_of_its_windows() -> None:
    model = _model()
    text = _text(100)
    found = Predictor(model).along(encode(text), window=40, overlap=30)
    for place in range(20, 80):
        start = round((place - 20) / 10) * 10  # windows begin every 10 bases
        near = [s for s in (start - 10, start, start + 10) if 0 <= s <= 60]
        answers = [_slow(model, text[s : s + 40]) for s in near]
        assert any(np.allclose(found[place], answer, atol=1e-6) for answer in answers)
    np.testing.assert_allclose(found[52], _slow(model, text[30:70]), atol=1e-6)


# -- tracks ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, by_base in (("bases", True), ("whole", False)):
        _model(by_base).save_pretrained(tmp_path / name)
        DNATokenizer(model_max_length=LONGEST).save_pretrained(tmp_path / name)
    first = _text(400, 1)
    (tmp_path / "genome.fa").write_text(
        f">chr1\n{first[:200]}NNNNN{first[205:]}\n>chr2\n{_text(40, 2)}\n"
    )
    return tmp_path


def test_a_track_is_the_same_by_region_and_for_any_number_of_workers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrackOptions(window=50, overlap=20, strands="both")
    common: dict[str, Any] = {"options": options, "workers": 1}
    genome, model = folder / "genome.fa", str(folder / "bases")
    (whole,) = predict_track(model, genome, folder / "whole.bw", **common)
    monkeypatch.setattr("megabase.inference.prediction._BLOCK", 37)
    (again,) = predict_track(model, genome, folder / "again.bw", batch_tokens=120, **common)
    (part,) = predict_track(model, genome, folder / "part.bw", regions=["chr1:101-230"], **common)
    first = pyBigWig.open(str(whole))
    values = np.float32(first.values("chr1", 0, 400))
    np.testing.assert_allclose(pyBigWig.open(str(again)).values("chr1", 0, 400), values, atol=1e-6)
    inside = pyBigWig.open(str(part)).values("chr1", 0, 400)
    np.testing.assert_allclose(inside[100:230], values[100:230], atol=1e-6)
    assert np.isnan(inside[:100] + inside[230:]).all()
    assert np.flatnonzero(np.isnan(values)).tolist() == [200, 201, 202, 203, 204]
    opened = pybigtools.open(str(whole))
    assert dict(opened.chroms()) == {"chr1": 400, "chr2": 40}
    np.testing.assert_array_equal(np.float32(opened.values("chr1", 0, 400, fillna=None)), values)


def test_calls_are_bed(folder: Path) -> None:
    with pytest.raises(OutputError, match=r"calls\.tsv: called regions are written as BED"):
        predict_track(
            str(folder / "bases"), folder / "genome.fa", folder / "c.bw", calls="calls.tsv"
        )


def test_calls_are_the_stretches_above_the_threshold(folder: Path) -> None:
    options = TrackOptions(window=50, overlap=20, threshold=0.6, shortest=2, output="yes")
    (track,) = predict_track(
        str(folder / "bases"), folder / "genome.fa", folder / "a.bw",
        options=options, calls=folder / "a.bed", workers=1,
    )  # fmt: skip
    (alone,) = predict_track(
        str(folder / "bases"), folder / "genome.fa", folder / "b.bed", options=options, workers=1
    )
    lines = [x.split("\t") for x in alone.read_text().splitlines() if not x.startswith("#")]
    assert (folder / "a.bed").read_text() == alone.read_text()
    values = np.nan_to_num(np.float32(pyBigWig.open(str(track)).values("chr1", 0, 400)))
    called = np.zeros(400, dtype=bool)
    for contig, start, end, name, score, _ in lines:
        assert name == "yes"
        if contig == "chr1":
            called[int(start) : int(end)] = True
            mean = values[int(start) : int(end)].mean()
            assert int(score) == pytest.approx(1000 * mean, abs=1)
            assert int(end) - int(start) >= 2
    assert called.any()
    above = values >= np.float32(0.6)
    assert not called[~above].any()


def test_a_table_of_sequences(folder: Path) -> None:
    (folder / "in.fa").write_text(f">a\n{_text(50)}\n>b\n{_text(20)}\n")
    source = SequenceInput(str(folder / "in.fa"))
    target = predict_file(str(folder / "whole"), source, folder / "out.parquet", workers=1)
    frame = pl.read_parquet(target)
    assert frame.columns == ["name", "length", "label", "p_no", "p_yes"]
    np.testing.assert_allclose(frame["p_no"] + frame["p_yes"], 1, atol=1e-6)
    tsv = predict_file(str(folder / "whole"), source, folder / "out.tsv", workers=1)
    lines = tsv.read_text().splitlines()
    assert lines[0].startswith("#megabase: {")
    assert lines[1].split("\t") == frame.columns


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "parquet"])
def test_a_table_as_input_is_what_the_fasta_is(folder: Path, ending: str) -> None:
    texts = {"a": _text(50), "b": _text(20).lower()}
    (folder / "in.fa").write_text("".join(f">{n}\n{t}\n" for n, t in texts.items()))
    path = folder / f"in.{ending}"
    frame = pl.DataFrame({"id": list(texts), "label": [1, 0], "dna": list(texts.values())})
    if ending == "parquet":
        frame.write_parquet(path)
    else:
        text = frame.write_csv(separator="\t" if ending == "tsv" else ",").encode()
        path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    model = str(folder / "whole")
    expected = predict_file(model, folder / "in.fa", folder / "1.parquet")
    source = SequenceInput(str(path), column="dna")
    found = predict_file(model, source, folder / "2.parquet")
    assert pl.read_parquet(found).equals(pl.read_parquet(expected))


def test_tables_that_cannot_be_read_are_named_with_the_row(folder: Path) -> None:
    path = folder / "in.csv"
    path.write_text("seq,x\nACGT,1\nAC!T,2\n")
    with pytest.raises(MegabaseError, match=r"in\.csv, row 2: .*'!'"):
        predict_file(str(folder / "whole"), path, folder / "x.tsv", workers=1)
    with pytest.raises(MegabaseError, match=r"no column 'dna' for the sequence; it has seq, x"):
        list(SequenceInput(str(path), column="dna").read())
    path.write_text("seq\nACGT\n")
    names = [item.name for item in SequenceInput(str(path)).read()]
    assert names == ["1"]
    path.write_text('seq,x\nACGT,1\n"",1\n')
    with pytest.raises(MegabaseError, match="row 2: the sequence is empty"):
        list(SequenceInput(str(path)).read())
    with pytest.raises(MegabaseError, match="is a table, which holds its sequences itself"):
        SequenceInput(str(path), str(folder / "genome.fa"))
    cut = folder / "cut.csv.gz"
    with pysam.BGZFile(str(cut), "wb", None) as file:
        file.write(b"seq\nACGT\n")
    assert [item.name for item in SequenceInput(str(cut)).read()] == ["1"]
    cut.write_bytes(cut.read_bytes()[:-28])  # without the block that ends the file
    with pytest.raises(MegabaseError, match=r"cut\.csv\.gz is cut short"):
        list(SequenceInput(str(cut)).read())
    with pytest.raises(MegabaseError, match="has no columns"):
        SequenceInput(str(folder / "genome.fa"), column="dna")


def test_what_cannot_be_predicted_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no output 'maybe'"):
        predict_track(str(folder / "bases"), folder / "genome.fa", folder / "x.bw",
                      options=TrackOptions(output="maybe"), workers=1)  # fmt: skip
    with pytest.raises(InputError, match="67 bases does not fit"):
        predict_track(str(folder / "bases"), folder / "genome.fa", folder / "x.bw",
                      options=TrackOptions(window=67), workers=1)  # fmt: skip
    (folder / "long.fa").write_text(f">a\n{_text(80)}\n")
    with pytest.raises(InputError, match="sequence a has 80 bases"):
        predict_file(str(folder / "whole"), folder / "long.fa", folder / "x.tsv", workers=1)
    assert not list(folder.glob("x.*"))


def test_bigwig_refuses_numbers_out_of_order(tmp_path: Path) -> None:
    ones = np.ones(5, dtype=np.float32)
    for runs, message in (
        ([Run("a", 98, ones)], "past the end"),
        ([Run("a", 10, ones), Run("a", 3, ones)], "after a later position"),
        ([Run("a", 0, ones), Run("b", 0, ones), Run("a", 20, ones)], "after a later position"),
        ([Run("a", 0, ones * np.nan)], "no number"),
    ):
        with pytest.raises(OutputError, match=message):
            write_bigwig(tmp_path / "x.bw", {"a": 100, "b": 100}, runs)


def test_stretches_are_joined_over_borders() -> None:
    runs = [
        Run("a", 0, np.array([0.1, 0.9, 0.8], dtype=np.float32)),
        Run("a", 3, np.array([0.7, 0.2, 0.9, 0.1], dtype=np.float32)),
        Run("b", 0, np.array([0.9], dtype=np.float32)),
    ]
    means = [(*place, round(mean, 4)) for *place, mean in _call_regions(runs, 0.5)]
    assert means == [("a", 1, 4, 0.8), ("a", 5, 6, 0.9), ("b", 0, 1, 0.9)]
    joined = list(_call_regions(runs, 0.5, join=1, shortest=2))
    assert joined == [("a", 1, 6, pytest.approx(0.825))]
