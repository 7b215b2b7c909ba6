"""Published model shapes by name.

Each family lists its own in ``megabase/models/<family>/presets.py`` as a tuple ``PRESETS`` of
:class:`Preset`; those files import neither torch nor transformers. ``megabase info --presets``
prints the table.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from megabase.errors import MegabaseError

__all__ = ["PRESETS", "Preset", "find_preset"]

PRESETS: Mapping[str, Preset]
"""Every preset by name, collected at first use (a family's list imports :class:`Preset`)."""


@dataclass(frozen=True)
class Preset:
    """A published model shape."""

    name: str
    """Name on the command line."""
    family: str
    """Folder of the family in ``megabase.models``."""
    config: Mapping[str, Any] = field(hash=False)
    """Arguments of the family's configuration class."""
    parameters: int
    """Trainable numbers; tied and shared tensors count once. A language model counts with its
    head, an encoder without."""
    length: int
    """Bases of its training sequences."""
    hub: str | None = None
    """Hub repository that transformers loads, if there is one."""
    checkpoint: str | None = None
    """Hub repository of the original checkpoint, for ``megabase convert``."""
    source: str = ""
    """Where the shape is published."""


def _collect() -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    here = Path(__file__).parent
    for package in pkgutil.iter_modules([str(here)]):
        if not package.ispkg or not (here / package.name / "presets.py").exists():
            continue
        module = importlib.import_module(f"megabase.models.{package.name}.presets")
        for preset in module.PRESETS:
            if preset.name in found:
                raise RuntimeError(f"two presets are named {preset.name!r}")
            found[preset.name] = preset
    return found


def find_preset(name: str) -> Preset:
    """Give the preset of a name.

    Parameters
    ----------
    name
        Name of the preset, or of its Hub repository.

    Returns
    -------
    Preset
        The published shape.

    Raises
    ------
    MegabaseError
        When there is none; the message names the nearest.
    """
    presets: Mapping[str, Preset] = __getattr__("PRESETS")
    for preset in presets.values():
        if name in (preset.name, preset.hub, preset.checkpoint):
            return preset
    near = difflib.get_close_matches(name, presets, n=3, cutoff=0.4) or list(presets)
    raise MegabaseError(
        f"there is no preset {name!r}; near it: {', '.join(near)} (megabase info --presets)"
    )


def __getattr__(name: str) -> Any:
    if name != "PRESETS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    presets: Mapping[str, Preset] = MappingProxyType(_collect())
    globals()["PRESETS"] = presets
    return presets
