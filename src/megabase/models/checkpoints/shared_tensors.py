"""Tensors with more than one name, and tables whose number of rows changes.

Both are what transformers asks a model for when it saves, loads or resizes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["SharedTensors"]


class SharedTensors:
    """A model that names its shared tensors, whatever its configuration and head.

    A checkpoint may hold any one of the copies; when it holds none, the tensor is missing.
    """

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name the copies of shared tensors, and the name each is a copy of.

        Parameters
        ----------
        names
            All parameters of the model. Copies that are not among them do not matter.
        """
        return {}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Name every copy of a shared tensor, and the name it is a copy of."""
        model: Any = self
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        return {copy: first for copy, first in self.tied_names(names).items() if copy in names}

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        # transformers reads these as patterns when it saves, to know which copies may be left out.
        tied = self.get_expanded_tied_weights_keys()
        return {f"{re.escape(copy)}$": first for copy, first in tied.items()}

    def get_submodule(self, target: str) -> nn.Module:
        """Give a module by its name.

        peft looks for the token table under BERT's name, and else for a table of as many rows as
        there are tokens; ours have more rows, and names of their own.
        """
        model: Any = self
        if target == "embeddings.word_embeddings":
            return model.get_input_embeddings()
        found: nn.Module = super().get_submodule(target)  # pyright: ignore
        return found

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the number of tokens; see transformers.

        The number of rows is then the number of tokens: what is saved can be loaded.
        """
        model: Any = self
        table: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)  # pyright: ignore
        if model.config.vocab_rows != table.weight.shape[0]:
            model.config.pad_vocab_size_multiple = 1
        return table
