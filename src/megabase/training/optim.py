"""AdamW over the parameter groups that the model asks for, and the norm of its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from megabase.settings import OptimConfig
from megabase.training.schedule import lr_at

__all__ = ["build_optimizer", "scale_gradients", "set_lr"]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Build AdamW for a module.

    Parameters
    ----------
    module
        Its method ``parameter_groups(lr, weight_decay)``, when it has one, says which parameters
        learn at which rate and decay; otherwise all form one group.
    config
        Rates, betas, epsilon.

    Returns
    -------
    torch.optim.AdamW
        The fused kernel where every parameter lies on a device that has one. Each group carries
        ``base_lr``, the highest rate that :func:`set_lr` scales from.
    """
    describe = getattr(module, "parameter_groups", None)
    if callable(describe):
        groups: list[dict[str, Any]] = [
            {key: group[key] for key in ("params", "lr", "weight_decay") if key in group}
            for group in describe(config.lr, config.weight_decay)  # pyright: ignore[reportGeneralTypeIssues]
        ]
    else:
        groups = [{"params": [p for p in module.parameters() if p.requires_grad]}]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["base_lr"] = group.get("lr", config.lr)
    kinds = {p.device.type for group in groups for p in group["params"]}
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=kinds <= {"cpu", "cuda", "mps"},
    )


def set_lr(optimizer: torch.optim.Optimizer, step: int, config: OptimConfig, total: int) -> float:
    """Give every group its learning rate for a step; return the rate of ``config.lr`` itself."""
    for group in optimizer.param_groups:
        group["lr"] = lr_at(step, config, total, base_lr=group["base_lr"])
    return lr_at(step, config, total)


def scale_gradients(module: nn.Module, factor: torch.Tensor) -> None:
    """Multiply every gradient in place by ``factor``, a tensor without dimensions."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
