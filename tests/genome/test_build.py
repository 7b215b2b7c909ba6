"""Building a store: any layout, any compression, and nothing left behind after an error."""

import errno
import gzip
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from megabase.errors import GenomeError, OutputError
from megabase.genome.alphabet import encode
from megabase.genome.fasta import Header, read_fasta
from megabase.genome.store import Genome

LETTERS = "ACGTNacgtnRYKMryswbdhvU"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sequences(path: Path, **options: Any) -> dict[str, bytes]:
    """Codes of a FASTA file by contig."""
    found, name = {}, ""
    for item in read_fasta(path, **options):
        if isinstance(item, Header):
            name = item.name
            found[name] = b""
        else:
            found[name] += item.codes
    return found


@st.composite
def fasta_files(draw: DrawFn) -> tuple[dict[str, str], str]:
    contigs, text = {}, draw(st.sampled_from(["", "\n", " \n\n", "\ufeff"]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    for number in range(draw(st.integers(1, 4))):
        letters = draw(st.text(LETTERS, min_size=1, max_size=60))
        contigs[f"c{number}"] = letters
        text += f">c{number}" + draw(st.sampled_from(["", " a > b", "\tx y", " "])) + end
        width = draw(st.integers(1, 30))
        for start in range(0, len(letters), width):
            text += letters[start : start + width] + draw(st.sampled_from(["", " ", "\t"])) + end
            text += draw(st.sampled_from(["", "", end, "  " + end]))
    return contigs, text if draw(st.booleans()) else text.rstrip()


@settings(max_examples=120)
@given(fasta_files(), st.integers(4, 70), st.booleans())
def test_every_layout_gives_the_same_bases(
    case: tuple[dict[str, str], str], chunk_bytes: int, packed: bool
) -> None:
    contigs, text = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fa"
        write(path, gzip.compress(text.encode()) if packed else text)
        expected = {name: encode(letters).tobytes() for name, letters in contigs.items()}
        assert sequences(path, chunk_bytes=chunk_bytes) == expected


def test_several_sources_of_several_kinds(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.fa", ">one first contig\nACGTN\nacgtn\n>two\nRRyyACG")
    packed = write(tmp_path / "b.fa.gz", gzip.compress(b">three\r\nGGG\r\n\r\nCCC\r\n"))
    blocks = tmp_path / "c.fa.bgz"
    with pysam.BGZFile(str(blocks), "wb", None) as file:
        file.write(b">four  spaced   description \n" + b"ACGTacgtNn\n" * 20_000)
    store = Genome.build([plain, str(packed), blocks], tmp_path / "g.mb")
    assert [contig.name for contig in store.contigs] == ["one", "two", "three", "four"]
    assert store.lengths.tolist() == [10, 7, 6, 200_000]
    one, two, three, four = store.contigs
    assert one.description == "first contig"
    assert four.description == "spaced   description"
    assert (one.source, three.source) == ("a.fa", "b.fa.gz")
    assert store.metadata.sources == ("a.fa", "b.fa.gz", "c.fa.bgz")
    assert (one.n_count, one.iupac_count, one.soft_masked_count) == (2, 0, 5)
    assert (two.n_count, two.iupac_count, two.soft_masked_count) == (4, 4, 2)
    assert (four.n_count, four.soft_masked_count) == (40_000, 100_000)
    assert store.metadata.iupac_letters == {"R": 2, "Y": 2}
    assert one.sha256 == hashlib.sha256(encode("ACGTNacgtn").tobytes()).hexdigest()
    assert store.name == "g"
    store.verify()


@pytest.mark.parametrize(
    ("source", "expected"),
    [("hg38.fa", "hg38"), ("GRCh38.p14.fasta", "GRCh38.p14"), ("x.FNA", "x")],
)
def test_the_name_comes_from_the_source(tmp_path: Path, source: str, expected: str) -> None:
    path = write(tmp_path / source, ">a\nACGT\n")
    assert Genome.build(path, tmp_path / "g.mb").name == expected
    named = Genome.build(path, tmp_path / "h.mb", name="mine")
    assert named.name == "mine"


def test_checksum_names_the_sequence_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "a.fa", ">a x\nACGT\n>b\nGG\n")
    same = write(tmp_path / "b.fa", ">a other words\r\nAC\r\nGT\r\n>b\r\nGG")
    other = write(tmp_path / "c.fa", ">a x\nACGt\n>b\nGG\n")
    stores = [Genome.build(path, f"{path}.mb") for path in (first, same, other)]
    assert stores[0].checksum == stores[1].checksum != stores[2].checksum
    again = Genome.build(first, tmp_path / "again.mb")
    assert again.path.read_bytes() == stores[0].path.read_bytes()


HEADERLESS = "expected a header line '>NAME' before the first bases, found"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"x\.fa is empty"),
        ("\n \n\r\n", r"x\.fa is empty"),
        (gzip.compress(b"", mtime=0), r"x\.fa is empty"),
        ("ACGT\nACGT\n", rf"x\.fa, line 1: {HEADERLESS} 'ACGT"),
        ("\n\n  ACGT\n", rf"x\.fa, line 3: {HEADERLESS} 'ACGT'"),
        (";a comment\n>a\nACGT\n", rf"line 1: {HEADERLESS} ';a comment|line 1: {HEADERLESS}"),
        (">a\nAC\n>b\nGT\n>a\nTT\n", r"line 5: contig 'a' is there already \(.*x\.fa, line 1\)"),
        (
            ">a\nACGT\nAC*T\n",
            r"x\.fa, line 3, contig 'a': character '\*' is not a DNA letter.*protein",
        ),
        (">a\nACGT\n\nA-T\n", r"line 4, contig 'a': character '-' is not a DNA letter.*gap"),
        (">a\nACGT\n>b\nAC.GT\n", r"line 4, contig 'b': character '\.'"),
        (">a\nACGT\nAC>b\n", r"line 3, contig 'a': character '>'.*begins its own line"),
        (">a\nMEEPQSDPSV\n", r"line 2, contig 'a': character 'E'"),
        (">a\nAC\xffGT\n".encode("latin-1"), r"line 2, contig 'a': character '\xff'"),
        (">\nACGT\n", r"x\.fa, line 1: a header without a name"),
        (">a\nAC\n> b\nGT\n", r"x\.fa, line 3: a header without a name"),
        (">a\n>b\nACGT\n", r"line 1, contig 'a': the contig has no bases"),
        (">a\nACGT\n>b\n\n", r"line 3, contig 'b': the contig has no bases"),
        (">a\nACGT\n>b", r"line 3, contig 'b': the contig has no bases"),
        (">a x\rACGT\r>b\rACG\r", "old Macintosh"),
        ("@read\nACGT\n+\nIIII\n", "looks like FASTQ"),
        (b"BZh91AY", "bzip2"),
        (b"PK\x03\x04abc", "zip archive"),
        (b"\x43\x27\x41\x1a1234", "twoBitToFa"),
    ],
)
def test_a_bad_source_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = write(tmp_path / "x.fa", content)
    with pytest.raises(GenomeError, match=message) as caught:
        Genome.build(path, tmp_path / "g.mb")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_name_that_comes_in_two_sources(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, ">chr1\nACGT\n") for name in ("a.fa", "b.fa"))
    with pytest.raises(GenomeError, match=r"b\.fa, line 1: contig 'chr1' .*a\.fa, line 1"):
        Genome.build([first, second], tmp_path / "g.mb")


