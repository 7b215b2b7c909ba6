"""Products by whichever library: the same values as torch's, for every layout and size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from megabase.ops.products import matmul


@pytest.mark.parametrize("rows", [3, 700])  # torch's own product, and the quick library's
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [True, False])
def test_products_equal_those_in_float64(rows: int, bias: bool, strided: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(rows, 80, generator=generator)
    a = wide[:, :40] if strided else wide[:, :40].contiguous()
    w = torch.randn(90, 40, generator=generator)
    b = torch.randn(90, generator=generator) if bias else None
    expected = F.linear(a.double(), w.double(), None if b is None else b.double())
    torch.testing.assert_close(matmul(a, w.t(), b).double(), expected, atol=1e-4, rtol=1e-5)
    found = matmul(a, w.t(), b, gelu=True).double()
    wanted = F.gelu(expected, approximate="tanh")
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
