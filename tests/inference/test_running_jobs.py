"""Chunks of work become parts, parts become one output; interrupted runs go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from megabase.data.sources import (
    SequenceInput,
    _read_fasta,
    genome_store,
)
from megabase.errors import AmbiguousLettersWarning, InputError, OutputError
from megabase.evaluate.sequences import run_batched
from megabase.genome.alphabet import PAD, decode, encode
from megabase.inference.jobs import Work, map_file
from megabase.inference.parts import Provenance, gather_shards, merge_tables
from megabase.models.loading import load


@dataclass
class Squares:
    """A model that squares numbers; may break off before a chunk."""

    power: int = 2
    fail_at: int | None = None
    error: type[BaseException] = KeyboardInterrupt
    computed: list[int] = field(default_factory=list)


def squares(ready: Squares, chunk: list[int]) -> pl.DataFrame:
    if chunk[0] == ready.fail_at:
        raise ready.error("stopped")
    ready.computed.append(chunk[0])
    values = [[float(n), float("nan")] for n in chunk]
    return pl.DataFrame({"n": chunk, "p": [n**ready.power for n in chunk], "list": values})


def numbers() -> Iterator[list[int]]:
    """Give the numbers below ten, three to a chunk."""
    return [list(range(first, min(first + 3, 10))) for first in range(0, 10, 3)]


def describe(ready: Squares) -> Provenance:
    return Provenance("squares", "none", "0", options={"power": ready.power})


def run(ready: Squares, output: Path, **running: Any) -> Path:
    work = Work(squares, lambda device: ready, numbers)
    return map_file(work, output, describe, merge_tables, **running)


@pytest.mark.parametrize("name", ["out.parquet", "out.tsv"])
def test_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    whole = run(Squares(), tmp_path / f"whole-{name}", workers=1).read_bytes()
    target = tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        run(Squares(fail_at=6), target, workers=1)
    assert not target.exists()
    with pytest.raises(OutputError, match=r"holds 2 finished parts .* resume=True"):
        run(Squares(), target, workers=1)
    with pytest.raises(
        OutputError, match=r"other options or inputs \(options.power: 2 then, 3 now\)"
    ):
        run(Squares(power=3), target, workers=1, resume=True)
    again = Squares()
    run(again, target, workers=1, resume=True)
    assert again.computed == [6, 9]
    assert target.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"whole-{name}", name])
    with pytest.raises(OutputError, match="exists already"):
        run(Squares(), target, workers=1)


def test_tables_carry_their_provenance(tmp_path: Path) -> None:
    parquet = run(Squares(), tmp_path / "out.parquet", workers=1)
    assert pl.read_parquet(parquet)["p"].to_list() == [n * n for n in range(10)]
    assert pl.read_parquet_metadata(parquet)["megabase"] == describe(Squares()).to_json()
    first, head, row, *_ = run(Squares(), tmp_path / "o.tsv", workers=1).read_text().split("\n")
    assert first == "#megabase: " + describe(Squares()).to_json()
    assert (head, row) == ("n\tp\tlist", "0\t0\t0.0,NaN")


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run(Squares(fail_at=3, error=InputError), tmp_path / "out.tsv", workers=1)
    assert list(tmp_path.iterdir()) == []


def test_shards_are_merged_to_the_bytes_of_one_run(tmp_path: Path) -> None:
    whole = run(Squares(), tmp_path / "whole.tsv", workers=1).read_bytes()
    target, computed = tmp_path / "out.tsv", []
    for number in (1, 2, 3):
        ready = Squares()
        folder = run(ready, target, workers=1, shard=f"{number}/3")
        assert folder == tmp_path / f"out.tsv.shard-{number}-of-3"
        computed.append(ready.computed)
    assert computed == [[0, 9], [3], [6]]
    folders = sorted(map(str, tmp_path.glob("out.tsv.shard-*")))
    gather_shards(folders[::-1], str(target))
    again = Squares()
    assert run(again, target, workers=1, resume=True).read_bytes() == whole
    assert again.computed == []


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.tsv"
    one, two = (run(Squares(), target, workers=1, shard=f"{number}/2") for number in (1, 2))
    with pytest.raises(OutputError, match="shard 2 of 2 is missing"):
        gather_shards([one], target)
    with pytest.raises(OutputError, match="shard 1 of 2 is given twice"):
        gather_shards([one, two, one], target)
    with pytest.raises(OutputError, match=r"finished already; merge .* overwrite=True"):
        run(Squares(), target, workers=1, shard="1/2")
    foreign = run(Squares(power=3), tmp_path / "cubes.tsv", workers=1, shard="2/2")
    with pytest.raises(OutputError, match=r"of another run .*power: 2 then, 3 now"):
        gather_shards([one, foreign], target)
    elsewhere = shutil.copytree(two, tmp_path / "elsewhere")
    manifest = (elsewhere / "manifest.json").read_text()
    assert '"device": "cpu"' in manifest
    (elsewhere / "manifest.json").write_text(manifest.replace('"cpu"', '"cuda"'))
    with pytest.raises(OutputError, match=r"of another run .*device: 'cpu' then, 'cuda' now"):
        gather_shards([one, elsewhere], target)
    third = run(Squares(), tmp_path / "thirds.tsv", workers=1, shard="2/3")
    with pytest.raises(OutputError, match=r"of another run .*other count"):
        gather_shards([one, third], target)
    with pytest.raises(KeyboardInterrupt):
        run(Squares(fail_at=6), tmp_path / "killed.tsv", workers=1, shard="1/2")
    with pytest.raises(OutputError, match=r"killed.* is not a finished shard; finish it"):
        gather_shards([tmp_path / "killed.tsv.shard-1-of-2", two], target)
    again = Squares()
    folder = run(again, tmp_path / "killed.tsv", workers=1, shard="1/2", resume=True)
    assert again.computed == [6]
    (folder / "part-00000000.parquet").unlink()
    with pytest.raises(OutputError, match="lacks the part of chunk 0"):
        gather_shards([folder, two], target)
    with pytest.raises(InputError, match="folders of shards, found none"):
        gather_shards([], target)
    for wrong in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(InputError, match="such as 2/3; found"):
            run(Squares(), target, workers=1, shard=wrong)
    assert not target.exists()
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_shard_is_resumed_to_itself_and_a_killed_merge_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Squares(), tmp_path / "whole.tsv", workers=1).read_bytes()
    target = tmp_path / "out.tsv"
    shards = [run(Squares(), target, workers=1, shard=f"{number}/2") for number in (1, 2)]
    again = Squares()
    assert run(again, target, workers=1, shard="1/2", resume=True) == shards[0]
    assert again.computed == []
    with pytest.raises(OutputError, match=r"power: 2 then, 3 now"):
        run(Squares(power=3), target, workers=1, shard="1/2", resume=True)
    gather_shards(shards[:1] + shards[1:], target)
    partial = tmp_path / "out.tsv.partial"
    (partial / "part-00000001.parquet").unlink()
    (partial / "part-00000002.parquet").unlink()
    (partial / "part-00000002.parquet").write_bytes(b"cut")  # killed while it was copied
    monkeypatch.setenv("MEGABASE_BACKEND", "reference")  # of the machine that merges
    with pytest.raises(OutputError, match="backend: "):
        gather_shards(shards, target)
    shutil.rmtree(partial)
    gather_shards(shards, target)
    (partial / "part-00000002.parquet").unlink()
    (partial / "part-00000002.parquet").write_bytes(b"cut")
    gather_shards(shards, target)
    again = Squares()
    assert run(again, target, workers=1, resume=True).read_bytes() == whole
    assert again.computed == []


def test_parts_of_another_backend_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.tsv"
    monkeypatch.setenv("MEGABASE_BACKEND", "fast")
    with pytest.raises(KeyboardInterrupt):
        run(Squares(fail_at=6), target, workers=1)
    monkeypatch.setenv("MEGABASE_BACKEND", "reference")
    with pytest.raises(OutputError, match="backend: 'fast' then, 'reference' now"):
        run(Squares(), target, workers=1, resume=True)


@pytest.mark.parametrize("pad", [True, False])
def test_batches_give_results_in_input_order(pad: bool) -> None:
    rng = np.random.default_rng(0)
    items = [encode("".join(rng.choice(list("ACGT"), n))) for n in rng.integers(1, 60, 40)]
    widths = []

    def text(codes: np.ndarray, rows: np.ndarray) -> list[str]:
        widths.append(codes.shape)
        assert pad or PAD not in codes
        return [decode(row).rstrip(".") for row in codes]

    assert run_batched(items, text, batch_tokens=100, pad=pad) == [decode(item) for item in items]
    assert all(rows * width <= 100 for rows, width in widths)
    assert any(rows > 1 for rows, _ in widths)


def test_sequences_and_intervals_are_streamed(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">one first\nACGT\nacgN\n>two\n>three\nRY\n")
    with pytest.raises(ValueError, match="two"):
        list(_read_fasta(tmp_path / "g.fa"))
    (tmp_path / "g.fa").write_text(">one first\nACGT\nacgN\n>three\nRY\n")
    with pytest.warns(AmbiguousLettersWarning, match=r"g\.fa: 2 letters read as N: R 1, Y 1$"):
        found = [(s.name, decode(s.codes)) for s in _read_fasta(tmp_path / "g.fa")]
    assert found == [("one", "ACGTACGN"), ("three", "NN")]
    bed = "one\t1\t3\tx\t0\t+\none\t1\t3\t.\t0\t-\none\t5\t8\ty\t0\t-\n"
    (tmp_path / "g.bed").write_text(bed)
    with pytest.warns(AmbiguousLettersWarning), genome_store(tmp_path / "g.fa") as store:
        place = store.path
    assert not place.exists()
    with pytest.warns(AmbiguousLettersWarning):
        rows = list(SequenceInput(tmp_path / "g.bed", tmp_path / "g.fa").read(context=2))
    # Context is in reading direction: bases 3 and 4 stand before bases 1 and 2 on the other strand.
    assert [(row.name, decode(row.codes), row.context, row.after) for row in rows] == [
        ("x", "ACGTA", 1, 2), ("one:2-3(-)", "TACGT", 2, 1), ("y", "NCGTA", 0, 2),
    ]  # fmt: skip
    with pytest.raises(InputError, match="no genome"), genome_store(tmp_path / "none"):
        pass


def test_model_has_a_hash_of_its_weights_and_must_score_bases() -> None:
    import torch

    from megabase.models.hyenadna import (
        HyenaDNAConfig,
        HyenaDNAForCausalLM,
        HyenaDNAForSequenceClassification,
    )

    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=8, n_layer=1, filter_order=8, max_seq_len=34)
    model = HyenaDNAForCausalLM(config)
    one = load(model, head="language")
    assert (one.longest, one.masked, one.name) == (config.max_length, False, "HyenaDNAForCausalLM")
    assert one.digest == load(model, head="language").digest
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert one.digest != load(model, head="language").digest
    with pytest.raises(InputError, match="no language-model head"):
        load(HyenaDNAForSequenceClassification(config), head="language")


@pytest.mark.parametrize("name", ["x.bedgraph", "x.gff3.gz", "x.bw"])
def test_formats_without_sequences_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("chr1\t0\t10\t1.5\n")
    with pytest.raises(InputError, match="by its ending; expected FASTA, a table, BED or VCF"):
        SequenceInput(str(tmp_path / name), str(tmp_path / "g.fa")).found_kind  # noqa: B018
    assert SequenceInput(str(tmp_path / name), str(tmp_path / "g.fa"), kind="bed").path
