"""What the Mamba and Caduceus families share as transformers models.

Initial weights, optimizer groups, tied tensors, and the parts of forward passes that are alike.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from megabase.errors import CheckpointError
from megabase.layers.linear import can_read
from megabase.layers.mamba import MambaMixer
from megabase.layers.norms import RMSNorm
from megabase.layers.rcps import RCPSEmbedding, RCPSHead
from megabase.models.checkpoints.shared_tensors import SharedTensors
from megabase.models.state_space_settings import MixerSettings, StateSpaceConfig

__all__ = [
    "StateSpacePreTrainedModel",
    "real_tokens",
]


class StateSpacePreTrainedModel(  # pyright: ignore[reportIncompatibleVariableOverride]
    SharedTensors, PreTrainedModel
):
    """Initialisation, optimizer groups and tied tensors of both families."""

    config: StateSpaceConfig
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the published initial values.

        Embeddings and classifiers N(0, range^2); other linear maps and convolutions as torch does,
        with biases of linear maps 0, and ``out_proj`` divided by the root of the number of blocks;
        ``A = -(1, 2, ..., N)``, ``D = 1``; initial step sizes log-uniform from ``dt_min`` to
        ``dt_max``.
        """
        if isinstance(module, RCPSEmbedding | RCPSHead):
            # Their weights are those of a module inside. The library builds models without memory
            # first, so computed tables are filled here.
            init.copy_(module.complement_map, module.table())
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.Conv1d):
            if module is getattr(self, "score", None):
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                if isinstance(module, nn.Conv1d):
                    bound = 1 / math.sqrt(module.kernel_size[0])
                    init.uniform_(module.bias, -bound, bound)
                else:
                    init.zeros_(module.bias)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, MambaMixer):
            _init_mixer(module, self.config.mixer, self.config.residual_scale)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model folder; as in transformers, but strict about tied tensors.

        Raises
        ------
        CheckpointError
            When both copies of a tied tensor are in the file with different values.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, info = cast("tuple[StateSpacePreTrainedModel, dict[str, Any]]", loaded)
        check_ties(model, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def parameter_groups(
        self, lr: float, weight_decay: float, decay_rms_norm: bool = True
    ) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer.

        Parameters
        ----------
        lr
            Learning rate of all of them.
        weight_decay
            Weight decay of ordinary parameters. Biases, embeddings (and a head tied to them),
            LayerNorms, ``A_log`` and ``D`` do not decay.
        decay_rms_norm
            Whether the weights of RMSNorms decay, as in the public training code, whose list of
            exceptions does not know that norm.

        Returns
        -------
        list of dict
            Each with ``name``, ``params``, ``lr`` and ``weight_decay``; empty groups are left out.
        """
        spared: set[int] = set()
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.LayerNorm) or (
                isinstance(module, RMSNorm) and not decay_rms_norm
            ):
                spared.update(id(parameter) for parameter in module.parameters(recurse=False))
        decayed: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            last = name.rsplit(".", 1)[-1]
            keeps = id(parameter) in spared or last in ("A_log", "D", "bias")
            (others if keeps else decayed).append(parameter)
        groups = [
            {"name": "decayed", "params": decayed, "lr": lr, "weight_decay": weight_decay},
            {"name": "not_decayed", "params": others, "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def mixer_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Give the mask the mixers need, or None when nothing is to be kept out."""
        if attention_mask is None or not self.config.mask_padding:
            return None
        mask = attention_mask.bool()
        return None if can_read(mask) and bool(mask.all()) else mask


def _init_mixer(mixer: MambaMixer, settings: MixerSettings, residual_scale: float) -> None:
    # Drawn for a copy too, so that the numbers after it do not depend on what is tied or loaded.
    drawn = torch.empty_like(mixer.out_proj.weight, device=mixer.D.device)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    init.copy_(mixer.out_proj.weight, drawn * residual_scale)
    bound = settings.dt_scale * mixer.dt_rank**-0.5
    if settings.dt_init == "constant":
        init.constant_(mixer.dt_proj.weight, bound)
    else:
        init.uniform_(mixer.dt_proj.weight, -bound, bound)
    low, high = math.log(settings.dt_min), math.log(settings.dt_max)
    steps = torch.exp(torch.rand_like(mixer.dt_proj.bias) * (high - low) + low)
    steps = steps.clamp(min=settings.dt_init_floor)
    # The inverse of softplus, so that the first step sizes are `steps`.
    init.copy_(mixer.dt_proj.bias, steps + torch.log(-torch.expm1(-steps)))
    rates = torch.arange(1, mixer.d_state + 1, dtype=mixer.A_log.dtype, device=mixer.A_log.device)
    init.copy_(mixer.A_log, torch.log(rates).expand_as(mixer.A_log))
    init.ones_(mixer.D)


def check_ties(model: StateSpacePreTrainedModel, source: object) -> None:
    """Demand that tied tensors of a loaded model were one in its file.

    Parameters
    ----------
    model
        The model, loaded.
    source
        The file or folder, for the message.

    Raises
    ------
    CheckpointError
        Naming both copies.
    """
    ties = model.get_expanded_tied_weights_keys()
    parted = [
        f"{copy} and {first}"
        for copy, first in ties.items()
        if model.get_parameter(copy) is not model.get_parameter(first)
    ]
    if parted:
        raise CheckpointError(
            f"{source}: the configuration ties tensors that have different values in the file "
            f"({'; '.join(parted)}); load it with tie_word_embeddings=False (the head) or "
            "bidirectional_weight_tie=False (the two directions)"
        )


def real_tokens(
    input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None
) -> Tensor | None:
    """Give the mask of real tokens for pooling: the one given, or else all but padding."""
    if attention_mask is not None or input_ids is None or pad_token_id is None:
        return attention_mask
    return input_ids != pad_token_id
