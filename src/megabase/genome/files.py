"""Outputs written atomically and owned by one process; text files read line by line.

An output is written under an unpredictable name next to its target (``O_EXCL``) and renamed. A
symbolic link stays, and the file it names is replaced; pipes, terminals and ``/dev/null`` are
written to directly. Every failure to write is an OutputError of one line.
"""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import json
import math
import os
import re
import secrets
import socket
import stat
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from megabase.errors import InputError, InUseError, MegabaseError, OutputError, ResumableError

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every bgzip file (SAM specification, section 4.1.2)."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors after which a run can resume once there is room."""
_REASONS = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
"""What libraries that hide the number of a failed system call still have in their message."""
_NUMBER = re.compile(r"(?:os error |errno = |\[Errno )(\d+)")  # Rust, HTSlib, Python
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")  # numpy, on a full disk
_STREAMS = (stat.S_ISFIFO, stat.S_ISCHR)  # cannot be renamed into place
_REFUSED = {stat.S_ISDIR: "a folder", stat.S_ISBLK: "a block device", stat.S_ISSOCK: "a socket"}
"""What a rename would destroy, or cannot be written to."""
_LONGEST_LINE = 1 << 27
"""Bytes of a line of a table: ten times the longest row known; a gzip file of one megabyte can hold
a line of a gigabyte."""
LOCK_NAME = ".lock"  # hidden, so that a folder with nothing else in it looks empty
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""A file system without locks (some network ones): the record in the file has to do."""
_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC  # of the lock file, no link to another
_WAIT_SECONDS, _TRIES = 0.02, 50  # an owner writes its record right after it has the lock


def file_digest(path: str | Path) -> str:
    """Give the sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def real_place(target: Path) -> Path:
    """Give the file that is written for `target`: what a link names, dangling or not."""
    return target if is_stream(target) else Path(os.path.realpath(target))


def is_stream(target: Path) -> bool:
    """Whether an output is a pipe, a terminal, a character device or an open descriptor."""
    return _descriptor(target) is not None or any(kind(_mode(target)) for kind in _STREAMS)


