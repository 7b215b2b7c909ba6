"""DeepSEA shapes: the published one, and a narrower one for CPUs."""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="deepsea",
        family="deepsea",
        config={},
        parameters=52_843_119,
        length=1000,
        source="Kipoi models, DeepSEA",
    ),
    Preset(
        name="deepsea-narrow",
        family="deepsea",
        config={"channels": (32, 48, 96), "hidden": 93},
        parameters=610_015,
        length=1000,
        source="a tenth of the published width",
    ),
)