def test_the_line_is_right_across_parts(tmp_path: Path) -> None:
    text = ">a\r\n" + "ACGTACGT\r\n" * 1000 + "ACGT!CGT\r\n" + "ACGT\r\n" * 10
    path = write(tmp_path / "x.fa", text)
    for chunk_bytes in (7, 64, 1 << 20):
        with pytest.raises(GenomeError, match=r"line 1,002, contig 'a': character '!'"):
            list(read_fasta(path, chunk_bytes=chunk_bytes))


def random_fasta(contigs: int = 3, length: int = 100_000) -> bytes:
    rng = np.random.default_rng(0)
    parts = []
    for number in range(contigs):
        parts.append(f">c{number}\n".encode())
        parts.append(rng.choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes() + b"\n")
    return b"".join(parts)


@pytest.mark.parametrize("cut", [20, 1000, 40_000, -1])
def test_a_truncated_gzip_names_file_and_place(tmp_path: Path, cut: int) -> None:
    packed = gzip.compress(random_fasta(), compresslevel=1)
    path = write(tmp_path / "x.fa.gz", packed[:cut])
    with pytest.raises(GenomeError, match=r"x\.fa\.gz, line [\d,]+.*cut short or damaged"):
        Genome.build(path, tmp_path / "g.mb")
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_damaged_gzip_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(random_fasta(), compresslevel=1))
    packed[len(packed) // 2] ^= 0xFF
    path = write(tmp_path / "x.fa.gz", bytes(packed))
    with pytest.raises(GenomeError, match="cut short or damaged"):
        Genome.build(path, tmp_path / "g.mb")


def test_a_bgzip_cut_between_two_blocks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.fa.gz"
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(random_fasta())
    whole = path.read_bytes()
    first_block = int.from_bytes(whole[16:18], "little") + 1
    assert gzip.decompress(whole[:first_block])  # which nobody would notice otherwise
    path.write_bytes(whole[:first_block])
    with pytest.raises(GenomeError, match="cut short: it is a bgzip file without"):
        Genome.build(path, tmp_path / "g.mb")


def test_missing_source_folder_source_and_no_source(tmp_path: Path) -> None:
    with pytest.raises(GenomeError, match=r"there is no FASTA file .*x\.fa"):
        Genome.build(tmp_path / "x.fa", tmp_path / "g.mb")
    with pytest.raises(GenomeError, match="cannot read"):
        Genome.build(tmp_path, tmp_path / "g.mb")
    with pytest.raises(GenomeError, match="no FASTA file was given"):
        Genome.build([], tmp_path / "g.mb")


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ">a\nACGT\n")
    target = write(tmp_path / "g.mb", "precious")
    with pytest.raises(OutputError, match=r"g\.mb exists already.*overwrite=True"):
        Genome.build(path, target)
    assert target.read_text() == "precious"
    bad = write(tmp_path / "bad.fa", ">a\nAC*T\n")
    with pytest.raises(GenomeError):
        Genome.build(bad, target, overwrite=True)
    assert target.read_text() == "precious"
    assert Genome.build(path, target, overwrite=True).total_length == 4
    with pytest.raises(GenomeError, match="one of its own sources"):
        Genome.build(path, path, overwrite=True)
    with pytest.raises(OutputError, match="there is no folder"):
        Genome.build(path, tmp_path / "nowhere" / "g.mb")
    with pytest.raises(OutputError, match="it is a folder"):
        Genome.build(path, tmp_path)


