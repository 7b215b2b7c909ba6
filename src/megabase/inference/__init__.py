"""Using a trained model: functions over a model that give small frozen results."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megabase.evaluate.score import SequenceScores, score_sequences
    from megabase.inference.attribution import Attribution, attribute
    from megabase.inference.embedding import Embeddings, embed
    from megabase.inference.generation.generate import Generated, generate
    from megabase.inference.prediction import Predictions, predict
    from megabase.inference.saturation import Saturation, saturate
    from megabase.inference.sequence_embedder import SequenceEmbedder
    from megabase.inference.variants.scorer import VariantScores, score_variants

__all__ = [
    "Attribution",
    "Embeddings",
    "Generated",
    "Predictions",
    "Saturation",
    "SequenceEmbedder",
    "SequenceScores",
    "VariantScores",
    "attribute",
    "embed",
    "generate",
    "predict",
    "saturate",
    "score_sequences",
    "score_variants",
]

_HOME = {
    "Attribution": ".attribution",
    "Embeddings": ".embedding",
    "Generated": ".generation.generate",
    "Predictions": ".prediction",
    "Saturation": ".saturation",
    "SequenceEmbedder": ".sequence_embedder",
    "SequenceScores": "..evaluate.score",
    "VariantScores": ".variants.scorer",
    "attribute": ".attribution",
    "embed": ".embedding",
    "generate": ".generation.generate",
    "predict": ".prediction",
    "saturate": ".saturation",
    "score_sequences": "..evaluate.score",
    "score_variants": ".variants.scorer",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that a command's help never imports torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
