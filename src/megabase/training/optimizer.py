"""AdamW, and Muon for the matrices of the layers."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megabase.errors import ConfigError
from megabase.settings import OptimConfig

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz step, as published with Muon: largest slope at zero for which
five steps bring every singular value into 0.7 to 1.2."""
_STEPS = 5  # Newton-Schulz steps, as published
_RMS = 0.2
"""Root mean square of an update before the learning rate; AdamW's is about this, so that both use
one rate (Moonlight, arXiv 2502.16982, section 2.2)."""
_LAYER_WEIGHT = re.compile(r"\.layers?\.\d+\..*\.weight$")
"""Weights of linear maps in the numbered layers; transformers writes ``layer`` in its BERTs."""
_SMALLEST = 32
"""Least rows and columns of a matrix that Muon takes: what is smaller (the short filters, the
positional features of a filter) has no spectrum to speak of."""


def build_optimizer(
    module: nn.Module, config: OptimConfig, fused: bool = True
) -> torch.optim.AdamW:
    """Build the optimizer, `fused` where possible, over the groups that the module wants.

    With ``config.name == "muon"`` Muon takes the matrices of the layers, but for those that a
    model exempts from weight decay, and the rest by AdamW; a ConfigError when there are none.
    """
    describe: Any = getattr(module, "parameter_groups", None)
    groups: list[dict[str, Any]] = [{"params": [p for p in module.parameters() if p.requires_grad]}]
    if callable(describe):
        keys = ("params", "lr", "weight_decay")
        found: Any = describe(config.lr, config.weight_decay)
        groups = [{key: group[key] for key in keys if key in group} for group in found]
    kind, names = torch.optim.AdamW, {id(p): name for name, p in module.named_parameters()}
    if config.name == "muon":
        kind, split = Muon, []
        for group in groups:
            decays = not config.weight_decay or group.get("weight_decay", 1.0) > 0
            taken = [p for p in group["params"] if decays and _is_layer_matrix(names[id(p)], p)]
            rest = [p for p in group["params"] if not any(p is one for one in taken)]
            split += [{**group, "params": rest}, {**group, "params": taken, "muon": True}]
        groups = split
        if not any(group["params"] for group in groups if group.get("muon")):
            raise ConfigError(
                "optim.name muon takes the matrices inside the layers of a model, and none is "
                "trained here; take adamw"
            )
    groups = [group for group in groups if group["params"]]
    for group in groups:  # what the schedule scales
        group["base_lr"] = group.get("lr", config.lr)
    kinds = {p.device.type for group in groups for p in group["params"]}
    return kind(
        groups, lr=config.lr, betas=config.betas, eps=config.eps,
        weight_decay=config.weight_decay, fused=fused and kinds <= {"cpu", "cuda", "mps"},
    )  # fmt: skip


def _is_layer_matrix(name: str, parameter: Tensor) -> bool:
    """Say whether this is a matrix of the layers: no embedding, head, adapter, filter's network."""
    small = ".implicit_filter." in name or ".lora_" in name  # an adapter is a product of two
    inside = _LAYER_WEIGHT.search(name) is not None and not small
    return inside and parameter.ndim == 2 and min(parameter.shape) >= _SMALLEST


class Muon(torch.optim.AdamW):
    """AdamW whose groups with ``muon=True`` take orthogonalized momentum instead.

    The update of a matrix is its Nesterov momentum (decay ``betas[1]``) with all singular values
    brought near one (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), scaled to the
    size of AdamW's. A matrix of stacked square ones (the projections of Hyena, the first of an MLP)
    is taken as those.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state as it is: AdamW's own brings states of old versions of torch up to date."""
        super(torch.optim.Adam, self).__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step over all groups."""
        groups = self.param_groups
        mine = [group for group in groups if group.get("muon")]
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in mine:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._take(parameter, parameter.grad, group)
        return loss

    def _take(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum, decay = state["momentum_buffer"], group["betas"][1]
        momentum.lerp_(gradient, 1 - decay)
        update = _orthogonal(_squares(gradient.lerp(momentum, decay))).reshape(parameter.shape)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def _squares(matrix: Tensor) -> Tensor:
    """Give (stacked, rows, columns): squares where one side is a multiple of the other."""
    rows, columns = matrix.shape
    if rows % columns == 0:
        return matrix.reshape(rows // columns, columns, columns)
    return matrix[None]


def _orthogonal(matrices: Tensor) -> Tensor:
    """Bring the singular values of (stacked, rows, columns) near one, then scale to `_RMS`.

    In bfloat16, as published: the steps converge to a range, not to a number.
    """
    a, b, c = _QUINTIC
    rows, columns = matrices.shape[1:]
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).bfloat16()
    wide = rows <= columns
    x = x if wide else x.mT
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype) * (_RMS * max(rows, columns) ** 0.5)
