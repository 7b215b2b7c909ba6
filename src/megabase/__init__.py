"""megabase: long-range DNA language models at single-nucleotide resolution.

Importing the package is cheap: everything is loaded when it is first used::

    import megabase as mb

    genome = mb.Genome("hg38.fa.gz")
    model = mb.load("LongSafari/hyenadna-small-32k-seqlen-hf")
    model.score_variants("in.vcf.gz", genome, out="out.vcf.gz")
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing for it would take most of the time of importing this file
if TYPE_CHECKING:
    from typing import Any

    from megabase.api import Model, load
    from megabase.benchmarking.config import BenchmarkConfig
    from megabase.errors import MegabaseError
    from megabase.genome.interval import Interval, Variant
    from megabase.genome.store import Genome
    from megabase.models.decoder import register_mixer
    from megabase.models.families import register_family
    from megabase.objectives.base import register_objective
    from megabase.options import EvaluateOptions
    from megabase.runs import Run, benchmark, finetune, icl, pretrain, prompt
    from megabase.settings import (
        DeviceConfig,
        HeadConfig,
        LoraConfig,
        ModelConfig,
        OptimConfig,
        Stage,
    )
    from megabase.tasks.config import (
        DataConfig,
        FinetuneConfig,
        GenomeConfig,
        InContextConfig,
        ObjectiveConfig,
        PretrainConfig,
        PromptConfig,
        PromptSettings,
        TableConfig,
    )

__version__ = "0.1.0"

_HOME = {
    "api": ("Model", "load"),
    "benchmarking.config": ("BenchmarkConfig",),
    "errors": ("MegabaseError",),
    "genome.interval": ("Interval", "Variant"),
    "genome.store": ("Genome",),
    "models.decoder": ("register_mixer",),
    "models.families": ("register_family",),
    "objectives.base": ("register_objective",),
    "options": ("EvaluateOptions",),
    "runs": ("Run", "benchmark", "finetune", "icl", "pretrain", "prompt"),
    "settings": (
        "DeviceConfig", "HeadConfig", "LoraConfig", "ModelConfig", "OptimConfig", "Stage",
    ),
    "tasks.config": (
        "DataConfig", "FinetuneConfig", "GenomeConfig", "InContextConfig", "ObjectiveConfig",
        "PretrainConfig", "PromptConfig", "PromptSettings", "TableConfig",
    ),
}  # fmt: skip
"""Module -> names that are imported from it when they are first used."""

__all__ = [
    "BenchmarkConfig",
    "DataConfig",
    "DeviceConfig",
    "EvaluateOptions",
    "FinetuneConfig",
    "Genome",
    "GenomeConfig",
    "HeadConfig",
    "InContextConfig",
    "Interval",
    "LoraConfig",
    "MegabaseError",
    "Model",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PretrainConfig",
    "PromptConfig",
    "PromptSettings",
    "Run",
    "Stage",
    "TableConfig",
    "Variant",
    "__version__",
    "benchmark",
    "finetune",
    "icl",
    "load",
    "pretrain",
    "prompt",
    "register_family",
    "register_mixer",
    "register_objective",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"megabase.{module}"), name)
    raise AttributeError(f"module 'megabase' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
