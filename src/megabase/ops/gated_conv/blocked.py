"""The gated convolution block by block, with a backward pass that keeps only its inputs.

Shape suffixes: B batch, P projected channels (3 D), D channels, L positions, K taps, M lags,
N transform length, F frequencies; b and c are blocks of B and D.

Everything between the two projections happens to one block while it is in the cache: short
convolutions, gates, transforms. Between forward and backward only the projected channels, taps and
filters are kept; the backward pass builds the rest again, which costs less than reading it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megabase.ops.fft_lengths import lags
from megabase.ops.long_conv.fft import FilterSpectra, blocks, wide_dtype, without_autocast
from megabase.ops.registry import Operator
from megabase.ops.short_conv.shifted import (
    apply_taps,
    correlate_taps,
    taps_behind,
    transpose_taps,
)

__all__ = ["OPERATOR", "gated_conv_blocked"]


@dataclass
class _Work:
    """Buffers of one block, used over and over; the tail of `padded` stays zero."""

    padded: Tensor
    short: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(
        cls, rows: list[slice], columns: list[slice], length: int, n_fft: int, like: Tensor
    ) -> _Work:
        batch = max((b.stop - b.start for b in rows), default=0)
        channels = max((c.stop - c.start for c in columns), default=0)
        first, gate, v = like.new_empty(3, batch, channels, length).unbind(0)
        return cls(like.new_zeros(batch, channels, n_fft), (first, gate, v))

    def cut(self, b: slice, c: slice) -> tuple[Tensor, list[Tensor]]:
        batch, channels = b.stop - b.start, c.stop - c.start
        return (
            self.padded[:batch, :channels],
            [short[:batch, :channels] for short in self.short],
        )


def _parts(c: slice, d_model: int) -> list[slice]:
    """Give the output gate's, the input gate's and the value's channels of block `c`."""
    return [slice(c.start + i * d_model, c.stop + i * d_model) for i in range(3)]


_ARGUMENTS = "Tensor p, Tensor w, Tensor b, Tensor k, Tensor? skip, int after, bool two_sided"
_SHAPES = {"p": "B 3D L", "w": "3D K", "b": "3D", "k": "D M", "skip": "D"}
_CHECKS: dict[str, Any] = {
    "rules": {"M": lags}, "least": {"L": 1, "K": 1}, "below": {"after": "K"},
}  # fmt: skip


@Operator("gated_conv", f"({_ARGUMENTS}) -> Tensor", _SHAPES, **_CHECKS).implementation
def _forward(
    p_BPL: Tensor,
    w_PK: Tensor,
    b_P: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None,
    after: int,
    two_sided: bool,
) -> Tensor:
    batch, _, length = p_BPL.shape
    d_model = k_DM.shape[0]
    dtype = wide_dtype(p_BPL, k_DM)
    w_PK, b_P = w_PK.to(dtype), b_P.to(dtype)
    spectra = FilterSpectra(k_DM, skip_D, length, two_sided, dtype)
    rows, columns = blocks(batch, d_model, spectra.n_fft)
    y_BDL = torch.empty(batch, d_model, length, dtype=p_BPL.dtype, device=p_BPL.device)
    with without_autocast(p_BPL):
        work = _Work.of(rows, columns, length, spectra.n_fft, b_P)
        for c in columns:
            K_cF = spectra.transform(c)
            for b in rows:
                padded, (first, gate, v) = work.cut(b, c)
                for part, out in zip(_parts(c, d_model), (first, gate, v), strict=True):
                    apply_taps(p_BPL[b, part].to(dtype), w_PK[part], b_P[part], after, out)
                torch.mul(v, gate, out=padded[..., :length])
                U_bcF = torch.fft.rfft(padded).mul_(K_cF)
                y_bcN = torch.fft.irfft(U_bcF, n=spectra.n_fft)
                y_BDL[b, c] = first.mul_(y_bcN[..., :length])
    return y_BDL


