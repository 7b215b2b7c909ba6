"""The common tests of transformers, run on every tokenizer."""

from __future__ import annotations

from tempfile import mkdtemp
from typing import Any, ClassVar
from unittest import SkipTest, TestCase

import pytest

pytest.importorskip("parameterized", reason="the suite of transformers needs it")
pytest.importorskip(
    "transformers_tests", reason="the source archive of transformers cannot be fetched"
)

from transformers_tests.test_tokenization_common import TokenizerTesterMixin

from megabase.models.tokenizers.bpe import BPETokenizer, train_bpe
from megabase.models.tokenizers.character import CaduceusTokenizer, DNATokenizer, HyenaDNATokenizer
from megabase.models.tokenizers.kmer import DNABERTTokenizer, KmerTokenizer
from megabase.models.tokenizers.table import LetterTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NOT_APPLICABLE: dict[str, str] = {
    "test_pretokenized_inputs": "asks that words side by side give what a text with spaces gives; "
    "a space is no DNA letter",
}
"""Tests of the suite that ask for what tokenizers of DNA cannot have, and why."""


class _Suite(TokenizerTesterMixin):
    settings: ClassVar[dict[str, Any]] = {}
    not_applicable: ClassVar[dict[str, str]] = {}
    test_tokenizer_from_extractor = False
    text = "ACGTTGCANGATTACAGGCC"

    @classmethod
    def make(cls) -> Any:
        return cls.tokenizer_class(**cls.settings)

    @classmethod
    def setUpClass(cls) -> None:
        # The suite's own reads a text that the archive leaves out.
        cls.tokenizers_list, cls.tmpdirname = [], mkdtemp()
        cls.make().save_pretrained(cls.tmpdirname)

    def get_clean_sequence(self, tokenizer: Any, **_: Any) -> tuple[str, list[int]]:
        # The suite joins words by spaces.
        return self.text, tokenizer.encode(self.text, add_special_tokens=False)

    def setUp(self) -> None:
        reason = {**NOT_APPLICABLE, **self.not_applicable}.get(self._testMethodName)
        if reason is not None:
            raise SkipTest(reason)


class TestDNATokenizer(_Suite, TestCase):
    """Letters with the published ids."""

    tokenizer_class = DNATokenizer


class TestHyenaDNATokenizer(_Suite, TestCase):
    """The same, padded on the left."""

    tokenizer_class = HyenaDNATokenizer


class TestCaduceusTokenizer(_Suite, TestCase):
    """The same under another name."""

    tokenizer_class = CaduceusTokenizer


class TestKmerTokenizer(_Suite, TestCase):
    """k-mers side by side."""

    tokenizer_class = KmerTokenizer
    settings: ClassVar[dict[str, Any]] = {"k": 3, "strict": False}
    text = "ACGTTGCAGATTACAGGCC"


class TestDNABERTTokenizer(_Suite, TestCase):
    """Overlapping k-mers."""

    tokenizer_class = DNABERTTokenizer
    settings: ClassVar[dict[str, Any]] = {"k": 3, "strict": False}
    text = "ACGTTGCAGATTACAGGCC"
    not_applicable: ClassVar[dict[str, str]] = {
        "test_maximum_encoding_length_single_input": "a sequence that is too long is "
        "an error here, not a warning",
    }


class TestLetterTokenizer(_Suite, TestCase):
    """Letters with the ids of a training set."""

    tokenizer_class = LetterTokenizer

    @classmethod
    def make(cls) -> Any:
        return LetterTokenizer.from_sequences(["ACGTN"], padding=True)


class TestBPETokenizer(_Suite, TestCase):
    """Byte pairs."""

    tokenizer_class = BPETokenizer

    @classmethod
    def make(cls) -> Any:
        made = train_bpe(["ACGTTGCAACGT" * 50, "GATTACAGATTACA" * 20], 40)
        made.init_kwargs["strict"] = False  # the suite's texts are English
        return made
