"""What people give the functions by mistake is told so; what they get back is short to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from megabase.errors import MegabaseError
from megabase.inference.attribution import attribute
from megabase.inference.embedding import embed
from megabase.inference.generation.generate import GenerateOptions, generate
from megabase.inference.ism import ism
from megabase.inference.scoring import score
from megabase.inference.variants.scorer import score_variants
from megabase.models import PRESETS, resolve_model
from megabase.models.loading import _shown_name, load


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text(">chr1\n" + "ACGTTGCA" * 20 + "\n")
    return path


@pytest.mark.parametrize("given", ["ACGT", Path("s.fa"), 7, None, [7], [np.zeros(4)]])
@pytest.mark.parametrize(
    "function",
    [
        lambda given: score(None, given),
        lambda given: embed(None, given),
        lambda given: generate(None, given, GenerateOptions(2)),
        lambda given: attribute(None, given, method="gradient"),
    ],
)
def test_what_is_no_list_of_sequences_is_told_so(
    function: Callable[[Any], object], given: object
) -> None:
    with pytest.raises(MegabaseError, match=r"expected a list of sequences|a sequence is DNA"):
        function(given)


def test_variants_and_models_of_another_type_are_told_so(genome: Path) -> None:
    with pytest.raises(MegabaseError, match="a variant is a text"):
        score_variants(None, [("chr1", 9, "A", "C")], genome)  # pyright: ignore[reportArgumentType]
    with pytest.raises(MegabaseError, match="a model is a folder, a name, or a module; found list"):
        embed(["ACGT"], None)  # pyright: ignore[reportArgumentType]
    for function in (
        lambda model: score(model, ["ACGT"]),
        lambda model: generate(model, options=GenerateOptions(2)),
        lambda model: score_variants(model, "chr1:81:A>C", genome),
    ):
        with pytest.raises(MegabaseError, match="Linear is not a language model"):
            function(nn.Linear(2, 2))
    scores = score_variants(None, "chr1:81:A>C", genome, window=32, methods="l2")
    assert "l2" in scores.table.columns


def test_results_are_short_to_look_at(genome: Path) -> None:
    assert repr(embed(None, ["ACGT"])) == (
        "Embeddings(1 x 192, mean of layer 4 of megabase default)"
    )
    assert repr(ism(None, "chr1:81-90", genome, window=32)).startswith(
        "Mutagenesis(chr1:81-90, llr"
    )
    assert repr(score(None, ["ACGT"])).startswith("SequenceScores by megabase default\nshape:")
    (found,) = attribute(None, ["ACGTA"], method="gradient")
    assert repr(found).startswith("Attribution(5 bases, output -")


def test_a_model_of_a_run_is_named_after_the_run(tmp_path: Path) -> None:
    step = tmp_path / "tuned" / "checkpoints" / "step-00000006"
    step.mkdir(parents=True)
    assert _shown_name(tmp_path / "tuned", step) == "tuned/step-00000006"
    assert _shown_name(tmp_path / "tuned", tmp_path / "tuned") == "tuned"
    assert _shown_name("default", step) == _shown_name(None, step) == "megabase default"
    preset = next(iter(PRESETS))
    assert _shown_name(preset, step) == preset


def test_a_prompt_in_place_of_a_model_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text("{}")
    with pytest.raises(MegabaseError, match="holds a soft prompt and no model"):
        resolve_model(tmp_path)


def test_verbs_share_a_loaded_model() -> None:
    model = load("default")
    assert load(model) is load(model, head="language") is model
    texts = ["ACGTTGCAACGT"]
    shared = score(model, texts).table
    assert shared.equals(score(None, texts).table)
    np.testing.assert_array_equal(embed(model, texts).vectors, embed(None, texts).vectors)
