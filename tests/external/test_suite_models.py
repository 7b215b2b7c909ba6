"""The common tests of transformers, run on every family with a language model."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import SkipTest, TestCase, mock

import pytest
import torch

pytest.importorskip("parameterized", reason="the suite of transformers needs it")
pytest.importorskip(
    "transformers_tests", reason="the source archive of transformers cannot be fetched"
)

from transformers.models.auto import modeling_auto
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from megabase.models.caduceus import (
    CaduceusConfig,
    CaduceusForMaskedLM,
    CaduceusForSequenceClassification,
    CaduceusForTokenClassification,
    CaduceusModel,
)
from megabase.models.gpt import (
    GPTConfig,
    GPTForCausalLM,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
)
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
    HyenaDNAModel,
)
from megabase.models.mamba import (
    MambaConfig,
    MambaForCausalLM,
    MambaForSequenceClassification,
    MambaForTokenClassification,
    MambaModel,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NOT_APPLICABLE: dict[str, dict[str, str]] = {}
"""By tester: tests of the suite that ask for what the family cannot have, and why."""


class _Tester:
    """A tiny model and a batch for it."""

    batch_size, seq_length, num_hidden_layers, num_attention_heads = 3, 8, 2, 4
    hidden_size = 32
    vocab_size = 64
    is_training = True

    def __init__(self, config_class: Any, settings: dict[str, Any], hidden_size: int) -> None:
        self.config_class, self.settings = config_class, settings
        self.hidden_size = hidden_size

    def get_config(self) -> Any:
        return self.config_class(vocab_size=self.vocab_size, d_model=32, n_layer=2, **self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        ids = torch.randint(7, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class _Suite(ModelTesterMixin):
    config_class: Any
    settings: ClassVar[dict[str, Any]] = {}
    hidden_size = 32
    base: Any
    language: Any
    sequence: Any
    token: Any
    masked = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        reason = NOT_APPLICABLE.get(type(self).__name__, {}).get(self._testMethodName)
        if reason:
            raise SkipTest(reason)
        self.model_tester = _Tester(self.config_class, self.settings, self.hidden_size)
        self.all_model_classes = (self.base, self.language, self.sequence, self.token)
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=True,
            common_properties=["hidden_size", "num_hidden_layers"], d_model=40,
        )  # fmt: skip
        language = "MASKED_LM" if self.masked else "CAUSAL_LM"
        kind = self.config_class.model_type
        for mapping, model in (
            ("MODEL", self.base),
            (f"MODEL_FOR_{language}", self.language),
            ("MODEL_FOR_SEQUENCE_CLASSIFICATION", self.sequence),
            ("MODEL_FOR_TOKEN_CLASSIFICATION", self.token),
        ):
            names = getattr(modeling_auto, f"{mapping}_MAPPING_NAMES")
            patch = mock.patch.dict(names, {kind: model.__name__})
            patch.start()
            self.addCleanup(patch.stop)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class HyenaDNATest(_Suite, GenerationTesterMixin, TestCase):
    config_class = HyenaDNAConfig
    settings: ClassVar[dict[str, Any]] = {"max_seq_len": 64, "attention_heads": 4}
    has_attentions = False
    base, language = HyenaDNAModel, HyenaDNAForCausalLM
    sequence, token = HyenaDNAForSequenceClassification, HyenaDNAForTokenClassification


class HyenaDNAWithAttentionTest(HyenaDNATest):
    settings: ClassVar[dict[str, Any]] = {**HyenaDNATest.settings, "attention_layers": [1]}


class GPTTest(_Suite, GenerationTesterMixin, TestCase):
    config_class = GPTConfig
    settings: ClassVar[dict[str, Any]] = {"num_heads": 4, "max_position_embeddings": 64}
    base, language = GPTModel, GPTForCausalLM
    sequence, token = GPTForSequenceClassification, GPTForTokenClassification


class MambaTest(_Suite, GenerationTesterMixin, TestCase):
    config_class = MambaConfig
    settings: ClassVar[dict[str, Any]] = {"ssm_cfg": {"d_state": 4}}
    has_attentions = False
    base, language = MambaModel, MambaForCausalLM
    sequence, token = MambaForSequenceClassification, MambaForTokenClassification


class CaduceusPHTest(_Suite, TestCase):
    config_class = CaduceusConfig
    settings: ClassVar[dict[str, Any]] = {"ssm_cfg": {"d_state": 4}}
    has_attentions = False
    masked = True
    base, language = CaduceusModel, CaduceusForMaskedLM
    sequence, token = CaduceusForSequenceClassification, CaduceusForTokenClassification


class CaduceusPSTest(CaduceusPHTest):
    settings: ClassVar[dict[str, Any]] = {"ssm_cfg": {"d_state": 4}, "rcps": True}
    # Hidden vectors hold both strands.
    hidden_size = 64
