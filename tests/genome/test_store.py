"""Fetching: equal to pysam on random intervals, exact at the edges, safe in worker processes."""

import gzip
import multiprocessing
import os
import pickle
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pysam
import pytest

from megabase.errors import (
    AmbiguousLettersWarning,
    ContigAliasWarning,
    GenomeError,
    InputWarning,
    OutputError,
    UnknownContigError,
)
from megabase.genome.alphabet import AMBIGUITY_LETTERS, PAD, N, decode, encode, reverse_complement
from megabase.genome.format import FORMAT_VERSION, MAGIC
from megabase.genome.interval import Interval, Strand, contig_aliases
from megabase.genome.store import Genome, PadMode

LENGTHS = {"chr1": 5000, "chr2": 777, "tiny": 3, "chrM": 1234}


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up contigs with lower case, N runs and IUPAC letters, in lines of 60."""
    rng = np.random.default_rng(7)
    letters = np.frombuffer(b"ACGT" * 8 + b"acgt" * 4 + b"NNnn" + b"RYKMrykm", np.uint8)
    path = tmp_path_factory.mktemp("genome") / "made_up.fa"
    with path.open("w") as file:
        for name, length in LENGTHS.items():
            text = rng.choice(letters, length).tobytes().decode()
            file.write(f">{name} made up\n")
            file.writelines(text[i : i + 60] + "\n" for i in range(0, length, 60))
    return path


@pytest.fixture(scope="module")
def store(fasta: Path) -> Genome:
    return Genome.build(fasta, fasta.with_suffix(".mb"), name="made up")


@pytest.fixture(scope="module")
def oracle(fasta: Path) -> Iterator[pysam.FastaFile]:
    pysam.faidx(str(fasta))
    with pysam.FastaFile(str(fasta)) as file:
        yield file


AMBIGUOUS = str.maketrans(
    AMBIGUITY_LETTERS + AMBIGUITY_LETTERS.lower(),
    "N" * len(AMBIGUITY_LETTERS) + "n" * len(AMBIGUITY_LETTERS),
)
COMPLEMENT = str.maketrans("ACGTacgt", "TGCAtgca")


def random_interval(rng: np.random.Generator, beyond: int = 0) -> Interval:
    name = str(rng.choice(list(LENGTHS)))
    start = int(rng.integers(-beyond, LENGTHS[name] + beyond))
    room = LENGTHS[name] + beyond - start
    end = start + int(rng.integers(1, room + 1))
    return Interval(name, start, end, Strand(str(rng.choice(["+", "-", "."]))))


def expected_text(oracle: pysam.FastaFile, interval: Interval, fill: str = ".") -> str:
    length = LENGTHS[interval.contig]
    left = fill * (min(interval.end, 0) - min(interval.start, 0))
    right = fill * (max(interval.end, length) - max(interval.start, length))
    start, end = max(interval.start, 0), min(interval.end, length)
    middle = oracle.fetch(interval.contig, start, end) if start < end else ""
    text = left + middle.translate(AMBIGUOUS) + right
    return text.translate(COMPLEMENT)[::-1] if interval.strand is Strand.REVERSE else text


def test_fetch_equals_pysam(store: Genome, oracle: pysam.FastaFile) -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        interval = random_interval(rng)
        codes = store.fetch(interval)
        assert codes.dtype == np.uint8
        assert decode(codes, soft_mask=True) == expected_text(oracle, interval)


@pytest.mark.parametrize(("pad", "fill"), [("pad", "."), ("n", "N")])
def test_fetch_past_the_edges_equals_pysam_with_padding(
    store: Genome, oracle: pysam.FastaFile, pad: PadMode, fill: str
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(1000):
        interval = random_interval(rng, beyond=50)
        text = expected_text(oracle, interval, fill)
        assert decode(store.fetch(interval, pad=pad), soft_mask=True) == text


@pytest.mark.parametrize("name", LENGTHS)
def test_the_edges_of_every_contig(store: Genome, oracle: pysam.FastaFile, name: str) -> None:
    length = LENGTHS[name]
    for start, end in [
        (0, 1),
        (length - 1, length),
        (0, length),
        (-1, 1),
        (length - 1, length + 1),
    ]:
        interval = Interval(name, start, end)
        assert decode(store.fetch(interval, "pad"), True) == expected_text(oracle, interval)
    for start, end in [(-1, 1), (length - 1, length + 1), (length, length + 1), (-5, -2)]:
        with pytest.raises(GenomeError, match=f"contig '{name}', which has {length:,} bases"):
            store.fetch(Interval(name, start, end))
    assert store.fetch(Interval(name, length, length + 2), "pad").tolist() == [PAD, PAD]
    assert store.fetch(Interval(name, -2, 0, "-"), "n").tolist() == [N, N]


def test_what_is_fetched_belongs_to_the_caller(store: Genome) -> None:
    codes = store.fetch("chr1:1-10")
    codes[:] = PAD
    assert store.fetch("chr1:1-10").max() != PAD
    with pytest.raises(ValueError, match="read-only"):
        store.view("chr1")[0] = 0


def test_an_unknown_padding_is_refused(store: Genome) -> None:
    with pytest.raises(GenomeError, match="'error', 'pad' or 'n', found 'zero'"):
        store.fetch(Interval("chr1", -1, 1), pad="zero")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 64, 700, 6000, 20_000])
def test_fetch_many_equals_fetch(store: Genome, length: int) -> None:
    rng = np.random.default_rng(length)
    index = rng.integers(0, len(store.contigs), 300)
    start = rng.integers(-length - 20, 20, 300) + (rng.random(300) * store.lengths[index]).astype(
        int
    )
    expected = [
        store.fetch(Interval(store.contigs[i].name, s, s + length), "pad")
        for i, s in zip(index, start.tolist(), strict=True)
    ]
    found = store.fetch_many(index, start, length)
    assert found.shape == (300, length)
    assert np.array_equal(found, np.stack(expected))
    assert np.array_equal(store.fetch_many(index.astype(np.int32), start, length), found)


def test_windows_longer_than_the_gather_threshold(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    text = rng.choice(np.frombuffer(b"ACGT", np.uint8), 200_000).tobytes().decode()
    path = tmp_path / "x.fa"
    path.write_text(f">a\n{text[:150_000]}\n>b\n{text[150_000:]}\n")
    store = Genome.build(path, tmp_path / "g.mb")
    for length in (1000, 16_384, 16_385, 131_072):
        found = store.fetch_many([0, 0, 1, 1], [0, 150_000 - length, 0, 50_000 - length], length)
        edges = [Interval("a", 0, length), Interval("a", 150_000 - length, 150_000)]
        both = [store.fetch(edge) for edge in edges]
        assert np.array_equal(found[:2], np.stack(both))
        assert np.array_equal(found[2], store.fetch(Interval("b", 0, length), "pad"))
        assert np.array_equal(found[3], store.fetch(Interval("b", 50_000 - length, 50_000), "pad"))


def test_fetch_many_of_nothing_and_of_nonsense(store: Genome) -> None:
    assert store.fetch_many([], [], 10).shape == (0, 10)
    with pytest.raises(GenomeError, match="one shape"):
        store.fetch_many([0, 1], [0], 10)
    with pytest.raises(GenomeError, match=r"0\.\.3, found -1\.\.0"):
        store.fetch_many([0, -1], [0, 0], 10)
    with pytest.raises(GenomeError, match=r"0\.\.3, found 0\.\.4"):
        store.fetch_many([0, 4], [0, 0], 10)
    with pytest.raises(GenomeError, match="integers"):
        store.fetch_many([0.0], [0.5], 10)
    with pytest.raises(GenomeError, match="length of 1 or more"):
        store.fetch_many([0], [0], 0)


def test_view_is_the_contig(store: Genome, oracle: pysam.FastaFile) -> None:
    for i, name in enumerate(LENGTHS):
        text = oracle.fetch(name).translate(AMBIGUOUS)
        assert decode(store.view(name), soft_mask=True) == text
        assert np.array_equal(store.view(i), store.view(name))


def test_region_reads_what_people_write(store: Genome) -> None:
    assert store.region("chr2") == Interval("chr2", 0, 777)
    assert store.region("chr1:1,001-2,000(-)") == Interval("chr1", 1000, 2000, "-")
    with pytest.raises(GenomeError, match="past the end"):
        store.region("chr2:700-778")
    with pytest.raises(GenomeError, match="starts before"):
        store.region("chr2:0-5")
    with pytest.raises(UnknownContigError):
        store.region("chr9:1-5")


# -- names --------------------------------------------------------------------------------------


def test_aliases_are_stated_once(fasta: Path) -> None:
    store = Genome(fasta.with_suffix(".mb"))
    with pytest.warns(ContigAliasWarning, match=r"contig '1' is taken to be 'chr1' of genome"):
        assert store.contig("1").name == "chr1"
    with pytest.warns(ContigAliasWarning, match=r"contig 'MT' is taken to be 'chrM'"):
        assert np.array_equal(store.fetch("MT:1-20"), store.fetch("chrM:1-20"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.contig("1").name == "chr1"
        assert store.contig("chrM").name == "chrM"


@pytest.mark.usefixtures("store")
def test_aliases_in_the_other_direction(tmp_path: Path) -> None:
    path = tmp_path / "ensembl.fa"
    path.write_text(">1\nAC\n>MT\nGT\n>chr2\nA\n>2\nC\n")
    store = Genome.build(path, tmp_path / "g.mb")
    with pytest.warns(ContigAliasWarning):
        assert store.contig("chr1").name == "1"
    with pytest.warns(ContigAliasWarning):
        assert store.contig("chrM").name == "MT"
    assert store.contig("chr2").name == "chr2"
    assert store.contig("2").name == "2"


def test_alias_rule() -> None:
    assert contig_aliases("chr20") == ("20",)
    assert contig_aliases("20") == ("chr20",)
    assert "MT" in contig_aliases("chrM")
    assert "chrM" in contig_aliases("MT")
    assert contig_aliases("chr") == ()


def test_an_unknown_contig_comes_with_the_nearest_names(store: Genome) -> None:
    with pytest.raises(UnknownContigError, match=r"no contig 'chr3'; the nearest names are 'chr"):
        store.fetch(Interval("chr3", 0, 5))
    with pytest.raises(UnknownContigError, match=r"no contig 'Q'; its contigs are .*4 in all"):
        store.contig("Q")


# -- processes ----------------------------------------------------------------------------------


def intervals_for_workers() -> list[Interval]:
    rng = np.random.default_rng(5)
    return [random_interval(rng) for _ in range(400)]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_fetch_what_we_fetch(store: Genome, method: str) -> None:
    work = intervals_for_workers()
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(store.fetch, work, chunksize=25)
    assert all(np.array_equal(a, store.fetch(b)) for a, b in zip(found, work, strict=True))


def test_pickling_opens_the_same_file_again(store: Genome) -> None:
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000
    assert (copy.name, copy.checksum, copy.contigs) == (store.name, store.checksum, store.contigs)
    assert np.array_equal(copy.view("chr1"), store.view("chr1"))


def test_pickling_does_not_open_another_genome(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_text(">a\nACGT\n")
    parcel = pickle.dumps(Genome.build(path, tmp_path / "g.mb"))
    path.write_text(">a\nACGG\n")
    Genome.build(path, tmp_path / "g.mb", overwrite=True)
    with pytest.raises(GenomeError, match="replaced by another genome"):
        pickle.loads(parcel)


# -- files that are no intact store ---------------------------------------------------------------


@pytest.fixture
def whole(store: Genome) -> bytes:
    return store.path.read_bytes()


@pytest.mark.parametrize("cut", [1, 7, 9, 30, 81, 4096, 5000, -1])
def test_a_store_cut_short(tmp_path: Path, whole: bytes, cut: int) -> None:
    path = tmp_path / "cut.mb"
    path.write_bytes(whole[:cut])
    with pytest.raises(GenomeError, match=r"cut\.mb is cut short: expected [\d,]+ bytes, found"):
        Genome(path)


def test_a_store_with_something_after_its_end(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "long.mb"
    path.write_bytes(whole + b"x")
    with pytest.raises(GenomeError, match="bytes after its end"):
        Genome(path)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 4_000_000_000])
def test_a_store_of_a_newer_format(tmp_path: Path, whole: bytes, version: int) -> None:
    path = tmp_path / "new.mb"
    path.write_bytes(whole[:8] + struct.pack("<I", version) + whole[12:])
    with pytest.raises(GenomeError, match=f"format version {version}.*upgrade megabase"):
        Genome(path)
    path.write_bytes(MAGIC + struct.pack("<I", version) + b"a format of its own")
    with pytest.raises(GenomeError, match=f"format version {version}"):
        Genome(path)


@pytest.mark.parametrize("content", [b"", b">a\nACGT\n", b"\x00" * 5000, b"\x1f\x8b\x08\x00"])
def test_a_file_that_is_no_store(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "other.mb"
    path.write_bytes(content)
    with pytest.raises(GenomeError, match=r"other\.mb is not a genome store"):
        Genome(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(GenomeError, match=r"no genome store .*megabase genome build"):
        Genome(tmp_path / "none.mb")
    with pytest.raises(GenomeError, match="cannot read genome store"):
        Genome(tmp_path)


def test_damaged_metadata_and_header(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "bad.mb"
    path.write_bytes(whole[:-5] + b"#" + whole[-4:])
    with pytest.raises(GenomeError, match="metadata does not have the recorded sha256"):
        Genome(path)
    path.write_bytes(whole[:24] + struct.pack("<Q", 17) + whole[32:])
    with pytest.raises(GenomeError, match="header contradicts itself"):
        Genome(path)


def test_verify_finds_a_changed_base_and_names_the_contig(
    tmp_path: Path, whole: bytes, store: Genome
) -> None:
    path = tmp_path / "bad.mb"
    place = 4096 + store.contig("chr2").offset + 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
    damaged = Genome(path)
    with pytest.raises(GenomeError, match=r"1 of 4 contigs differ .*\('chr2'\)"):
        damaged.verify()
    seen = []
    store.verify(lambda *row: seen.append(row))
    assert seen[-1] == (store.total_length, store.total_length)


def test_verify_of_a_file_cut_while_open(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "g.mb"
    path.write_bytes(whole)
    store = Genome(path)
    path.write_bytes(whole[:4100])
    with pytest.raises(GenomeError, match="damaged"):
        store.verify()


def test_repr_and_summary(store: Genome) -> None:
    assert "made up" in repr(store)
    assert store.total_length == sum(LENGTHS.values())
    assert len(store.checksum) == 64


def test_reverse_strand_is_the_reverse_complement(store: Genome) -> None:
    forward = store.fetch(Interval("chr1", 100, 200))
    assert np.array_equal(store.fetch(Interval("chr1", 100, 200, "-")), reverse_complement(forward))
    assert decode(forward) == decode(encode(decode(forward)))


# -- a FASTA file and the store beside it ---------------------------------------------------------


def _modify(path: Path, content: bytes, seconds: int) -> None:
    """Write a file as if it was modified some seconds after the store beside it."""
    path.write_bytes(content)
    later = (path.parent / f"{path.name}.mb").stat().st_mtime + seconds
    os.utime(path, (later, later))


@pytest.mark.parametrize("kind", ["plain", "gzip", "bgzip"])
def test_a_fasta_file_is_built_into_a_store_beside_it_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("g.fa" if kind == "plain" else "g.fa.gz")
    content = b"\xef\xbb\xbf>one first\nACGTacgtNN\n>two\nGGA\n"
    if kind == "bgzip":
        with pysam.BGZFile(str(path), "wb", None) as file:
            file.write(content)
    else:
        path.write_bytes(content if kind == "plain" else gzip.compress(content))
    genome = Genome(path)
    assert genome.path == tmp_path / f"{path.name}.mb"
    assert genome.name == "g"
    assert decode(genome.fetch("one:3-6"), soft_mask=True) == "GTac"
    assert genome.checksum == Genome.build(path, tmp_path / "other.mb").checksum
    assert genome.path.read_bytes() == (tmp_path / "other.mb").read_bytes()
    built = genome.path.stat()
    again = Genome(str(path))
    assert again.path.stat().st_ino == built.st_ino
    assert again.path.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert pickle.loads(pickle.dumps(again)).checksum == genome.checksum
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(
        [path.name, f"{path.name}.mb", "other.mb"]
    )


def test_a_store_beside_a_fasta_file_that_changed_is_built_again(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_bytes(b">a\nACGT\n")
    before = Genome(path)
    _modify(path, b">a\nACGTT\n", 1)
    with pytest.warns(InputWarning, match=r"g\.fa has changed since g\.fa\.mb was built"):
        after = Genome(path)
    assert after.total_length == 5
    assert before.total_length == 4  # what is open stays what it was
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Genome(path).checksum == after.checksum


def test_letters_read_as_n_are_reported_when_a_fasta_file_is_built(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_bytes(b">a\nACRYT\n")
    with pytest.warns(AmbiguousLettersWarning, match="2 letters read as N"):
        Genome(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Genome(path).metadata.iupac_letters == {"R": 1, "Y": 1}


def test_a_store_that_cannot_be_written_beside_its_fasta_file_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "g.fa"
    path.write_bytes(b">a\nACGT\n")
    with monkeypatch.context() as patch:
        patch.setattr("megabase.genome.files.os.access", lambda *_, **__: False)
        with pytest.raises(OutputError, match=r"cannot write .*g\.fa\.mb: .*Genome\.build\("):
            Genome(path)
    assert [item.name for item in tmp_path.iterdir()] == ["g.fa"]


def test_a_broken_fasta_file_leaves_no_store(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_bytes(b">a\nACGT*\n")
    with pytest.raises(GenomeError, match=r"g\.fa, line 2, contig 'a'"):
        Genome(path)
    assert [item.name for item in tmp_path.iterdir()] == ["g.fa"]


def test_what_is_not_a_store_is_not_replaced_by_one(tmp_path: Path) -> None:
    path, other = tmp_path / "g.fa", tmp_path / "g.fa.mb"
    other.write_bytes(b"notes")
    _modify(path, b">a\nACGT\n", 1)
    with pytest.raises(GenomeError, match=r"g\.fa\.mb is not a genome store"):
        Genome(path)
    assert other.read_bytes() == b"notes"
