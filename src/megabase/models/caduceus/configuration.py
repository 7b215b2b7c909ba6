"""Settings of a Caduceus model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS
from megabase.models.base import Problems
from megabase.models.state_space import StateSpaceConfig


def complement_list(given: Any, rows: int) -> list[Any]:
    """List the complement of every token id, by id; None gives that of the published vocabulary.

    A dictionary has ids as keys, integers or (after JSON) strings, in any order, whose gaps become
    None, for the check of the configuration. Ids past the given ones, up to `rows`, are their own
    complements.
    """
    if given is None:
        given = COMPLEMENT_TOKEN_IDS
    if isinstance(given, Mapping):
        by_id = {int(key): value for key, value in given.items()}
        given = [by_id.get(i) for i in range(max(by_id, default=-1) + 1)]
    return [*given, *range(len(given), rows)]


class CaduceusConfig(StateSpaceConfig):
    """Settings of a Caduceus model (arXiv 2403.03234).

    Names are those of the published ``kuleshov-group/caduceus-*`` folders, so that such a folder
    loads as it is. Defaults are Caduceus-Ph of 470,702 parameters. The other settings are those of
    :class:`~megabase.models.mamba.MambaConfig`.

    Attributes
    ----------
    d_model : int
        Width of one strand.
    fused_add_norm : bool
        In an RC-equivariant model, whether every block exchanges the two strands, as the kernel of
        all published ones does; it also decides the names of the norms' weights. Without effect in
        other models.
    bidirectional : bool
        Whether each mixer also reads the sequence backwards.
    bidirectional_strategy : str
        Whether the two directions are added (``add``) or multiplied (``ew_multiply``).
    bidirectional_weight_tie : bool
        Whether the two directions share their input and output projections.
    rcps : bool
        Whether the model is equivariant under reverse complement (Caduceus-PS).
    complement_map : list of int or dict or None
        Complement of every token id; a dictionary, as published, becomes a list.
    conjoin_train, conjoin_eval : bool
        Whether a classifier that is not equivariant expects both strands, ids of shape (batch,
        length, 2), and averages its scores of them: always, or in evaluation only. An
        equivariant one always joins its strands, and needs one of them.
    head_bias : bool
        Whether a classifier's head has a bias; the published ones have none.
    """

    model_type = "caduceus"

    d_model: int = 118
    bidirectional: bool = True
    bidirectional_strategy: str | None = "add"
    bidirectional_weight_tie: bool = True
    rcps: bool = False
    complement_map: list[Any] | dict[Any, Any] | None = None
    conjoin_train: bool = False
    conjoin_eval: bool = False
    head_bias: bool = False
    mask_token_id: int | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        # Written by the published training code, never read by it.
        kwargs.pop("gradient_checkpointing_stride", None)
        if self.bidirectional_strategy is None:
            self.bidirectional_strategy = "add"
        if self.vocab_size > 0 and self.pad_vocab_size_multiple > 0:
            self.complement_map = complement_list(self.complement_map, self.vocab_rows)
        super().__post_init__(**kwargs)

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.one_of("bidirectional_strategy", ("add", "ew_multiply"))
        given = self.complement_map
        table = list(given) if isinstance(given, Sequence) else []
        ids = range(len(table))
        paired = all(
            isinstance(other, int) and other in ids and table[other] == own
            for own, other in enumerate(table)
        )
        problems.demand(
            paired,
            f"complement_map must give every token id a partner that gives it back, found {given}",
        )
        problems.demand(
            len(table) == self.vocab_rows,
            f"complement_map must have {self.vocab_rows} entries, one for each row of the "
            f"vocabulary, found {len(table)}",
        )

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden vector: the width, or twice the width with both strands."""
        return 2 * self.d_model if self.rcps else self.d_model