def _mode(target: Path) -> int:
    """Give type and permissions of what `target` leads to; 0 when there is nothing."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return 0
    except OSError as problem:
        raise OutputError(f"cannot write {target}: {problem.strerror}") from problem


def _descriptor(target: Path) -> int | None:
    """Give the number behind ``/dev/stdout``, ``/dev/fd/3`` and links to them."""
    folders = ("/dev/fd", f"/proc/{os.getpid()}/fd")
    for _ in range(40):  # as many links as the system follows
        if os.path.realpath(target.parent) in folders and target.name.isdigit():
            return int(target.name)
        if not target.is_symlink():
            return None
        target = target.parent / target.readlink()
    return None


def check_output(target: Path, overwrite: bool = False, *, seeks: bool = False) -> None:
    """Refuse an output that cannot be written (OutputError), before any work is done.

    `seeks` says that its format is not written from beginning to end, so no pipe can take it.
    """
    mode = _mode(target) if target.name else stat.S_IFDIR
    for kind, name in _REFUSED.items():
        if kind(mode) and _descriptor(target) is None:
            raise OutputError(f"cannot write {target}: it is {name}; give a file name")
    if is_stream(target):
        if seeks:
            raise OutputError(
                f"cannot write {target}: it is a pipe or a device, and this format is not written "
                "from beginning to end; give a file name"
            )
        return
    folder = real_place(target).parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {folder}; make it first")
    if mode and not overwrite:
        _refuse_existing(target)
    effective = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        why = errno.EROFS if os.statvfs(folder).f_flag & os.ST_RDONLY else errno.EACCES
        raise OutputError(f"cannot write {target}: {os.strerror(why)}")


def _refuse_existing(target: Path) -> None:
    raise OutputError(
        f"{target} exists already and is not replaced unless asked; choose another name or use "
        "overwrite=True"
    )


@contextlib.contextmanager
def writing(target: Path, advice: str = "make room or write elsewhere") -> Iterator[None]:
    """Turn every failure to write `target` into an OutputError of one line.

    A full disk, a quota or a limit on the size of files is a ResumableError, which ends with
    `advice`. Errors that are not the system's pass through.
    """
    try:
        yield
    except (BrokenPipeError, MegabaseError):
        raise
    except Exception as problem:
        code, named = _system_error(problem), getattr(problem, "filename", None)
        own = target.name[-40:], str(real_place(target))  # what is written on the way has both
        if code is None or (
            isinstance(named, str) and own[0] not in named and not named.startswith(own[1])
        ):
            raise
        if code in _FULL:
            raise ResumableError(
                f"cannot write {target}: {os.strerror(code)}; {advice}"
            ) from problem
        raise OutputError(f"cannot write {target}: {os.strerror(code)}") from problem


def _system_error(problem: BaseException) -> int | None:
    """Find the number of the failed system call in an error or in what it came from."""
    found: BaseException | None = problem
    while found is not None:
        if isinstance(found, OSError) and found.errno:
            return found.errno
        text = str(found)
        if number := _NUMBER.search(text):
            return int(number[1])
        codes = [code for code in _REASONS if os.strerror(code) in text]
        if codes or _SHORT_WRITE.search(text):
            return codes[0] if codes else errno.ENOSPC
        found = found.__cause__ or found.__context__
    return None


def new_name(target: Path) -> Path:
    """Give a name beside `target` that nobody can foresee, for a file that takes its place."""
    # Its ending, which libraries go by, and no more of a long name than names may have.
    return target.with_name(f".{secrets.token_hex(8)}.tmp.{target.name[-40:]}")


@contextlib.contextmanager
def atomic_file(
    target: Path, overwrite: bool = False, *, seeks: bool = False
) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``target`` when the block ends without an error.

    Of a link, the file it names is replaced; a pipe or a device is written to directly. With
    `seeks` (see :func:`check_output`) the file has a path, its ``name``. An OutputError when the
    file exists (and `overwrite` is off) or cannot be written; nothing is left behind then.
    """
    check_output(target, overwrite, seeks=seeks)
    with writing(target):
        if is_stream(target):
            with _open_stream(target) as file:
                yield file
            return
        place = real_place(target)
        temporary = new_name(place)
        try:
            with temporary.open("xb") as file:
                yield file
            if overwrite:
                os.replace(temporary, place)
            else:
                _link(temporary, place, target)
        finally:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                temporary.unlink(missing_ok=True)


def _link(temporary: Path, place: Path, target: Path) -> None:
    """Put a new file in place; of two processes that do so at once, one is refused."""
    try:
        os.link(temporary, place)
    except FileExistsError:
        _refuse_existing(target)
    except OSError:  # a file system without hard links
        if place.exists():
            _refuse_existing(target)
        os.replace(temporary, place)


def _open_stream(target: Path) -> BinaryIO:
    number = _descriptor(target)
    if number is None:
        # Neither made nor cut: what is there is a pipe or a device.
        return os.fdopen(os.open(target, os.O_WRONLY | os.O_CLOEXEC), "wb")
    if sys.stdout is not None:
        sys.stdout.flush()
    # A copy of the descriptor: opened anew by name, a file would be written from its beginning.
    return os.fdopen(os.dup(number), "wb")


def write_whole(target: Path, content: str | bytes, overwrite: bool = True) -> None:
    """Write text (UTF-8) or bytes with :func:`atomic_file`."""
    with atomic_file(target, overwrite) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(target: str | Path, record: Mapping[str, Any], overwrite: bool = True) -> None:
    """Write JSON; numbers that are not finite, which JSON does not know, become null."""
    write_whole(Path(target), json.dumps(without_nan(record), indent=2) + "\n", overwrite)


def without_nan(value: Any) -> Any:
    """Replace numbers that are not finite by None, all the way down; tuples become lists."""
    if isinstance(value, Mapping):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_bgzip_end(raw: io.BufferedReader, path: Path, error: type[MegabaseError]) -> None:
    """Refuse a bgzip file just opened without the empty block that ends every bgzip file.

    It is the only sign that one was cut between two blocks. Of a pipe nothing is known.
    """
    start = raw.peek(16)[:16]
    is_bgzip = start[:4] == b"\x1f\x8b\x08\x04" and start[12:14] == b"BC"
    if not is_bgzip or not raw.seekable():
        return
    size = raw.seek(0, os.SEEK_END)
    raw.seek(-min(len(BGZF_END), size), os.SEEK_END)
    if raw.read() != BGZF_END:
        raise error(
            f"{path} is cut short: it is a bgzip file without the empty block that ends every "
            "bgzip file; copy or download it again"
        )
    raw.seek(0)


