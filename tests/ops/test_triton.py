"""Operators in Triton without an accelerator: interpreted, compiled, counted, refused."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops import triton as door
from megabase.ops.causal_conv import causal_conv
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
from megabase.ops.implicit_filter import FilterWeights, implicit_filter
from megabase.ops.norm_mlp import MlpWeights, NormKind, NormWeights, add_norm, norm_mlp
from megabase.ops.selective_scan import ScanInputs, selective_scan

needs_triton = pytest.mark.skipif(door.why_missing() is not None, reason=door.why_missing() or "")


@needs_triton
def test_interpreted_kernels_equal_the_definitions() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    cases = Path(__file__).with_name("interpreted_triton.py")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


def _draw(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=dtype).requires_grad_()


def _filter(dtype: torch.dtype) -> Any:
    d = lambda *shape: _draw(dtype, *shape)  # noqa: E731
    weights = FilterWeights(
        d(1, 64), [d(64, 5), d(64, 64)], [d(64), d(64)], d(128, 64), d(128).detach(), 0.05
    )
    return implicit_filter(d(200, 5), d(200).detach(), weights)


def _mixer(dtype: torch.dtype, two_sided: bool = False) -> Any:
    batch = 1 if two_sided else 2
    d = lambda *shape: _draw(torch.float32, *shape)  # noqa: E731
    weights = MixerWeights(
        None, None, 0.0, d(384, 128), d(384), d(384, 3), d(384),
        d(128, 399 if two_sided else 200), d(128), d(128, 128), d(128),
    )  # fmt: skip
    product = None if dtype == torch.float32 else dtype
    x = _draw(dtype, batch, 200, 128)
    return hyena_mixer(x, weights, two_sided=two_sided, centered=two_sided, product=product)


def _mlp(dtype: torch.dtype) -> Any:
    d = lambda *shape: _draw(dtype, *shape)  # noqa: E731
    return norm_mlp(
        d(2, 9, 128),
        MlpWeights(d(128), d(128), 1e-5, d(512, 128), d(512), d(128, 512), d(128)),
    )


def _norm(dtype: torch.dtype, strands: int = 1, swap: bool = False) -> Any:
    weights = NormWeights(_draw(torch.float32, 128), _draw(torch.float32, 128), 1e-5)
    if strands == 2:
        weights = weights._replace(bias=None)
    kind = NormKind(rms=strands == 2, strands=strands, swap=swap or strands == 2, wide=True)
    shape = (2, 9, 128 * strands)
    return add_norm(_draw(dtype, *shape), _draw(torch.float32, *shape), weights, kind)


def _conv(dtype: torch.dtype, reverse: bool = False) -> Any:
    d = lambda *shape: _draw(dtype, *shape)  # noqa: E731
    past = d(2, 3, 512) if reverse else None
    return causal_conv(d(2, 70, 512), d(512, 4), d(512), past, reverse)


def _scan(dtype: torch.dtype, reverse: bool = False) -> Any:
    d = lambda *shape: _draw(dtype, *shape)  # noqa: E731
    inputs = ScanInputs(
        d(2, 130, 256), d(2, 130, 256), _draw(torch.float32, 256, 16), d(2, 130, 16),
        d(2, 130, 16), d(256), d(2, 130, 256), d(256), d(2, 256, 16) if reverse else None,
    )  # fmt: skip
    return selective_scan(inputs, reverse=reverse)


CASES: dict[str, Callable[[torch.dtype], Any]] = {
    "filter": _filter,
    "mixer": _mixer,
    "mixer of two sides": lambda dtype: _mixer(dtype, True),
    "mlp": _mlp,
    "norm": _norm,
    "norm of two strands": lambda dtype: _norm(dtype, 2),
    "norm turned around": lambda dtype: _norm(dtype, swap=True),
    "conv": _conv,
    "conv in reverse": lambda dtype: _conv(dtype, True),
    "scan": _scan,
    "scan in reverse": lambda dtype: _scan(dtype, True),
}
"""Operators at sizes of models: forward and backward pass."""

TARGETS = (("cuda", 80, 32), ("cuda", 90, 32), ("hip", "gfx942", 64))
"""Ampere, Hopper, MI300: what kernels are compiled for."""

SHARED = {"cuda": 100 << 10, "hip": 64 << 10}
"""Bytes of shared memory that a program may have: of consumer cards of the same kind too."""

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def _launches(case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record what an operator starts, forward and backward."""
    from megabase.ops.triton import conv, filter, mixer, norm, scan, shared

    found = []

    def record(kernel: Any, grid: Any, reads: Any, writes: Any, *numbers: Any, **rest: Any) -> None:
        warps = rest.pop("warps", 4)
        found.append((kernel, [*reads, *writes, *numbers], rest, warps))

    for module in (conv, filter, mixer, norm, scan, shared):
        monkeypatch.setattr(module, "launch", record)
    with backend.override("triton"):
        out = CASES[case](dtype)
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.backward([one.sum() for one in outs])
    return found


