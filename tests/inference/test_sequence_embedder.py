"""The scikit-learn transformer behaves as one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from megabase.errors import InputError
from megabase.inference.embedding import embed
from megabase.inference.sequence_embedder import SequenceEmbedder


def _texts() -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    rows = [("AT", "poor"), ("GC", "rich")] * 10
    return ["".join(rng.choice(list(s * 3 + "ACGT"), 60)) for s, _ in rows], [n for _, n in rows]


def test_vectors_are_those_of_embed() -> None:
    texts, _ = _texts()
    ready = SequenceEmbedder(pooling="max", strands="both")
    found = ready.fit_transform(np.array(texts))
    expected = embed(None, texts, pooling="max", strands="both").vectors
    np.testing.assert_array_equal(found, expected)
    assert ready.get_feature_names_out().shape == (found.shape[1],)


def test_it_works_in_pipelines_clones_and_pickles() -> None:
    texts, labels = _texts()
    pipeline = make_pipeline(SequenceEmbedder(), LogisticRegression(max_iter=1000))
    assert cross_val_score(pipeline, texts, labels, cv=2).mean() > 0.9
    fitted = pipeline.fit(texts, labels)
    packed = pickle.dumps(fitted)
    assert len(packed) < 100_000  # the name of the model, not its weights
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.predict(texts), fitted.predict(texts))
    ready = clone(fitted[0]).set_params(pooling="sum")
    np.testing.assert_allclose(ready.transform(texts[:1]) / 60, fitted[0].transform(texts[:1]),
                               atol=1e-4)  # fmt: skip


def test_items_that_are_no_text_are_refused() -> None:
    with pytest.raises(InputError, match="item 1 is float"):
        SequenceEmbedder().transform(["ACGT", 2.5])
