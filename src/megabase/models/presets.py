"""Published model shapes by name; ``megabase info --list`` prints the table."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from megabase.errors import MegabaseError


@dataclass(frozen=True)
class Preset:
    """A published model shape."""

    name: str
    family: str
    config: Mapping[str, Any] = field(hash=False)  # arguments of the family's configuration class
    parameters: int
    """Trainable numbers; tied and shared tensors count once. A language model counts with its
    head, an encoder without."""
    length: int  # bases of its training sequences
    hub: str | None = None  # repository that transformers loads
    checkpoint: str | None = None  # repository of the original checkpoint, for megabase convert
    source: str = ""  # where the shape is published
    license: str = ""  # of the weights, as the page or the LICENSE of their repository says
    use: str = "a shape without weights, to train"  # what it is good for


# A BERT that a CPU can train.
_NARROW = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
           "intermediate_size": 512}  # fmt: skip
_BASES = 35_000  # 8.78 bases a BigBird token on average, 4096 positions
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in (
    Preset(
        "bigbird-4096", "bigbird", {}, 113_369_856, _BASES,
        source="arXiv 2007.14062, Table 21; encoder and pooler",
    ),
    Preset(
        "bigbird-narrow", "bigbird", {"vocab_size": 4096, **_NARROW}, 1_462_144, _BASES,
        source="a shape for CPUs; encoder and pooler",
    ),
    *(Preset(
        f"caduceus-{kind}-{length // 1024}k-d{width}-n{layers}", "caduceus",
        {"d_model": width, "n_layer": layers, "rcps": kind == "ps", "max_seq_len": length},
        parameters, length, hub=f"kuleshov-group/caduceus-{kind}_{shape}",
        source="arXiv 2403.03234",
        license="Apache-2.0" if length > 1_024 else "none stated",
        use="human, from both sides: masked variants, labels",
    ) for kind in ("ph", "ps") for shape, width, layers, length, parameters in (
        ("seqlen-1k_d_model-118_n_layer-4_lr-8e-3", 118, 4, 1_024, 470_702),
        ("seqlen-1k_d_model-256_n_layer-4_lr-8e-3", 256, 4, 1_024, 1_934_592),
        ("seqlen-131k_d_model-256_n_layer-16", 256, 16, 131_072, 7_725_312),
    )),
    Preset(
        "cnn-caduceus-1024", "cnn", {"variant": "caduceus", "max_length": 1024}, 264_710, 1024,
        source="arXiv 2403.03234, Table 1",
    ),
    Preset(
        # 251 bases between <bos> and <eos>; seven tokens without N.
        "cnn-genomic-benchmarks-251", "cnn",
        {"max_length": 253, "vocab_size": 7, "pad_token_id": None}, 67_089, 251,
        source="GenomicBenchmarks, models/torch.py",
    ),
    Preset("deepsea", "deepsea", {}, 52_843_119, 1000, source="Kipoi models, DeepSEA"),
    Preset(
        "deepsea-narrow", "deepsea", {"channels": (32, 48, 96), "hidden": 93}, 610_015, 1000,
        source="a tenth of the published width",
    ),
    *(Preset(
        f"dnabert-{k}", "dnabert", {"k": k}, parameters, 509 + k,
        checkpoint=f"zhihan1996/DNA_bert_{k}",
        source="doi 10.1093/bioinformatics/btab083; encoder and pooler",
        # A LICENSE in each repository since October 2023; their pages name none.
        license="Apache-2.0", use="human promoters and sites: fine-tune it, after convert",
    ) for k, parameters in ((3, 86_094_336), (4, 86_241_792), (5, 86_831_616), (6, 89_190_912))),
    Preset(
        "dnabert-6-narrow", "dnabert", {"k": 6, **_NARROW}, 1_004_032, 515,
        source="a shape for CPUs; encoder and pooler",
    ),
    *(Preset(
        f"hyenadna-{name}", "hyenadna",
        # Room for two special tokens in the filters.
        {"d_model": width, "n_layer": layers, "d_inner": 4 * width, "max_seq_len": length + 2},
        parameters, length, hub=f"LongSafari/hyenadna-{name}-hf",
        checkpoint=f"LongSafari/hyenadna-{name}", source="arXiv 2306.15794",
        license="BSD-3-Clause", use="human, next base: score, variants, generate, fine-tune",
    ) for name, width, layers, length, parameters in (
        ("tiny-1k-seqlen", 128, 2, 1_024, 436_096),
        ("tiny-1k-seqlen-d256", 256, 2, 1_024, 1_641_088),
        ("tiny-16k-seqlen-d128", 128, 2, 16_384, 436_096),
        ("small-32k-seqlen", 256, 4, 32_768, 3_277_568),
        ("medium-160k-seqlen", 256, 8, 160_000, 6_550_528),
        ("medium-450k-seqlen", 256, 8, 450_000, 6_550_528),
        ("large-1m-seqlen", 256, 8, 1_000_000, 6_550_528),
    )),
    # The next-token baselines of Caduceus; their weights are not on the Hub.
    *(Preset(
        f"mamba-1k-d{width}-n4", "mamba", {"d_model": width, "n_layer": 4, "max_seq_len": 1_024},
        parameters, 1_024, source="arXiv 2403.03234",
    ) for width, parameters in ((128, 468_608), (256, 1_756_416))),
)})  # fmt: skip
"""Every preset by name."""


def find_preset(name: str) -> Preset:
    """Give the preset of this name, or of this Hub repository; MegabaseError names the nearest."""
    for preset in PRESETS.values():
        if name in (preset.name, preset.hub, preset.checkpoint):
            return preset
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4) or list(PRESETS)
    raise MegabaseError(
        f"there is no preset {name!r}; near it: {', '.join(near)} (megabase info --list)"
    )
