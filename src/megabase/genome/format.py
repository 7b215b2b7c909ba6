"""The bytes of a genome store file.

A store is one file (all numbers little-endian)::

    offset  size  content
    0       8     magic  89 4D 42 47 0D 0A 1A 0A  (0x89, "MBG", CR LF, 0x1A, LF)
    8       4     format version (unsigned)
    12      4     reserved, zero
    16      8     offset of the codes (4096)
    24      8     number of codes, one byte for each base
    32      8     offset of the metadata (directly after the codes)
    40      8     length of the metadata in bytes
    48      32    sha256 of the metadata
    80            zeros up to offset 4096
    4096          codes of all contigs, one after the other
    ...           metadata: JSON, UTF-8; the file ends with it

The magic and the version stand at the same place in every version. The metadata comes last because
it is known last when a genome is streamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from megabase.errors import GenomeError
from megabase.untrusted import parsing, recognise, shown

__all__ = ["CODES_OFFSET", "FORMAT_VERSION", "MAGIC", "Contig", "Layout", "Metadata"]

MAGIC = b"\x89MBG\r\n\x1a\n"
FORMAT_VERSION = 1
CODES_OFFSET = 4096
"""The codes begin on a page of their own, so the map of a file is aligned."""
_HEADER = struct.Struct("<8sIIQQQQ32s")


@dataclass(frozen=True, slots=True)
class Contig:
    """One sequence of a genome, as a store describes it.

    Parameters
    ----------
    name
        First word of the FASTA header.
    length
        Number of bases.
    offset
        Index of its first code among the codes of the whole store.
    sha256
        Hexadecimal sha256 of its codes, soft-mask bits included.
    description
        Rest of the FASTA header.
    source
        Name of the file that it was read from.
    n_count
        Number of bases that are N in the store, those counted by ``iupac_count`` included.
    iupac_count
        Number of other IUPAC letters that were turned into N.
    soft_masked_count
        Number of bases written in lower case.
    """

    name: str
    length: int
    offset: int
    sha256: str
    description: str = ""
    source: str = ""
    n_count: int = 0
    iupac_count: int = 0
    soft_masked_count: int = 0


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a store says about itself.

    Parameters
    ----------
    name
        Name of the genome.
    contigs
        The contigs, in the order of the sources.
    sources
        Names of the files that were read.
    iupac_letters
        How often each IUPAC letter (upper case) was turned into N.
    checksum
        sha256 over the contigs (:func:`genome_checksum`).
    created_by
        Program and version that wrote the store.
    """

    name: str
    contigs: tuple[Contig, ...]
    sources: tuple[str, ...]
    iupac_letters: dict[str, int]
    checksum: str
    created_by: str

    def to_bytes(self) -> bytes:
        """JSON in UTF-8; the same metadata always gives the same bytes."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, raw: bytes, codes: int) -> Self:
        """Inverse of :meth:`to_bytes`; fields of later additions are ignored.

        Parameters
        ----------
        raw
            The metadata.
        codes
            Number of codes in the file.

        Raises
        ------
        GenomeError
            Naming the field that is missing, of another type, or beyond the codes.
        """
        fields = _Fields(json.loads(raw))
        contigs: list[Contig] = []
        end = 0
        for row in fields.list("contigs"):
            entry = _Fields(row)
            length = entry.number("length", codes - end)
            contig = Contig(
                name=entry.text("name"),
                length=length,
                offset=entry.number("offset", codes),
                sha256=entry.text("sha256"),
                description=entry.text("description", ""),
                source=entry.text("source", ""),
                n_count=entry.number("n_count", length, 0),
                iupac_count=entry.number("iupac_count", length, 0),
                soft_masked_count=entry.number("soft_masked_count", length, 0),
            )
            if contig.offset != end:
                raise GenomeError(f"contig {shown(contig.name)} does not begin where the last ends")
            contigs.append(contig)
            end += length
        if end != codes or len({contig.name for contig in contigs}) != len(contigs):
            raise GenomeError("its contigs do not make up the codes, each with its own name")
        letters = _Fields(fields.get("iupac_letters"))
        return cls(
            name=fields.text("name"),
            contigs=tuple(contigs),
            sources=tuple(
                _Fields({"source": item}).text("source") for item in fields.list("sources")
            ),
            iupac_letters={letter: letters.number(letter, codes) for letter in letters.values},
            checksum=fields.text("checksum"),
            created_by=fields.text("created_by"),
        )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise GenomeError(f"{name} must be text, found {shown(value)}")
    value.encode()  # JSON can write halves of characters, which no file or terminal takes
    return value


class _Fields:
    """An object of the metadata, whose fields are of the expected type or a GenomeError."""

    def __init__(self, values: Any) -> None:
        if not isinstance(values, dict):
            raise GenomeError(f"expected an object, found {shown(values)}")
        self.values: dict[str, Any] = values

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        return _text(name, self.get(name, default))

    def number(self, name: str, most: int, default: int | None = None) -> int:
        value = self.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            raise GenomeError(
                f"{name[:60]} must be a whole number from 0 to {most:,}, found {shown(value)}"
            )
        return value

    def list(self, name: str) -> list[Any]:
        if not isinstance(value := self.get(name), list):
            raise GenomeError(f"{name} must be a list, found {shown(value)}")
        return value


def genome_checksum(contigs: Iterable[Contig]) -> str:
    r"""Hexadecimal sha256 over ``name\tlength\tsha256\n`` of the contigs, in order.

    It names the sequence and nothing else: descriptions, file names and the genome's name have no
    part in it.
    """
    digest = hashlib.sha256()
    for contig in contigs:
        digest.update(f"{contig.name}\t{contig.length}\t{contig.sha256}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a store file lie; all in bytes.

    Parameters
    ----------
    codes_offset
        Offset of the first code.
    codes_length
        Number of codes.
    metadata_offset
        Offset of the metadata.
    metadata_length
        Length of the metadata.
    metadata_sha256
        Digest of the metadata.
    """

    codes_offset: int
    codes_length: int
    metadata_offset: int
    metadata_length: int
    metadata_sha256: bytes

    def to_bytes(self) -> bytes:
        """Header that describes this layout, without the zeros after it."""
        return _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            0,
            self.codes_offset,
            self.codes_length,
            self.metadata_offset,
            self.metadata_length,
            self.metadata_sha256,
        )

    @classmethod
    def read(cls, path: Path) -> tuple[Self, Metadata]:
        """Read and check the header and the metadata of a store file.

        Raises
        ------
        GenomeError
            When the file is missing, no store, of a newer format, cut short or damaged.
        """
        try:
            with path.open("rb") as file:
                return cls._read(file, path)
        except FileNotFoundError:
            raise GenomeError(
                f"there is no genome store {path}; make one with: megabase genome build "
                f"GENOME.fa -o {path}"
            ) from None
        except OSError as error:
            raise GenomeError(f"cannot read genome store {path}: {error.strerror}") from error

    @classmethod
    def _read(cls, file: BinaryIO, path: Path) -> tuple[Self, Metadata]:
        raw = file.read(_HEADER.size)
        size = os.fstat(file.fileno()).st_size
        if not raw or raw[: len(MAGIC)] != MAGIC[: len(raw)]:
            kind = "an empty file" if not raw else f"a file that begins with {raw[:8]!r}"
            raise GenomeError(
                f"{path} is not a genome store: expected a file written by megabase genome build, "
                f"found {kind}"
                if not (known := recognise(path))
                else f"{path} {known}"
            )
        if len(raw) >= 12:
            version = int.from_bytes(raw[8:12], "little")
            if version > FORMAT_VERSION:
                raise GenomeError(
                    f"genome store {path} has format version {version}, and this megabase reads up "
                    f"to version {FORMAT_VERSION}; upgrade megabase, or build the store again"
                )
        layout = cls(*_HEADER.unpack(raw)[3:]) if len(raw) == _HEADER.size else None
        expected = layout.metadata_offset + layout.metadata_length if layout else CODES_OFFSET
        if layout and (
            layout.codes_offset != CODES_OFFSET
            or layout.codes_offset + layout.codes_length != layout.metadata_offset
        ):
            raise GenomeError(f"genome store {path} is damaged: its header contradicts itself")
        if layout is None or size != expected:
            what = "is cut short" if size < expected else "has bytes after its end"
            raise GenomeError(
                f"genome store {path} {what}: expected {expected:,} bytes, found {size:,}; copy it "
                "again or build it again"
            )
        file.seek(layout.metadata_offset)
        metadata = file.read(layout.metadata_length)
        if hashlib.sha256(metadata).digest() != layout.metadata_sha256:
            raise GenomeError(
                f"genome store {path} is damaged: its metadata does not have the recorded sha256; "
                "copy it again or build it again"
            )
        place = f"genome store {path} is damaged: its metadata"
        with parsing(place, GenomeError, "build it again"):
            try:
                return layout, Metadata.from_bytes(metadata, layout.codes_length)
            except GenomeError as error:
                raise GenomeError(f"{place}: {error}; build it again") from error
