"""On an accelerator's path every family is one graph for a compiler, with and without a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.ops import backend


def _step(model: Any, call: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = call(**inputs).logits
    (logits * logits.detach().cos()).sum().backward()
    return logits.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("padding", ["none", pytest.param("left", marks=pytest.mark.slow)])
def test_every_family_is_one_graph(model: Any, ids: Tensor, padding: str) -> None:
    model = model.double()
    inputs: dict[str, Any] = {"input_ids": ids}
    if padding == "left":
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][0, :7] = 0
    with backend.override("reference"):
        want = _step(model, model, **inputs)
    torch._dynamo.reset()
    with backend.override("plain"):
        got = _step(model, torch.compile(model, fullgraph=True, backend="eager"), **inputs)
    torch.testing.assert_close(got, want)
