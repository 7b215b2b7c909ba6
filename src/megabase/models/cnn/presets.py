"""CNN shapes of the comparisons; no weights of them are published."""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]

_CADUCEUS = "arXiv 2403.03234, Table 1"
_ORIGINAL = "GenomicBenchmarks, models/torch.py"

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="cnn-caduceus-1024",
        family="cnn",
        config={"variant": "caduceus", "max_length": 1024},
        parameters=264_710,
        length=1024,
        source=_CADUCEUS,
    ),
    Preset(
        name="cnn-genomic-benchmarks-251",
        family="cnn",
        # 251 bases between <bos> and <eos>; seven tokens without N.
        config={"max_length": 253, "vocab_size": 7, "pad_token_id": None},
        parameters=67_089,
        length=251,
        source=_ORIGINAL,
    ),
)
