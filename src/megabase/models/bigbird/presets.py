"""BigBird's genomics shape, and a narrower one for CPUs; no genomics weights are published."""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]

# 8.78 bases a token on average, 4096 positions.
_BASES = 35_000

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="bigbird-4096",
        family="bigbird",
        config={},
        parameters=113_369_856,
        length=_BASES,
        source="arXiv 2007.14062, Table 21; encoder and pooler",
    ),
    Preset(
        name="bigbird-narrow",
        family="bigbird",
        config={
            "vocab_size": 4096,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 512,
        },
        parameters=1_462_144,
        length=_BASES,
        source="a shape for CPUs; encoder and pooler",
    ),
)