def test_an_open_store_survives_being_replaced(tmp_path: Path) -> None:
    target = tmp_path / "g.mb"
    old = Genome.build(write(tmp_path / "a.fa", ">a\nACGT\n"), target)
    Genome.build(write(tmp_path / "b.fa", ">a\nTTTT\n"), target, overwrite=True)
    assert old.fetch("a:1-4").tolist() == [0, 1, 2, 3]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.fa", random_fasta(length=10_000))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*g\.mb: No space left on device"):
        Genome.build(path, tmp_path / "g.mb")
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", random_fasta(length=10_000))

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Genome.build(path, tmp_path / "g.mb", progress=interrupt)
    assert sorted(tmp_path.iterdir()) == [path]


def test_progress_counts_the_bytes_of_all_sources(tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.fa", f">{name}\nACGT\n") for name in "ab"]
    seen = []
    Genome.build(sources, tmp_path / "g.mb", progress=lambda *row: seen.append(row))
    assert seen == [(8, 16), (16, 16)]


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with io.FileIO(writer, "w") as file:
        file.write(b">a\nACGT\n")
    store = Genome.build(f"/dev/fd/{reader}", tmp_path / "g.mb", name="piped")
    os.close(reader)
    assert store.total_length == 4


def test_many_small_contigs(tmp_path: Path) -> None:
    text = "".join(f">s{i} d\n{'ACGT'[i % 4] * (1 + i % 3)}\n" for i in range(5000))
    store = Genome.build(write(tmp_path / "x.fa", text), tmp_path / "g.mb")
    assert len(store.contigs) == 5000
    assert store.view("s4999").tolist() == [3] * (1 + 4999 % 3)
    store.verify()
