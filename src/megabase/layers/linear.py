"""Maps of the layers as modules, or as operators on their weights where that is the same.

A module may do more than its weights say: adapters, quantization, hooks, or weights kept elsewhere
until the module is called. What reads the weights of another module asks :func:`bare` first, and
calls the module where it does not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.nn.modules import module as torch_module


class ResidualLinear(nn.Linear):
    """A linear map whose output joins the running sum; its first weights are drawn smaller."""


_PLAIN = (nn.Linear, nn.LayerNorm, nn.Conv1d, ResidualLinear)
"""Classes whose forward pass is known here; a subclass may do anything."""
_ORDINARY = (nn.Parameter, Tensor, FakeTensor)
"""Kinds of tensors that are nothing but their values, or their shapes where a step is traced."""


def untouched(*modules: nn.Module) -> bool:
    """Whether calling modules only runs their class's forward pass: there are no hooks."""
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
    """Whether tensors of modules are ordinary ones with values (no shards), on `device`."""
    return not any(
        # A parameter of a subclass (a shard, packed integers) is more than a tensor.
        type(tensor) not in _ORDINARY
        or tensor.device.type == "meta"
        or (device is not None and tensor.device != device)
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    )


def bare(*modules: nn.Module, device: torch.device | None = None) -> bool:
    """Whether modules do only what their weights say, so that an operator may use these.

    False for another class (an adapter in its place), one not :func:`untouched`, and for weights
    that are computed or not :func:`present` on `device`.
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

    An accelerator would be waited for, and captured graphs and vmapped functions have no values.
    """
    return (
        mask.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(mask) is Tensor
        and not is_functorch_wrapped_tensor(mask)
    )


def function_of(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Give a linear map or LayerNorm as a function, with its weights where it is :func:`bare`."""
    if not bare(module, device=device) or not isinstance(module, (nn.Linear, nn.LayerNorm)):
        return module
    weights: dict[str, Any] = {"weight": module.weight, "bias": module.bias}
    if isinstance(module, nn.Linear):
        return partial(F.linear, **weights)
    shape = module.normalized_shape
    return partial(F.layer_norm, normalized_shape=shape, eps=module.eps, **weights)


def product_dtype(like: Tensor) -> torch.dtype | None:
    """Give the dtype autocast asks of matrix products where it is on, else None."""
    kind = like.device.type
    if kind == "meta":
        return None
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def to_channel_major(linear: nn.Linear, x_BLD: Tensor) -> Tensor:
    """Apply a linear map to (batch, length, in) and give a contiguous (batch, out, length)."""
    if not bare(linear, device=x_BLD.device):
        return linear(x_BLD).transpose(1, 2).contiguous()
    weight, bias = linear.weight, linear.bias
    given = (weight.expand(len(x_BLD), -1, -1), x_BLD.transpose(1, 2))
    return torch.bmm(*given) if bias is None else torch.baddbmm(bias[:, None], *given)


def from_channel_major(linear: nn.Linear, x_BDL: Tensor) -> Tensor:
    """Apply a linear map to (batch, in, length) and give a contiguous (batch, length, out)."""
    x_BLD = x_BDL.transpose(1, 2)
    if not bare(linear, device=x_BDL.device):
        return linear(x_BLD.contiguous())
    given = (x_BLD, linear.weight.t().expand(len(x_BLD), -1, -1))
    return torch.bmm(*given) if linear.bias is None else torch.baddbmm(linear.bias, *given)
