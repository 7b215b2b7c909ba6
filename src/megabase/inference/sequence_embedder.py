"""A scikit-learn transformer from sequences to embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError, MissingDependencyError
from megabase.evaluate.sequences import codes_of
from megabase.inference.embedding import Averaged, Embedder

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError:
    raise MissingDependencyError("scikit-learn", "suites", "SequenceEmbedder") from None

__all__ = ["SequenceEmbedder"]


class SequenceEmbedder(TransformerMixin, BaseEstimator):
    """Turns sequences into vectors, as a step of a scikit-learn pipeline.

    Nothing is learnt: ``fit`` loads the model. Parameters are as in
    :class:`megabase.inference.embedding.Embedder`; a copy (``clone``, cross-validation, processes)
    carries the name of the model, not its weights.

    Parameters
    ----------
    model
        Model folder, run folder, preset or Hub name; None for the packaged model.
    layer, pooling, long, strands, batch_tokens, device
        What the vectors are, and how they are computed.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> pipeline = make_pipeline(SequenceEmbedder(), LogisticRegression())
    >>> pipeline.fit(["ACGT" * 10, "TTTT" * 10], [0, 1]).predict(["ACGT" * 10])
    array([0])
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        layer: int = -1,
        pooling: str = "mean",
        long: str = "error",
        strands: Averaged = "forward",
        batch_tokens: int = 1 << 16,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.long = long
        self.strands = strands
        self.batch_tokens = batch_tokens
        self.device = device

    def fit(self, X: Iterable[str], y: Any = None) -> Self:
        """Load the model; the sequences are not looked at.

        Raises
        ------
        MegabaseError
            For a model that cannot be loaded, or an unknown option.
        """
        self._ready()
        return self

    def _ready(self) -> Embedder:
        wanted = self.get_params()
        if getattr(self, "_embedder_params", None) != wanted:
            spec = wanted.pop("model")
            self._embedder = Embedder(spec, **wanted)
            self._embedder_params = {"model": spec, **wanted}
        return self._embedder

    def transform(self, X: Iterable[str]) -> NDArray[np.float32]:
        """Embed sequences.

        Parameters
        ----------
        X
            DNA letters, one text for each sequence: a list, an array, or a column of a frame.

        Returns
        -------
        ndarray
            float32 (sequences, width).

        Raises
        ------
        InputError
            When an item is no text, has no base, or is too long.
        """
        texts: list[str | bytes] = []
        for number, item in enumerate(np.asarray(X, dtype=object).ravel().tolist()):
            if not isinstance(item, (str, bytes)):
                raise InputError(
                    f"item {number} is {type(item).__name__}, expected DNA letters as text"
                )
            texts.append(item)
        return self._ready().pooled(codes_of(texts))[0]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Name the columns: h0, h1, ..."""
        return np.array([f"h{i}" for i in range(self._ready().width)], dtype=object)

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        kept: dict[str, Any] = dict(state)
        for name in ("_embedder", "_embedder_params"):
            kept.pop(name, None)
        return kept

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags
