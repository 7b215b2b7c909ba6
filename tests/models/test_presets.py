from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import megabase.models
from megabase.errors import MegabaseError
from megabase.models.families import FAMILIES
from megabase.models.presets import PRESETS, Preset, find_preset

PUBLISHED = {  # HyenaDNA paper: width, layers, tokens of the longest input, parameters
    "hyenadna-tiny-1k-seqlen": (128, 2, 1_026, 436_096),
    "hyenadna-tiny-1k-seqlen-d256": (256, 2, 1_026, 1_641_088),
    "hyenadna-tiny-16k-seqlen-d128": (128, 2, 16_386, 436_096),
    "hyenadna-small-32k-seqlen": (256, 4, 32_770, 3_277_568),
    "hyenadna-medium-160k-seqlen": (256, 8, 160_002, 6_550_528),
    "hyenadna-medium-450k-seqlen": (256, 8, 450_002, 6_550_528),
    "hyenadna-large-1m-seqlen": (256, 8, 1_000_002, 6_550_528),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_seven_published_shapes(name: str) -> None:
    preset = PRESETS[name]
    width, layers, longest, parameters = PUBLISHED[name]
    assert preset.config["d_model"] == width
    assert preset.config["n_layer"] == layers
    assert preset.config["max_seq_len"] == longest
    assert preset.parameters == parameters
    assert preset.hub == f"LongSafari/{name}-hf"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_with_its_number_of_parameters(name: str) -> None:
    preset = PRESETS[name]
    family = FAMILIES[preset.family]
    counts, config = {}, family.config_class()(**preset.config)
    if preset.family in ("caduceus", "deepsea", "dnabert", "mamba"):
        assert getattr(config, "max_bases", config.max_length) == preset.length
    assert config.num_labels == (919 if preset.family == "deepsea" else 2)
    for kind, model_class in family.classes().items():
        with torch.device("meta"):
            model = model_class(config)
        counts[kind] = sum(parameter.numel() for parameter in model.parameters())
    # Encoders are counted without their head, language models with it, as their papers do.
    assert preset.parameters in counts.values(), counts
    if preset.family == "hyenadna":
        assert preset.parameters == counts["causal-lm"]


def test_finding() -> None:
    assert find_preset("LongSafari/hyenadna-large-1m-seqlen-hf").name == "hyenadna-large-1m-seqlen"
    with pytest.raises(MegabaseError, match="hyenadna-tiny-1k-seqlen"):
        find_preset("hyenadna-tiny-1k")
    assert isinstance(megabase.models.PRESETS["hyenadna-tiny-1k-seqlen"], Preset)
    with pytest.raises(AttributeError):
        _ = megabase.models.nothing


def test_the_table_of_presets_imports_neither_torch_nor_transformers() -> None:
    # Importing the package registers the models and so needs torch; the table itself does not.
    text = (Path(megabase.models.__file__).parent / "presets.py").read_text()
    assert "import torch" not in text
    assert "transformers" not in text.split('"""', 2)[2].split("from")[0]


def test_import_order_does_not_matter() -> None:
    code = "from megabase.models.presets import PRESETS; print(len(PRESETS))"
    done = subprocess.run(  # a new process, because modules stay imported in this one
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "26"
