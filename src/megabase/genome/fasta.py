"""Reading FASTA as a stream of headers and base codes.

A file is read in parts of about a megabyte and never held as a whole. The bases of a part are
turned into codes by one pass over its bytes (:meth:`bytes.translate` maps letters and drops line
ends at once), so no Python code runs for a line, whatever the line length.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megabase.errors import GenomeError
from megabase.genome.alphabet import AMBIGUITY_LETTERS, CODE_OF_LETTER, SOFT_MASK, N
from megabase.genome.files import require_bgzip_end

CHUNK_BYTES = 1 << 20  # fits the second-level cache: faster than larger parts
_LONGEST_HEADER = 1 << 20  # ten thousand times the longest known; a file without line ends has more
_WHITESPACE = b"\n\r \t"  # dropped from lines of bases
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of Windows editors
_INVALID = 0xFF  # what the table of letters gives for other characters
_OTHER_FORMATS = {
    b"BZh": "bzip2: decompress it first (bunzip2)",
    b"\xfd7zXZ\x00": "xz: decompress it first (unxz)",
    b"\x28\xb5\x2f\xfd": "zstd: decompress it first (unzstd)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    **dict.fromkeys((b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43"),
                    "2bit: turn it into FASTA first (twoBitToFa)"),
    b"\x89MBG": "a genome store already", b"CRAM": "CRAM: expected FASTA",
    **dict.fromkeys((b"@HD\t", b"@SQ\t"), "SAM: turn it into FASTA first (samtools fasta)"),
    b"@": "FASTQ: turn it into FASTA first (seqtk seq -a)",
    b"LOCUS ": "GenBank: turn it into FASTA first",
    b"version https://git-lfs": "a git-lfs pointer: run git lfs pull in its folder",
    **dict.fromkeys((b"<!DOCTYPE html", b"<html"),
                    "an HTML page: download the file itself from its direct address"),
}  # fmt: skip
"""First bytes of what people give by mistake, and what to do."""

# While a file is read, each IUPAC letter is a mark of its own, above all codes, so that one look at
# the largest byte of a part tells whether there is anything to count or to refuse.
_FIRST_MARK = 0x20


def _marking_tables() -> tuple[bytes, bytes]:
    mark, unmark = bytearray(CODE_OF_LETTER), bytearray(range(256))
    for i, letter in enumerate(AMBIGUITY_LETTERS):
        for flag, form in ((0, letter), (SOFT_MASK, letter.lower())):
            value = _FIRST_MARK + 2 * i + bool(flag)
            mark[ord(form)] = value
            unmark[value] = N | flag
    return bytes(mark), bytes(unmark)


_MARK, _UNMARK = _marking_tables()


class Header(NamedTuple):
    """First word of a FASTA header line, the rest of it, and its 1-based line number."""

    name: str
    description: str
    line: int


class _Bases(NamedTuple):
    """Codes of consecutive bases of the last header's contig, and counts of letters read as N."""

    codes: bytes
    ambiguous: dict[str, int]


def read_fasta(
    path: str | Path, chunk_bytes: int = CHUNK_BYTES, progress: Callable[[int], None] | None = None
) -> Iterator[Header | _Bases]:
    """Stream a FASTA file: for each contig its header, then its bases in parts.

    Plain, gzip and bgzip files are told apart by their content. Windows line ends, blank lines,
    blanks and tabs inside lines, and a last line without a line end are all fine.

    At most `chunk_bytes` are read at a time; `progress` is called after each part with the number
    of bytes of the file read so far. A GenomeError names file, line and contig of what is not FASTA
    of IUPAC letters, empty or cut short.
    """
    path = Path(path)
    try:
        raw = path.open("rb")
    except FileNotFoundError:
        raise GenomeError(f"there is no FASTA file {path}") from None
    except OSError as error:
        raise GenomeError(f"cannot read {path}: {error.strerror}") from error
    with raw:
        yield from _Parser(path).parse(raw, chunk_bytes, progress)


def _refuse_others(path: Path, start: bytes) -> None:
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise GenomeError(f"{path} is not FASTA but looks like {what}")


