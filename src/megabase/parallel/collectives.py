"""Collectives of a process group that gradients pass through.

The gradient of each is that of the sum of what all processes make of its results, so the gradients
of replicated weights, added over the processes, are those of one process.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


class Layout(NamedTuple):
    """Where the parts of a sequence lie: contiguous, in the order of the ranks of `group`."""

    group: Any
    rank: int  # of this process
    lengths: tuple[int, ...]  # positions of each rank

    @staticmethod
    def even(total: int, parts: int) -> list[slice]:
        """Cut `total` things into contiguous parts whose sizes differ by at most one."""
        edges = [total * i // parts for i in range(parts + 1)]
        return [slice(low, high) for low, high in pairwise(edges)]

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.lengths)

    @property
    def offset(self) -> int:
        """Positions before the first one of this process."""
        return sum(self.lengths[: self.rank])

    @property
    def total(self) -> int:
        """Positions of the whole sequence."""
        return sum(self.lengths)

    def gather(self, x: Tensor) -> list[Tensor]:
        """Give a tensor of every process, all of one shape, without gradient."""
        if self.size == 1:
            return [x]
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in self.lengths]
        dist.all_gather(found, x.contiguous(), group=self.group)
        return found

    def swap(self, x: Tensor, channels: list[int], *, to_channels: bool) -> Tensor:
        """Exchange positions of all channels for all positions of some channels, or back.

        `x` is (batch, channels, positions, ...); `channels` are the channels of each rank.
        """
        return x if self.size == 1 else _Swap.apply(x, channels, self, to_channels)

    def neighbors(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Give `last` of the process before and `first` of the one after; zeros at the ends."""
        return _Neighbors.apply(first, last, self)

    def carry(self, end: Tensor, over: Tensor, *, reverse: bool = False) -> Tensor:
        """Give the state that enters the positions of this process.

        A process hands on ``over * entering + end``; the first one is entered by zeros. `reverse`:
        the sequence is read from the last position to the first.
        """
        return _Carry.apply(end, over, self, reverse)

    def add_up(self, x: Tensor) -> Tensor:
        """Add a tensor over all processes."""
        return x if self.size == 1 else _Sum.apply(x, self.group)


def _exchange(x: Tensor, channels: list[int], layout: Layout, to_channels: bool) -> Tensor:
    """Send a part of a tensor to each process, receive one of each, and join them."""
    rank, lengths = layout.rank, list(layout.lengths)
    sent = x.split(channels, dim=1) if to_channels else x.split(lengths, dim=2)
    own = [(channels[rank], n) if to_channels else (n, lengths[rank])
           for n in (lengths if to_channels else channels)]  # fmt: skip
    shapes = [[x.shape[0], *pair, *x.shape[3:]] for pair in own]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    out, given = x.new_empty(sum(sizes)), torch.cat([t.reshape(-1) for t in sent])
    dist.all_to_all_single(out, given, sizes, [t.numel() for t in sent], group=layout.group)
    parts = zip(out.split(sizes), shapes, strict=True)
    return torch.cat([part.view(shape) for part, shape in parts], dim=2 if to_channels else 1)


class _Swap(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, channels: list[int], layout: Layout, to_channels: bool
    ) -> Tensor:
        ctx.rest = channels, layout, to_channels
        return _exchange(x, channels, layout, to_channels)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        channels, layout, to_channels = ctx.rest
        return _exchange(dy, channels, layout, not to_channels), None, None, None


class _Neighbors(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, last: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        ctx.layout = layout
        return _shift(last, 1, layout), _shift(first, -1, layout)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, dprevious: Tensor, dfollowing: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        layout = ctx.layout
        return _shift(dfollowing, 1, layout), _shift(dprevious, -1, layout), None


def _shift(x: Tensor, by: int, layout: Layout) -> Tensor:
    """Give the tensor of the rank `by` before this one; zeros where there is none."""
    found, rank = layout.gather(x), layout.rank - by
    return found[rank] if 0 <= rank < layout.size else torch.zeros_like(x)


class _Carry(Function):
    @staticmethod
    def forward(ctx: Any, end: Tensor, over: Tensor, layout: Layout, reverse: bool) -> Tensor:
        ends, overs = layout.gather(end), layout.gather(over)
        order = range(layout.size)[::-1] if reverse else range(layout.size)
        state = torch.zeros_like(end)
        for rank in order:
            if rank == layout.rank:
                break
            state = torch.addcmul(ends[rank], overs[rank], state)
        ctx.save_for_backward(state, *overs)
        ctx.rest = layout, order
        return state

    @staticmethod
    def backward(ctx: Any, dstate: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        layout, order = ctx.rest
        state, *overs = ctx.saved_tensors
        dend, found = torch.zeros_like(dstate), layout.gather(dstate)
        for rank in reversed(order):
            if rank == layout.rank:
                break
            dend = torch.addcmul(found[rank], overs[rank], dend)
        return dend, dend * state, None, None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _summed(dy, ctx.group), None


def _summed(x: Tensor, group: Any) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
