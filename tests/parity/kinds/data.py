"""Recorded items of the published data loaders."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import published
import published_tasks
import torch
from harness import Case, covers
from published_training import published_masking

from megabase.benchmarking.suites.species import SPECIES_SPLITS
from megabase.data.batches import _in_context_item
from megabase.data.vocabulary import text_to_ids


def read_fasta(path: Path) -> dict[str, str]:
    """Read records as they are written: the recorded genomes hold letters that no store keeps."""
    records: dict[str, list[str]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if line.startswith(">"):
            name = line[1:].split()[0]
            records[name] = []
        else:
            records[name].append(line.strip())
    return {name: "".join(lines) for name, lines in records.items()}


def read_intervals(path: Path) -> dict[str, list[tuple[str, int, int]]]:
    """Read a four-column table of intervals, by split."""
    splits: dict[str, list[tuple[str, int, int]]] = {}
    for line in path.read_text().splitlines():
        contig, start, end, split = line.split("\t")
        splits.setdefault(split, []).append((contig, int(start), int(end)))
    return splits


def same(got: Any, want: Any, where: object) -> None:
    got = got.tolist() if hasattr(got, "tolist") else got
    assert got == want, f"{where}: got {got}, recorded {want}"


def check_texts(rows: list[dict[str, str]]) -> None:
    for row in rows:
        same(published.reverse_complement_text(row["text"]), row["reverse_complement"], row)


@covers("reverse_complement")
def reverse_complement(case: Case) -> None:
    index = {"A": 0, "C": 1, "G": 2, "T": 3, "N": 4, ".": -1}
    for row in case.output_json:
        text = row["text"]
        same(published.reverse_complement_text(text), row["string"], text)
        hot = published.one_hot(text)
        if "one_hot" in row:  # the reference fails on an empty text
            same(hot, row["one_hot"], text)
        # Published indices take any other byte for A; nothing here needs them but this comparison.
        indices = np.array([index.get(letter, 0) for letter in text.upper()], dtype=np.int64)
        same(indices, row["indices"], text)
        if "one_hot_reverse_complement" in row:
            same(hot[::-1, ::-1], row["one_hot_reverse_complement"], text)
        if "indices_reverse_complement" in row:
            complement = np.array([3, 2, 1, 0, 4, -1])
            same(complement[indices][::-1], row["indices_reverse_complement"], text)


@covers("hg38_pretraining_dataset")
def hg38(case: Case) -> None:
    genome = read_fasta(case.path / "genome.fa")
    table = read_intervals(case.path / "intervals.bed")
    output = case.output_json
    for item in output["items"]:
        options = item["options"]
        row = table[item["split"]][item["index"]]
        same(list(row), item["interval"], item["index"])
        contig, start, end = row
        length = options["max_length"]
        cut = published.cut_interval(start, end, length, len(genome[contig]))
        text = genome[contig][cut.start : cut.end]
        if options.get("pad_interval", False):
            text = "." * cut.left + text + "." * cut.right
        same(text, item["sequence"], item)
        data, target = published.interval_item(
            genome[contig],
            start,
            end,
            length,
            add_end=options["add_eos"],
            pad_interval=options.get("pad_interval", False),
            n_as_padding=options.get("replace_N_token", False),
            case_sensitive=True,
        )
        same(data, item["data"], item)
        same(target, item["target"], item)
    for item in output["augmentation"]:
        contig, start, end = table["train"][item["index"]]
        rng = random.Random(item["python_random_seed"])
        shift, reverse = 0, False
        if item["kind"] == "rc_aug":
            reverse = rng.random() > 0.5
            assert reverse == item["flipped"]
        else:
            bounds = published.shift_bounds(start, end, len(genome[contig]), tuple(item["range"]))
            shift = rng.randrange(*bounds)
        data, _ = published.interval_item(
            genome[contig],
            start,
            end,
            case.config["max_length"],
            shift=shift,
            reverse=reverse,
            case_sensitive=True,
        )
        same(data, item["data"], item)
    check_texts(output["string_reverse_complement"])
    ranges = {name: (low, high) for name, (low, high) in case.config["fixed_chr_ranges"].items()}
    windows = published.fixed_windows(case.config["max_length"], ranges)
    assert len(windows) == len(output["fixed"])
    for item in output["fixed"]:
        window = windows[item["index"]]
        same(list(window), item["interval"], item["index"])
        text = genome[window.contig][window.start : window.end]
        data, target = published.fixed_item(text, case.config["max_length"])
        same(data, item["data"], item)
        same(target, item["target"], item)


@covers("caduceus_pretraining_dataset")
def caduceus(case: Case) -> None:
    genome = read_fasta(case.path / "genome.fa")
    rows = read_intervals(case.path / "intervals.bed")["train"]
    segment = case.config["max_allowed_length"]
    for item in case.output_json["items"]:
        length = item["max_length"]
        row, piece = divmod(item["index"], segment // length)
        contig, start, _ = rows[row]
        window = published.caduceus_window(start, piece, length, len(genome[contig]), segment)
        text = genome[contig][slice(*window)]
        data, target = published.caduceus_item(text, length, add_end=item["add_eos"])
        same(data, item["data"], item)
        same(target, item["target"], item)
    for item in case.output_json["mlm"]:
        generator = torch.Generator().manual_seed(item["torch_seed"])
        ids = torch.tensor(item["ids"][:-1] if item["contains_eos"] else item["ids"])
        masking = published_masking(ids, item["mlm_probability"], generator)
        same(masking.input_ids, item["data"], item["torch_seed"])
        same(torch.where(masking.picked, ids, 4), item["target"], item["torch_seed"])
    check_texts(case.output_json["string_reverse_complement"])


@covers("downstream_datasets")
def downstream(case: Case) -> None:
    files, output = case.path / "files", case.output_json
    texts: dict[str, str] = case.input_json["genomic_benchmark_sequences"]
    (folder,) = (files / "genomic_benchmark").iterdir()
    for split in sorted(path.name for path in folder.iterdir()):
        classes, items = published_tasks.read_folder(folder, split)
        assert classes == tuple(sorted(classes))
        for name, text, label in items:
            assert texts[f"{split}/{name.removesuffix('.txt')}"] == text
            assert name.startswith(classes[label] + "/")
    check_benchmark_items(output["genomic_benchmark"])
    for item in output["nucleotide_transformer"]:
        # The recorded loader raises on every item at its commit; only the labels are evidence.
        name, label = item["label_map"]
        assert published_tasks.label_of_record(name) == label
    check_chromatin(files / "chromatin", output["chromatin_profile"])
    check_in_context(texts, output["in_context"], case.config["max_length"])
    check_species(files / "species", output["species"])


def check_benchmark_items(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        options = row["options"]
        ids, mask = published.padded_item(
            row["text"],
            options["max_length"],
            add_end=options["add_eos"],
            padding=options["padding_side"] if options["use_padding"] else "none",
            case_sensitive=True,
        )
        same(ids, row["ids"], row)
        same(mask.astype(int), row["mask"], row)


def check_chromatin(folder: Path, rows: list[dict[str, Any]]) -> None:
    genome = read_fasta(folder / "genome.fa")
    table = next(folder.glob("*.csv"))
    for row in rows:
        _, windows = published_tasks.chromatin_windows(table, row["max_length"])
        window = windows[row["index"]]
        same([window.start, window.end], row["window"], row["index"])
        same(list(window.labels), row["target"], row["index"])
        ids = published_tasks.chromatin_item(genome[window.contig], window.start, window.end)
        assert ids.size == row["n_ids"]
        same(ids[:40], row["first_40"], row["index"])
        same(ids[-40:], row["last_40"], row["index"])
        assert int(ids.sum()) == row["ids_sum"]


def check_in_context(texts: dict[str, str], rows: list[dict[str, Any]], length: int) -> None:
    """Rebuild each prompt from the examples that it holds.

    Which examples were drawn was not recorded, so they are read off the prompt; the prompt built
    of them must be the recorded one, and they must be a legal draw.
    """
    for row in rows:
        if "raises" in row["result"]:
            assert not row["use_padding"]  # ours pads always: unpadded examples cannot be stacked
            continue
        ids, letters = row["result"]["ids"], row["label_to_token"]
        token = {letter: text_to_ids(letter).tolist() for letter in letters.values()}
        last = tuple(ids[-length - 1 : -1])
        known = next(
            blocks
            for split in sorted({name.split("/")[0] for name in texts})
            if last in (blocks := known_blocks(texts, split, row, length))
        )
        step = length + 3
        count = len(ids) // step
        assert count == row["shots"] * len(letters)
        chosen = [known[tuple(ids[i * step : i * step + length])] for i in range(count)]
        query, answer = known[tuple(ids[count * step : count * step + length])]
        same(_in_context_item(query, chosen, length), ids, row)
        same(row["result"]["target"], token[answer], row)
        given = [letter for _, letter in chosen]
        assert all(given.count(letter) == row["shots"] for letter in letters.values())
        assert len({query, *(text for text, _ in chosen)}) == count + 1


def known_blocks(
    texts: dict[str, str], split: str, row: dict[str, Any], length: int
) -> dict[tuple[int, ...], tuple[str, str]]:
    """Ids of each example of a split, to its text and label letter."""
    known = {}
    for path, label in zip(row["paths_in_order"], row["labels_in_order"], strict=True):
        text = texts.get(f"{split}/{path.removesuffix('.txt')}")
        if text is not None:
            block = published.padded_item(text, length, padding="left")[0]
            known[tuple(block.tolist())] = (text, row["label_to_token"][str(label)])
    return known


def check_species(folder: Path, output: dict[str, Any]) -> None:
    weights = output["weighted_by_bp"]
    for species, splits in output["splits"].items():
        for split, names in splits.items():
            same(list(SPECIES_SPLITS[species][split]), names, (species, split))
    names = list(weights["chromosome"])
    present = {path.stem.removeprefix("chr") for path in (folder / names[0]).iterdir()}
    split = next(
        split
        for split, chromosomes in SPECIES_SPLITS[names[0]].items()
        if set(chromosomes) <= present
    )
    genomes = {
        name: {
            chromosome: next(iter(read_fasta(next(where.glob(f"chr{chromosome}.f*a"))).values()))
            for chromosome in SPECIES_SPLITS[name][split]
        }
        for name in names
        if (where := folder / name)
    }
    cutoff = 0.1 if split == "train" else 0.2
    for item in output["items"]:
        sampler = published_tasks.SpeciesSampler(
            genomes,
            len(item["data"]),
            cutoff=cutoff if item["remove_tail_ends"] else None,
            published_end=True,
        )
        label, text = sampler.sample(random.Random(item["python_random_seed"]))
        next_token = item["task"] == "next_token_pred"
        data, target = published_tasks.species_item(text, next_token=next_token)
        same(data, item["data"], item)
        same(target if next_token else label, item["target"], item)
    sampler = published_tasks.SpeciesSampler(genomes, 1, published_end=True)
    same(sampler.species_weights(), weights["species"], "species weights")
    for name in names:
        same(sampler.chromosome_weights(name), weights["chromosome"][name], name)
