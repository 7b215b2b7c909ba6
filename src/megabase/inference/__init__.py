"""Using a trained model: functions over a model that give small frozen results, or write files."""

from megabase.inference.attribution import Attribution, attribute, attribute_file
from megabase.inference.embedding import Embeddings, embed, embed_file
from megabase.inference.generation.generate import Generated, generate
from megabase.inference.generation.job import generate_file
from megabase.inference.ism import Mutagenesis, ism, ism_file
from megabase.inference.prediction import Predictions, predict, predict_file
from megabase.inference.prediction_track import TrackOptions, predict_track
from megabase.inference.scoring import SequenceScores, score, score_file
from megabase.inference.variants.scorer import VariantScores, score_variants
from megabase.inference.variants.vcf_file import score_variants_file

__all__ = [
    "Attribution", "Embeddings", "Generated", "Mutagenesis", "Predictions", "SequenceScores",
    "TrackOptions", "VariantScores", "attribute", "attribute_file", "embed", "embed_file",
    "generate", "generate_file", "ism", "ism_file", "predict", "predict_file", "predict_track",
    "score", "score_file", "score_variants", "score_variants_file",
]  # fmt: skip
