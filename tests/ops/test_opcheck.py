"""torch accepts every operator: opcheck in every dtype, with and without what may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from operator_cases import tensors
from torch import Tensor

from megabase.ops import backend, kernels
from megabase.ops.registry import FLOATS

BFLOAT = torch.bfloat16
IN_CPP = {"causal_conv", "selective_scan"}
"""Operators that exist in C++ only, or in Triton as well."""

IN_TRITON = {"add_norm", "selective_scan_chunked"}
"""Operators that exist in Triton only: see interpreted_triton.py."""


def _forward(name: str, dtype: torch.dtype, plain: bool, product: torch.dtype | None) -> list[Any]:
    """Give the arguments of ``torch.ops.megabase.NAME``."""
    key = "selective_scan" if name == "selective_scan_blocked" else name
    t = tensors(key, dtype, plain)
    return {
        "short_conv": lambda: [*t, 1],
        "long_conv": lambda: [*t, False],
        "norm_mlp": lambda: [*t[:3], 1e-5, *t[3:], product, not plain],
        "hyena_mixer": lambda: [*t[:3], 1e-5, *t[3:], 1, False, product, not plain],
        "implicit_filter": lambda: [*t[:3], [t[3], t[4]], [t[5], t[6]], *t[7:], 0.1],
        "causal_conv": lambda: [*t, plain],
        "selective_scan": lambda: [*t, True, plain, True],
        "selective_scan_blocked": lambda: [*t, True, True],
    }[name]()


def _backward(name: str, given: list[Any]) -> list[Any]:
    """Give the arguments of ``torch.ops.megabase.NAME_backward``."""
    out = getattr(torch.ops.megabase, name)(*given)
    first = out if isinstance(out, Tensor) else out[0]
    dy = torch.ones_like(first)
    return {
        "short_conv": lambda: [dy, *given[:2], given[3], True, True],
        "long_conv": lambda: [dy, *given, True, True],
        "norm_mlp": lambda: [dy, out[1], *given[:-1], True, True],
        "hyena_mixer": lambda: [dy, *out[1:], *given[:-1], True, True, True],
        "implicit_filter": lambda: [dy, *given, True],
        "causal_conv": lambda: [dy, *given],
        "selective_scan": lambda: [dy, torch.ones_like(out[1]), out[2], *given[:-1]],
        "selective_scan_blocked": lambda: [dy, None, out[2], *given[:-1]],
    }[name]()


CASES = (
    "short_conv", "long_conv", "norm_mlp", "hyena_mixer", "implicit_filter",
    "causal_conv", "selective_scan", "selective_scan_blocked",
)  # fmt: skip


def _runs() -> Iterator[Any]:
    for name in CASES:
        halves = name in ("norm_mlp", "hyena_mixer")
        quick = {  # the others are slow tests
            ("kernels", BFLOAT, False, None),
            ("kernels", torch.float32, True, BFLOAT if halves else None),
            ("fast", torch.float64, False, BFLOAT if halves else None),
        }
        for which in ("kernels",) if name in IN_CPP else ("kernels", "fast"):
            for dtype in FLOATS[2:] if name == "selective_scan" else FLOATS:
                for product in (None, BFLOAT) if halves else (None,):
                    for plain in (False, True):
                        run = (which, dtype, plain, product)
                        text = f"{name}-{which}-{dtype}-{product}-{'plain' if plain else 'all'}"
                        yield pytest.param(
                            name, *run, id=text.replace("torch.", ""),
                            marks=() if run in quick else pytest.mark.slow,
                        )  # fmt: skip


def test_every_operator_has_a_case() -> None:
    names = {
        name.removeprefix("megabase::").removesuffix(".default")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("megabase::")
    }
    names -= {*IN_TRITON, *(f"{name}_backward" for name in IN_TRITON)}
    assert names == {*CASES, *(f"{name}_backward" for name in CASES)}


@pytest.mark.parametrize(("name", "which", "dtype", "plain", "product"), list(_runs()))
def test_opcheck(
    name: str, which: str, dtype: torch.dtype, plain: bool, product: torch.dtype | None
) -> None:
    if which == "kernels" and kernels.package() is None:
        pytest.skip(str(kernels.why_missing()))
    with backend.override(which):
        _opcheck(name, dtype, plain, product)


def _opcheck(name: str, dtype: torch.dtype, plain: bool, product: torch.dtype | None) -> None:
    given = _forward(name, dtype, plain, product)
    leaves = [t.requires_grad_() if isinstance(t, Tensor) else t for t in given]
    if name == "implicit_filter":
        for t in (*given[3], *given[4]):
            t.requires_grad_()
        given[1].requires_grad_(False)
        if given[6] is not None:
            given[6].requires_grad_(False)
    torch.library.opcheck(getattr(torch.ops.megabase, name).default, tuple(leaves))
    with torch.no_grad():
        after = _backward(name, given)
    plainly = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.detach(), after)
    torch.library.opcheck(getattr(torch.ops.megabase, f"{name}_backward").default, tuple(plainly))
