"""Values and gradients of the operators in Triton: run by test_triton.py, interpreted.

Sequences are as long as it takes to cross a block, and odd; the interpreter walks over every value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from operator_cases import FUNCTIONS, tensors
from torch import Tensor

from megabase.layers.backbone import Block
from megabase.layers.hyena import FilterOptions, HyenaOperator
from megabase.layers.mamba import Norm
from megabase.models.caduceus import CaduceusConfig, _Block
from megabase.ops import backend
from megabase.ops import hyena_mixer as hyena_mixer_module
from megabase.ops.causal_conv import causal_conv
from megabase.ops.hyena_mixer import MixerWeights, hyena_mixer
from megabase.ops.implicit_filter import FilterWeights, implicit_filter
from megabase.ops.norm_mlp import NormKind, NormWeights, add_norm
from megabase.ops.selective_scan import ScanInputs, selective_scan
from megabase.ops.triton import conv, mixer, scan
from megabase.ops.triton import filter as filter_module

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Of values about 1; of 16 bits a few steps of rounding."""


def _all(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _all(one)


def _compare(run: Callable[[], Any], leaves: Any, dtype: torch.dtype = torch.float32) -> None:
    """Compare values and gradients of both backends."""
    found = {}
    wanted = [t for t in _all(leaves) if t.requires_grad]
    for which in ("reference", "triton"):
        with backend.override(which):
            outs = [one for one in _all(run()) if one.requires_grad]
            torch.manual_seed(0)
            weights = [torch.randn(one.shape).to(one.dtype) for one in outs]
            found[which] = [*outs, *torch.autograd.grad(outs, wanted, weights)]
    allowed = TOLERANCES[dtype]
    for got, want in zip(found["triton"], found["reference"], strict=True):
        assert got.dtype == want.dtype
        size = max(1.0, float(want.detach().abs().max()))
        torch.testing.assert_close(got, want, rtol=0, atol=allowed * size)


def _draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 0.3) -> Tensor:
    return (scale * torch.randn(shape)).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("dtype", "plain"), [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_small_inputs(name: str, dtype: torch.dtype, plain: bool) -> None:
    given = tensors(name, dtype, plain)
    fixed = {"implicit_filter": (1, len(given) - 1)}.get(name, ())
    for i, t in enumerate(given):
        if t is not None and i not in fixed:
            t.requires_grad_()
    _compare(lambda: FUNCTIONS[name](*given), given, dtype)


@pytest.mark.parametrize(("lags", "width", "channels", "layers"), [(1, 3, 2, 1), (53, 20, 18, 3)])
def test_a_filter_of_several_blocks_that_share_programs(
    lags: int, width: int, channels: int, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_PROGRAMS", 2), ("_LAGS", 16), ("_CHANNELS", 16)):
        monkeypatch.setattr(filter_module, name, size)
    torch.manual_seed(0)
    widths = [5, *[width] * (layers - 1)]
    z = _draw(lags, 5, scale=1.0)
    weights = FilterWeights(
        (3 + torch.randn(1, width)).requires_grad_(), [_draw(width, w) for w in widths],
        [_draw(width) for _ in widths], _draw(channels, width), torch.rand(channels), 0.05,
    )  # fmt: skip
    _compare(lambda: implicit_filter(z, torch.linspace(0, 1, lags), weights), [z, weights])


@pytest.mark.parametrize(("two_sided", "keep"), [(False, True), (True, False)])
@pytest.mark.parametrize(("length", "taps"), [(1, 3), (19, 4)])
def test_a_mixer_of_several_tiles(
    length: int, taps: int, two_sided: bool, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_POSITIONS", "_CHANNELS", "_SAMPLES"):
        monkeypatch.setattr(mixer, name, 16)
    if not keep:
        monkeypatch.setattr(hyena_mixer_module, "wants_gradient", lambda *_: False)
    torch.manual_seed(length)
    d, lags = 18, 2 * length - 1 if two_sided else length
    x = _draw(1 + two_sided, length, d)
    weights = MixerWeights(
        None, None, 0.0, _draw(3 * d, d), _draw(3 * d), _draw(3 * d, taps), _draw(3 * d),
        _draw(d, lags), _draw(d), _draw(d, d), _draw(d),
    )  # fmt: skip

    def run() -> Tensor:
        return hyena_mixer(x, weights, two_sided=two_sided, centered=two_sided)

    _compare(run, [x, weights])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 19])
def test_a_convolution_of_several_tiles(
    length: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "_POSITIONS", 16)
    monkeypatch.setattr(conv, "_CHANNELS", 16)
    torch.manual_seed(length)
    # Half of a projection: positions lie further apart than its channels.
    x, taps, bias = _draw(2, length, 36), _draw(18, 4), _draw(18)
    past = _draw(2, 3, 18) if length < 3 or reverse else None
    _compare(lambda: causal_conv(x[..., :18], taps, bias, past, reverse), [x, taps, bias, past])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("length", "states"), [(1, 2), (11, 3)])