def beginning(path: Path, count: int) -> bytes:
    """First bytes of a file, inside gzip too; none of a file that is missing or damaged."""
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            return (gzip.GzipFile(fileobj=raw) if packed else raw).read(count)
    except (OSError, EOFError, zlib.error):
        return b""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a plain or gzip text file with their 1-based numbers, without line ends.

    An InputError when the file is missing, cut short, or not text.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            require_bgzip_end(raw, path, InputError)
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=raw) if packed else raw
            lines = iter(lambda: stream.readline(_LONGEST_LINE + 1), b"")
            for number, line in enumerate(lines, start=1):
                if len(line) > _LONGEST_LINE:
                    raise InputError(
                        f"{path}, line {number:,}: longer than {_LONGEST_LINE:,} bytes; expected a "
                        "table, one row a line"
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.decode().rstrip("\r\n")
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise InputError(
            f"{path}, line {number:,}: not text in UTF-8; is this a table, and is it decompressed? "
            "(From Latin-1: iconv -f LATIN1 -t UTF-8)"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise InputError(
            f"{path}, after line {number:,}: the gzip file is cut short or damaged ({problem}); "
            "copy or download it again"
        ) from None
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from problem


class Lock:
    """Ownership of `output` by one process, recorded in a lock file with its machine and start.

    The system releases the lock when the process ends, however it ends, so a file left by a killed
    process locks nothing.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path, self.output = path, output
        self._handle: int | None = None

    def acquire(self) -> None:
        """Become the owner; an InUseError when another process, or another run in this one, is.

        The folder of the lock file is made if need be.
        """
        while True:
            with writing(self.output):
                self.path.parent.mkdir(exist_ok=True)
                try:
                    handle = os.open(self.path, _OPEN | os.O_CREAT, 0o666)
                except FileNotFoundError:  # the owner before removed the folder meanwhile
                    continue
            try:
                self._take(handle)
                # The owner before may have removed the file since it was opened here.
                if self._is_there(handle):
                    break
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
        self._handle = handle
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its record
            os.ftruncate(handle, 0)
            record = {
                "pid": os.getpid(), "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(" ", "seconds"),
                "started": _started(os.getpid()),
            }  # fmt: skip
            os.pwrite(handle, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Give the output free and remove the file."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if self._is_there(self._handle):
                self.path.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # children that were forked have it too
        os.close(self._handle)
        self._handle = None

    def refuse_used(self) -> None:
        """Raise as :meth:`acquire` does when there is a live owner; change nothing."""
        try:
            handle = os.open(self.path, _OPEN)
        except OSError:
            return
        try:
            self._take(handle)
        finally:
            os.close(handle)

    def _is_there(self, handle: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(handle), os.lstat(self.path))
        return False

    def _take(self, handle: int) -> None:
        for _ in range(_TRIES):
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                busy = isinstance(problem, BlockingIOError)
                if not busy and problem.errno not in _NO_LOCKS:
                    raise
                record = _read(handle)
                if record and _may_live(record):
                    owner = "process {pid} on {host} since {since}".format_map(record)
                    advice = "" if busy else f"; if that run has ended, remove {self.path}"
                    raise InUseError(f"{self.output} is in use by {owner}{advice}") from None
                if not busy:
                    return None
                time.sleep(_WAIT_SECONDS)
        raise InUseError(f"{self.output} is in use by another process")


def _read(handle: int) -> dict[str, Any] | None:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return record if {"pid", "host", "since", "started"} <= set(record) else None
    except (OSError, ValueError, TypeError):
        return None


def _may_live(record: dict[str, Any]) -> bool:
    """Whether the process of a record may run: of another machine that is not known from here."""
    if record["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(record["pid"]), 0)
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:
        pass
    # The number of a process that ended may have been given anew.
    return record["started"] in (None, _started(int(record["pid"])))


def _started(pid: int) -> str | None:
    """Give when a process began, in ticks since the machine did; None where that is not known."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None
