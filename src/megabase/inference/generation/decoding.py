"""Causal language models one token at a time: one interface for all families.

Scores are those of the full forward pass. HyenaDNA's long convolutions run online
(:mod:`megabase.ops.online_conv`), attention keeps keys and values, Mamba its states.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megabase.errors import InputError, sequence_too_long
from megabase.layers.backbone import Backbone
from megabase.layers.incremental import BackboneSteps
from megabase.layers.linear import function_of
from megabase.models.loading import language_model_kind
from megabase.models.mamba import MambaForCausalLM
from megabase.ops import backend

_SMALL_STEP = 1 << 23
"""Products of a step below which one thread is used: they take less time than waking a second."""


class Decoder:
    """A causal language model that reads token by token and gives the scores of the next one.

    Parameters
    ----------
    model
        HyenaDNA (any order, not bidirectional), GPT or Mamba with a next-token head, in evaluation
        mode: dropout is not applied. Changing its weights afterwards makes the decoder wrong.
    batch
        Sequences read side by side.
    length
        Most positions, prompt included; the longest input of the model when None. It bounds memory,
        and a HyenaDNA computes its filter for as many.

    Attributes
    ----------
    position
        Positions read so far.
    """

    def __init__(self, model: nn.Module, batch: int = 1, length: int | None = None) -> None:
        backbone = self.backbone_of(model)
        if batch < 1 or (length is not None and length < 1):
            raise InputError(f"batch and length must be 1 or more, found {batch} and {length}")
        self.model: Any = model
        self.length: int | None = getattr(self.model.config, "max_length", None)
        self.batch, self.position = batch, 0
        self._steps: BackboneSteps | _MambaSteps
        if length is not None:
            self._require(length)
            self.length = length
        if backbone is None:
            self._steps, self._head = _MambaSteps(model), nn.Identity()
        else:
            assert self.length is not None  # every family with a backbone has a longest input
            with torch.inference_mode():
                wide = self.model.config.residual_in_fp32
                self._steps = BackboneSteps(backbone, self.length, wide)
            head = self.model.lm_head
            self._head = function_of(head, head.weight.device)
        self._fixed = backend.fixed_steps()
        self.reset()

    @staticmethod
    def backbone_of(model: nn.Module) -> Backbone | None:
        """Give the backbone that is read token by token, None for Mamba; refuse other models."""
        name = type(model).__name__
        if language_model_kind(model) != "causal":
            raise InputError(
                f"{name} fills masked bases and reads both sides: it cannot write from left to "
                "right; use a causal model (HyenaDNA, GPT or Mamba)"
            )
        backbone = getattr(getattr(model, "base_model", None), "backbone", None)
        if isinstance(backbone, Backbone):
            return backbone
        if isinstance(model, MambaForCausalLM):
            return None
        raise InputError(
            f"{name} cannot be read token by token here; the families that can are HyenaDNA, GPT "
            "and Mamba"
        )

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor) -> Tensor:
        """Read prompts of one length, after which only :meth:`step` may follow.

        Ids are (batch, length) without padding. Gives the scores of the next token, (batch,
        columns): all equal after an empty prompt.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] != self.batch:
            found = tuple(input_ids.shape)
            raise InputError(f"expected ids of shape ({self.batch}, length), found {found}")
        if self.position:
            raise InputError(
                f"{self.position:,} positions were read already: prefill comes first; reset() "
                "begins anew"
            )
        self._advance(input_ids.shape[1])
        if input_ids.shape[1] == 0:
            columns = int(self.model.lm_head.out_features)
            return torch.zeros(self.batch, columns, device=input_ids.device)
        return self._head(self._steps.prefill(input_ids))

    def step(self, input_ids: Tensor) -> Tensor:
        """Read one more token of every sequence, (batch,); give scores as :meth:`prefill`."""
        self._advance(1)
        with torch.inference_mode():
            scores = self._run(input_ids)
            self._steps.go_on()
        return scores

    def _read(self, ids_B: Tensor) -> Tensor:
        return self._head(self._steps.step(ids_B))

    def reset(self, batch: int | None = None) -> None:
        """Forget everything read; expect `batch` sequences, or as many as before."""
        self.batch, self.position = self.batch if batch is None else batch, 0
        with torch.inference_mode():
            self._steps.reset(self.batch)
        captured = self._fixed and self.model.lm_head.weight.device.type == "cuda"
        self._run: Callable[[Tensor], Tensor] = _Captured(self._read) if captured else self._read

    @property
    def threads(self) -> int | None:
        """CPU threads that single steps should use; None for torch's own number.

        Split between threads a step of a small model, of tens of microseconds, is hardly faster,
        and on a busy machine it waits for whichever thread the system has put aside.
        """
        products = self.batch * sum(parameter.numel() for parameter in self.model.parameters())
        return 1 if products < _SMALL_STEP else None

    def _advance(self, count: int) -> None:
        self._require(self.position + count)
        self.position += count

    def _require(self, length: int) -> None:
        """Refuse more positions than there is room for, naming the setting that bounds them."""
        if self.length is not None and length > self.length:
            setting = str(getattr(self.model.config, "length_setting", "its length"))
            raise sequence_too_long(length, self.length, setting)


class _Captured:
    """A step whose kernels are one CUDA graph: they are launched together, at fixed addresses.

    The first call runs as it is, and makes what is made once; the second one is captured.
    """

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        self._step, self._called = step, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, ids_B: Tensor) -> Tensor:
        if not self._called:
            self._called = True
            return self._step(ids_B)
        if self._graph is None:
            self._ids, self._graph = ids_B.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._scores = self._step(self._ids)
        self._ids.copy_(ids_B)
        self._graph.replay()
        return self._scores.clone()


class _MambaSteps:
    """Steps of Mamba, whose states do not grow; they give scores."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache: Any = None
        self._fixed = backend.fixed_steps()

    def reset(self, batch: int) -> None:
        """Forget the states, whose size follows the next input."""
        self._cache = None

    def prefill(self, ids_BL: Tensor) -> Tensor:
        """Read prompts."""
        encoded = self.model.backbone(input_ids=ids_BL, use_cache=True, return_dict=True)
        self._cache = encoded.cache
        return self.model.lm_head(encoded.last_hidden_state[:, -1])

    def step(self, ids_B: Tensor) -> Tensor:
        """Read a token."""
        logits, cache = self.model.step(ids_B, self._cache)
        if self._fixed and self._cache is not None:
            for kept, new in zip(self._cache, cache, strict=True):
                kept.conv.copy_(new.conv)
                kept.ssm.copy_(new.ssm)
        else:
            self._cache = cache
        return logits

    def go_on(self) -> None:
        """Go on to the next position, for which nothing is to be done."""
