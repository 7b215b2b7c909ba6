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

    # "as": the name is for users, which type checkers go by.
    from megabase.api import Model as Model
    from megabase.api import load as load
    from megabase.benchmarking.config import BenchmarkConfig as BenchmarkConfig
    from megabase.errors import MegabaseError as MegabaseError
    from megabase.genome.interval import Interval as Interval
    from megabase.genome.interval import Variant as Variant
    from megabase.genome.store import Genome as Genome
    from megabase.inference.motifs import Effect as Effect
    from megabase.inference.motifs import find_seqlets as find_seqlets
    from megabase.inference.motifs import read_motifs as read_motifs
    from megabase.inference.parts import gather_shards as gather_shards
    from megabase.inference.variants.scorer import rank_mean as rank_mean
    from megabase.models.decoder import register_mixer as register_mixer
    from megabase.models.families import register_family as register_family
    from megabase.objectives.base import register_objective as register_objective
    from megabase.options import EvaluateOptions as EvaluateOptions
    from megabase.options import LongContextOptions as LongContextOptions
    from megabase.runs import Run as Run
    from megabase.runs import benchmark as benchmark
    from megabase.runs import finetune as finetune
    from megabase.runs import icl as icl
    from megabase.runs import pretrain as pretrain
    from megabase.runs import prompt as prompt
    from megabase.runs import sweep as sweep
    from megabase.settings import DeviceConfig as DeviceConfig
    from megabase.settings import HeadConfig as HeadConfig
    from megabase.settings import LoraConfig as LoraConfig
    from megabase.settings import ModelConfig as ModelConfig
    from megabase.settings import OptimConfig as OptimConfig
    from megabase.settings import Stage as Stage
    from megabase.tasks.config import DataConfig as DataConfig
    from megabase.tasks.config import FinetuneConfig as FinetuneConfig
    from megabase.tasks.config import GenomeConfig as GenomeConfig
    from megabase.tasks.config import InContextConfig as InContextConfig
    from megabase.tasks.config import ObjectiveConfig as ObjectiveConfig
    from megabase.tasks.config import PretrainConfig as PretrainConfig
    from megabase.tasks.config import PromptConfig as PromptConfig
    from megabase.tasks.config import PromptSettings as PromptSettings
    from megabase.tasks.config import TableConfig as TableConfig

__version__ = "0.1.0"

_HOME = {
    "api": ("Model", "load"),
    "benchmarking.config": ("BenchmarkConfig",),
    "errors": ("MegabaseError",),
    "genome.interval": ("Interval", "Variant"),
    "genome.store": ("Genome",),
    "inference.motifs": ("Effect", "find_seqlets", "read_motifs"),
    "inference.parts": ("gather_shards",),
    "inference.variants.scorer": ("rank_mean",),
    "models.decoder": ("register_mixer",),
    "models.families": ("register_family",),
    "objectives.base": ("register_objective",),
    "options": ("EvaluateOptions", "LongContextOptions"),
    "runs": ("Run", "benchmark", "finetune", "icl", "pretrain", "prompt", "sweep"),
    "settings": (
        "DeviceConfig", "HeadConfig", "LoraConfig", "ModelConfig", "OptimConfig", "Stage",
    ),
    "tasks.config": (
        "DataConfig", "FinetuneConfig", "GenomeConfig", "InContextConfig", "ObjectiveConfig",
        "PretrainConfig", "PromptConfig", "PromptSettings", "TableConfig",
    ),
}  # fmt: skip
"""Module -> names that are imported from it when they are first used."""

__all__ = ["__version__"]
for _names in _HOME.values():
    __all__ += _names  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"megabase.{module}"), name)
    raise AttributeError(f"module 'megabase' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
