"""Files that are written whole or not at all, and text files read line by line."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from megabase.errors import MegabaseError
from megabase.genome.errors import TableError

__all__ = ["atomic_file", "numbered_lines"]


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
            f"{path}, line {number:,}: not text in UTF-8; is this a table, and is it decompressed?"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise TableError(
            f"{path}, after line {number:,}: the gzip file is cut short or damaged ({problem}); "
            "copy or download it again"
        ) from None
    except OSError as problem:
        raise TableError(f"cannot read {path}: {problem.strerror}") from problem