def test_a_scan_of_several_chunks(
    length: int, states: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_POSITIONS", 4)
    monkeypatch.setattr(scan, "_ELEMENTS", 32)
    torch.manual_seed(length)
    channels = 3
    projected = _draw(2, length, 2 * states + channels)
    B, C, u = projected.split([states, states, channels], dim=-1)
    A = (-torch.rand(channels, states) * 3).requires_grad_()
    # Steps from a thousandth to ten.
    delta = (torch.linspace(-7, 10, channels) + torch.randn(2, length, channels)).requires_grad_()
    others = [_draw(channels), _draw(2, length, channels), _draw(channels)]
    initial = _draw(2, channels, states)
    inputs = ScanInputs(u, delta, A, B, C, *others, initial)
    leaves = [projected, delta, A, *others, initial]
    _compare(lambda: selective_scan(inputs, reverse=reverse), leaves)
    with torch.no_grad():
        _check_last(inputs, reverse)


def _check_last(inputs: ScanInputs, reverse: bool) -> None:
    found = {}
    for which in ("reference", "triton"):
        with backend.override(which):
            found[which] = selective_scan(inputs, reverse=reverse)
    for got, want in zip(found["triton"], found["reference"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("strands", [1, 2])
@pytest.mark.parametrize("rms", [False, True])
def test_a_running_sum_and_its_norm(rms: bool, strands: int, swap: bool) -> None:
    torch.manual_seed(strands)
    weights = NormWeights(_draw(5), None if rms else _draw(5), 1e-5)
    kind = NormKind(rms, strands, swap, wide=True)
    hidden, residual = _draw(3, 7, 5 * strands, dtype=torch.bfloat16), _draw(3, 7, 5 * strands)
    for before in (residual, None):
        _compare(
            lambda before=before: add_norm(hidden, before, weights, kind),
            [hidden, before, weights],
        )


def _block() -> torch.nn.Module:
    options = FilterOptions(width=8, num_inner_mlps=1)
    return Block(HyenaOperator(6, 16, filter_options=options), 6, 12)


def _caduceus_block() -> torch.nn.Module:
    torch.manual_seed(0)
    block = _Block(CaduceusConfig(d_model=4, rcps=True, ssm_cfg={"d_state": 2}))
    mixer = block.mixer.submodule
    for direction in (mixer.mamba_fwd, mixer.mamba_rev):
        torch.nn.init.normal_(direction.A_log)
        torch.nn.init.normal_(direction.D)
    mixer.mamba_rev.in_proj, mixer.mamba_rev.out_proj = (
        mixer.mamba_fwd.in_proj, mixer.mamba_fwd.out_proj
    )  # fmt: skip
    return block


@pytest.mark.parametrize("make", [_block, _caduceus_block])
def test_blocks(make: Callable[[], torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_POSITIONS", 4)
    torch.manual_seed(0)
    block = make()
    width = 6 if isinstance(block, Block) else 8
    hidden, residual = _draw(2, 9, width), _draw(2, 9, width)
    _compare(lambda: block(hidden, residual), [hidden, residual, *block.parameters()])


def test_a_layer_norm_block_of_a_mamba_model() -> None:
    norm = Norm(4, rms=False)
    x = _draw(2, 3, 4)
    with backend.override("triton"):
        from megabase.layers.mamba import add_norm as layer_add_norm

        normed, total = layer_add_norm(norm, x, None)
    torch.testing.assert_close(normed, norm(x))
    torch.testing.assert_close(total, x)


@pytest.mark.parametrize("name", ["hyena_mixer", "selective_scan"])
def test_a_compiled_graph_has_no_break(name: str) -> None:
    given = [t.requires_grad_() for t in tensors(name, torch.float32)]
    with backend.override("triton"):
        want = FUNCTIONS[name](*given)
        compiled = torch.compile(FUNCTIONS[name], fullgraph=True, backend="aot_eager")
        got = compiled(*given)
        leaf = given[0]
        (dgot,), (dwant,) = (torch.autograd.grad(y.sum(), leaf) for y in (got, want))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(dgot, dwant)


@pytest.mark.parametrize("name", ["causal_conv", "norm_mlp"])
def test_functional_transformations(name: str) -> None:
    given = tensors(name, torch.float32)
    with backend.override("triton"):
        one = FUNCTIONS[name](*given)
        many = torch.func.vmap(lambda x: FUNCTIONS[name](x, *given[1:]))(
            torch.stack([given[0], given[0]])
        )
        gradient = torch.func.grad(lambda x: FUNCTIONS[name](x, *given[1:]).sum())(given[0])
    torch.testing.assert_close(many, torch.stack([one, one]))
    assert gradient.isfinite().all()


def test_autocast_multiplies_in_bfloat16_and_sums_wide() -> None:
    block = _block()
    hidden = _draw(2, 9, 6)
    with backend.override("triton"), torch.autocast("cpu", torch.bfloat16):
        out, residual = block(hidden)
    want, _ = block(hidden)
    assert residual.dtype == torch.float32
    torch.testing.assert_close(out.float(), want, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_torch_accepts_the_operators_that_exist_in_triton_only() -> None:
    ops = torch.ops.megabase
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    x, w = _draw(1, 3, 4), _draw(2)
    with backend.override("triton"):
        kind = (False, 2, True, True, None)
        given = (x, x, w, w, 1e-5, *kind)
        torch.library.opcheck(ops.add_norm.default, given, test_utils=checks)
        dense = [t.detach() for t in (*ops.add_norm(*given), x)]
        back = (*dense, w.detach(), w.detach(), 1e-5, *kind)
        torch.library.opcheck(ops.add_norm_backward.default, back, test_utils=checks[:2])
        t = [t.requires_grad_() for t in tensors("selective_scan", torch.float32)]
        given = (*t, True, True, True)
        torch.library.opcheck(ops.selective_scan_chunked.default, given, test_utils=checks)
        plain = [one.detach() for one in t]
        y, final, kept = (one.detach() for one in ops.selective_scan_chunked(*given))
        back = (y, final, kept, *plain, True, True)
        torch.library.opcheck(
            ops.selective_scan_chunked_backward.default, back, test_utils=checks[:2]
        )
