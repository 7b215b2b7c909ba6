"""The scan of megabase-kernels is the sequential one, on every instruction set, as an operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops import test_selective_scan as cases
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megabase.errors import OperatorError
from megabase.ops import backend, kernels
from megabase.ops.selective_scan import _KERNEL_STEPS as STEPS
from megabase.ops.selective_scan import ScanInputs, selective_scan

pytestmark = pytest.mark.skipif(kernels.package() is None, reason=kernels.why_missing() or "")


OPTIONS: tuple[str, ...] = cases.OPTIONS


def scan_kernel(
    softplus: bool = True, reverse: bool = False, **inputs: Any
) -> tuple[Tensor, Tensor]:
    with backend.override("kernels"):
        return selective_scan(ScanInputs(**inputs), softplus=softplus, reverse=reverse)


def compare(arguments: dict[str, Any], tolerance: float = 1e-10, **more: Any) -> None:
    want = cases.run(cases.scan_reference, arguments, **more)
    got = cases.run(scan_kernel, arguments, **more)
    for one, other in zip(want, got, strict=True):
        torch.testing.assert_close(other, one, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("each_set")
@pytest.mark.parametrize("length", [1, 2, 63, STEPS, 1000])
@pytest.mark.parametrize(("channels", "states"), [(5, 4), (19, 16), (3, 9)])
def test_values_and_gradients_are_the_sequential_ones(
    length: int, channels: int, states: int
) -> None:
    compare(cases.make(3 if length < 1000 else 1, length, channels, states))


def test_any_number_of_threads_gives_the_same() -> None:
    before = torch.get_num_threads()
    for shape in ((1, 4097, 33, 16), (5, 70, 33, 16)):
        arguments = cases.make(*shape)
        want = cases.run(cases.scan_blocked, arguments)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                got = cases.run(scan_kernel, arguments)
            finally:
                torch.set_num_threads(before)
            for one, other in zip(want, got, strict=True):
                torch.testing.assert_close(other, one, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("left_out", OPTIONS)
def test_each_option_may_be_left_out(left_out: str) -> None:
    compare(cases.make(2, 33, 3, 2, options=tuple(name for name in OPTIONS if name != left_out)))


def test_without_any_option_and_without_softplus() -> None:
    compare(cases.make(2, 40, 3, 2, options=()))
    arguments = cases.make(2, 40, 3, 2, options=())
    arguments["delta"] = arguments["delta"].detach().abs().requires_grad_()
    compare(arguments, softplus=False)


@pytest.mark.usefixtures("each_set")
def test_single_precision_is_as_exact_as_the_reference() -> None:
    wide = cases.make(2, 300, 20, 16)
    narrow = {name: t.detach().float().requires_grad_() for name, t in wide.items()}
    want = cases.run(cases.scan_reference, wide)
    errors = []
    for scan in (cases.scan_reference, scan_kernel):
        got = cases.run(scan, narrow)
        errors.append([float((g - w).detach().abs().max()) for g, w in zip(got, want, strict=True)])
    for plain, fast, value in zip(*errors, want, strict=True):
        assert fast <= 4 * plain + 1e-6 * float(value.detach().abs().max())


def test_against_the_direction_is_turning_around_twice() -> None:
    arguments = cases.make(2, 45, 5, 3)
    along = [name for name, t in arguments.items() if t.dim() == 3 and t.shape[1] == 45]

    def turned(**given: Any) -> tuple[Tensor, Tensor]:
        given |= {name: given[name].flip(1) for name in along}
        y, state = cases.scan_reference(**given)
        return y.flip(1), state

    def _backwards(**given: Any) -> tuple[Tensor, Tensor]:
        return selective_scan(ScanInputs(**given), reverse=True)

    want = cases.run(turned, arguments)
    for name in ("kernels", "fast", "reference"):
        with backend.override(name):
            got = cases.run(_backwards, arguments)
        for one, other in zip(want, got, strict=True):
            torch.testing.assert_close(other, one, atol=1e-10, rtol=1e-10)


def test_gradients_are_derivatives() -> None:
    arguments = cases.make(2, 7, 2, 2)
    names = list(arguments)

    def function(*tensors: Tensor) -> Any:
        return scan_kernel(**dict(zip(names, tensors, strict=True)), reverse=True)

    assert torch.autograd.gradcheck(function, tuple(arguments.values()))


def test_one_output_alone_has_gradients() -> None:
    arguments = cases.make(1, 21, 3, 2)
    for part in (0, 1):
        given = list(arguments.values())
        grads = [
            torch.autograd.grad(scan(**arguments)[part].sum(), given, allow_unused=True)
            for scan in (cases.scan_reference, scan_kernel)
        ]
        for want, got in zip(*grads, strict=True):
            want = torch.zeros(()) if want is None else want
            torch.testing.assert_close(got, want.to(got).expand_as(got), atol=1e-12, rtol=1e-12)


def test_strided_and_transposed_inputs_are_read_as_they_are() -> None:
    arguments = cases.make(2, 30, 4, 3)
    u, z = torch.cat([arguments["u"], arguments["z"]], dim=-1).chunk(2, dim=-1)
    turned = arguments["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    swapped = arguments["B"].transpose(0, 1).contiguous().transpose(0, 1)
    strided = {**arguments, "u": u, "z": z, "delta": turned, "B": swapped}
    assert not u.is_contiguous()
    strided["A"] = arguments["A"].t().contiguous().t()
    y, _ = scan_kernel(**strided)
    torch.testing.assert_close(y, cases.scan_reference(**arguments)[0])


@pytest.mark.parametrize("shape", [(0, 5, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)])
def test_nothing_in_gives_nothing_out(shape: tuple[int, int, int, int]) -> None:
    compare(cases.make(*shape))


def test_large_steps_forget_and_do_not_overflow() -> None:
    arguments = cases.make(1, 200, 2, 3, dtype=torch.float32)
    arguments["delta"] = torch.full((1, 200, 2), 500.0, requires_grad=True)
    arguments["delta"].data[:, ::3] = -500.0
    results = cases.run(scan_kernel, arguments)
    assert all(bool(result.isfinite().all()) for result in results)
    compare(arguments, tolerance=1e-3)


@pytest.mark.usefixtures("each_set")
def test_not_a_number_stays_visible() -> None:
    arguments = {name: t.detach() for name, t in cases.make(1, 12, 3, 16).items()}
    arguments["delta"][0, 5, 1] = float("nan")
    y, _ = scan_kernel(**arguments)
    assert bool(y[0, 5:, 1].isnan().all())
    assert bool(y[0, :, [0, 2]].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_float32_inside(dtype: torch.dtype) -> None:
    arguments = {name: t.detach().to(dtype) for name, t in cases.make(2, 50, 4, 3).items()}
    y, state = scan_kernel(**arguments)
    assert y.dtype == dtype
    assert state.dtype == torch.float32
    want, want_state = scan_kernel(**{n: t.float() for n, t in arguments.items()})
    torch.testing.assert_close(y, want.to(dtype))
    torch.testing.assert_close(state, want_state)


def _operands(grad: bool) -> tuple[Any, ...]:
    arguments = cases.make(2, 40, 5, 3)
    given = [t if grad else t.detach() for t in arguments.values()]
    return (*given, True, False, grad)


@pytest.mark.parametrize("grad", [True, False])
def test_torch_accepts_the_operators(grad: bool) -> None:
    operands = _operands(grad)
    torch.library.opcheck(torch.ops.megabase.selective_scan.default, operands)
    if not grad:
        y, final, kept = torch.ops.megabase.selective_scan(*operands[:-1], True)
        more = (torch.ones_like(y), torch.ones_like(final), kept, *operands[:-1])
        torch.library.opcheck(torch.ops.megabase.selective_scan_backward.default, more)


def test_the_operator_and_the_way_around_its_dispatch_are_one() -> None:
    arguments = cases.make(2, 70, 5, 3)
    given = list(arguments.values())
    through = torch.ops.megabase.selective_scan(*given, True, False, True)[:2]
    around = scan_kernel(**arguments)
    for want, got in zip(through, around, strict=True):
        assert torch.equal(want, got)
    grads = [torch.autograd.grad([t.sum() for t in out], given) for out in (through, around)]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_mode_sees_the_operator() -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        scan_kernel(**cases.make(1, 5, 3, 2))
    assert "megabase.selective_scan.default" in seen


def test_a_second_derivative_is_an_error() -> None:
    arguments = cases.make(1, 5, 3, 2)
    u = arguments["u"]
    y, _ = scan_kernel(**arguments)
    (first,) = torch.autograd.grad(y.square().sum(), u, create_graph=True)
    with pytest.raises(OperatorError, match="no second derivative"):
        first.sum().backward()


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    arguments = cases.make(2, 40, 5, 3)
    names, given = list(arguments), list(arguments.values())

    def loss(*tensors: Tensor) -> Tensor:
        return scan_kernel(**dict(zip(names, tensors, strict=True)))[0].square().sum()

    want = torch.autograd.grad(loss(*given), given)
    again: Any = torch.utils.checkpoint.checkpoint(loss, *given, use_reentrant=False)
    got = torch.autograd.grad(again, given)
    assert all(torch.equal(one, other) for one, other in zip(want, got, strict=True))


def test_the_graph_does_not_break_there() -> None:
    arguments = cases.make(2, 40, 5, 3)

    def function() -> Tensor:
        with backend.override("kernels"):
            return selective_scan(ScanInputs(**arguments))[0] * 2

    compiled = torch.compile(
        lambda given: selective_scan(ScanInputs(**given))[0] * 2,
        backend="aot_eager",
        fullgraph=True,
    )
    want, got = function(), compiled(arguments)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(y.sum(), list(arguments.values())) for y in (want, got)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one)


def test_what_is_kept_does_not_grow_with_length_times_states() -> None:
    arguments = cases.make(1, 1024, 16, 16, dtype=torch.float32)
    kept = torch.ops.megabase.selective_scan(
        *(t.detach() for t in arguments.values()), True, False, True
    )[2]
    assert kept.numel() == arguments["u"].numel() * 16 // STEPS


def test_the_exponential_is_exact_to_a_few_units() -> None:
    for dtype, double in ((torch.float32, False), (torch.float64, True)):
        x = torch.linspace(-80, 80, 100_001, dtype=torch.float64).to(dtype)
        y = torch.empty_like(x)
        kernels.package().native.exponential(double, kernels.array(x), kernels.array(y))
        # The value of x as it was rounded, in more digits.
        want = x.double().exp()
        error = ((y.double() - want) / want).abs().max()
        assert float(error) < (4 if not double else 8) * torch.finfo(dtype).eps
