"""What is written into every output: which genome, which model, which options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megabase import __version__

__all__ = ["Provenance", "file_digest"]


def file_digest(path: str | Path) -> str:
    """Give the sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of an output come from.

    Parameters
    ----------
    verb
        What was done: ``score``, ``variants``, ...
    model, model_sha256
        Name of the model and the sha256 over its configuration and weights
        (:func:`megabase.models.checkpoints.checks.model_digest`).
    genome, genome_sha256
        Name and checksum of the genome; None without one.
    inputs
        File names of the inputs, each with its sha256.
    options
        Everything that changes a number.
    version
        Version of megabase.
    """

    verb: str
    model: str
    model_sha256: str
    genome: str | None = None
    genome_sha256: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
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
