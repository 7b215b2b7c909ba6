"""A scikit-learn transformer from sequences to embeddings."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError, MissingDependencyError
from megabase.evaluate.sequences import named_sequences
from megabase.inference.embedding import Averaged, Embedder

MissingDependencyError.load("sklearn.base", "suites", "SequenceEmbedder", "scikit-learn")
from sklearn.base import BaseEstimator, TransformerMixin  # noqa: E402


class SequenceEmbedder(TransformerMixin, BaseEstimator):
    """Turns sequences (DNA letters) into vectors, as a step of a scikit-learn pipeline.

    ``fit`` only loads the model. Parameters and errors are those of
    :class:`megabase.inference.embedding.Embedder`; a copy (``clone``, cross-validation, processes)
    carries the name of the model, not its weights.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> pipeline = make_pipeline(SequenceEmbedder(), LogisticRegression())
    >>> pipeline.fit(["ACGT" * 10, "TTTT" * 10], [0, 1]).predict(["ACGT" * 10])
    array([0])
    """

    def __init__(
        self, model: str | None = None, *, layer: int = -1, pooling: str = "mean",
        long: str = "error", strands: Averaged = "forward", batch_tokens: int = 1 << 16,
        device: str | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.layer, self.pooling, self.long, self.strands = layer, pooling, long, strands
        self.batch_tokens, self.device = batch_tokens, device

    def fit(self, X: Iterable[str], y: Any = None) -> Self:
        """Load the model; the sequences are not looked at."""
        self._ready()
        return self

    def _ready(self) -> Embedder:
        """Load the model, unless it was loaded with the same parameters."""
        wanted = self.get_params()
        if getattr(self, "_embedder_params", None) != wanted:
            spec = wanted.pop("model")
            self._embedder = Embedder(spec, **wanted)
            self._embedder_params = {"model": spec, **wanted}
        return self._embedder

    def transform(self, X: Iterable[str]) -> NDArray[np.float32]:
        """Embed texts of DNA letters (a list, an array or a column): float32 (texts, width)."""
        texts = np.asarray(X, dtype=object).ravel().tolist()
        for number, item in enumerate(texts):
            if not isinstance(item, (str, bytes)):
                kind = type(item).__name__
                raise InputError(f"item {number} is {kind}, expected DNA letters as text")
        return self._ready().pooled([one.codes for one in named_sequences(texts)])[0]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Name the columns: h0, h1, ..."""
        return np.array([f"h{i}" for i in range(self._ready().width)], dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if not name.startswith("_embedder")}

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = False
        return tags
