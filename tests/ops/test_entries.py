"""No entry of an operator reads what it was not given: a wrong tensor is an error that names it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_cases import FUNCTIONS, tensors
from torch import Tensor

from megabase.errors import MegabaseError, OperatorError
from megabase.ops import backend, kernels
from megabase.ops.hyena_mixer.packed import PackedLayer, letter_log_probs
from megabase.ops.online_conv import online_conv
from megabase.ops.selective_scan import ScanInputs, selective_step

needs_kernels = pytest.mark.skipif(kernels.package() is None, reason=kernels.why_missing() or "")
BACKENDS = ["fast", "reference"] if kernels.package() is None else ["kernels", "fast", "reference"]
REFUSED = (MegabaseError, RuntimeError, ValueError)
"""What a call may end with: its own error, or that of a library that was asked for nonsense."""


def _letters(x: Any, weight: Any, bias: Any, w: Any, before: Any, codes: Any) -> Any:
    found = letter_log_probs(x, (weight, bias, 1e-5), w, before, codes)
    return x.new_zeros(1) if found is None else found[1]


def _packed(*given: Any) -> Any:
    x, gate, *layer = given
    norms = [(layer[0], layer[1], 1e-5), (layer[2], layer[3], 1e-5)]
    packed = PackedLayer.of(norms, layer[4:])
    if packed is None:
        return x.new_zeros(1)
    _, u = packed.open(x, 0)
    return packed.close(u, gate, x)


def _online(k: Any, skip: Any, u: Any) -> Any:
    conv = online_conv(k, skip, 2)
    return torch.stack([conv.step(u[..., i]) for i in range(u.shape[-1])], dim=-1)


MORE: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[int, ...]]]] = {
    "letter_log_probs": (
        _letters,
        {"x": (2, 5, 8), "nw": (8,), "nb": (8,), "w": (4, 8), "before": (2, 4), "codes": (2, 6)},
    ),
    "packed_layer": (
        _packed,
        {
            "x": (2, 5, 8), "gate": (2, 5, 8), "n1": (8,), "c1": (8,), "n2": (8,), "c2": (8,),
            "w_in": (24, 8), "b_in": (24,), "w": (24, 3), "b": (24,), "w_out": (8, 8),
            "b_out": (8,), "w1": (16, 8), "b1": (16,), "w2": (8, 16), "b2": (8,),
        },
    ),
    "online_conv": (_online, {"k": (4, 6), "skip": (4,), "u": (2, 4, 5)}),
    "selective_step": (
        lambda state, *given: selective_step(ScanInputs(*given, initial=state))[0],
        {"state": (2, 4, 3), "u": (2, 4), "delta": (2, 4), "A": (4, 3), "B": (2, 3), "C": (2, 3)},
    ),
}  # fmt: skip


def _given(name: str) -> tuple[Callable[..., Tensor], list[Any]]:
    if name in FUNCTIONS:
        return FUNCTIONS[name], tensors(name, torch.float32)
    function, shapes = MORE[name]
    found = [torch.full(shape, 0.1) for shape in shapes.values()]
    if name == "letter_log_probs":
        found[-1] = torch.zeros(shapes["codes"], dtype=torch.uint8)
    return function, found


def _changes(tensor: Tensor, draw: random.Random) -> Tensor:
    """Change a tensor: rank, size, dtype, layout in memory, or device."""
    if tensor.is_complex():  # no operator takes these; a further change would only warn
        return tensor
    axis = draw.randrange(tensor.dim()) if tensor.dim() else 0
    size = tensor.shape[axis] if tensor.dim() else 0
    change = draw.randrange(12)
    if change == 0 and size > 1:
        return tensor.narrow(axis, 0, draw.randrange(size))
    if change == 1 and tensor.dim():
        return torch.cat([tensor, tensor], axis)
    if change == 2:
        return tensor[None]
    if change == 3 and tensor.dim():
        return tensor.select(axis, 0) if size else tensor
    if change == 4:
        kinds = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.float64)
        return tensor.to(draw.choice(kinds))
    if change == 5:
        return tensor.to("meta")
    if change == 6 and tensor.dim() > 1:
        return tensor.transpose(0, -1)
    if change == 7:
        return torch.stack([tensor, tensor], -1)[..., 0]
    if change == 8 and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if change == 9 and tensor.dim():
        return tensor.narrow(axis, 0, 1).expand(tensor.shape) if size else tensor
    if change == 10 and tensor.dim() == 2 and tensor.device.type == "cpu":
        return tensor.to_sparse()
    if tensor.dtype == torch.float32:
        return torch.complex(tensor, -tensor).conj().imag  # holds the negative of its memory
    return tensor.new_empty((0,))


def fuzz(name: str, seed: int, count: int) -> int:
    """Call an entry with changed tensors; give how many calls returned."""
    draw, returned = random.Random(f"{name} {seed}"), 0
    for _ in range(count):
        function, given = _given(name)
        for _ in range(draw.randrange(1, 3)):
            at = draw.randrange(len(given))
            if draw.random() < 0.1:
                given[at] = None
            elif given[at] is not None and given[at].layout is torch.strided:
                given[at] = _changes(given[at], draw)
        for one in given:
            if isinstance(one, Tensor) and one.is_floating_point() and draw.random() < 0.3:
                one.requires_grad_()
        try:
            found = function(*given)
            if found.requires_grad:
                found.sum().backward()
        except REFUSED:
            continue
        except (IndexError, TypeError, AttributeError, NotImplementedError):
            if not any(one is None for one in given):
                raise
            continue  # None where a tensor must be
        returned += 1
        if found.device.type == "cpu":
            assert not found.isnan().any(), name
            grads = [t.grad for t in given if isinstance(t, Tensor) and t.is_leaf]
            assert not any(g is not None and bool(g.isnan().any()) for g in grads), name
    return returned


@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("name", [*FUNCTIONS, *MORE])
def test_changed_tensors_end_in_values_or_errors(name: str, which: str) -> None:
    with backend.override(which):
        assert fuzz(name, 0, 60) > 0


@pytest.mark.slow
@pytest.mark.parametrize("which", BACKENDS)
@pytest.mark.parametrize("name", [*FUNCTIONS, *MORE])
def test_many_changed_tensors_end_in_values_or_errors(name: str, which: str) -> None:
    with backend.override(which):
        assert fuzz(name, 1, 5000) > 0


def test_problems_are_all_named() -> None:
    x, taps, bias, past = tensors("causal_conv")
    with pytest.raises(
        OperatorError, match=r"bias must have shape \(4,\), found \(2,\); taps must be of float16"
    ) as error:
        FUNCTIONS["causal_conv"](x, taps.long(), bias[:2], past)
    assert str(error.value).startswith("causal_conv: ")
    with pytest.raises(OperatorError, match="bias must be on the device of x, cpu, found meta"):
        FUNCTIONS["causal_conv"](x, taps, bias.to("meta"), past)


def test_registered_operators_take_every_dtype_or_refuse_it() -> None:
    x, w = torch.randn(4, 4096, 64), torch.randn(64, 4)
    wide = FUNCTIONS["causal_conv"](x, w)
    if kernels.package() is not None:
        for dtype in (torch.bfloat16, torch.float16):
            found = torch.ops.megabase.causal_conv(x.to(dtype), w.to(dtype), None, None, False)
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), wide, rtol=0.05, atol=0.2)
        given = [t.to(torch.bfloat16) for t in tensors("selective_scan")]
        with pytest.raises(OperatorError, match="u must be of float32, float64"):
            torch.ops.megabase.selective_scan(*given, True, False, True)
        given = tensors("selective_scan", torch.float64)
        given[2] = given[2].float()
        with pytest.raises(OperatorError, match="A must be of the dtype of u"):
            torch.ops.megabase.selective_scan(*given, True, False, True)


@needs_kernels
def test_functions_of_the_kernels_check_their_arrays() -> None:
    native, array = kernels.package().native, kernels.array
    x, w1, b1, w2, b2 = (torch.ones(s) for s in ((5, 4), (6, 4), (6,), (4, 6), (4,)))
    right = [None, None, x, w1, b1, w2, b2, torch.empty(5, 4)]

    def run(at: int, wrong: Any) -> None:
        given = [*right[:at], wrong, *right[at + 1 :]]
        arrays = [array(t) for t in given]
        native.mlp(False, [5, 4, 6, 0], 1e-5, arrays, False, False, 1)

    run(2, x)
    for at, wrong, message in (
        (3, w1[:4], r"w1 must have shape \(6, 4\), found \(4, 4\)"),
        (4, b1[:1], r"b1 must have shape \(6,\), found \(1,\)"),
        (4, None, "b1 is missing"),
        (2, x.double(), "x must be of float32"),
        (3, torch.ones(4, 6).t(), "w1 must be contiguous"),
        (6, b2[None], r"b2 must have shape \(4,\), found \(1, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            run(at, wrong)
    with pytest.raises(ValueError, match="too few arrays"):
        native.mlp(False, [5, 4, 6, 0], 1e-5, [array(t) for t in right[:-1]], False, False, 1)
    with pytest.raises(ValueError, match="1 to 8 taps"):
        native.conv_forward(
            False, (1, 5, 4, 9, False), *map(array, (x[None], None, w1, None, x[None])), 1
        )
    with pytest.raises(TypeError):
        native.exponential(False, 12345, 67890)


def _all_values() -> list[Tensor]:
    found = []
    for name, function in FUNCTIONS.items():
        given = [t.requires_grad_(t.dim() > 1) for t in tensors(name, torch.float32)]
        y = function(*given)
        found += [y, *torch.autograd.grad(y.sum(), given[0])]
    return [t.detach() for t in found]


@pytest.mark.parametrize("which", BACKENDS[:-1])
def test_four_threads_at_once_give_what_one_gives(which: str) -> None:
    with backend.override(which):
        want = _all_values()
        found: list[list[Tensor]] = []
        start = threading.Barrier(4)

        def work() -> None:
            start.wait()
            found.extend(_all_values() for _ in range(3))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 12
        for values in found:
            for one, other in zip(values, want, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("which", BACKENDS[:-1])
def test_a_forked_process_computes(which: str) -> None:
    with backend.override(which):
        want = _all_values()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)  # as loaders do: OpenMP's threads do not survive a fork
                with torch.no_grad():  # nor do those of autograd
                    found = [f(*tensors(name, torch.float32)) for name, f in FUNCTIONS.items()]
                status = 0 if all(map(torch.allclose, found, want[::2])) else 2
            finally:
                os._exit(status)
        for _ in range(600):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.1)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the forked process did not end within a minute")
        assert os.waitstatus_to_exitcode(status) == 0
