"""Which implementation of the operators runs, and how to ask for another.

Every operator has a plain reference and a fast path with the same signature and the same values.
The fast path runs unless the environment variable ``MEGABASE_BACKEND`` or :func:`override` says
``reference``. Nothing switches silently: an unknown name is an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from megabase.errors import MegabaseError

__all__ = ["BACKENDS", "ENVIRONMENT_VARIABLE", "BackendError", "active", "override"]

BACKENDS = ("fast", "reference")
"""Names that can be asked for."""

ENVIRONMENT_VARIABLE = "MEGABASE_BACKEND"
"""Environment variable read when no :func:`override` is in force."""

# A plain list, because compilers can read one; the last entry is in force.
_overrides: list[str] = []


class BackendError(MegabaseError):
    """An operator implementation was asked for by a name that does not exist."""


def _checked(name: str, where: str) -> str:
    if name not in BACKENDS:
        raise BackendError(
            f"{where}: expected one of {', '.join(BACKENDS)}, found {name!r}; "
            "choose one of them, or leave it out for the fast path"
        )
    return name


def active() -> str:
    """Name the implementation that operators use now.

    Returns
    -------
    str
        ``"fast"`` or ``"reference"``.

    Raises
    ------
    BackendError
        When ``MEGABASE_BACKEND`` holds an unknown name.
    """
    if _overrides:
        return _overrides[-1]
    return _checked(os.environ.get(ENVIRONMENT_VARIABLE) or "fast", ENVIRONMENT_VARIABLE)


@contextmanager
def override(name: str) -> Iterator[None]:
    """Use the named implementation inside a ``with`` block.

    Parameters
    ----------
    name
        ``"fast"`` or ``"reference"``.

    Raises
    ------
    BackendError
        When the name is unknown.
    """
    _overrides.append(_checked(name, "backend.override"))
    try:
        yield
    finally:
        _overrides.pop()
