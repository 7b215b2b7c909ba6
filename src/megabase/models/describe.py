"""What a model folder holds, read without its weights, and the memory of a training step.

The estimate of a step's memory, in bytes, for P parameters, width D, N layers, V logit columns and
micro-batches of B sequences of L positions:

=================  ==============================================================================
weights            4 P
gradients          4 P
optimizer          8 P (two running means)
activations        general: B L (N k D s + 12 V), s = 4 bytes (2 with bf16-mixed, for the share of
                   it that is kept in half precision), k the values kept per position, layer and
                   unit of width: ``_KEPT``; with activation checkpointing N k becomes N + k
FFT workspace      general: ``_FFT_COPIES`` x 4 B D F, F = 2 L: padded inputs, spectra and
                   outputs of one long convolution, forward or backward
process            ``_PROCESS`` for the interpreter and libraries (on a CPU)
=================  ==============================================================================

HyenaDNA of order 2 works piece by piece and keeps only the running sums and the filters. There
activations are ``4 D (B L (2 N + 2) + L (N + 1)) + 24 V B L`` (with activation checkpointing N
+ 5 and 2 in the place of 2 N + 2 and N + 1): two running sums and the filter of each layer, but
for what the last mixer has given back already; gradients around it; the filter's gradient. The
kernels keep eight arrays more of each layer where they are small and there is room
(:func:`~megabase.ops.kernels.keeps`): 8 N, 8 with activation checkpointing. In
segments of S checkpointed layers N / S + S - 1 inputs are alive instead of N. The workspace is two
arrays of a group of channels, ``8 B L min(D, max(64, 2^25 / B L))``, and ten of a call of the
transforms, ``40 max(2^20, min(16 L, max(4 L, 2^22)))``.

Peaks against estimates are measured by ``python -m benchmarks memory``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from megabase.errors import CheckpointError, ModelError
from megabase.models.auto import load_tokenizer, open_model
from megabase.ops.kernels import KEEP_BYTES
from megabase.untrusted import parsing, read_json, recognize

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
"""Names of files whose size is that of the weights: what models are published in."""

_KEPT = 22
"""Values kept for the backward pass per position, layer and unit of width, as measured."""

_FFT_COPIES = 6
"""Arrays of the padded size alive at once in the long convolution, as measured."""

_FUSED_GROUP = 64
"""Channels of a group in the mixer at the longest inputs: two panels of the kernels."""

_PROCESS = 700_000_000
"""Bytes of a process before it trains (interpreter, torch, transformers), as measured."""


def describe(spec: str | Path | None = None) -> dict[str, Any]:
    """Describe a model; `spec` as for :func:`~megabase.models.auto.resolve_model`.

    Gives its ``path``, ``class_name``, ``model_type`` and ``kind``; the numbers of trainable
    ``parameters`` (tied ones once) and stored ``constants``, and the ``file_bytes`` of the weights;
    the ``longest`` input in tokens, ``layers``, ``width`` and ``columns`` of the logits, each None
    where there is none; ``piecewise``, whether a training step keeps only the running sums and the
    filters; ``labels`` of a classifier; ``tokenizer``; ``settings`` of the family's own; and
    ``source``, where a converted model comes from, or None.
    """
    path, config, kind, model_class = open_model(spec)
    with parsing(path / "config.json", ModelError), torch.device("meta"):
        model = model_class(config)
    weights = [file for file in path.iterdir() if file.suffix in _WEIGHT_SUFFIXES]
    for file in weights:
        if known := recognize(file):
            raise CheckpointError(f"{file} {known}")
    head = kind in ("causal-lm", "masked-lm")
    embeddings = model.get_output_embeddings() if head else None
    classifier = kind.endswith("classification")
    names: dict[int, str] = (getattr(config, "id2label", None) or {}) if classifier else {}
    record = path / "conversion.json"
    return {
        "path": str(path),
        "class_name": model_class.__name__,
        "model_type": config.model_type,
        "kind": kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "constants": sum(buffer.numel() for buffer in model.buffers()),
        "file_bytes": sum(file.stat().st_size for file in weights),
        "longest": _number(config, "max_length"),
        "layers": _number(config, "num_hidden_layers", "n_layer"),
        "width": _number(config, "hidden_size", "d_model"),
        "columns": getattr(embeddings, "out_features", None),
        "piecewise": bool(getattr(config, "works_piecewise", False)),
        "labels": [names[index] for index in sorted(names)],
        "tokenizer": _tokenizer(path),
        "settings": _own_settings(config),
        "source": read_json(record, ModelError) if record.is_file() else None,
    }


def _number(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if isinstance(value, int | float)), None)


def _tokenizer(path: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(path)
    return {
        "class": type(tokenizer).__name__,
        "padding_side": tokenizer.padding_side,
        **{
            name: getattr(tokenizer, name)
            for name in ("special_tokens", "case_sensitive", "iupac", "k")
            if hasattr(tokenizer, name)
        },
    }


def _own_settings(config: Any) -> dict[str, Any]:
    """Give the fields that the classes of the family declare, not those of transformers."""
    own = [kind for kind in type(config).__mro__ if not kind.__module__.startswith("transformers.")]
    names = dict.fromkeys(name for kind in reversed(own) for name in inspect.get_annotations(kind))
    held = config.to_dict()  # leaves out what a file leaves out
    return {name: getattr(config, name) for name in names if name in held}


def step_memory(
    shape: Mapping[str, Any],
    batch: int,
    length: int,
    *,
    half: bool = False,
    segment: int = 0,
    shards: int = 1,
    on_cpu: bool = True,
) -> dict[str, int]:
    """Estimate the bytes that one process takes at its largest stage, by what they are for.

    Parameters
    ----------
    shape
        ``parameters``, ``layers``, ``width``, ``columns`` and ``piecewise`` as :func:`describe`
        gives them.
    batch, length
        Sequences per forward pass, and input positions of each.
    half
        Whether matrix products run in bfloat16.
    segment
        Checkpointed layers in a row that keep one input between them; 0 without checkpointing.
    shards
        Devices that share parameters, gradients and optimizer state (FSDP).
    on_cpu
        Whether the process itself lies in the same memory.

    Returns
    -------
    dict
        ``parameters``, ``gradients``, ``optimizer`` (running means of AdamW), ``activations`` (kept
        from forward to backward), ``workspace`` (of the operator at work), ``process`` and
        ``total``.
    """
    layers, width, columns = shape["layers"], shape["width"], shape["columns"] or 0
    positions = batch * length
    inputs = -(-layers // segment) + segment - 1 if segment else layers
    kept = inputs + _KEPT if segment else layers * _KEPT
    size = 3 if half else 4  # about half of the kept values stay float32
    share = 4 * shape["parameters"] // shards
    activations = positions * (kept * width * size + 12 * columns)
    workspace = _FFT_COPIES * 4 * positions * width * 2
    if shape["piecewise"]:
        sums, filters = (inputs + 5, 2) if segment else (2 * layers + 2, layers + 1)
        if 4 * positions * width <= KEEP_BYTES:
            sums += 8 * (1 if segment else layers)
        activations = 4 * width * (positions * sums + length * filters) + 24 * columns * positions
        group = min(width, max(_FUSED_GROUP, (1 << 25) // max(1, positions)))
        transforms = max(1 << 20, min(16 * length, max(4 * length, 1 << 22)))
        workspace = 8 * positions * group + 40 * min(transforms, positions * width)
    parts = {
        "parameters": share,
        "gradients": share,
        "optimizer": 2 * share,
        "activations": activations,
        "workspace": workspace,
        "process": _PROCESS if on_cpu else 0,
    }
    return {**parts, "total": sum(parts.values())}
