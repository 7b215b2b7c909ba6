"""One sequence on several processes: what a model needs to read its part of it."""

from __future__ import annotations

import atexit
import os
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megabase.errors import ConfigError, InputError, sequence_too_long
from megabase.layers.attention import SelfAttention
from megabase.layers.backbone import Block
from megabase.layers.hyena import HyenaOperator
from megabase.layers.mamba import MambaMixer
from megabase.ops.selective_scan import ScanInputs
from megabase.parallel.collectives import Layout, even, gather, neighbors
from megabase.parallel.mixers import (
    draw_seed,
    entering_inputs,
    entering_state,
    mix_attention,
    mix_hyena,
)

_DRAWN = 1024
"""Positions whose dropout is drawn by one generator: few calls, and little is drawn for others."""

_IGNORED = -100
"""Target that takes no part in a loss: the convention of torch and transformers."""


class Shards:
    """The parts of a sequence on the processes of a group; made by :func:`context_parallel`.

    Parts are contiguous, in the order of ranks. Each process calls the model with its own part, at
    the same time, and gets the outputs of its own positions.
    """

    def __init__(self, group: Any) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.layout = Layout(group, self.rank, (0,) * self.size)
        self._least, self._longest, self._setting = 1, None, ""

    def __deepcopy__(self, memo: dict[int, Any]) -> Shards:
        return self  # a process group cannot be copied; a copied model is on the same processes

    def part(self, length: int) -> slice:
        """Give the positions of this process in a sequence of `length`; parts are even within one.

        An InputError when some part would be too short.
        """
        least = self.size * self._least
        if length < least:
            raise InputError(
                f"a sequence of {length:,} positions has too few for {self.size} processes: the "
                f"short convolution reads {self._least} positions of each; sequences of at least "
                f"{least:,} positions, and any length from there on, can be shared"
            )
        return even(length, self.size)[self.rank]

    def next_tokens(self, ids: Tensor) -> Tensor:
        """Give the token after each of this process's ids (batch, positions).

        The last one is the first of the next process; after the last of all stands -100.
        """
        edge = ids[:, :1].contiguous()
        following = neighbors(edge, edge, self._layout_of(ids))[1]
        if self.rank == self.size - 1:
            following = torch.full_like(following, _IGNORED)
        return torch.cat([ids[:, 1:], following], dim=1)

    def mean(self, loss_sum: Tensor, count: Tensor | float) -> Tensor:
        """Give the mean over all processes, from the sum and number of this one.

        It is the same number in every process. Gradients of its backward pass are this process's
        share: add them up with :meth:`sum_gradients`.
        """
        counts = torch.as_tensor(count, dtype=loss_sum.dtype, device=loss_sum.device)
        sums = torch.stack([loss_sum.detach(), counts.detach()])
        total, number = torch.stack(gather(sums, self.layout)).sum(dim=0).unbind()
        number = number.clamp(min=1e-12)
        share = loss_sum / number
        return share + (total / number - share).detach()

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up the gradients of the weights over the processes, in place."""
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:  # every process takes part in every sum
                    parameter.grad = torch.zeros_like(parameter)
                if self.size > 1:
                    dist.all_reduce(parameter.grad, group=self.group)

    def gather(self, x: Tensor) -> Tensor:
        """Give (batch, positions, ...) of the whole sequence, without gradient."""
        layout = self._layout_of(x)
        longest = max(layout.lengths)
        padded = x.new_zeros(x.shape[0], longest, *x.shape[2:])
        padded[:, : x.shape[1]] = x
        parts = zip(gather(padded, layout), layout.lengths, strict=True)
        return torch.cat([part[:, :n] for part, n in parts], dim=1)

    def begin(self, given: Tensor) -> None:
        """Learn the parts of a batch from this process's ids or embeddings; refuse what cannot be.

        A collective; called by the model before its forward pass.
        """
        layout = self.layout = self._layout_of(given)
        if min(layout.lengths) < self._least:
            raise InputError(
                f"the parts of the sequence have {', '.join(map(str, layout.lengths))} positions; "
                f"the short convolution needs at least {self._least} on each of {self.size} "
                "processes: take a longer sequence or fewer processes"
            )
        if self._longest is not None and layout.total > self._longest:
            raise sequence_too_long(layout.total, self._longest, self._setting)

    def _layout_of(self, x: Tensor) -> Layout:
        shape = torch.tensor(x.shape[:2], device=x.device)
        found = [tuple(one.tolist()) for one in gather(shape, self.layout)]
        if len({batch for batch, _ in found}) != 1:
            raise InputError(
                f"the processes give {[batch for batch, _ in found]} sequences; all of them need "
                "their parts of the same sequences"
            )
        return self.layout._replace(lengths=tuple(length for _, length in found))

    # What the layers call.

    def mix(self, block: Block, residual: Tensor, mask: Tensor | None) -> Tensor:
        """Normalize the running sum of a block, and mix its positions."""
        norm, mixer = block.norm1, block.mixer
        if isinstance(mixer, HyenaOperator):
            return mix_hyena(
                mixer, lambda x: norm(x.to(norm.weight.dtype)), residual, mask, self.layout,
                self.dropout,
            )  # fmt: skip
        x = norm(residual.to(norm.weight.dtype))
        return mix_attention(cast("SelfAttention", mixer), x, mask, self.layout)

    def past(self, x: Tensor, taps: int, reverse: bool) -> Tensor:
        """Give the inputs of a short convolution (batch, taps - 1, channels) before this part."""
        return entering_inputs(x, taps, self.layout, reverse=reverse)

    def entering(self, inputs: ScanInputs, reverse: bool) -> Tensor | None:
        """Give the states of a recurrence before this part; None for zeros."""
        return None if self.size == 1 else entering_state(inputs, self.layout, reverse=reverse)

    def places(self, length: int, device: torch.device) -> Tensor:
        """Give the numbers of this process's positions in the whole sequence."""
        return torch.arange(self.layout.offset, self.layout.offset + length, device=device)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Drop elements of (batch, positions, ...); each position draws its own numbers.

        They depend on torch's seed and the place in the whole sequence, not on the process.
        """
        seed, offset = draw_seed(), self.layout.offset
        keep = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        stop = offset + x.shape[1]
        for start in range(offset // _DRAWN * _DRAWN, stop, _DRAWN):
            low, high = max(start, offset), min(start + _DRAWN, stop)
            number = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
            generator = torch.Generator(x.device).manual_seed(number)
            drawn = torch.rand(
                x.shape[0], _DRAWN, *x.shape[2:], generator=generator, device=x.device
            )
            keep[:, low - offset : high - offset] = (
                drawn[:, low - start : high - start] >= probability
            )
        return x * keep / (1 - probability) if probability < 1 else x * keep


def context_parallel(model: nn.Module, mesh: Any, *, whole: bool = False) -> Shards:
    """Let a language model read one sequence that lies on several processes.

    The model itself is changed: it expects the part of this process
    (:meth:`Shards.part`) and gives logits or hidden vectors of these positions, exactly those that
    one process computes for the whole sequence. Weights and state dict do not change; they are
    whole in every process. Gradients of the processes add up to those of one
    (:meth:`Shards.sum_gradients`, or DDP over all processes, which gives their mean).

    Parameters
    ----------
    model
        HyenaDNA, GPT, Mamba or Caduceus, with a language-model head or none.
    mesh
        One dimension of a ``torch.distributed`` device mesh, ``mesh["cp"]``, or a process group.
    whole
        The model takes whole sequences, the same in every process, and gives the logits of all
        their positions, without gradient: for scores and evaluations, which need not be written
        for parts.

    Returns
    -------
    Shards
        The parts, with what a loss needs.

    Raises
    ------
    ConfigError
        Without a process group; for another family or head, a mixer that cannot be shared, or fewer
        channels or heads than processes.
    """
    if not dist.is_initialized():
        raise ConfigError(
            "the processes that would share a sequence are not joined; start them with torchrun, "
            "and call torch.distributed.init_process_group or init_device_mesh first"
        )
    shards = Shards(mesh.get_group() if hasattr(mesh, "get_group") else mesh)
    config: Any = getattr(model, "config", None)
    base: Any = getattr(model, "base_model", model)
    mixers = [m.mixer for m in model.modules() if isinstance(m, Block)]
    mixers += [m for m in model.modules() if isinstance(m, MambaMixer)]
    name = type(model).__name__
    if not mixers or (base is not model and not hasattr(model, "lm_head")):
        raise ConfigError(
            f"{name} cannot read a sequence in parts: expected HyenaDNA, GPT, Mamba or Caduceus "
            "with a language-model head, or without a head"
        )
    for mixer in mixers:
        shards._least = max(shards._least, _check(mixer, shards.size, name))
    shards._longest = (
        getattr(config, "max_length", None)
        if isinstance(mixers[0], HyenaOperator | SelfAttention)
        else None
    )
    shards._setting = getattr(config, "length_setting", "")
    for module in model.modules():
        if hasattr(module, "sharded"):
            cast("Any", module).sharded = shards
    base.register_forward_pre_hook(partial(_begin, shards), with_kwargs=True)
    if base is not model:
        model.register_forward_pre_hook(_refuse_labels, with_kwargs=True)
    if whole:
        cast("Any", model).takes_whole_sequences = True
        model.register_forward_pre_hook(partial(_take_part, shards), with_kwargs=True)
        model.register_forward_hook(partial(_give_all, shards))
    return shards


def join_processes(device: torch.device) -> Any:
    """Join the group of all processes that torchrun started; a ConfigError without torchrun."""
    if not dist.is_torchelastic_launched():
        raise ConfigError(
            "sequences are shared by several processes, and there is one; start them with: "
            "torchrun --nproc-per-node N -m megabase ..."
        )
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)
    return dist.group.WORLD


def _check(mixer: nn.Module, size: int, name: str) -> int:
    """Refuse a mixer that cannot be shared; give the positions that it needs of a neighbor."""
    if isinstance(mixer, HyenaOperator):
        count, what, least = mixer.d_model, "channels", mixer.short_filter.kernel_size[0] - 1
    elif isinstance(mixer, SelfAttention):
        count, what, least = mixer.num_heads, "heads", 1
    elif isinstance(mixer, MambaMixer):
        count, what, least = size, "", mixer.d_conv - 1
    else:
        raise ConfigError(
            f"{name} has a mixer of the kind {type(mixer).__name__}, which cannot be shared; "
            "expected hyena, attention or mamba"
        )
    if count < size:
        raise ConfigError(
            f"{name} has {count} {what}, fewer than the {size} processes that would share a "
            f"sequence; take at most {count} processes"
        )
    return max(1, least)


def _begin(
    shards: Shards, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    for option in ("cache", "use_cache", "output_attentions"):
        if kwargs.get(option):
            raise ConfigError(
                f"a model that reads its part of a sequence has no {option}; leave it out"
            )
    given = kwargs.get("input_ids", args[0] if args else None)
    given = kwargs.get("inputs_embeds") if given is None else given
    if isinstance(given, Tensor):  # else the model reports what is missing
        shards.begin(given)


def _refuse_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(kwargs.get(name) is not None for name in ("labels", "shift_labels")) or len(args) > 2:
        raise ConfigError(
            "a model that reads its part of a sequence gives no loss: take its logits, targets "
            "from Shards.next_tokens, and Shards.mean of the sum of their losses"
        )


def _take_part(
    shards: Shards, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cut ids and masks (batch, length), or embeddings, to the part of this process."""

    def cut(x: Any) -> Any:
        return x[:, shards.part(x.shape[1])] if isinstance(x, Tensor) and x.dim() > 1 else x

    return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}


def _give_all(shards: Shards, module: nn.Module, args: Any, output: Any) -> Any:
    output.logits = shards.gather(output.logits.detach())
    return output
