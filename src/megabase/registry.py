"""Named building blocks, those of installed packages included."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from megabase.errors import ConfigError

_T = TypeVar("_T")


class Registry(Generic[_T]):
    """Things by name. Installed packages add theirs through an entry point.

    The name of the entry point is the name of the thing, and its value the thing itself
    (``module:attribute``), which is imported when it is first looked up.

    Parameters
    ----------
    kind
        What the things are, for messages.
    group
        Group of entry points.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._known: dict[str, _T] = {}

    def register(self, name: str, value: _T) -> None:
        """Add a thing; ConfigError when the name belongs to another one."""
        if self._known.setdefault(name, value) != value:
            raise ConfigError(f"there is another {self.kind} named {name!r}; choose another name")

    def __getitem__(self, name: str) -> _T:
        if name not in self._known:
            for found in entry_points(group=self.group, name=name):
                self.register(name, found.load())
        if name not in self._known:
            near = difflib.get_close_matches(name, self, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self)}"
            raise ConfigError(f"{self.kind} {name!r} is not known; {hint}")
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        installed = (found.name for found in entry_points(group=self.group))
        return iter(dict.fromkeys((*self._known, *installed)))

    def __contains__(self, name: object) -> bool:
        return name in self._known or any(name == other for other in self)
