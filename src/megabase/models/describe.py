"""What a model folder holds, read without its weights, and the memory of a training step.

HyenaDNA of order 2 works piece by piece and keeps, of each layer, two running sums and the filter,
but for what the last mixer has given back already; beside them are gradients and the filter's
gradient. The kernels keep eight arrays more of each layer where they are small and there is room
(:func:`~megabase.ops.kernels.keeps`). In segments of S checkpointed layers N / S + S - 1 inputs are
alive instead of N. The workspace is two arrays of a group of channels, and ten of a call of the
transforms. Other models keep ``_KEPT`` values per position, layer and unit of width, and the
padded inputs, spectra and outputs of one long convolution.

Peaks against estimates are measured by ``python -m benchmarks memory``.
"""

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
# As measured: values kept for the backward pass per position, layer and unit of width; arrays of
# the padded size alive at once in the long convolution; channels of a group in the mixer at the
# longest inputs (two panels of the kernels); bytes of a process before it trains.
_KEPT, _FFT_COPIES, _FUSED_GROUP, _PROCESS = 22, 6, 64, 700_000_000


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
    tokenizer = load_tokenizer(path)
    habits = ("padding_side", "special_tokens", "case_sensitive", "iupac", "k")
    # The fields that the classes of the family declare, not those of transformers.
    own = [one for one in type(config).__mro__ if not one.__module__.startswith("transformers.")]
    fields = dict.fromkeys(name for one in reversed(own) for name in inspect.get_annotations(one))
    held = config.to_dict()  # leaves out what a file leaves out
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
        "tokenizer": {"class": type(tokenizer).__name__}
        | {name: getattr(tokenizer, name) for name in habits if hasattr(tokenizer, name)},
        "settings": {name: getattr(config, name) for name in fields if name in held},
        "source": read_json(record, ModelError) if record.is_file() else None,
    }


def _number(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if isinstance(value, int | float)), None)


def step_memory(
    shape: Mapping[str, Any], batch: int, length: int, *, half: bool = False, segment: int = 0,
    shards: int = 1, on_cpu: bool = True,
) -> dict[str, int]:  # fmt: skip
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
        "parameters": share, "gradients": share, "optimizer": 2 * share,
        "activations": activations, "workspace": workspace, "process": _PROCESS if on_cpu else 0,
    }  # fmt: skip
    return {**parts, "total": sum(parts.values())}
