"""Launches and bytes of a training step on an accelerator, counted without one.

The step runs on fake tensors of device ``cuda``: shapes without values. One launch is one call that
reaches the device: an elementwise kernel, a reduction, a copy, a fill, a matrix product, a
convolution, a transform, a Triton kernel. Views and empty tensors are none. A padding is two, as
torch fills and then copies. Operators of megabase are looked into. Bytes are what every launch
reads and writes: all of its inputs and outputs, each element of an expanded tensor once.

What a library does inside one call (a cuFFT of several kernels, a layout that cuDNN turns around)
is not seen; it is the same for every side.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import BenchError, OtherWork, Say, build_model, record
from megabase.ops import backend
from megabase.settings import Settings

_META = torch.device("meta")
_FREE = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view",
         "lift_fresh", "promote_types", "sym_size", "sym_stride", "sym_numel")  # fmt: skip
"""Calls of aten that only make room or another view, besides those that torch knows as views."""
_FILLS = ("fill_", "zero_", "copy_")
"""Calls that do not read what they write to."""
_TWICE = ("constant_pad_nd", "slice_backward", "select_backward")
"""Calls of two launches: a fill and a copy."""


def _touched(tensor: Tensor) -> int:
    """Count the bytes of distinct elements."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _by_shape(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a call on tensors without a device: some fake forms ask for the driver of the device."""
    given = pytree.tree_leaves((args, kwargs))
    places: dict[Tensor, Tensor] = {}
    with unset_fake_temporarily():
        for t in given:
            if isinstance(t, Tensor) and t not in places:
                places[t] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_META)
        args, kwargs = pytree.tree_map_only(Tensor, places.__getitem__, (args, kwargs))
        found = func(*args, **{k: _META if k == "device" else v for k, v in kwargs.items()})
    back = {id(meta): fake for fake, meta in places.items()}
    return pytree.tree_map_only(
        Tensor,
        lambda t: (
            back[id(t)]  # written in place
            if id(t) in back
            else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
        ),
        found,
    )


@dataclass(frozen=True, kw_only=True)
class LaunchConfig(Settings):
    """Launches and bytes of a training step on an accelerator, counted without one.

    The step runs on fake tensors of device cuda; nothing is timed. HyenaDNA stands beside the
    published way.
    """

    model: Literal["hyenadna", "gpt", "mamba", "caduceus", "caduceus-ps"] = "hyenadna"
    """Family."""
    batch: int = 256
    """Sequences in a step."""
    length: int = 1024
    """Tokens of each."""
    width: int = 128
    """Width of the model."""
    layers: int = 2
    """Blocks of the model."""
    backend: str = ""
    """Implementation of the operators; the default of an accelerator when empty."""
    mask: bool = False
    """Give the model a mask whose values nobody knows."""

    _limits: ClassVar = {"be at least 1": "batch length width layers"}


class Launches(TorchDispatchMode):
    """Counts what runs on fake tensors in a ``with`` block: ``calls`` by name, and ``bytes``."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes = 0

    @property
    def total(self) -> int:
        """Launches in all."""
        return sum(self.calls.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count one call, or look into it."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            # Autograd would look for the driver of another device; Python still sees cuda.
            return _META
        if kwargs.get("device") == _META:
            kwargs["device"] = torch.device("cuda")
        namespace = getattr(func, "namespace", "higher_order")
        if namespace == "megabase":
            with self:
                return OPDEFS[func._name.removesuffix(".default")]._init_fn(*args, **kwargs)
        name = func.__name__ if namespace == "higher_order" else func.overloadpacket.__name__
        if namespace == "megabase_triton":
            self._count(args[0], args[1], args[2])
            return None
        free = namespace == "prim" or name in _FREE or getattr(func, "is_view", False)
        if name == "_local_scalar_dense":
            raise BenchError(
                "the step reads a value from the device, and waits for it; expected a step that is "
                "decided by shapes: fake tensors have no values"
            )
        tensors = any(isinstance(t, Tensor) for t in pytree.tree_leaves(args))
        by_shape = namespace == "aten" and tensors and not free
        found = (_by_shape if by_shape else _call)(func, args, kwargs)
        if not free:
            read = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            written = [t for t in pytree.tree_leaves(found) if isinstance(t, Tensor)]
            self._count(name, read[1:] if name in _FILLS else read, written)
        return found

    def _count(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        self.calls[name] += 2 if name in _TWICE else 1
        self.bytes += sum(map(_touched, (*read, *written)))


@contextlib.contextmanager
def fake_device(backend_name: str | None = None) -> Iterator[None]:
    """Make tensors fake inside a ``with`` block: any device can be named, and none is needed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if backend_name is not None:
            stack.enter_context(backend.override(backend_name))
        yield


def _place(module: nn.Module) -> None:
    """Put a model that was built without memory on a fake device; what is one tensor stays one."""
    placed: dict[Tensor, Any] = {}  # a parameter, or a tensor for a buffer
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if tensor not in placed:
                        new = torch.empty_like(tensor, device="cuda")
                        trained = isinstance(tensor, nn.Parameter)
                        placed[tensor] = nn.Parameter(new, tensor.requires_grad) if trained else new
                    tensors[name] = placed[tensor]


def count_step(config: LaunchConfig, model: str | None = None) -> Launches:
    """Count forward, loss and backward of one step of `model`, or of ``config.model``."""
    with torch.device("meta"):
        module = build_model(model or config.model, config.width, config.layers, config.length)
    with fake_device(config.backend or None):
        _place(module)
        ids = torch.empty(config.batch, config.length, dtype=torch.long, device="cuda")
        targets = torch.empty_like(ids)
        mask = {"attention_mask": torch.empty_like(ids)} if config.mask else {}
        with Launches() as counted:
            found = module.train()(input_ids=ids, **({} if model == "plain" else mask))
            logits = found if isinstance(found, Tensor) else found.logits
            F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
    return counted


def run_launches(config: LaunchConfig, say: Say) -> dict[str, Any]:
    """Count; see :class:`LaunchConfig`.

    Returns
    -------
    dict
        Ready for JSON: for each of ``sides`` its ``launches``, ``bytes`` and launches by ``calls``.
    """
    sides: dict[str, Any] = {}
    for side in [config.model, *(["plain"] if config.model == "hyenadna" else [])]:
        counted = count_step(config, side)
        calls = dict(counted.calls.most_common())
        sides[side] = {"launches": counted.total, "bytes": counted.bytes, "calls": calls}
        name = "published way" if side == "plain" else side
        say(f"{name}: {counted.total:,} launches, {counted.bytes / 1e9:.1f} GB")
    if "plain" in sides:
        ours, plain = sides["hyenadna"], sides["plain"]
        say(
            f"of the published way: {ours['launches'] / plain['launches']:.2f} of the launches, "
            f"{ours['bytes'] / plain['bytes']:.2f} of the bytes"
        )
    found = record(
        "launches", config, OtherWork(), backend=config.backend or "default", sides=sides
    )
    return {**found, "other_cores": None}  # counts are the same on a busy machine
