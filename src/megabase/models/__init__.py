"""Model families, their tokenizer, and the reader of published checkpoints.

Importing this package registers every family with the ``Auto`` classes of transformers::

    import megabase.models
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)  # our class, no code from the folder
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from megabase.models.families import register

if TYPE_CHECKING:
    from megabase.models.adapt.prompt import PromptedModel, PromptSpec, load_prompt, save_prompt
    from megabase.models.auto import load_config, load_model, load_tokenizer, resolve_model
    from megabase.models.checkpoints.reader import LoadReport, read_weights
    from megabase.models.presets import PRESETS, Preset, find_preset
    from megabase.models.tokenizers.character import DNATokenizer

_HOME = {
    "DNATokenizer": ".tokenizers.character",
    "LoadReport": ".checkpoints.reader",
    "PRESETS": ".presets",
    "Preset": ".presets",
    "PromptSpec": ".adapt.prompt",
    "PromptedModel": ".adapt.prompt",
    "find_preset": ".presets",
    "load_config": ".auto",
    "load_model": ".auto",
    "load_prompt": ".adapt.prompt",
    "load_tokenizer": ".auto",
    "read_weights": ".checkpoints.reader",
    "resolve_model": ".auto",
    "save_prompt": ".adapt.prompt",
}

__all__ = [
    "PRESETS",
    "DNATokenizer",
    "LoadReport",
    "Preset",
    "PromptSpec",
    "PromptedModel",
    "find_preset",
    "load_config",
    "load_model",
    "load_prompt",
    "load_tokenizer",
    "read_weights",
    "register",
    "resolve_model",
    "save_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
