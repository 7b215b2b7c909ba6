"""The next-token Mamba baselines of the Caduceus paper (arXiv 2403.03234).

Their weights are not on the Hub; the shapes are those of its appendix and of its public code.
"""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]


def _preset(name: str, width: int, layers: int, parameters: int) -> Preset:
    return Preset(
        name=name,
        family="mamba",
        config={"d_model": width, "n_layer": layers, "max_seq_len": 1_024},
        parameters=parameters,
        length=1_024,
        source="arXiv 2403.03234",
    )


PRESETS: tuple[Preset, ...] = (
    _preset("mamba-1k-d128-n4", 128, 4, 468_608),
    _preset("mamba-1k-d256-n4", 256, 4, 1_756_416),
)
