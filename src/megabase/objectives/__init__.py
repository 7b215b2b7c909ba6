"""Objectives: from a model and a batch to a loss sum, the weight of its targets, and metrics."""

from megabase.objectives.base import register_objective
from megabase.objectives.language import CausalLM, MaskedLM

__all__ = ["CausalLM", "MaskedLM", "register_objective"]
