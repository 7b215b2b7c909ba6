"""Checks of model settings that report every problem at once."""

from __future__ import annotations

from collections.abc import Iterable

from megabase.errors import ConfigError

__all__ = ["Problems"]


class Problems:
    """Collects what is wrong with a set of settings.

    Parameters
    ----------
    title
        What the settings are, for the message.
    settings
        Object that holds the settings as attributes.
    """

    def __init__(self, title: str, settings: object) -> None:
        self.title = title
        self.settings = settings
        self.found: list[str] = []

    def whole(self, *names: str, at_least: int = 1) -> None:
        """Demand whole numbers of at least `at_least`."""
        for name in names:
            value = getattr(self.settings, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
                self.found.append(f"{name} must be a whole number >= {at_least}, found {value!r}")

    def number(self, *names: str, low: float = 0.0, high: float = float("inf")) -> None:
        """Demand numbers from `low` to `high`."""
        for name in names:
            value = getattr(self.settings, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.found.append(f"{name} must be a number, found {value!r}")
            elif not low <= value <= high:
                span = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
                self.found.append(f"{name} must be {span}, found {value!r}")

    def one_of(self, name: str, choices: Iterable[str]) -> None:
        """Demand one of the named choices."""
        value = getattr(self.settings, name)
        if value not in (choices := tuple(choices)):
            self.found.append(f"{name} must be one of {', '.join(choices)}, found {value!r}")

    def demand(self, holds: bool, message: str) -> None:
        """Add `message` unless `holds`."""
        if not holds:
            self.found.append(message)

    def report(self) -> None:
        """Raise one error that lists every problem, if there is any.

        Raises
        ------
        ConfigError
            When anything was found.
        """
        if self.found:
            raise ConfigError(f"{self.title}: " + "; ".join(self.found))
