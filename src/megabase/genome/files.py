"""Files that are written whole or not at all, and text files read line by line."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from megabase.errors import MegabaseError
from megabase.genome.errors import TableError

__all__ = ["atomic_file", "lacks_bgzip_end", "numbered_lines"]

_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


@contextlib.contextmanager
def atomic_file(target: Path, overwrite: bool, error: type[MegabaseError]) -> Iterator[BinaryIO]:
    """Open a file beside ``target`` that takes its place when the block ends well.

    Parameters
    ----------
    target
        The file to write.
    overwrite
        Whether an existing file may be replaced.
    error
        Raised when the file exists already or cannot be written. Nothing is left behind then.
    """
    if target.is_dir():
        raise error(f"cannot write {target}: it is a folder; give a file name")
    if not target.parent.is_dir():
        raise error(f"cannot write {target}: there is no folder {target.parent}; make it first")

    def refuse_existing() -> None:
        if target.exists() and not overwrite:
            raise error(
                f"{target} exists already and is not replaced unless asked; choose another name or "
                "use --overwrite (overwrite=True)"
            )

    refuse_existing()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        refuse_existing()
        os.replace(temporary, target)
    except OSError as problem:
        why = problem.strerror or str(problem)
        if problem.errno == errno.ENOSPC:
            why += "; free some space or write elsewhere"
        raise error(f"cannot write {target}: {why}") from problem
    finally:
        temporary.unlink(missing_ok=True)


def lacks_bgzip_end(raw: io.BufferedReader) -> bool:
    """Whether a file just opened is bgzip without the empty block that ends every bgzip file.

    One that is cut between two blocks decompresses without complaint; this is the only sign. Of a
    pipe nothing is known.
    """
    start = raw.peek(16)[:16]
    is_bgzip = start[:4] == b"\x1f\x8b\x08\x04" and start[12:14] == b"BC"
    if not is_bgzip or not raw.seekable():
        return False
    size = raw.seek(0, os.SEEK_END)
    raw.seek(-min(len(_BGZF_END), size), os.SEEK_END)
    end = raw.read()
    raw.seek(0)
    return end != _BGZF_END


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a plain or gzip text file with their 1-based numbers, without line ends.

    Raises
    ------
    TableError
        When the file is missing, cut short, or no text.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            if lacks_bgzip_end(raw):
                raise TableError(
                    f"{path} is cut short: it is a bgzip file without the empty block that ends "
                    "every bgzip file; copy or download it again"
                )
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.decode().rstrip("\r\n")
    except FileNotFoundError:
        raise TableError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise TableError(
            f"{path}, line {number:,}: not text in UTF-8; is this a table, and is it decompressed? "
            "(From Latin-1: iconv -f LATIN1 -t UTF-8)"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise TableError(
            f"{path}, after line {number:,}: the gzip file is cut short or damaged ({problem}); "
            "copy or download it again"
        ) from None
    except OSError as problem:
        raise TableError(f"cannot read {path}: {problem.strerror}") from problem