@Operator(
    "gated_conv_backward",
    f"(Tensor dy, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    {"dy": "B D L", **_SHAPES},
    **_CHECKS,
).implementation
def _backward(
    dy_BDL: Tensor,
    p_BPL: Tensor,
    w_PK: Tensor,
    b_P: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None,
    after: int,
    two_sided: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, length = p_BPL.shape
    d_model = k_DM.shape[0]
    dtype = wide_dtype(p_BPL, k_DM)
    w_PK, b_P = w_PK.to(dtype), b_P.to(dtype)
    spectra = FilterSpectra(k_DM, skip_D, length, two_sided, dtype)
    n_fft = spectra.n_fft
    rows, columns = blocks(batch, d_model, n_fft)
    grads = _backward_shapes(p_BPL, w_PK, b_P, k_DM, skip_D)
    dp_BPL, dw_PK, db_P, dk_DM, dskip_D = grads
    dw_PK.zero_()
    db_P.zero_()
    with without_autocast(p_BPL):
        work = _Work.of(rows, columns, length, n_fft, b_P)
        for c in columns:
            K_cF = spectra.transform(c)
            conj_K_cF = K_cF.conj().resolve_conj()
            dK_cF = torch.zeros_like(K_cF)
            for b in rows:
                padded, (first, gate, v) = work.cut(b, c)
                parts = _parts(c, d_model)
                p_parts = [p_BPL[b, part].to(dtype) for part in parts]
                for p, part, out in zip(p_parts, parts, (first, gate, v), strict=True):
                    apply_taps(p, w_PK[part], b_P[part], after, out)
                dy_bcL = dy_BDL[b, c].to(dtype)
                torch.mul(v, gate, out=padded[..., :length])
                U_bcF = torch.fft.rfft(padded)
                torch.mul(first, dy_bcL, out=padded[..., :length])
                G_bcF = torch.fft.rfft(padded)
                y_bcN = torch.fft.irfft(U_bcF * K_cF, n=n_fft)
                torch.mul(y_bcN[..., :length], dy_bcL, out=first)
                # A correlation is a product with the conjugate.
                dK_cF += U_bcF.conj_physical_().mul_(G_bcF).sum(dim=0)
                du_bcL = torch.fft.irfft(G_bcF.mul_(conj_K_cF), n=n_fft)[..., :length]
                # The gate's gradient needs v and the other way round: one goes through `padded`.
                dv_bcL = torch.mul(du_bcL, gate, out=padded[..., :length])
                torch.mul(du_bcL, v, out=gate)
                for p, part, ds in zip(p_parts, parts, (first, gate, dv_bcL), strict=True):
                    correlate_taps(p, ds, after, dw_PK[part], db_P[part])
                    if dp_BPL.dtype == dtype:
                        transpose_taps(ds, w_PK[part], after, dp_BPL[b, part])
                    else:
                        dp_BPL[b, part] = transpose_taps(ds, w_PK[part], after, v)
            spectra.gradient(dK_cF, c, dk_DM, None if skip_D is None else dskip_D)
    return grads


def _backward_shapes(
    p_BPL: Tensor, w_PK: Tensor, b_P: Tensor, k_DM: Tensor, skip_D: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Make room for the gradients; those of the taps in the dtype of the sums."""
    dtype = wide_dtype(p_BPL, k_DM)
    return (
        p_BPL.new_empty(p_BPL.shape),
        w_PK.new_empty(w_PK.shape, dtype=dtype),
        b_P.new_empty(b_P.shape, dtype=dtype),
        k_DM.new_empty(k_DM.shape),
        k_DM.new_empty((0,)) if skip_D is None else skip_D.new_empty(skip_D.shape),
    )


@_forward.register_fake
def _(p_BPL: Tensor, w_PK: Tensor, b_P: Tensor, k_DM: Tensor, *_: Any) -> Tensor:
    return p_BPL.new_empty((p_BPL.shape[0], k_DM.shape[0], p_BPL.shape[2]))


@_backward.register_fake
def _(dy_BDL: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _backward_shapes(*arguments[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.after, ctx.two_sided = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy_BDL: Tensor) -> tuple[Tensor | None, ...]:
    p_BPL, w_PK, b_P, k_DM, skip_D = ctx.saved_tensors
    dp_BPL, dw_PK, db_P, dk_DM, dskip_D = _backward(
        dy_BDL, p_BPL, w_PK, b_P, k_DM, skip_D, ctx.after, ctx.two_sided
    )
    grads = (dp_BPL, dw_PK.to(w_PK.dtype), db_P.to(b_P.dtype), dk_DM, dskip_D, None, None)
    needs = ctx.needs_input_grad
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


_forward.register_gradients(_gradients, _save)
OPERATOR = _forward


def gated_conv_blocked(
    p_BPL: Tensor,
    w_PK: Tensor,
    b_P: Tensor,
    k_DM: Tensor,
    skip_D: Tensor | None = None,
    *,
    centred: bool = False,
    two_sided: bool = False,
) -> Tensor:
    """Convolve and gate block by block; see :func:`megabase.ops.gated_conv.gated_conv`."""
    return _forward(p_BPL, w_PK, b_P, k_DM, skip_D, taps_behind(w_PK, centred), two_sided)
