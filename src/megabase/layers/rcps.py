"""Reverse-complement equivariance by construction, as in Caduceus-PS (arXiv 2403.03234, section 4).

A hidden vector has twice the width: its first half belongs to the strand as given, its second half
to the other strand, at the same position and with channels in reverse order. So the reverse
complement of the input turns the output around in length and channels, exactly.

Shape suffixes: B batch, L positions, D channels of one strand, W = 2 D channels of both, V rows of
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from megabase.layers.mamba import Norm, add_norm


def split_strands(hidden_BLW: Tensor) -> tuple[Tensor, Tensor]:
    """Give both strands, each (batch, length, D), each read in its own direction."""
    given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
    return given_BLD, other_BLD.flip((1, 2))


def _join_strands(given_BLD: Tensor, other_BLD: Tensor) -> Tensor:
    """Undo :func:`split_strands`."""
    return torch.cat([given_BLD, other_BLD.flip((1, 2))], dim=-1)


def take_apart(hidden_BLW: Tensor) -> Tensor:
    """Give both strands as sequences of their own, (2 batch, length, D).

    Those of the other strand are in reverse order too: turning everything around swaps strands.
    """
    given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
    return torch.cat([given_BLD, other_BLD.flip((0, 1, 2))])


def put_together(apart_BLD: Tensor) -> Tensor:
    """Undo :func:`take_apart`."""
    given_BLD, other_BLD = apart_BLD.chunk(2)
    return torch.cat([given_BLD, other_BLD.flip((0, 1, 2))], dim=-1)


class _Complements:
    """A module with a table of complements."""

    complement: tuple[int, ...]
    complement_map: Tensor

    def table(self) -> Tensor:
        """Give the values of the buffer ``complement_map``."""
        return torch.tensor(self.complement, dtype=torch.long)

    def set_complement(self, complement: Sequence[int]) -> None:
        """Take another table, of as many rows as the weight has."""
        self.complement = tuple(complement)
        self.complement_map = self.table().to(self.complement_map.device)


class RCPSEmbedding(_Complements, nn.Embedding):
    """Embed tokens and, beside them, their complements, given for every token id.

    The matrix belongs to the module ``embedding`` inside, whose name checkpoints have. To callers
    this is an embedding, so that they can read it and change its number of rows.
    """

    def __init__(self, rows: int, d_model: int, complement: Sequence[int]) -> None:
        nn.Module.__init__(self)  # without a matrix of its own
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, d_model, None
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.complement = tuple(complement)
        self.embedding = nn.Embedding(rows, d_model)
        self.register_buffer("complement_map", self.table())

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The embedding matrix, shape (rows, D)."""
        return self.embedding.weight

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor
    ) -> Tensor:
        """Embed ids of shape (batch, length) as (batch, length, 2 D)."""
        given_BLD = self.embedding(input_ids)
        # Turning the sequence around and back again cancels.
        other_BLD = self.embedding(self.complement_map[input_ids])
        return torch.cat([given_BLD, other_BLD.flip(-1)], dim=-1)


class _RCPSWrapper(nn.Module):
    """Apply ``submodule(hidden, mask)`` to both strands, each read in its own direction."""

    sharded: Any = None
    """Set when a sequence lies on several processes: positions cannot be turned around here."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(
        self, hidden_BLW: Tensor, mask_BL: Tensor | None = None, apart: bool = False
    ) -> Tensor:
        """Map (batch, length, 2 D) to the same shape, or strands that are `apart`."""
        if apart:
            return self.submodule(hidden_BLW, mask_BL)
        if self.sharded is not None:
            given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
            given_BLD = self.submodule(given_BLD, mask_BL)
            other_BLD = self.submodule(other_BLD.flip(-1), mask_BL, reverse=True)
            return torch.cat([given_BLD, other_BLD.flip(-1)], dim=-1)
        both = torch.cat(split_strands(hidden_BLW))
        if mask_BL is not None:
            mask_BL = torch.cat([mask_BL, mask_BL.flip(1)])
        return _join_strands(*self.submodule(both, mask_BL).chunk(2))


class RCPSAddNorm(nn.Module):
    """Add to the running sum and normalize each strand by the same norm, over one's channels."""

    def __init__(self, submodule: Norm) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, residual_in_fp32: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Give (normalized, running sum), each (batch, length, 2 D)."""
        return add_norm(self.submodule, hidden, residual, residual_in_fp32, strands=2)


class RCPSBlock(nn.Module):
    """Add to the running sum, normalize and mix, each strand alike.

    When `fused` the two halves change places first, in hidden vectors and running sum, as in the
    fused kernel of the public code, with which all published models were trained; its norm also
    goes by another name (``norm.weight``, not ``norm.submodule.weight``). Either way the block is
    equivariant.
    """

    def __init__(
        self, norm: Norm, mixer: nn.Module, fused: bool = True, residual_in_fp32: bool = False
    ) -> None:
        super().__init__()
        self.fused = fused
        self.norm = norm if fused else RCPSAddNorm(norm)
        self.mixer = _RCPSWrapper(mixer)
        self.residual_in_fp32 = residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, mask: Tensor | None = None,
        apart: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Give (output of the mixer, running sum before it), each (batch, length, 2 D).

        A `fused` one also takes and gives strands that are `apart`, see :func:`take_apart`.
        """
        add = add_norm if apart else strand_add_norm
        hidden, residual = add(
            cast("Any", self.norm), hidden, residual, self.residual_in_fp32, swap=self.fused
        )
        return self.mixer(hidden, mask, apart), residual


def strand_add_norm(
    norm: nn.Module, hidden: Tensor, residual: Tensor | None, residual_in_fp32: bool = False,
    swap: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Add and normalize both strands by an :class:`RCPSAddNorm`, or by the norm inside of one.

    With `swap` the strands change places first.
    """
    if isinstance(norm, RCPSAddNorm):
        return norm(hidden, residual, residual_in_fp32)
    return add_norm(norm, hidden, residual, residual_in_fp32, strands=2, swap=swap)


class RCPSHead(_Complements, nn.Linear):
    """Token scores that turn around with the strand: ``W a + W[complement] flip(b)``.

    The matrix belongs to the module ``lm_head`` inside, whose name checkpoints have.
    """

    def __init__(self, d_model: int, rows: int, complement: Sequence[int]) -> None:
        nn.Module.__init__(self)  # without a matrix of its own
        self.in_features, self.out_features = d_model, rows
        self.bias = None
        self.complement = tuple(complement)
        self.lm_head = nn.Linear(d_model, rows, bias=False)
        self.register_buffer("complement_map", self.table())

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The matrix W, shape (rows, D)."""
        return self.lm_head.weight

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_BLW: Tensor
    ) -> Tensor:
        """Score (batch, length, 2 D) as (batch, length, rows)."""
        given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
        other_BLV = self.lm_head(other_BLD.flip(-1))
        return self.lm_head(given_BLD) + other_BLV[..., self.complement_map]
