"""Causal language models one token at a time: one interface for all families.

``decoder(model)`` gives an object with ``prefill``, ``step`` and ``reset``. Its scores are those of
the full forward pass; what differs is the cost of a token. HyenaDNA's long convolutions run online
(:mod:`megabase.ops.online_conv`), attention keeps keys and values, Mamba its states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from megabase.errors import InputError, sequence_too_long
from megabase.layers.backbone import Backbone
from megabase.layers.incremental import BackboneSteps
from megabase.layers.linear import function_of
from megabase.models.scored_model import language_model_kind

__all__ = ["Decoder", "decoder", "step_threads"]

_SMALL_STEP = 1 << 23
"""Products of a step below which one thread is used."""


class Decoder(ABC):
    """A model that reads token by token and gives the scores of the next one.

    Attributes
    ----------
    batch
        Sequences read side by side.
    length
        Positions that can be read, at most those of the model; None for no limit.
    position
        Positions read so far.
    """

    def __init__(self, model: nn.Module, batch: int, length: int | None) -> None:
        self.model, self.batch, self.length, self.position = model, batch, length, 0

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Read prompts of one length, after which only :meth:`step` may follow.

        Parameters
        ----------
        input_ids
            Shape (batch, length), without padding. The length may be 0.

        Returns
        -------
        Tensor
            Scores of the next token, shape (batch, columns). All equal after an empty prompt.

        Raises
        ------
        InputError
            When something was read before, or the shape is wrong.
        InputError
            When the prompt is longer than :attr:`length`.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] != self.batch:
            raise InputError(
                f"expected ids of shape ({self.batch}, length), found {tuple(input_ids.shape)}"
            )
        if self.position:
            raise InputError(
                f"{self.position:,} positions were read already: prefill comes first; reset() "
                "begins anew"
            )
        self._advance(input_ids.shape[1])
        if input_ids.shape[1] == 0:
            return torch.zeros(self.batch, self.columns, device=input_ids.device)
        return self._prefill(input_ids)

    def step(self, input_ids: Tensor) -> Tensor:
        """Read one more token of every sequence.

        Parameters
        ----------
        input_ids
            Shape (batch,).

        Returns
        -------
        Tensor
            Scores of the next token, shape (batch, columns).

        Raises
        ------
        InputError
            When :attr:`length` positions were read already.
        """
        self._advance(1)
        with torch.inference_mode():
            return self._step(input_ids)

    def reset(self, batch: int | None = None) -> None:
        """Forget everything read; expect `batch` sequences, or as many as before."""
        self.batch, self.position = self.batch if batch is None else batch, 0
        with torch.inference_mode():
            self._reset()

    def _advance(self, count: int) -> None:
        self.position += count
        if self.length is not None and self.position > self.length:
            asked, self.position = self.position, self.position - count
            raise sequence_too_long(
                asked,
                self.length,
                getattr(self.model.config, "length_setting", "its length"),  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
            )

    @property
    def columns(self) -> int:
        """Columns of the scores."""
        return int(cast("Any", self.model).lm_head.out_features)

    @abstractmethod
    def _prefill(self, ids_BL: Tensor) -> Tensor: ...
    @abstractmethod
    def _step(self, ids_B: Tensor) -> Tensor: ...
    @abstractmethod
    def _reset(self) -> None: ...


class _ShellDecoder(Decoder):
    """HyenaDNA, GPT and their mixtures."""

    def __init__(self, model: nn.Module, batch: int, length: int | None) -> None:
        super().__init__(model, batch, length)
        shell = cast("Any", model)
        with torch.inference_mode():
            self._steps = BackboneSteps(
                shell.base_model.backbone, cast("int", length), shell.config.residual_in_fp32
            )
        self._head = function_of(shell.lm_head, shell.lm_head.weight.device)
        self.reset()

    def _reset(self) -> None:
        self._steps.reset(self.batch)

    def _prefill(self, ids_BL: Tensor) -> Tensor:
        return self._head(self._steps.prefill(ids_BL))

    def _step(self, ids_B: Tensor) -> Tensor:
        return self._head(self._steps.step(ids_B))


class _MambaDecoder(Decoder):
    """Mamba, whose states do not grow."""

    def __init__(self, model: nn.Module, batch: int, length: int | None) -> None:
        super().__init__(model, batch, length)
        self._cache: Any = None

    def _reset(self) -> None:
        self._cache = None

    def _prefill(self, ids_BL: Tensor) -> Tensor:
        model = cast("Any", self.model)
        encoded = model.backbone(input_ids=ids_BL, use_cache=True, return_dict=True)
        self._cache = encoded.cache
        return model.lm_head(encoded.last_hidden_state[:, -1])

    def _step(self, ids_B: Tensor) -> Tensor:
        logits, self._cache = cast("Any", self.model).step(ids_B, self._cache)
        return logits


def decoder(model: nn.Module, batch: int = 1, length: int | None = None) -> Decoder:
    """Make a causal language model read token by token.

    Parameters
    ----------
    model
        HyenaDNA (any order, not bidirectional), GPT or Mamba with a next-token head, in evaluation
        mode: dropout is not applied. Changing its weights afterwards makes the decoder wrong.
    batch
        Sequences read side by side.
    length
        Positions there will be at most, prompt included; the longest input of the model when None.
        It bounds memory, and a HyenaDNA computes its filter for so many.

    Returns
    -------
    Decoder

    Raises
    ------
    InputError
        When the model has no next-token head, is bidirectional, is of another family, or `batch` or
        `length` is not above 0.
    InputError
        When `length` is over what the model takes.
    """
    name = type(model).__name__
    if language_model_kind(model) != "causal":
        raise InputError(
            f"{name} fills masked bases and reads both sides: it cannot write from left to right; "
            "use a causal model (HyenaDNA, GPT or Mamba)"
        )
    longest: int | None = getattr(model.config, "max_length", None)
    if batch < 1 or (length is not None and length < 1):
        raise InputError(f"batch and length must be 1 or more, found {batch} and {length}")
    if length is not None and longest is not None and length > longest:
        setting = str(getattr(model.config, "length_setting", "its length"))
        raise sequence_too_long(length, longest, setting)
    length = longest if length is None else length
    if isinstance(getattr(getattr(model, "base_model", None), "backbone", None), Backbone):
        return _ShellDecoder(model, batch, length)
    if name == "MambaForCausalLM":
        return _MambaDecoder(model, batch, length)
    raise InputError(
        f"{name} cannot be read token by token here; the families that can are HyenaDNA, GPT and "
        "Mamba"
    )


def step_threads(model: nn.Module, batch: int) -> int | None:
    """Give the CPU threads that single steps of a model should use; None for torch's own number.

    A step of a small model takes tens of microseconds. Split between threads it is hardly faster,
    and on a busy machine it waits for whichever thread the system has put aside.
    """
    products = batch * sum(parameter.numel() for parameter in model.parameters())
    return 1 if products < _SMALL_STEP else None
