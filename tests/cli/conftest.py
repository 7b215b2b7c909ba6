"""Tiny models that several verbs are tried on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megabase.models.hyenadna import HyenaDNAConfig

SaveTiny = Callable[..., None]


@pytest.fixture(scope="session")
def save_tiny() -> SaveTiny:
    """Give ``save(folder, {name: (class, options)}, longest)``, which writes HyenaDNA folders."""

    def save(folder: Path, models: Mapping[str, tuple[Any, dict[str, Any]]], longest: int) -> None:
        torch.manual_seed(0)
        shape = {"d_model": 8, "n_layer": 1, "max_seq_len": longest, "filter_order": 8}
        for name, (family, options) in models.items():
            family(HyenaDNAConfig(**{**shape, **options})).save_pretrained(folder / name)

    return save


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of twenty sequences of two classes."""
    rng = np.random.default_rng(0)
    rows = [f"{''.join(rng.choice(list('ACGT'), size=16))},{i % 2}" for i in range(20)]
    path = tmp_path / "x.csv"
    path.write_text("seq,label\n" + "\n".join(rows) + "\n")
    return path
