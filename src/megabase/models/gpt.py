"""The Transformer baseline as transformers models.

State-dict names are those of HyenaDNA with the prefix ``gpt.``; within a block, ``mixer.Wqkv`` and
``mixer.out_proj`` take the place of the Hyena operator.
"""

from megabase.models.base import Problems
from megabase.models.decoder import DecoderConfig, DecoderModel, DecoderPreTrainedModel
from megabase.models.heads import CausalLM, SequenceClassifier, TokenClassifier


class GPTConfig(DecoderConfig):
    """Settings of the Transformer baseline of the HyenaDNA paper (arXiv 2306.15794, section 4.1).

    The decoder of HyenaDNA with causal attention and learned positions in place of the Hyena
    operator. Defaults are the published two-layer baseline of 529,920 parameters. The other
    settings are those of :class:`megabase.models.hyenadna.HyenaDNAConfig`.

    Attributes
    ----------
    num_heads, causal : int, bool
        Attention heads, which divide the width; whether a position sees only itself and earlier
        ones.
    max_position_embeddings : int
        Rows of the position table, which is the longest input in tokens. Positions count from the
        left end of the padded input.
    """

    model_type = "megabase_gpt"
    attribute_map = {**DecoderConfig.attribute_map, "num_attention_heads": "num_heads"}  # noqa: RUF012

    num_heads: int = 8
    causal: bool = True
    max_position_embeddings: int = 1024
    attention_dropout: float = 0.1

    def _check(self, problems: Problems) -> None:
        problems.whole("max_position_embeddings")
        super()._check(problems)
        self._check_heads(problems)

    @property
    def mixer_names(self) -> list[str]:
        """Attention in every block."""
        return ["attention"] * self.n_layer

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return self.max_position_embeddings

    @property
    def is_causal_model(self) -> bool:
        """Whether no position sees a later one."""
        return self.causal


class _GPT(DecoderPreTrainedModel):
    config_class = GPTConfig
    base_model_prefix = "gpt"


class GPTModel(_GPT, DecoderModel):
    """The Transformer baseline without a head: one vector per position."""


_GPT.base_class = GPTModel


class GPTForCausalLM(_GPT, CausalLM):
    """The Transformer baseline with a next-token head."""


class GPTForSequenceClassification(_GPT, SequenceClassifier):
    """The Transformer baseline with a pooled linear head."""


class GPTForTokenClassification(_GPT, TokenClassifier):
    """The Transformer baseline with a linear head at every position."""