class _Parser:
    """State between two parts of a file: where we are and what is still open."""

    def __init__(self, path: Path) -> None:
        self.path, self.line = path, 1  # of the next byte
        self.contig: Header | None = None
        self.open_header: bytes | None = None  # beginning of a header cut by the end of a part
        self.contig_has_bases, self.at_line_start = False, True

    def fail(self, problem: str, line: int | None = None) -> GenomeError:
        where = f"{self.path}, line {self.line if line is None else line:,}"
        if self.contig is not None:
            where += f", contig {self.contig.name!r}"
        return GenomeError(f"{where}: {problem}")

    def parse(
        self, raw: BufferedReader, chunk_bytes: int, progress: Callable[[int], None] | None
    ) -> Iterator[Header | _Bases]:
        try:
            start = raw.peek(32)[:32]
            _refuse_others(self.path, start)
            require_bgzip_end(raw, self.path, GenomeError)
        except OSError as error:
            raise GenomeError(f"cannot read {self.path}: {error.strerror}") from error
        # A pipe (process substitution) is read like a file; only its size is unknown, and
        # filling a chunk would wait without a look at signals: what is there is taken.
        seekable = raw.seekable()
        stream = gzip.GzipFile(fileobj=raw) if start[:2] == b"\x1f\x8b" else raw
        read, first = stream.read if seekable else stream.read1, True
        while True:
            try:
                block = read(chunk_bytes)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise self.fail(
                    f"the gzip file is cut short or damaged ({error}); copy or download it again"
                ) from None
            except OSError as error:
                raise self.fail(f"cannot read on: {error.strerror}") from error
            if not block:
                break
            if first:
                block = block.removeprefix(_BYTE_ORDER_MARK)
                _refuse_others(self.path, block)  # inside gzip
                first = False
            yield from self.parse_block(block)
            if progress is not None:
                progress(raw.tell() if seekable else 0)
        if self.open_header is not None:
            yield self.finish_header(b"")
        if self.contig is None:
            raise GenomeError(f"{self.path} is empty: expected FASTA, '>NAME' and lines of bases")
        self.close_contig()

    def parse_block(self, block: bytes) -> Iterator[Header | _Bases]:
        position, size = 0, len(block)
        while position < size:
            if self.open_header is not None or (
                self.at_line_start and block[position : position + 1] == b">"
            ):
                end = block.find(b"\n", position)
                if end < 0:
                    self.open_header = (self.open_header or b"") + block[position:]
                    if len(self.open_header) > _LONGEST_HEADER:
                        raise self.fail(
                            "a header line of more than 1 MB; are the line ends those of a text "
                            "file (LF or CR LF)?"
                        )
                    return
                yield self.finish_header(block[position:end])
                position = end + 1
                continue
            end = block.find(b">", position)
            while end >= 0 and block[end - 1 : end] != b"\n":
                # A ">" inside a line is left in the bases, where it is refused with its place.
                end = block.find(b">", end + 1)
            end = size if end < 0 else end
            # A part that holds everything is not copied again.
            segment = block if end - position == size else block[position:end]
            bases = self.parse_bases(segment)
            if bases is not None:
                yield bases
            position = end

    def finish_header(self, rest: bytes) -> Header:
        raw = (self.open_header or b"") + rest
        self.open_header = None
        self.close_contig()
        self.contig = None  # what is wrong with this line does not concern the contig before
        # Descriptions are for people; a name is compared, so none may become another.
        first = b"".join(raw[1:].split(maxsplit=1)[:1])
        try:
            first.decode()
        except UnicodeDecodeError:
            raise self.fail(
                f"the name {first.decode('latin-1')[:60]!r} is not in UTF-8 (shown here as "
                "Latin-1); convert the file with: iconv -f LATIN1 -t UTF-8"
            ) from None
        text = raw[1:].decode("utf-8", errors="replace").rstrip()
        if "\r" in text:
            raise self.fail(
                "the line ends are those of old Macintosh files (CR alone); convert the file with: "
                "tr '\\r' '\\n'"
            )
        name, _, description = text.replace("\t", " ").partition(" ")
        if not name:
            raise self.fail(f"a header without a name: expected '>NAME', found {'>' + text!r}")
        self.contig = Header(name, description.strip(), self.line)
        self.contig_has_bases, self.at_line_start = False, True
        self.line += 1
        return self.contig

    def close_contig(self) -> None:
        if self.contig is not None and not self.contig_has_bases:
            raise self.fail(
                "the contig has no bases; remove its header, or is the file cut short?",
                line=self.contig.line,
            )

    def parse_bases(self, segment: bytes) -> _Bases | None:
        codes = segment.translate(_MARK, _WHITESPACE)
        if codes and self.contig is None:
            text = segment.strip()
            self.line += segment[: segment.index(text[:1])].count(b"\n")
            raise self.fail(
                "expected a header line '>NAME' before the first bases, found "
                f"{text[:20].decode('latin-1')!r}"
            )
        array = np.frombuffer(codes, dtype=np.uint8)
        largest = int(array.max(initial=0))
        if largest == _INVALID:
            raise self.bad_character(segment)
        self.line += segment.count(b"\n")
        self.at_line_start = segment.endswith(b"\n")
        if not codes:
            return None
        self.contig_has_bases = True
        ambiguous: dict[str, int] = {}
        if largest >= _FIRST_MARK:
            marks = (array[array >= _FIRST_MARK] - np.uint8(_FIRST_MARK)) // 2
            counts = np.bincount(marks, minlength=len(AMBIGUITY_LETTERS)).tolist()
            ambiguous = {k: n for k, n in zip(AMBIGUITY_LETTERS, counts, strict=True) if n}
            codes = codes.translate(_UNMARK)
        return _Bases(codes, ambiguous)

    def bad_character(self, segment: bytes) -> GenomeError:
        keep = bytearray(_MARK)
        for blank in _WHITESPACE:
            keep[blank] = 0
        wrong = segment.translate(bytes(keep)).find(_INVALID)
        found = chr(segment[wrong])
        hint = {
            "*": " ('*' is a stop in a protein; is this file protein sequence?)",
            "-": " ('-' is a gap of an alignment; take gaps out first)",
            ".": " ('.' is a gap of an alignment; take gaps out first)",
            ">": " (a header begins its own line)",
        }.get(found, "")
        return self.fail(
            f"character {found!r} is not a DNA letter{hint}; expected A, C, G, T, N or an IUPAC "
            f"letter ({AMBIGUITY_LETTERS}), in either case",
            line=self.line + segment[:wrong].count(b"\n"),
        )
