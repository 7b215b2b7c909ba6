"""Recorded outputs of the published implementations, and the handlers that reproduce them.

A case is a folder with ``config.json`` (``kind`` and hyperparameters), weights, inputs and
expected outputs. A handler covers one or more kinds::

    @covers("hyenadna_lm")
    def hyenadna_lm(case: Case) -> None:
        model = build(case.config, case.weights)
        case.check({"logits": ..., "f64/logits": ..., "grad_norm/...": ...})

``Case.check`` compares every given value with the recorded one and remembers which recorded keys
were compared; at the end the runner fails the case when a recorded numeric key was never compared
(``case.ignore(key, reason)`` takes one out, with the reason). A float32 element passes when
|got - want| <= atol + rtol * |want|, with the tolerances of ``meta.json``; ``f64/`` keys use 1e-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

HANDLERS: dict[str, Callable[[Case], None]] = {}

DEFECTS: dict[str, str] = {}
"""Cases (by name) that document a published defect nobody wants: name -> reason."""


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class Case:
    """One recorded case."""

    path: Path
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    input_json: Any = None
    output_json: Any = None
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    expected: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    ignored: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read a case folder."""
        weights, expected = path / "weights.safetensors", path / "output.safetensors"
        return cls(
            path=path,
            name=path.name,
            config=_read_json(path / "config.json"),
            meta=_read_json(path / "meta.json") or {},
            input_json=_read_json(path / "input.json"),
            output_json=_read_json(path / "output.json"),
            weights=load_file(weights) if weights.exists() else {},
            expected=load_file(expected) if expected.exists() else {},
            inputs={file.stem: np.load(file) for file in sorted(path.glob("*.npy"))},
        )

    def tolerance(self, key: str) -> tuple[float, float]:
        """Give (atol, rtol) of a recorded key."""
        table = self.meta.get("tolerance") or {}
        if key.startswith("f64/"):
            row = table.get("f64", {})
            return row.get("suggested_atol", 1e-8), row.get("suggested_rtol", 1e-8)
        if key in table:
            row = table[key]
        elif key.startswith("grad_norm/") and "grad_norm/*" in table:
            row = table["grad_norm/*"]
        elif key.startswith("hidden") and "hidden" in table:
            row = table["hidden"]
        else:
            row = table.get("all", {})
        return row.get("suggested_atol", 1e-5), row.get("suggested_rtol", 1e-5)

    def check(self, got: Mapping[str, Any]) -> None:
        """Compare values with the recorded ones; raise AssertionError naming every bad key."""
        problems = []
        for key, value in got.items():
            if hasattr(value, "detach"):
                value = value.detach().cpu().numpy()
            value = np.asarray(value)
            want = self.expected[key]
            self.compared.add(key)
            if value.shape != want.shape:
                problems.append(f"{key}: shape {value.shape}, recorded {want.shape}")
                continue
            atol, rtol = self.tolerance(key)
            difference = np.abs(value.astype(np.float64) - want.astype(np.float64))
            allowed = atol + rtol * np.abs(want.astype(np.float64))
            if not bool((difference <= allowed).all()):
                worst = float((difference / allowed).max())
                problems.append(
                    f"{key}: off by {difference.max():.3g}, {worst:.3g} x the tolerance"
                )
        assert not problems, f"{self.name}: " + "; ".join(problems)

    def ignore(self, keys: str | Iterable[str], reason: str) -> None:
        """Take recorded keys out of the demand that each is compared."""
        for key in [keys] if isinstance(keys, str) else keys:
            self.ignored[key] = reason

    def unchecked(self) -> list[str]:
        """Recorded keys that were neither compared nor ignored."""
        return sorted(set(self.expected) - self.compared - set(self.ignored))


def covers(*kinds: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a handler for the named kinds of case."""

    def register(handler: Callable[[Case], None]) -> Callable[[Case], None]:
        for kind in kinds:
            if kind in HANDLERS:
                raise RuntimeError(f"two handlers for kind {kind!r}")
            HANDLERS[kind] = handler
        return handler

    return register
