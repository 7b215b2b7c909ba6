"""Model families, their tokenizers, and the reader of published checkpoints.

Importing this package registers every family with the ``Auto`` classes of transformers::

    import megabase.models
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)  # our class, no code from the folder
"""

from megabase.models.adapt.prompt import PromptedModel, PromptSpec, load_prompt, save_prompt
from megabase.models.auto import load_config, load_model, load_tokenizer, resolve_model
from megabase.models.checkpoints.reader import read_weights
from megabase.models.decoder import register_mixer
from megabase.models.families import Family, register_family  # first: the others look families up
from megabase.models.presets import PRESETS, Preset, find_preset
from megabase.models.tokenizers.character import DNATokenizer

__all__ = [
    "PRESETS",
    "DNATokenizer",
    "Family",
    "Preset",
    "PromptSpec",
    "PromptedModel",
    "find_preset",
    "load_config",
    "load_model",
    "load_prompt",
    "load_tokenizer",
    "read_weights",
    "register_family",
    "register_mixer",
    "resolve_model",
    "save_prompt",
]
