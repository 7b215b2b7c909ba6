"""Stores and BCF files that are not what they say."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from megabase.errors import GenomeError, MegabaseError
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "a.fa").write_text(">chr1 first\nACGTNNRacgt\n>chr2\nTTTTACG\n")
    Genome.build(tmp_path / "a.fa", tmp_path / "a.mb")
    return tmp_path / "a.mb"


def with_metadata(path: Path, metadata: bytes) -> Path:
    """Replace the metadata; its sha256 in the header is right."""
    raw = path.read_bytes()
    start, _, offset, _ = struct.unpack_from("<QQQQ", raw, 16)
    head = raw[:40] + struct.pack("<Q", len(metadata)) + hashlib.sha256(metadata).digest()
    path.write_bytes(head + raw[80:offset] + metadata)
    assert start == 4096
    return path


def edited(path: Path, where: list[Any], value: Any) -> Path:
    raw = path.read_bytes()
    metadata = json.loads(raw[struct.unpack_from("<Q", raw, 32)[0] :])
    part = metadata
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    return with_metadata(path, json.dumps(metadata).encode())


VALUES = [None, True, -1, 1 << 70, 1e400, 3.5, "text", [], {}, [None], "\ud800"]
PLACES = [
    *([name] for name in ("name", "contigs", "sources", "iupac_letters", "checksum", "created_by")),
    ["contigs", 0],
    *(["contigs", 1, name] for name in ("name", "length", "offset", "sha256", "n_count", "source")),
    ["iupac_letters", "R"],
]


@pytest.mark.parametrize("where", PLACES, ids=str)
def test_metadata_of_the_wrong_type_or_size_is_named(store: Path, where: list[Any]) -> None:
    whole = store.read_bytes()
    messages: list[str] = []
    for value in VALUES:
        store.write_bytes(whole)
        edited(store, where, value)
        try:
            opened = Genome(store)
        except GenomeError as error:
            messages.append(str(error))
            continue
        assert isinstance(value, (str, list, dict)), value
        repr(opened), opened.view(0), opened.view(1)
        assert opened.total_length == 18
    assert messages
    assert all(str(store) in message and len(message) < 600 for message in messages)


@pytest.mark.parametrize(
    "metadata",
    [b"", b"[]", b"5", b"{", b"\xff", b"{}", b"[" * 100_000, b'{"contigs": ' + b"9" * 5000 + b"}"],
)
def test_metadata_that_is_no_record_is_named(store: Path, metadata: bytes) -> None:
    with pytest.raises(GenomeError, match="damaged: its metadata"):
        Genome(with_metadata(store, metadata))


def test_contigs_do_not_overlap_or_share_a_name(store: Path) -> None:
    whole = store.read_bytes()
    for where, value in (
        (["contigs", 1, "offset"], 0),
        (["contigs", 0, "length"], 12),
        (["contigs", 1, "name"], "chr1"),
        (["contigs"], []),
    ):
        store.write_bytes(whole)
        with pytest.raises(GenomeError, match="damaged"):
            Genome(edited(store, where, value))


def test_other_files_are_recognized(tmp_path: Path) -> None:
    path = tmp_path / "a.mb"
    for content, says in (
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("<html>", "an HTML page"),
    ):
        path.write_text(content)
        with pytest.raises(GenomeError, match=says):
            Genome(path)
        with pytest.raises(MegabaseError, match=says):
            Genome.build(path, tmp_path / "b.mb")


def bcf(path: Path) -> bytes:
    import pysam

    header = pysam.VariantHeader()
    header.add_line("##contig=<ID=chr1,length=100>")
    header.add_line('##INFO=<ID=AF,Number=A,Type=Float,Description="f">')
    with pysam.VariantFile(str(path), "wb", header=header) as file:
        for position in range(20):
            file.write(
                file.new_record("chr1", position, position + 1, ("A", "C"), info={"AF": [0.5]})
            )
    return path.read_bytes()


def test_damaged_bcf_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.bcf"
    whole = bcf(path)
    assert len(list(VcfRecord.read(path))) == 20
    draws = random.Random(0)
    broken = [whole[:18] + bytes([b]) + whole[19:] for b in range(0, 256, 16)]  # bad deflate data
    inside = bytearray(zlib.decompress(whole[18:], -15))
    for _ in range(150):
        raw = bytearray(inside)
        for _ in range(draws.choice((1, 1, 2, 4))):
            raw[draws.randrange(len(raw))] = draws.randrange(256)
        broken.append(repack(bytes(raw)))
    messages: list[str] = []
    for content in broken:
        path.write_bytes(content)
        try:
            list(VcfRecord.read(path))
        except MegabaseError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(str(path) in message for message in messages)
    capfd.readouterr()  # htslib says on standard error what it dislikes


def repack(raw: bytes) -> bytes:
    """Give one bgzip block and the empty one that ends a file."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    data = packer.compress(raw) + packer.flush()
    head = bytes.fromhex("1f8b08040000000000ff0600424302") + b"\x00"
    block = head + struct.pack("<H", len(data) + 25) + data
    tail = struct.pack("<II", zlib.crc32(raw), len(raw))
    return block + tail + bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
