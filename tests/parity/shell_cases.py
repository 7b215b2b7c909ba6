"""Helpers of the HyenaDNA and GPT handlers: settings, weights, losses and gradients of a case."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from harness import Case
from torch import Tensor, nn

Results = dict[str, Tensor]


def hyena_settings(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Translate the plain names of a case into settings of HyenaDNAConfig."""
    settings = {
        "vocab_size": config["vocab_size"],
        "pad_vocab_size_multiple": config["pad_vocab_size_multiple"],
        "d_model": config["d_model"],
        "n_layer": config["n_layer"],
        "d_inner": config["d_inner"],
        "max_seq_len": config["l_max"],
        "hyena_order": config["hyena_order"],
        "emb_dim": config["emb_dim"],
        "filter_order": config["filter_order"],
        "num_inner_mlps": config["num_inner_mlps"],
        "activation_freq": config["sine_freq"],
        "short_filter_order": config.get("short_filter_order", 3),
        "modulate": config.get("modulate", True),
        "window_shift": config["modulation_shift"],
        "fast_decay_pct": config.get("fast_decay_pct", 0.3),
        "slow_decay_pct": config.get("slow_decay_pct", 1.5),
        "decay_target": config.get("decay_target", 0.01),
        "filter_layout": layout,
        "bidirectional": "published" if config.get("bidirectional") else "none",
        "use_bias": config.get("use_filter_bias", True),
        "normalized_filter": config.get("normalized_filter", False),
        "output_activation": config.get("output_activation", "id"),
        "residual_in_fp32": config.get("residual_in_fp32", True),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "tie_word_embeddings": config.get("tie_embeddings", True),
        "lr_pos_emb": 1e-5 if config.get("pos_table_is_parameter") else 0.0,
        # The published models never mask padding.
        "mask_padding": False,
    }
    return settings


def ours(name: str, prefix: str) -> str:
    """Give our name of a reference parameter."""
    if name.startswith("backbone."):
        return prefix + name
    return name.replace("head.output_transform.", "score.")


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray], prefix: str) -> None:
    """Load a case's weights, each under exactly one of our names."""
    state = {ours(name, prefix): torch.from_numpy(value) for name, value in weights.items()}
    model.load_state_dict(state, strict=True)


def ids(case: Case, name: str = "input_ids") -> Tensor:
    """Read integer inputs."""
    return torch.from_numpy(case.inputs[name]).long()


def run(case: Case, model: nn.Module, forward: Callable[[nn.Module], Results], prefix: str) -> None:
    """Compare float32 results, gradients of the loss, and float64 results.

    ``MEGABASE_GOLDEN_COMPILE`` names a backend of torch.compile to run the model through.
    """
    model.eval()
    if compiler := os.environ.get("MEGABASE_GOLDEN_COMPILE"):
        torch._dynamo.reset()
        model.compile(backend=compiler)
    results = forward(model)
    got: dict[str, Any] = {key: value for key, value in results.items() if key in case.expected}
    if any(key.startswith("grad") for key in case.expected):
        model.zero_grad()
        results["loss"].backward()
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for key in case.expected:
            kind, _, name = key.partition("/")
            if kind not in ("grad", "grad_norm"):
                continue
            parameter = parameters[ours(name, prefix)]
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            got[key] = gradient if kind == "grad" else gradient.norm()
    case.check(got)
    double = forward(model.double())
    case.check(
        {f"f64/{key}": value for key, value in double.items() if f"f64/{key}" in case.expected}
    )
