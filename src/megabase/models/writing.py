"""Where the library's ``generate()`` leads to."""

from __future__ import annotations

from typing import Any, NoReturn

from megabase.models.validation import ModelConfigError

__all__ = ["GeneratesElsewhere"]


class GeneratesElsewhere:
    """A language model whose sequences :func:`megabase.inference.generate` writes.

    The generation of transformers would run a full pass for every token, and could draw special
    tokens and unused rows of the vocabulary.
    """

    def generate(self, *_: Any, **__: Any) -> NoReturn:
        """Say what writes sequences.

        Raises
        ------
        ModelConfigError
            Always.
        """
        raise ModelConfigError(
            f"{type(self).__name__}.generate() is not used here: write sequences with "
            "megabase.inference.generate(model, prompts, length=...), which needs no full pass for "
            "each token, or read tokens one by one with megabase.inference.decoding.decoder(model)"
        )
