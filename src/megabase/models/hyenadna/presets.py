"""The seven published HyenaDNA models (HyenaDNA paper, arXiv 2306.15794, and its Hub pages)."""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]

# Tokens beyond the bases of a training sequence for which the published filters have room.
_EXTRA_POSITIONS = 2


def _preset(name: str, width: int, layers: int, length: int, parameters: int) -> Preset:
    return Preset(
        name=f"hyenadna-{name}",
        family="hyenadna",
        config={
            "d_model": width,
            "n_layer": layers,
            "d_inner": 4 * width,
            "max_seq_len": length + _EXTRA_POSITIONS,
        },
        parameters=parameters,
        length=length,
        hub=f"LongSafari/hyenadna-{name}-hf",
        checkpoint=f"LongSafari/hyenadna-{name}",
        source="arXiv 2306.15794",
    )


PRESETS: tuple[Preset, ...] = (
    _preset("tiny-1k-seqlen", 128, 2, 1_024, 436_096),
    _preset("tiny-1k-seqlen-d256", 256, 2, 1_024, 1_641_088),
    _preset("tiny-16k-seqlen-d128", 128, 2, 16_384, 436_096),
    _preset("small-32k-seqlen", 256, 4, 32_768, 3_277_568),
    _preset("medium-160k-seqlen", 256, 8, 160_000, 6_550_528),
    _preset("medium-450k-seqlen", 256, 8, 450_000, 6_550_528),
    _preset("large-1m-seqlen", 256, 8, 1_000_000, 6_550_528),
)
