"""Maps of the layers as modules, or as operators on their weights where that is the same.

A module may do more than its weights say: adapters and quantization put another class in its place,
hooks change what goes in and out, and libraries that keep weights elsewhere (on disk, in shards)
bring them in when the module is called. :func:`bare` tells; everything that reads the weights of
another module asks it first, and calls the module where the answer is no.

Shape suffixes: B batch, L positions, D input channels, E output channels, K taps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F
from torch.nn.modules import module as torch_module


class ResidualLinear(nn.Linear):
    """A linear map whose output joins the running sum; its first weights are drawn smaller."""


_PLAIN = (nn.Linear, nn.LayerNorm, nn.Conv1d, ResidualLinear)
"""Classes whose forward pass is known here; a subclass may do anything."""


def untouched(*modules: nn.Module) -> bool:
    """Whether calling modules does nothing but run the forward pass of their class.

    False with hooks of their own or of all modules, or a forward pass put in place of the class's.
    """
    if torch_module._has_any_global_hook():
        return False
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        for module in modules
    )


def present(*modules: nn.Module, device: torch.device | None = None) -> bool:
    """Whether the tensors of modules are ordinary ones with values, on `device` if one is given.

    False for tensors that are elsewhere until the module is called, and for shards.
    """
    return not any(
        # A parameter of a subclass (a shard, packed integers) is more than a tensor.
        type(tensor) not in (nn.Parameter, Tensor)
        or tensor.device.type == "meta"
        or (device is not None and tensor.device != device)
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )


def bare(*modules: nn.Module, device: torch.device | None = None) -> bool:
    """Whether modules do nothing but what their weights say, so that an operator may use these.

    Parameters
    ----------
    *modules
        False for a module of another class (an adapter in its place), one that is not
        :func:`untouched`, and one whose weights are computed or not :func:`present`.
    device
        Where the input is; weights elsewhere are not for the operator. Any place when None.
    """
    return (
        untouched(*modules)
        and all(
            type(module) in _PLAIN and "parametrizations" not in module._modules
            for module in modules
        )
        and present(*modules, device=device)
    )


def can_read(mask: Tensor) -> bool:
    """Whether Python may decide by the values of a mask; where it may not, the mask is applied.

    On an accelerator reading a value would wait for the device, and a graph that is being captured
    or a function that is being transformed (vmap) has no values.
    """
    return (
        mask.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(mask) is Tensor
        and not is_functorch_wrapped_tensor(mask)
    )


def function_of(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Give a linear map or LayerNorm as a function, for callers that apply it very often.

    Its weights are bound where it does nothing else, which saves the module's call.
    """
    if bare(module, device=device):
        if isinstance(module, nn.Linear):
            return partial(F.linear, weight=module.weight, bias=module.bias)
        if isinstance(module, nn.LayerNorm):
            return partial(
                F.layer_norm, normalized_shape=module.normalized_shape, weight=module.weight,
                bias=module.bias, eps=module.eps,
            )  # fmt: skip
    return module


def product_dtype(like: Tensor) -> torch.dtype | None:
    """Give the dtype autocast asks of matrix products where it is on, else None."""
    kind = like.device.type
    if kind == "meta":
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def to_channel_major(linear: nn.Module, x_BLD: Tensor) -> Tensor:
    """Apply a linear map to (batch, length, in) and give a contiguous (batch, out, length)."""
    if not bare(linear, device=x_BLD.device):
        return linear(x_BLD).transpose(1, 2).contiguous()
    assert isinstance(linear, nn.Linear)
    weight_BED = linear.weight.expand(x_BLD.shape[0], -1, -1)
    x_BDL = x_BLD.transpose(1, 2)
    if linear.bias is None:
        return torch.bmm(weight_BED, x_BDL)
    return torch.baddbmm(linear.bias[:, None], weight_BED, x_BDL)


def from_channel_major(linear: nn.Module, x_BDL: Tensor) -> Tensor:
    """Apply a linear map to (batch, in, length) and give a contiguous (batch, length, out)."""
    x_BLD = x_BDL.transpose(1, 2)
    if not bare(linear, device=x_BDL.device):
        return linear(x_BLD.contiguous())
    assert isinstance(linear, nn.Linear)
    weight_BDE = linear.weight.t().expand(x_BDL.shape[0], -1, -1)
    if linear.bias is None:
        return torch.bmm(x_BLD, weight_BDE)
    return torch.baddbmm(linear.bias, x_BLD, weight_BDE)
