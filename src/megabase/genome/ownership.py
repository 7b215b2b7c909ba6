"""An output has one owner: a lock that says which process writes it, and ends with that process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from megabase.errors import InUseError
from megabase.genome.files import writing

__all__ = ["LOCK_NAME", "Lock"]

LOCK_NAME = ".lock"
# A file system without locks (some network ones): the record in the file has to do.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_WAIT_SECONDS, _TRIES = 0.02, 50  # an owner writes its record right after it has the lock


class Lock:
    """Ownership of an output.

    The file holds the process, its machine and when it began. The system gives the lock back when
    the process ends, however it ends, so a file that a killed process left locks nothing.

    Parameters
    ----------
    path
        The lock file; its folder must exist.
    output
        What is owned, for messages.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self.output = output
        self._handle: int | None = None

    def acquire(self) -> None:
        """Become the owner.

        Raises
        ------
        InUseError
            When another process, or another run in this one, is.
        OutputError
            When the file cannot be written.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            with writing(self.output):
                handle = os.open(self.path, flags, 0o666)
            try:
                self._take(handle)
                with contextlib.suppress(FileNotFoundError):
                    # The owner before may have removed the file since it was opened here.
                    if os.path.samestat(os.fstat(handle), os.lstat(self.path)):
                        break
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)
        self._handle = handle
        with contextlib.suppress(OSError):  # on a full disk the lock holds without its record
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(_record()).encode(), 0)

    def release(self) -> None:
        """Give the output free and remove the file."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._handle), os.lstat(self.path)):
                self.path.unlink()
        with contextlib.suppress(OSError):
            fcntl.flock(self._handle, fcntl.LOCK_UN)  # children that were forked have it too
        os.close(self._handle)
        self._handle = None

    def refuse_used(self) -> None:
        """Raise as :meth:`acquire` does when there is a live owner; change nothing."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._take(handle)
        finally:
            os.close(handle)

    def _take(self, handle: int) -> None:
        for _ in range(_TRIES):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                record = _read(handle)
                if record and _may_live(record):
                    raise InUseError(f"{self.output} is in use by {_shown(record)}") from None
                time.sleep(_WAIT_SECONDS)
            except OSError as problem:
                if problem.errno not in _NO_LOCKS:
                    raise
                record = _read(handle)
                if record and _may_live(record):
                    raise InUseError(
                        f"{self.output} is in use by {_shown(record)}; if that run has ended, "
                        f"remove {self.path}"
                    ) from None
                return
        raise InUseError(f"{self.output} is in use by another process")


def _record() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "started": _started(os.getpid()),
    }


def _read(handle: int) -> dict[str, Any] | None:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
        return record if {"pid", "host", "since", "started"} <= set(record) else None
    except (OSError, ValueError, TypeError):
        return None


def _shown(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']} since {record['since']}"


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
