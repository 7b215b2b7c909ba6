"""What is written into every output: which genome, which model, which options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megabase import __version__


def file_digest(path: str | Path) -> str:
    """Give the sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of an output come from."""

    verb: str
    """What was done: ``score``, ``variants``, ..."""
    model: str
    model_sha256: str
    """Over configuration and weights."""
    genome: str | None = None
    genome_sha256: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    """File names of the inputs, each with its sha256."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Everything that changes a number."""
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Give one line of JSON with sorted keys: equal text for equal runs."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """sha256 of :meth:`to_json`: tells whether two runs would write the same file."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Say in which fields another record (of :meth:`to_dict`) differs from this one."""
        from megabase.training.run_folder import differences

        return list(differences(other, json.loads(self.to_json())).values())