def _kind(value: Any) -> Any:
    """Give the type of a kernel's argument as Triton writes it."""
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    if isinstance(value, Tensor):
        return "*fp32" if value.is_complex() else f"*{_NAMES[value.dtype]}"
    if value is None or value == 1:  # Triton makes a constant of a size of 1
        return "constexpr"
    return "i32" if isinstance(value, int) else "fp32"


_QUICK = {
    ("filter", "float32-cuda-90"), ("mixer", "float32-cuda-90"), ("mlp", "bfloat16-hip-gfx942"),
    ("norm", "float32-hip-gfx942"), ("norm of two strands", "bfloat16-cuda-80"),
    ("norm turned around", "float32-cuda-90"),
    ("conv", "bfloat16-hip-gfx942"), ("conv in reverse", "float32-cuda-90"),
    ("scan", "float32-cuda-80"), ("scan in reverse", "bfloat16-cuda-90"),
}  # fmt: skip
"""Every kernel once; all others of 60 are slow tests, of up to half a minute."""


def _builds() -> Iterator[Any]:
    for case, dtype, target in itertools.product(CASES, _NAMES, TARGETS):
        kind = f"{str(dtype).removeprefix('torch.')}-{target[0]}-{target[1]}"
        marks = () if (case, kind) in _QUICK else pytest.mark.slow
        yield pytest.param(case, dtype, target, id=f"{case}-{kind}", marks=marks)


@needs_triton
@pytest.mark.parametrize(("case", "dtype", "target"), list(_builds()))
def test_every_kernel_compiles(
    case: str,
    dtype: torch.dtype,
    target: tuple[Any, ...],
    compiled: set[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For every kind of device, and without one; what fits there in shared memory is looked at."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launches = _launches(case, dtype, monkeypatch)
    assert launches
    for kernel, values, constants, warps in launches:
        if target[0] == "hip" and "DOT" in constants:
            constants["DOT"] = "ieee"
        names = kernel.arg_names[: len(values)]
        signature = dict(zip(names, map(_kind, values), strict=True))
        fixed = {n: v for n, v in zip(names, values, strict=True) if signature[n] == "constexpr"}
        fixed |= constants
        signature |= dict.fromkeys(constants, "constexpr")
        assert list(signature) == kernel.arg_names
        key = (kernel.__name__, str(signature), str(fixed), target)
        if key in compiled:
            continue
        compiled.add(key)
        binary = compile(
            ASTSource(kernel, signature, fixed),
            target=GPUTarget(*target),
            options={"num_warps": warps, "enable_fp_fusion": True},
        )
        assert binary.asm["cubin" if target[0] == "cuda" else "hsaco"]
        assert binary.metadata.shared <= SHARED[target[0]], kernel.__name__


@pytest.fixture(scope="module")
def compiled() -> set[Any]:
    """Kernels that were compiled: several operators start the same one."""
    return set()


@needs_triton
@pytest.mark.parametrize("case", list(CASES))
def test_a_launch_on_fake_tensors_is_one_call(case: str) -> None:
    """What a counter of launches sees: each kernel once, with what it reads and writes."""
    seen: list[str] = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace == "megabase":
                with self:
                    return OPDEFS[func._name.removesuffix(".default")]._init_fn(*args)
            if func.namespace == "megabase_triton":
                name, reads, writes = args
                assert reads
                assert writes
                seen.append(name)
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), backend.override("triton"), Counter():
        out = CASES[case](torch.float32)
        torch.autograd.backward([one.sum() for one in (out if isinstance(out, tuple) else (out,))])
    counts = {"filter": 3, "mixer": 10, "mlp": 2, "norm": 3, "conv": 3, "scan": 7}
    assert len(seen) == counts[case.split()[0]], seen


@needs_triton
def test_tensors_on_a_cpu_are_refused() -> None:
    with backend.override("triton"), pytest.raises(OperatorError, match=r"on the CPU.*TRITON_INT"):
        _conv(torch.float32)


@needs_triton
def test_doubles_are_left_to_the_fast_path() -> None:
    with backend.override("triton"):
        assert _conv(torch.float64).dtype == torch.float64


def test_a_missing_triton_is_said_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_why", "triton is not installed (how to)")
    with pytest.raises(OperatorError, match="triton was asked for, but triton is not installed"):
        backend.override("triton").__enter__()
    monkeypatch.setenv(backend.ENVIRONMENT_VARIABLE, "triton")
    with pytest.raises(OperatorError, match=r"MEGABASE_BACKEND: .*not installed"):
        backend.active()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("case", list(CASES))
def test_kernels_run_on_an_accelerator(case: str) -> None:
    with torch.device("cuda"), backend.override("triton"):
        out = CASES[case](torch.float32)
        outs = out if isinstance(out, tuple) else (out,)
        torch.autograd.backward([one.sum() for one in outs])
        assert all(one.isfinite().all() for one in outs)
