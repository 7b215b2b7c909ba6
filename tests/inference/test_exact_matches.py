"""Longest exact matches equal those found by looking for every substring."""

from pathlib import Path

import numpy as np
import pytest

from megabase.genome.alphabet import decode, encode, reverse_complement
from megabase.genome.store import Genome
from megabase.inference.generation import checks
from megabase.inference.generation.checks import _longest_exact_matches


def build(path: Path, **contigs: str) -> Genome:
    fasta = path / "g.fa"
    fasta.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    return Genome.build(fasta, path / "g.mb")


def by_hand(query: str, contigs: list[str]) -> int:
    texts = [decode(encode(text)) for text in contigs]
    texts += [decode(reverse_complement(encode(text))) for text in texts]
    for size in range(len(query), 0, -1):
        for i in range(len(query) - size + 1):
            part = query[i : i + size]
            if "N" not in part and any(part in text for text in texts):
                return size
    return 0


def letters(rng: np.random.Generator, size: int, alphabet: str = "ACGT") -> str:
    return "".join(rng.choice(list(alphabet), size))


@pytest.mark.parametrize("part", [1 << 20, 37])
@pytest.mark.parametrize("seed", range(6))
def test_random_queries(
    tmp_path: Path, seed: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_PART", part)
    rng = np.random.default_rng(seed)
    contigs = {"one": letters(rng, 900, "ACGTacgtN"), "two": letters(rng, 300, "AAAT")}
    store = build(tmp_path, **contigs)
    text = contigs["one"].upper()
    queries = [
        letters(rng, 120),
        letters(rng, 60) + text[100:140].replace("N", "A") + letters(rng, 30),
        "A" * 80,
        letters(rng, 50, "AT"),
        decode(reverse_complement(encode(contigs["two"])))[200:] + "GC",
        letters(rng, 80, "ACGTN"),
    ]
    found = _longest_exact_matches([encode(query) for query in queries], store)
    for query, match in zip(queries, found, strict=True):
        wanted = by_hand(query, list(contigs.values()))
        assert match.length == wanted if wanted >= 6 else match.length == 0
        if match.contig is None:
            continue
        place = store.view(match.contig)[match.start : match.end]
        text = decode(reverse_complement(place) if match.strand == "-" else place)
        assert text == query[match.query_start : match.query_start + match.length]


def test_nothing_to_look_for(tmp_path: Path) -> None:
    store = build(tmp_path, c="ACGTACGTAC")
    assert _longest_exact_matches([], store) == []
    empty, short, none = _longest_exact_matches(
        [encode(""), encode("ACG"), encode("NNNNNNNN")], store
    )
    assert empty.length == short.length == none.length == 0


def test_the_end_of_a_contig_and_a_whole_query(tmp_path: Path) -> None:
    store = build(tmp_path, c="GATTACAGATTACATTGC", d="TTGCCCCCC")
    whole, beyond = _longest_exact_matches([encode("ACATTGC"), encode("ACATTGCTTGCC")], store)
    assert (whole.length, whole.contig, whole.start, whole.end) == (7, "c", 11, 18)
    assert (beyond.length, beyond.strand) == (7, "+")
