"""The blocked scan is the sequential one: values, every gradient, states, dtypes, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.errors import OperatorError
from megabase.ops import backend
from megabase.ops import selective_scan as module
from megabase.ops.selective_scan import ScanInputs, selective_step

OPTIONS = ("D", "z", "bias", "initial")
Arguments = dict[str, Any]


def selective_scan(softplus: bool = True, **inputs: Any) -> tuple[Tensor, Tensor]:
    return module.selective_scan(ScanInputs(**inputs), softplus=softplus)


def scan_blocked(softplus: bool = True, **inputs: Any) -> tuple[Tensor, Tensor]:
    with backend.override("fast"):
        return module.selective_scan(ScanInputs(**inputs), softplus=softplus)


def scan_reference(softplus: bool = True, **inputs: Any) -> tuple[Tensor, Tensor]:
    with backend.override("reference"):
        return module.selective_scan(ScanInputs(**inputs), softplus=softplus)


def make(
    batch: int,
    length: int,
    channels: int,
    states: int,
    dtype: torch.dtype = torch.float64,
    options: tuple[str, ...] = OPTIONS,
) -> Arguments:
    generator = torch.Generator().manual_seed(batch + 7 * length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    everything = {
        "u": draw(batch, length, channels),
        "delta": draw(batch, length, channels),
        "A": (-3 * draw(channels, states).abs()).detach().requires_grad_(),
        "B": draw(batch, length, states),
        "C": draw(batch, length, states),
        "D": draw(channels),
        "z": draw(batch, length, channels),
        "bias": draw(channels),
        "initial": draw(batch, channels, states),
    }
    return {name: t for name, t in everything.items() if name not in OPTIONS or name in options}


def run(scan: Callable[..., Any], arguments: Arguments, **more: Any) -> list[Tensor]:
    """Outputs and the gradients of a random functional of both."""
    y, state = scan(**arguments, **more)
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, dtype=t.dtype, generator=generator) for t in (y, state)]
    given = [t for t in arguments.values() if t.requires_grad]
    return [y, state, *torch.autograd.grad([y, state], given, seeds)]


def compare(arguments: Arguments, tolerance: float = 1e-10, **more: Any) -> None:
    want = run(scan_reference, arguments, **more)
    got = run(scan_blocked, arguments, **more)
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(other, one, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("length", "elements"),
    [
        (length, elements)
        for length in (1, 2, 63, 1000, 4097)
        for elements in (1, 200, 1 << 15)  # one block alone, some in step, the default
        if (length, elements) != (4097, 200)
    ],
)
def test_values_and_gradients_are_the_sequential_ones(
    length: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STEP_ELEMENTS", elements)
    compare(make(3 if length < 1000 else 1, length, 5, 4))


@pytest.mark.parametrize("left_out", OPTIONS)
def test_each_option_may_be_left_out(left_out: str) -> None:
    compare(make(2, 33, 3, 2, options=tuple(name for name in OPTIONS if name != left_out)))


def test_without_any_option_and_without_softplus() -> None:
    compare(make(2, 40, 3, 2, options=()))
    arguments = make(2, 40, 3, 2, options=())
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    compare(arguments, softplus=False)


def test_gradients_are_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP_ELEMENTS", 24)
    monkeypatch.setattr(module, "_LEAST_STEPS", 2)
    monkeypatch.setattr(module, "_STEPS_PER_STATE", 1)
    arguments = make(2, 7, 2, 2)
    names = list(arguments)

    def function(*tensors: Tensor) -> Any:
        return scan_blocked(**dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(arguments.values()))


def test_one_output_alone_has_gradients() -> None:
    arguments = make(1, 21, 3, 2)
    for part in (0, 1):
        given = list(arguments.values())
        grads = [
            torch.autograd.grad(scan(**arguments)[part].sum(), given, allow_unused=True)
            for scan in (scan_reference, scan_blocked)
        ]
        for want, got in zip(*grads, strict=True):
            want = torch.zeros(()) if want is None else want
            torch.testing.assert_close(got, want.to(got).expand_as(got), atol=1e-12, rtol=1e-12)


def test_strided_inputs_are_read_as_they_are() -> None:
    arguments = make(2, 30, 4, 3)
    packed = torch.cat([arguments["u"], arguments["z"]], dim=-1)
    u, z = packed.chunk(2, dim=-1)
    swapped = arguments["B"].transpose(0, 1).contiguous().transpose(0, 1)
    strided = {**arguments, "u": u, "z": z, "B": swapped}
    assert not u.is_contiguous()
    y, _ = selective_scan(**strided)
    torch.testing.assert_close(y, selective_scan(**arguments)[0])


def test_large_steps_forget_and_do_not_overflow() -> None:
    arguments = make(1, 200, 2, 3, dtype=torch.float32)
    arguments["delta"] = torch.full((1, 200, 2), 500.0, requires_grad=True)
    arguments["delta"].data[:, ::3] = -500.0
    results = run(scan_blocked, arguments)
    assert all(bool(result.isfinite().all()) for result in results)
    compare(arguments, tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision_is_float32_inside(dtype: torch.dtype) -> None:
    arguments = {name: t.detach().to(dtype) for name, t in make(2, 50, 4, 3).items()}
    for name in ("A", "D", "bias", "initial"):
        arguments[name] = arguments[name].float()
    y, state = selective_scan(**arguments)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    want, want_state = selective_scan(**{name: t.float() for name, t in arguments.items()})
    torch.testing.assert_close(y, want.to(dtype))
    torch.testing.assert_close(state, want_state)


def test_gradients_have_the_dtype_of_their_inputs() -> None:
    arguments = {
        name: t.detach().to(torch.bfloat16).requires_grad_() for name, t in make(1, 9, 2, 2).items()
    }
    y, state = scan_blocked(**arguments)
    (y.float().sum() + state.sum()).backward()
    assert {t.grad.dtype for t in arguments.values()} == {torch.bfloat16}


def test_autocast_changes_nothing() -> None:
    arguments = make(2, 40, 4, 3, dtype=torch.float32)
    want = run(selective_scan, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(selective_scan, arguments)
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one, other)


def test_a_sequence_may_be_read_in_parts() -> None:
    arguments = make(2, 75, 4, 3)
    y, state = selective_scan(**arguments)
    parts, carried = [], arguments["initial"]
    along = [name for name, t in arguments.items() if t.dim() == 3 and t.shape[1] == 75]
    for start, stop in ((0, 1), (1, 40), (40, 75)):
        cut = {name: arguments[name][:, start:stop] for name in along}
        part, carried = selective_scan(**{**arguments, **cut, "initial": carried})
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), y, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(carried, state, atol=1e-12, rtol=1e-12)


def test_a_step_is_one_position_of_the_scan() -> None:
    arguments = {name: t.detach() for name, t in make(2, 12, 4, 3).items()}
    y, state = selective_scan(**arguments)
    carried = arguments["initial"]
    for t in range(12):
        part, carried = selective_step(
            ScanInputs(
                arguments["u"][:, t],
                arguments["delta"][:, t],
                arguments["A"],
                arguments["B"][:, t],
                arguments["C"][:, t],
                arguments["D"],
                arguments["z"][:, t],
                arguments["bias"],
                carried,
            )
        )
        torch.testing.assert_close(part, y[:, t], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(carried, state, atol=1e-12, rtol=1e-12)


def test_what_is_kept_does_not_grow_with_the_states() -> None:
    kept: dict[int, int] = {}
    for states in (8, 32):
        arguments = make(1, 512, 16, states, dtype=torch.float32, options=("D", "z"))
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scan_blocked(**arguments)
        given = sum(t.numel() * t.element_size() for t in arguments.values())
        kept[states] = sum(saved.values()) - given
    one_input = 512 * 16 * 4
    assert kept[8] == kept[32] == one_input // 4


def test_backend_reference_runs_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = make(1, 5, 2, 2)
    with backend.override("reference"):
        y, _ = selective_scan(**arguments)
    assert torch.equal(y, scan_reference(**arguments)[0])


def test_shapes_that_do_not_fit_are_all_named() -> None:
    arguments = make(2, 6, 3, 2)
    arguments["B"] = arguments["B"][:, :5]
    arguments["D"] = arguments["D"][:2]
    with pytest.raises(OperatorError, match=r"B must have shape \(2, 6, 2\).*; D must"):
        selective_scan(**arguments)
    arguments = make(2, 6, 3, 2)
    arguments["u"] = arguments["u"][:, :0]
    with pytest.raises(OperatorError, match="L >= 1"):
        selective_scan(**arguments)
