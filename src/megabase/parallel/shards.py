"""One sequence on several processes: what a model needs to read its part of it.

Long convolutions and attention are computed for some channels or heads of the whole sequence, after
an exchange of positions for channels; short convolutions get the few positions next to theirs, and
recurrences the state that the processes before hand on.

Shape suffixes: B batch, L positions of the whole sequence, S positions of this process, D width, P
projected channels ((order + 1) D), N heads, M lags, O long convolutions; d channels of this
process, p and c those of a piece; h positions next to those of this process; E, K and T inner
channels, states and taps of Mamba.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from megabase.errors import ConfigError, InputError, sequence_too_long
from megabase.layers.backbone import Block, SelfAttention
from megabase.layers.hyena import ACTIVATIONS, HyenaOperator
from megabase.layers.linear import bare
from megabase.layers.mamba import MambaMixer
from megabase.ops.long_conv import long_conv
from megabase.ops.registry import wide_dtype, without_autocast
from megabase.ops.selective_scan import ScanInputs, selective_scan
from megabase.ops.short_conv import short_conv
from megabase.parallel.collectives import Layout

_DRAWN = 1024
"""Positions whose dropout is drawn by one generator: few calls, and little is drawn for others."""
_IGNORED = -100  # target that takes no part in a loss: the convention of torch and transformers


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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a process group cannot be copied; a copied model is on the same processes

    def part(self, length: int) -> slice:
        """Give this process's positions of a sequence; an InputError where parts are too short."""
        least = self.size * self._least
        if length < least:
            raise InputError(
                f"a sequence of {length:,} positions has too few for {self.size} processes: the "
                f"short convolution reads {self._least} positions of each; sequences of at least "
                f"{least:,} positions, and any length from there on, can be shared"
            )
        return Layout.even(length, self.size)[self.rank]

    def next_tokens(self, ids: Tensor) -> Tensor:
        """Give the token after each of this process's ids (batch, positions).

        The last one is the first of the next process; after the last of all stands -100.
        """
        edge = ids[:, :1].contiguous()
        following = self._layout_of(ids).neighbors(edge, edge)[1]
        if self.rank == self.size - 1:
            following = torch.full_like(following, _IGNORED)
        return torch.cat([ids[:, 1:], following], dim=1)

    def mean(self, loss_sum: Tensor, count: Tensor | float) -> Tensor:
        """Give the mean over all processes, the same in each, from the sum and number of this one.

        Gradients are this process's share: add them up with :meth:`sum_gradients`.
        """
        counts = torch.as_tensor(count, dtype=loss_sum.dtype, device=loss_sum.device)
        sums = torch.stack([loss_sum.detach(), counts.detach()])
        total, number = torch.stack(self.layout.gather(sums)).sum(dim=0).unbind()
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
        parts = zip(layout.gather(padded), layout.lengths, strict=True)
        return torch.cat([part[:, :n] for part, n in parts], dim=1)

    def begin(self, given: Tensor) -> None:
        """Learn the parts of a batch from this process's ids or embeddings; refuse what cannot be.

        A collective, before every forward pass.
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
        found = [tuple(one.tolist()) for one in self.layout.gather(shape)]
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
            return _mix_hyena(
                mixer, lambda x: norm(x.to(norm.weight.dtype)), residual, mask, self.layout,
                self.dropout,
            )  # fmt: skip
        x = norm(residual.to(norm.weight.dtype))
        return _mix_attention(cast("SelfAttention", mixer), x, mask, self.layout)

    def past(self, x: Tensor, taps: int, reverse: bool) -> Tensor:
        """Give the inputs of a short convolution (batch, taps - 1, channels) before this part."""
        edges = (x[:, : taps - 1], x[:, x.shape[1] - taps + 1 :])
        previous, following = self.layout.neighbors(*edges)
        return following.flip(1) if reverse else previous

    def entering(self, inputs: ScanInputs, reverse: bool) -> Tensor | None:
        """Give the states (batch, channels, states) of a recurrence before this part.

        A process multiplies what enters it by the product of its decays and adds what it would end
        with from zero: those of all processes are combined, whatever the length. None for zeros.
        """
        if self.size == 1:
            return None
        bare_inputs = inputs._replace(D=None, z=None, initial=None)
        end_BEK = selective_scan(bare_inputs, reverse=reverse)[1]
        with without_autocast(inputs.u):
            delta_BSE = inputs.delta.to(wide_dtype(inputs.u.dtype))
            if inputs.bias is not None:
                delta_BSE = delta_BSE + inputs.bias.to(delta_BSE.dtype)
            steps_BE = F.softplus(delta_BSE).sum(dim=1)
            over_BEK = torch.exp(steps_BE[..., None] * inputs.A.to(steps_BE.dtype))
        return self.layout.carry(end_BEK, over_BEK.to(end_BEK.dtype), reverse=reverse)

    def places(self, length: int, device: torch.device) -> Tensor:
        """Give the numbers of this process's positions in the whole sequence."""
        return torch.arange(self.layout.offset, self.layout.offset + length, device=device)

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """Drop elements of (batch, positions, ...); each position draws its own numbers.

        They depend on torch's seed and the place in the whole sequence, not on the process.
        """
        seed, offset = _draw_seed(), self.layout.offset
        keep = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        stop = offset + x.shape[1]
        for start in range(offset // _DRAWN * _DRAWN, stop, _DRAWN):
            low, high = max(start, offset), min(start + _DRAWN, stop)
            number = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
            generator = torch.Generator(x.device).manual_seed(number)
            shape = (x.shape[0], _DRAWN, *x.shape[2:])
            drawn = torch.rand(shape, generator=generator, device=x.device)
            kept = drawn[:, low - start : high - start] >= probability
            keep[:, low - offset : high - offset] = kept
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
        HyenaDNA, GPT, Mamba or Caduceus, with a language-model head or none; any head if `whole`.
    mesh
        One dimension of a ``torch.distributed`` device mesh, ``mesh["cp"]``, or a process group.
    whole
        The model takes whole sequences, the same in every process, and gives the logits of all
        their positions, or of whole sequences, without gradient: for scores, evaluations and
        predictions, which need not be written for parts. Heads for labels get the hidden vectors
        of all positions, in every process.

    Returns
    -------
    Shards
        The parts, with what a loss needs.

    Raises
    ------
    ConfigError
        Without a process group; for another family, head or mixer, or fewer channels or heads than
        processes.
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
    labels = base is not model and not hasattr(model, "lm_head")
    if not mixers or (labels and not whole):
        heads = "" if whole else " with a language-model head, or without a head"
        raise ConfigError(
            f"{name} cannot read a sequence in parts: expected HyenaDNA, GPT, Mamba or Caduceus"
            f"{heads}"
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
    if base is not model:
        model.register_forward_pre_hook(_refuse_labels, with_kwargs=True)
    if whole:
        cast("Any", model).takes_whole_sequences = True
        outer = base if labels else model
        outer.register_forward_pre_hook(partial(_take_part, shards), with_kwargs=True)
        outer.register_forward_hook(partial(_give_all, shards))
    base.register_forward_pre_hook(partial(_begin, shards), with_kwargs=True)
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
    if not dist.is_initialized():
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


def _begin(shards: Shards, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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
    name = "logits" if hasattr(output, "logits") else "last_hidden_state"
    output[name] = shards.gather(output[name].detach())
    return output


Drop = Callable[[Tensor, float], Tensor]
"""Dropout of (batch, positions, ...) by position in the whole sequence."""
_PIECES = 8
"""Pieces of a process's channels that are mixed one after the other, at least: the memory of a
mixer is divided by it, and the norm is computed as often."""
_PIECE_SAMPLES = 1 << 23
"""Samples that a piece has of the whole sequence, at most: several transforms of them are alive."""
_POSITIONS = 1 << 15
"""Positions that are projected at a time where nothing is kept for a backward pass."""


class _Piece(NamedTuple):
    """Channels that are mixed together: some of every process."""

    channels: Tensor  # numbers, those of the first process first
    counts: list[int]  # how many are of each process
    own: slice  # those of this process, among its own


def _pieces(width: int, layout: Layout, number: int) -> Iterator[_Piece]:
    parts = Layout.even(width, layout.size)
    number = max(1, min(number, *(part.stop - part.start for part in parts)))
    for i in range(number):
        inner = [Layout.even(part.stop - part.start, number)[i] for part in parts]
        pairs = zip(parts, inner, strict=True)
        found = [torch.arange(own.start, own.stop) + part.start for part, own in pairs]
        yield _Piece(torch.cat(found), [len(one) for one in found], inner[layout.rank])


def _mix_hyena(
    mixer: HyenaOperator, normed: Callable[[Tensor], Tensor], x_BSD: Tensor, mask_BS: Tensor | None,
    layout: Layout, drop: Drop,
) -> Tensor:  # fmt: skip
    """Do what :class:`HyenaOperator` does with ``normed(x)``, for the positions of this process.

    Channels are worked on in pieces, which the backward pass computes again: between the passes
    only the input and the filter are kept.
    """
    own, length = Layout.even(mixer.d_model, layout.size)[layout.rank], x_BSD.shape[1]
    k_OdM, skips = mixer.filters(layout.total, own, layout.add_up)
    taps, two_sided = mixer.short_filter.kernel_size[0], mixer.bidirectional == "two_sided"
    after = (taps - 1) // 2 if two_sided else 0
    before = taps - 1 - after
    dropping = mixer.dropout > 0 and mixer.training
    short, out = mixer.short_filter, mixer.out_proj
    # What is more than its weights, or drops, is called once, for all channels.
    plain = bare(mixer.in_proj, short, out, device=x_BSD.device) and not dropping

    def project(x_BSD: Tensor, mask_BS: Tensor | None, rows: Tensor | None) -> Tensor:
        linear = mixer.in_proj
        if rows is None:
            p_BSP = linear(normed(x_BSD))
        else:
            weight, bias = linear.weight[rows], linear.bias[rows]
            many = 1 if torch.is_grad_enabled() else -(-x_BSD.shape[1] // _POSITIONS)
            parts = [F.linear(normed(x), weight, bias) for x in x_BSD.chunk(many, dim=1)]
            p_BSP = parts[0] if many == 1 else torch.cat(parts, dim=1)
        p_BPS = p_BSP.transpose(1, 2)
        return p_BPS if mask_BS is None else p_BPS * mask_BS[:, None].to(p_BPS.dtype)

    def edges(x: Tensor) -> Tensor:
        return torch.cat([x[:, :after], x[:, length - before :]], dim=1)

    edge_BPh = project(edges(x_BSD), None if mask_BS is None else edges(mask_BS), None)
    left_BPh, right_BPh = layout.neighbors(edge_BPh[..., :after], edge_BPh[..., after:])

    def mix(piece: _Piece, x_BSD: Tensor, left: Tensor, right: Tensor, *filters: Any) -> Tensor:
        count = len(piece.channels)
        rows = torch.cat([piece.channels + i * mixer.d_model for i in range(mixer.order + 1)])
        rows = rows.to(x_BSD.device)
        p_BpS = project(x_BSD, mask_BS, rows if plain else None)
        p_BpS = torch.cat([left[:, rows], p_BpS, right[:, rows]], dim=2)
        if plain:
            bias = None if short.bias is None else short.bias[rows]
            p_BpS = short_conv(p_BpS, short.weight[rows, 0], bias, centered=two_sided)
        else:
            p_BpS = mixer.short(p_BpS)
        first, *gates, v_BcS = p_BpS[..., before : before + length].split(count, dim=1)
        convolutions = zip(filters[: mixer.order - 1], filters[mixer.order - 1 :], strict=True)
        for gate, (k_cM, skip_c) in zip(reversed(gates), convolutions, strict=True):
            v_BcS = v_BcS * gate
            if dropping:
                v_BcS = drop(v_BcS.transpose(1, 2), mixer.dropout).transpose(1, 2)
            if mask_BS is not None:
                v_BcS = v_BcS * mask_BS[:, None].to(v_BcS.dtype)
            v_BcL = layout.swap(v_BcS, piece.counts, to_channels=True)
            v_BcL = long_conv(v_BcL, k_cM, skip_c, two_sided=mixer.bidirectional != "none")
            v_BcS = layout.swap(v_BcL, piece.counts, to_channels=False)
        y_BSc = ACTIVATIONS[mixer.output_activation](v_BcS * first).transpose(1, 2)
        if not plain:
            return out(y_BSc.contiguous())
        weight = out.weight[:, rows[:count]]
        if total is None or torch.is_grad_enabled():
            return F.linear(y_BSc, weight)
        for part, y in zip(
            total.split(_POSITIONS, dim=1), y_BSc.split(_POSITIONS, dim=1), strict=True
        ):
            part.add_(F.linear(y, weight))
        return total

    total: Tensor | None = None
    least = -(-(own.stop - own.start) * layout.total // _PIECE_SAMPLES)
    for piece in _pieces(mixer.d_model, layout, max(_PIECES, least) if plain else 1):
        filters = [k_dM[piece.own] for k_dM in k_OdM]
        filters += [None if skip_d is None else skip_d[piece.own] for skip_d in skips]
        given = (piece, x_BSD, left_BPh, right_BPh, *filters)
        y_BSD = _again(mix, *given, random=dropping)
        total = y_BSD if total is None or y_BSD is total else total.add_(y_BSD)
    assert total is not None
    return total + out.bias.to(total.dtype) if plain and out.bias is not None else total


def _again(function: Callable[..., Tensor], *given: Any, random: bool) -> Tensor:
    """Call a function that the backward pass computes again; `random`: it draws numbers."""
    if not torch.is_grad_enabled():
        return function(*given)
    found = checkpoint(function, *given, use_reentrant=False, preserve_rng_state=random)
    return cast("Tensor", found)


def _mix_attention(
    mixer: SelfAttention, x_BSD: Tensor, mask_BS: Tensor | None, layout: Layout
) -> Tensor:
    """Do what :class:`SelfAttention` does, for the positions of this process."""
    heads = Layout.even(mixer.num_heads, layout.size)
    counts, own = [part.stop - part.start for part in heads], heads[layout.rank]
    qkv = mixer.Wqkv(x_BSD).unflatten(-1, (3, mixer.num_heads, -1))
    qkv_BNSX = qkv.permute(0, 3, 1, 2, 4).flatten(3)
    qkv_BnLX = layout.swap(qkv_BNSX, counts, to_channels=True)
    allowed = None
    if mask_BS is not None:
        lengths, longest = layout.lengths, max(layout.lengths)
        padded = F.pad(mask_BS.to(torch.uint8), (0, longest - mask_BS.shape[1]))
        masks = zip(layout.gather(padded), lengths, strict=True)
        allowed = mixer.allowed(torch.cat([mask[:, :n] for mask, n in masks], dim=1))
    dropout = mixer.dropout if mixer.training else 0.0
    attend: Any = partial(
        F.scaled_dot_product_attention, attn_mask=allowed, dropout_p=dropout,
        is_causal=mixer.causal and allowed is None,
    )  # fmt: skip
    if dropout:
        # Each head has numbers of its own, whichever process computes it.
        seed = _draw_seed()
        each = [t.chunk(3, dim=-1) for t in qkv_BnLX.split(1, dim=1)]
        y_BnLH = torch.cat([
            _seeded(attend, seed + head, *qkv_B1LH)
            for head, qkv_B1LH in zip(range(own.start, own.stop), each, strict=True)
        ], dim=1)  # fmt: skip
    else:
        y_BnLH = attend(*qkv_BnLX.chunk(3, dim=-1))
    y_BNSH = layout.swap(y_BnLH, counts, to_channels=False)
    return mixer.out_proj(y_BNSH.transpose(1, 2).flatten(2))


def _seeded(function: Callable[..., Tensor], seed: int, *given: Tensor) -> Tensor:
    devices = [given[0].device] if given[0].device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return function(*given)


def _draw_seed() -> int:
    """Draw a number from torch's generator, the same in processes that were seeded alike."""
    return int(torch.randint(1 << 62, ()))
