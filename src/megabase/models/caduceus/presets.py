"""The published Caduceus models (arXiv 2403.03234, and their Hub pages)."""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]


def _preset(kind: str, shape: str, width: int, layers: int, length: int, parameters: int) -> Preset:
    return Preset(
        name=f"caduceus-{kind}-{length // 1024}k-d{width}-n{layers}",
        family="caduceus",
        config={
            "d_model": width,
            "n_layer": layers,
            "rcps": kind == "ps",
            "max_seq_len": length,
        },
        parameters=parameters,
        length=length,
        hub=f"kuleshov-group/caduceus-{kind}_{shape}",
        source="arXiv 2403.03234",
    )


PRESETS: tuple[Preset, ...] = tuple(
    _preset(kind, *row)
    for kind in ("ph", "ps")
    for row in (
        ("seqlen-1k_d_model-118_n_layer-4_lr-8e-3", 118, 4, 1_024, 470_702),
        ("seqlen-1k_d_model-256_n_layer-4_lr-8e-3", 256, 4, 1_024, 1_934_592),
        ("seqlen-131k_d_model-256_n_layer-16", 256, 16, 131_072, 7_725_312),
    )
)
