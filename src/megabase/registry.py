"""Named building blocks, those of installed packages included."""

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from megabase.errors import ConfigError

_T = TypeVar("_T")  # what a registry holds


class Registry(Generic[_T]):
    """Things by name. Installed packages add theirs through an entry point of `group`.

    The name of the entry point is the name of the thing, and its value the thing itself
    (``module:attribute``), which is imported when it is first looked up. `kind` names the things in
    messages; `added` is called with each before it becomes known.
    """

    def __init__(self, kind: str, group: str, added: Callable[[_T], None] | None = None) -> None:
        self.kind, self.group, self._added = kind, group, added
        self.advice = f"your own is installed as an entry point of {group} (docs/extending.md)"
        self._known: dict[str, _T] = {}

    def register(self, name: str, value: _T) -> None:
        """Add a thing; ConfigError when the name belongs to another one."""
        if self._known.get(name, value) != value:
            raise ConfigError(f"there is another {self.kind} named {name!r}; choose another name")
        if self._added is not None and name not in self._known:
            self._added(value)
        self._known[name] = value

    def __getitem__(self, name: str) -> _T:
        if name not in self._known:
            for found in entry_points(group=self.group, name=name):
                self.register(name, found.load())
        if name not in self._known:
            near = difflib.get_close_matches(name, self, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self)}"
            hint = hint if near else f"{hint}; {self.advice}"
            raise ConfigError(f"{self.kind} {name!r} is not known; {hint}")
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        known = tuple(self._known)
        yield from known  # most searches end here: reading entry points takes milliseconds
        installed = dict.fromkeys(found.name for found in entry_points(group=self.group))
        yield from (name for name in installed if name not in known)

    def values(self) -> Iterator[_T]:
        """Give every thing, those of installed packages last."""
        return (self[name] for name in self)

    def __contains__(self, name: object) -> bool:
        return name in self._known or any(name == other for other in self)
