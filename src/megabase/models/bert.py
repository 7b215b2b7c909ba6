"""What DNABERT and BigBird share: the classes of transformers, with checks, losses and groups."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.utils.generic import can_return_tuple

from megabase.models.base import check_length, grouped_parameters, refuse_rest
from megabase.models.heads import sequence_loss, token_loss


class BertLike(nn.Module):
    """What DNABERT and BigBird add to the classes of transformers: checks and optimizer groups."""

    config: Any
    library_class: ClassVar[type[nn.Module]]
    """Class of transformers, whose forward pass takes any argument and loses the unknown ones."""

    def _describe_limit(self) -> tuple[str, str]:
        """Name the model, and the remedy for a longer input, for the error message."""
        raise NotImplementedError

    def _ready(self, tokens: int) -> AbstractContextManager[None]:
        """Get ready for inputs of a length, and give what the forward pass runs in."""
        return nullcontext()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Run the class of transformers, which takes the other arguments; the loss is ours.

        Ids, mask and types are (batch, tokens); InputError for more tokens than
        ``config.max_position_embeddings``, ConfigError for an argument that cannot be honored.
        Labels of a classifier are class numbers (batch,), or numbers (batch, labels), see
        ``config.problem_type``; of a masked language model ids (batch, tokens), where -100 takes no
        part.
        """
        items = None
        if "labels" in inspect.signature(self.library_class.forward).parameters:
            items = kwargs.pop("num_items_in_batch", None)
        else:
            refuse_rest(self, {"labels": labels})
        output = self._run(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is None:
            return output
        if output.logits.dim() == 3:
            loss = token_loss(output.logits, labels, items)
        else:
            loss = sequence_loss(output.logits, labels, self.config, items)
        return type(output)(**{**output, "loss": loss})

    def _run(
        self, ids: Tensor | None, mask: Tensor | None, types: Tensor | None, **kwargs: Any
    ) -> Any:
        """Give the output without a loss."""
        given = ids if ids is not None else kwargs.get("inputs_embeds")
        tokens = 0 if given is None else given.shape[1]  # transformers refuses the lack of both
        check_length(tokens, self.config.max_position_embeddings, *self._describe_limit())
        taken = set(inspect.signature(self.library_class.forward).parameters)
        taken |= {"output_attentions", "output_hidden_states", "return_dict"}
        refuse_rest(self, kwargs, taken)
        kwargs = {name: value for name, value in kwargs.items() if name in taken}
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        parent: Any = super()
        with self._ready(tokens):
            return parent.forward(**given, **kwargs, return_dict=True)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give parameters for the optimizer; biases and layer norms do not decay, as published."""
        return grouped_parameters(self, lr, weight_decay)
