"""Standard output and error as they may be: closed, full, or without letters for a name."""

from __future__ import annotations

import contextlib
import io
import os
import sys

__all__ = ["discard_output", "open_streams", "output_fails", "say"]


def open_streams() -> bool:
    """Make both streams take any letter; give whether there is a standard output at all."""
    if sys.stderr is None:  # closed by 2>&-: the next file opened would take its number
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    return sys.stdout is not None


def say(text: str) -> None:
    """Print a line on standard error, if that can be written to."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def output_fails() -> bool:
    """Say whether standard output cannot be written to: one more end of line is tried."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def discard_output() -> None:
    """Throw away what standard output still holds, so that nothing fails at the end of Python."""
    with contextlib.suppress(OSError):  # a stream in memory has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
