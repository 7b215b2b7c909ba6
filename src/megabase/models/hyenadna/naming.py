"""Names of HyenaDNA tensors: the published variants and ours.

Ours are those of the ``LongSafari/hyenadna-*-hf`` files: ``hyena.backbone.layers.0.mixer...``,
``lm_head.weight``, ``score.weight``. The training repository (HazyResearch/hyena-dna) and its
standalone loader drop ``hyena.``; its Lightning checkpoints begin with ``model.`` and, when blocks
were recomputed in training, have ``.mixer.layer.`` and ``.mlp.layer.``. Every file may repeat the
one sine frequency of a filter under several numbers, or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from megabase.errors import CheckpointError

__all__ = ["Named", "recognises", "to_ours", "to_published"]

_WRAPPERS = re.compile(r"^(?:_orig_mod\.|_forward_module\.|module\.|model\.)+")
_RECOMPUTED = re.compile(r"\.(mixer|mlp)\.layer\.")
_HEAD = re.compile(r"^(?:head|decoder(?:\.\d+)?)\.output_transform\.(weight|bias)$")
_SINE = re.compile(r"^(.*\.implicit_filter)\.\d+\.freq$")
_FILTER_BIAS = re.compile(r"\.mixer\.(?:layer\.)?filter_fn\.bias$")


class Named(NamedTuple):
    """Tensors under our names."""

    tensors: dict[str, Tensor]
    """One tensor for each name; a filter's frequency once, as ``implicit_filter.1.freq``."""
    dropped: tuple[str, ...]
    """Names in the file that are no part of the model (counters of torchmetrics)."""


def recognises(names: Iterable[str]) -> bool:
    """Whether tensor names, published or ours, are those of a HyenaDNA model."""
    return any(_FILTER_BIAS.search(name) for name in names)


def _ours(name: str) -> str:
    name = _RECOMPUTED.sub(r".\1.", _WRAPPERS.sub("", name))
    if name.startswith("backbone."):
        return f"hyena.{name}"
    return _HEAD.sub(r"score.\1", name)


def to_ours(tensors: Mapping[str, Tensor]) -> Named:
    """Rename published tensors.

    Parameters
    ----------
    tensors
        By the names of any published file, or by ours.

    Returns
    -------
    Named
        Under our names; what is not known keeps its name, for the report.

    Raises
    ------
    CheckpointError
        When two names of the file stand for one tensor and their values differ.
    """
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    dropped = []
    for name, tensor in tensors.items():
        if "torchmetrics" in name:
            dropped.append(name)
            continue
        new = _SINE.sub(r"\1.1.freq", _ours(name))
        if new in found and not torch.equal(found[new], tensor):
            raise CheckpointError(
                f"{origin[new]} and {name} are one tensor of the model ({new}), "
                "but their values differ"
            )
        found.setdefault(new, tensor)
        origin.setdefault(new, name)
    return Named(found, tuple(dropped))


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of ours to the names of the training repository.

    Parameters
    ----------
    state
        State dict of a HyenaDNA model.

    Returns
    -------
    dict[str, Tensor]
        ``backbone...``, ``lm_head.weight`` and ``decoder.0.output_transform...``; a Lightning
        checkpoint of the training repository has ``model.`` before each.
    """
    renamed = {}
    for name, tensor in state.items():
        new = name.removeprefix("hyena.")
        renamed[re.sub(r"^score\.", "decoder.0.output_transform.", new)] = tensor
    return renamed
