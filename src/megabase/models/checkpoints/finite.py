"""Values that are not finite: weights are checked once, outputs where they become results."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megabase.errors import NotFiniteError

__all__ = ["require_finite", "require_finite_weights"]


def require_finite_weights(model: nn.Module, name: str) -> None:
    """Refuse a model with a parameter or buffer that is not finite.

    Parameters
    ----------
    model
        Any module. Tensors without data (on the meta device) are passed over.
    name
        Its name, for the message.

    Raises
    ------
    NotFiniteError
        Naming the first such tensor.
    """
    for where, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        finite = torch.isfinite(tensor.detach())
        if bool(finite.all()):
            continue
        place = (~finite).nonzero()
        raise NotFiniteError(
            f"{name}: {len(place):,} of {tensor.numel():,} values of the tensor {where} are not "
            f"finite (NaN or infinite), the first at {place[0].tolist()}; the file is damaged or "
            "the training diverged: use another checkpoint"
        )


def require_finite(
    values: Tensor | np.ndarray[Any, Any],
    model: str,
    what: str,
    record: Callable[[int], str],
    known: Tensor | np.ndarray[Any, Any] | None = None,
) -> None:
    """Refuse outputs of a model that are not finite.

    Parameters
    ----------
    values
        Outputs, one row for each record.
    model
        Name of the model, for the message.
    what
        What the values are, for the message.
    record
        Gives the name of a record by its row.
    known
        Which values there are, of the shape of `values`; all when None. Others may be NaN.

    Raises
    ------
    NotFiniteError
        Naming the first record with such a value.
    """
    wrong: Any = ~(torch.isfinite(values) if isinstance(values, Tensor) else np.isfinite(values))
    if known is not None:
        wrong = wrong & known
    if not bool(wrong.any()):
        return
    row = wrong.reshape(len(wrong), -1).any(-1).tolist().index(True)
    raise NotFiniteError(
        f"{model} gave {what} that are not finite (NaN or infinite) for {record(row)}: a value "
        "inside the model overflows, although its weights are finite; use another checkpoint"
    )
