"""The four published DNABERT models, and a narrower shape for CPUs."""

from __future__ import annotations

from megabase.models.presets import Preset

__all__ = ["PRESETS"]

_PUBLISHED = {3: 86_094_336, 4: 86_241_792, 5: 86_831_616, 6: 89_190_912}
"""k -> parameters of encoder and pooler; neighbours differ by the rows of the vocabulary."""

PRESETS: tuple[Preset, ...] = (
    *(
        Preset(
            name=f"dnabert-{k}",
            family="dnabert",
            config={"k": k},
            parameters=parameters,
            length=509 + k,
            checkpoint=f"zhihan1996/DNA_bert_{k}",
            source="doi 10.1093/bioinformatics/btab083; encoder and pooler",
        )
        for k, parameters in _PUBLISHED.items()
    ),
    Preset(
        name="dnabert-6-narrow",
        family="dnabert",
        config={
            "k": 6,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 512,
        },
        parameters=1_004_032,
        length=515,
        source="a shape for CPUs; encoder and pooler",
    ),
)
