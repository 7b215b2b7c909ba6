"""Where a run came from: versions, machine, state of the source."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from megabase import __version__
from megabase.genome.files import write_json

__all__ = ["differences", "environment", "record_environment"]

_PACKAGES = ("torch", "lightning-fabric", "transformers", "numpy", "safetensors", "polars", "pysam")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST = 80  # of a value in a message


def environment() -> dict[str, Any]:
    """Collect versions, machine facts, devices and, in a git checkout, the commit.

    Returns
    -------
    dict
        Plain values, ready for JSON. Nothing personal: no user, no environment variables.
    """
    return {
        "megabase": __version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git(Path(__file__).parent),
        "command": [_program(Path(sys.argv[0])), *sys.argv[1:]],
    }


def _program(path: Path) -> str:
    """Name the program; where it lies is a fact of the machine, not of the run."""
    return "megabase" if path.stem == "__main__" else path.name


def record_environment(path: Path, resumed: bool) -> None:
    """Write ``environment.json``; a resumed run adds its environment to the list ``resumed``."""
    if resumed and path.exists():
        first = json.loads(path.read_text())
        first.setdefault("resumed", []).append(environment())
        write_json(path, first)
    else:
        write_json(path, environment())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()


def _git(folder: Path) -> dict[str, Any] | None:
    """Give commit and whether files differ from it; None outside a checkout of the project."""

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        # An installed package may lie inside another project's checkout: that commit is not ours.
        if not (Path(ask("rev-parse", "--show-toplevel")) / "src" / "megabase").is_dir():
            return None
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Compare two records of settings, inputs or digests.

    Returns
    -------
    dict
        Dotted name of each value that differs -> "name: old then, new now", digests shortened.
    """
    old, new = _flat(before), _flat(now)
    return {
        name: f"{name}: {_short(old.get(name))} then, {_short(new.get(name))} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    }


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return f"sha256 {value[:12]}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
