from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS, LOGIT_COLUMNS, VOCABULARY
from megabase.errors import AmbiguousLettersWarning, ModelError
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForTokenClassification
from megabase.models.tokenizers.character import CaduceusTokenizer, DNATokenizer, HyenaDNATokenizer
from megabase.models.tokenizers.kmer import KmerTokenizer
from megabase.models.tokenizers.table import LetterTokenizer


def _ids(tokenizer: DNATokenizer, text: str | bytes) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_letters_have_the_published_ids() -> None:
    tokenizer = DNATokenizer()
    assert tokenizer("ACGTN", add_special_tokens=False)["input_ids"] == [7, 8, 9, 10, 11]
    assert tokenizer.get_vocab() == VOCABULARY
    assert (tokenizer.vocab_size, len(tokenizer)) == (12, 12)


@pytest.mark.parametrize(
    ("habit", "one", "two"),
    [
        ("hyenadna", [7, 8, 1], [7, 8, 1, 9, 1]),
        ("standalone", [0, 7, 8, 1], [0, 7, 8, 1, 9, 1]),
        ("none", [7, 8], [7, 8, 9]),
    ],
)
def test_special_token_habits(habit: str, one: list[int], two: list[int]) -> None:
    tokenizer = DNATokenizer(special_tokens=habit)
    assert tokenizer("AC")["input_ids"] == one
    assert tokenizer("AC", "G")["input_ids"] == two
    assert tokenizer.num_special_tokens_to_add() == len(one) - 2
    assert tokenizer("AC", add_special_tokens=False)["input_ids"] == [7, 8]


def test_lower_case_is_a_base_unless_asked_otherwise() -> None:
    assert _ids(DNATokenizer(), "acgtn") == [7, 8, 9, 10, 11]
    published = DNATokenizer(case_sensitive=True)
    assert _ids(published, "acgtnACGTN") == [6] * 5 + [7, 8, 9, 10, 11]


@pytest.mark.filterwarnings("ignore:the tokenizer:megabase.errors.AmbiguousLettersWarning")
def test_iupac_letters_become_n_or_unknown() -> None:
    letters = "RYSWKMBDHVUryswkmbdhvu"
    assert set(_ids(DNATokenizer(), letters)) == {11}
    assert set(_ids(DNATokenizer(iupac="unk"), letters)) == {6}
    assert _ids(DNATokenizer(), ".-*X \n") == [6] * 6


@pytest.mark.parametrize(
    "call",
    [
        lambda tokenizer: tokenizer(["acgu", "[MASK]UU"]),
        lambda tokenizer: tokenizer("ACGUUU"),
        lambda tokenizer: tokenizer("AC", "GUUU"),
    ],
)
def test_letters_read_as_n_are_counted_once_for_each_call(call: Any) -> None:
    said = "^the tokenizer: 3 letters read as N: U 3; U is RNA: write T for U to keep those bases$"
    with pytest.warns(AmbiguousLettersWarning, match=said) as caught:
        call(DNATokenizer())
    assert len(caught) == 1
    call(DNATokenizer(iupac="unk"))  # asked for: unknown, not N


def test_one_token_for_each_character_whatever_it_is() -> None:
    assert _ids(DNATokenizer(), "AéΩ🧬C") == [7, 6, 6, 6, 8]
    assert _ids(DNATokenizer(), b"ACGT") == [7, 8, 9, 10]


@pytest.mark.filterwarnings("ignore:the tokenizer:megabase.errors.AmbiguousLettersWarning")
def test_special_tokens_in_the_text() -> None:
    tokenizer = DNATokenizer(special_tokens="none")
    assert tokenizer("AC[MASK]G")["input_ids"] == [7, 8, 3, 9]
    assert tokenizer("A[SEP", split_special_tokens=True)["input_ids"][0] == 7
    split = tokenizer("[MASK]", split_special_tokens=True)["input_ids"]
    assert len(split) == 6
    assert 3 not in split
    tokenizer.add_tokens(["[EXTRA]"])
    assert tokenizer("A[EXTRA]")["input_ids"] == [7, 12]
    assert tokenizer.decode([7, 12]) == "A[EXTRA]"


def test_decoding_never_raises_for_ids_of_the_model() -> None:
    tokenizer = DNATokenizer()
    text = tokenizer.decode(range(LOGIT_COLUMNS))
    assert text.startswith("[CLS][SEP][BOS][MASK][PAD][RESERVED][UNK]ACGTN[RESERVED_12]")
    assert text.endswith("[RESERVED_15]")
    assert tokenizer.decode(range(LOGIT_COLUMNS), skip_special_tokens=True) == "[RESERVED]ACGTN"
    assert tokenizer.decode(torch.tensor([[7, 8], [9, 15]])) == ["AC", "G[RESERVED_15]"]
    assert tokenizer.batch_decode([[7], [8, 9]]) == ["A", "CG"]
    assert tokenizer.decode(10) == "T"
    assert tokenizer.decode([]) == ""
    assert tokenizer.convert_ids_to_tokens([7, 14]) == ["A", "[RESERVED_14]"]
    with pytest.raises(ModelError, match="16"):
        tokenizer.decode([7, 16])


def test_padding_sides_and_masks() -> None:
    right = DNATokenizer()(["ACG", "A"], padding=True, return_tensors="pt")
    assert right["input_ids"].tolist() == [[7, 8, 9, 1], [7, 1, 4, 4]]
    assert right["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    left = DNATokenizer(padding_side="left")(["ACG", "A"], padding="max_length", max_length=5)
    assert left["input_ids"] == [[4, 7, 8, 9, 1], [4, 4, 4, 7, 1]]
    wide = DNATokenizer()(["ACG"], padding=True, pad_to_multiple_of=8, return_tensors="np")
    assert wide["input_ids"].shape == (1, 8)
    assert DNATokenizer()("AC", padding_side="left", padding="max_length", max_length=4)[
        "input_ids"
    ] == [4, 7, 8, 1]


def test_truncation() -> None:
    tokenizer = DNATokenizer(model_max_length=4)
    assert tokenizer("ACGTACGT", truncation=True)["input_ids"] == [7, 8, 9, 1]
    pair = tokenizer("ACGT", "GG", truncation=True, max_length=6)["input_ids"]
    assert pair == [7, 8, 1, 9, 9, 1]
    left = DNATokenizer(truncation_side="left", special_tokens="none")
    assert left("ACGT", truncation=True, max_length=2)["input_ids"] == [9, 10]


def test_ragged_texts_say_what_to_do() -> None:
    with pytest.raises(ModelError, match="padding=True"):
        DNATokenizer()(["A", "AC"], return_tensors="pt")


def test_other_inputs_take_the_general_way() -> None:
    tokenizer = DNATokenizer()
    assert tokenizer([7, 8])["input_ids"] == [7, 8, 1]
    assert tokenizer(["AC", "GT"], is_split_into_words=True)["input_ids"] == [7, 8, 9, 10, 1]
    assert tokenizer.tokenize("acR[MASK]") == ["A", "C", "N", "[MASK]"]
    long = tokenizer("ACGT", truncation=True, max_length=3, return_overflowing_tokens=True)
    assert long["overflowing_tokens"] == [9, 10]


def test_complement_map_is_an_involution() -> None:
    tokenizer = DNATokenizer()
    assert tokenizer.complement_map == {i: COMPLEMENT_TOKEN_IDS[i] for i in range(12)}
    assert all(COMPLEMENT_TOKEN_IDS[COMPLEMENT_TOKEN_IDS[i]] == i for i in range(16))
    assert "".join(tokenizer.decode(COMPLEMENT_TOKEN_IDS[7 + i]) for i in range(5)) == "TGCAN"


def test_saving_keeps_every_option(tmp_path: Path) -> None:
    tokenizer = DNATokenizer(
        special_tokens="standalone", case_sensitive=True, iupac="unk", padding_side="left",
        model_max_length=99,
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    again = DNATokenizer.from_pretrained(tmp_path)
    assert pickle.loads(pickle.dumps(tokenizer))("AC")["input_ids"] == [0, 7, 8, 1]
    for name in ("special_tokens", "case_sensitive", "iupac", "padding_side", "model_max_length"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    assert again("aRC[MASK]")["input_ids"] == tokenizer("aRC[MASK]")["input_ids"]


def test_a_side_set_later_is_saved(tmp_path: Path) -> None:
    tokenizer = DNATokenizer()
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    assert DNATokenizer.from_pretrained(tmp_path).padding_side == "left"


def test_empty_batches_and_collators() -> None:
    tokenizer = DNATokenizer()
    assert tokenizer([])["input_ids"] == []
    assert tokenizer([], return_tensors="pt")["input_ids"].numel() == 0
    rows = [tokenizer("ACG"), tokenizer("A")]
    padded = tokenizer.pad(rows, return_tensors="pt")
    assert padded["input_ids"].tolist() == [[7, 8, 9, 1], [7, 1, 4, 4]]


def published_folder(path: Path, name: str, module: str, **extra: object) -> Path:
    """Make the tokenizer part of a published folder, whose code must never run."""
    special = {"0": "[CLS]", "1": "[SEP]", "2": "[BOS]", "3": "[MASK]", "4": "[PAD]", "6": "[UNK]"}
    entry = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
             "special": True}  # fmt: skip
    config = {
        "added_tokens_decoder": {key: {"content": text, **entry} for key, text in special.items()},
        "auto_map": {"AutoTokenizer": [f"{module}.{name}", None]},
        "clean_up_tokenization_spaces": True,
        "model_max_length": 1024,
        "tokenizer_class": name,
        **{f"{key}_token": f"[{key.upper()}]" for key in ("bos", "cls", "mask", "pad", "sep")},
        "eos_token": "[SEP]",
        "unk_token": "[UNK]",
        **extra,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / f"{module}.py").write_text(
        f"from pathlib import Path\nPath({str(path / 'ran')!r}).touch()\n"
    )
    return path


@pytest.mark.parametrize(
    ("name", "module", "ours", "model_type"),
    [
        ("HyenaDNATokenizer", "tokenization_hyena", HyenaDNATokenizer, "hyenadna"),
        ("CaduceusTokenizer", "tokenization_caduceus", CaduceusTokenizer, "caduceus"),
    ],
)
def test_published_folders_load_without_their_code(
    tmp_path: Path, name: str, module: str, ours: type, model_type: str
) -> None:
    from megabase.models.families import family_of

    extra = {"characters": list("ACGTN"), "complement_map": {"7": 10}, "add_special_tokens": False}
    published_folder(tmp_path, name, module, **extra)
    direct = ours.from_pretrained(tmp_path)
    assert (direct.padding_side, direct.model_max_length) == ("left", 1024)
    assert direct("ACgt")["input_ids"] == [7, 8, 9, 10, 1]
    if family_of(model_type) is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        auto = AutoTokenizer.from_pretrained(tmp_path)
        assert type(auto) is ours
        assert auto("ACgt")["input_ids"] == [7, 8, 9, 10, 1]
        auto.save_pretrained(tmp_path / "again")
        assert type(AutoTokenizer.from_pretrained(tmp_path / "again")) in (ours, DNATokenizer)
    assert not (tmp_path / "ran").exists()


def test_another_character_order_is_refused() -> None:
    with pytest.raises(ModelError, match="other token ids"):
        DNATokenizer(characters=list("ACTGN"))
    with pytest.raises(ModelError, match="special_tokens"):
        DNATokenizer(special_tokens="bert")
    with pytest.raises(ModelError, match="iupac"):
        DNATokenizer(iupac="x")


def test_a_megabase_is_encoded_without_a_list() -> None:
    sequence = np.random.default_rng(0).choice(list(b"ACGTacgtN"), 1_000_000).astype(np.uint8)
    text = sequence.tobytes().decode()
    tokenizer = DNATokenizer(model_max_length=2_000_000)
    start = time.process_time()
    encoded = tokenizer(text, return_tensors="pt")["input_ids"]
    array = tokenizer(text, return_tensors="np", add_special_tokens=False)["input_ids"][0]
    # A list of a million one-letter strings alone takes longer than this on any machine at hand.
    assert time.process_time() - start < 0.5
    assert encoded.shape == (1, 1_000_001)
    assert encoded[0, :-1].numpy().tobytes() == array.tobytes()
    assert tokenizer.decode(array) == text.upper()


@pytest.mark.parametrize("kind", [DNATokenizer, HyenaDNATokenizer])
def test_tokens_know_their_place(kind: type[DNATokenizer]) -> None:
    tokenizer = kind()
    found = tokenizer(["AC[MASK]?gt", "A"], padding=True, return_offsets_mapping=True)
    left = kind is HyenaDNATokenizer
    letters = [(0, 1), (1, 2), (2, 8), (8, 9), (9, 10), (10, 11)]
    assert found["offset_mapping"][0] == [*letters, (0, 0)]
    short = [(0, 1), (0, 0)]
    assert found["offset_mapping"][1] == [(0, 0)] * 5 * left + short + [(0, 0)] * 5 * (not left)
    assert found.sequence_ids(1) == [None] * 5 * left + [0, None] + [None] * 5 * (not left)
    cut = tokenizer("ACGTN", truncation=True, max_length=3, return_offsets_mapping=True)
    assert cut["offset_mapping"] == [(0, 1), (1, 2), (0, 0)]
    cut = kind(truncation_side="left")(
        "ACGTN", truncation=True, max_length=3, return_offsets_mapping=True, return_tensors="np"
    )
    assert cut["offset_mapping"].tolist() == [[[3, 4], [4, 5], [0, 0]]]
    assert cut.sequence_ids() == cut.word_ids() == [0, 0, None]


def test_words_are_read_side_by_side() -> None:
    tokenizer = DNATokenizer()
    words = ["ACG", "", "tt"]
    found = tokenizer(words, is_split_into_words=True)
    assert found["input_ids"] == tokenizer("ACGTT")["input_ids"] == [7, 8, 9, 10, 10, 1]
    with pytest.raises(ValueError, match="word_ids"):
        found.word_ids()
    with pytest.raises(ModelError, match="words and overflowing pieces have no offsets"):
        tokenizer(words, is_split_into_words=True, return_offsets_mapping=True)
    batch = tokenizer([["A"], ["C", "G"]], is_split_into_words=True, padding=True)
    assert batch["input_ids"] == [[7, 1, 4], [8, 9, 1]]
    pairs = tokenizer([(["A"], ["C", "G"])], is_split_into_words=True)
    assert pairs["input_ids"] == [[7, 1, 8, 9, 1]]
    pair = tokenizer(["A"], ["C", "G"], is_split_into_words=True)
    assert pair["input_ids"] == [7, 1, 8, 9, 1]


def test_offsets_are_given_or_refused() -> None:
    asked = {"return_offsets_mapping": True}
    with pytest.raises(NotImplementedError, match="KmerTokenizer gives no offsets"):
        KmerTokenizer(k=2)("ACGT", **asked)
    with pytest.raises(NotImplementedError, match="LetterTokenizer gives no offsets"):
        LetterTokenizer.from_sequences(["ACGT"], padding=False)("ACGT", **asked)
    with pytest.raises(ModelError, match="overflowing pieces have no offsets"):
        DNATokenizer()(
            "ACGT", return_overflowing_tokens=True, max_length=2, truncation=True, **asked
        )


def test_settings_that_are_names_of_methods_are_refused() -> None:
    for name in ("add_special_tokens", "get_vocab"):
        with pytest.raises(AttributeError, match=f"{name} conflicts with the method"):
            DNATokenizer(**{name: True})
    assert DNATokenizer(add_special_tokens=False)("A")["input_ids"] == [7, 1]  # as published


def test_places_in_the_pipeline_of_transformers() -> None:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=66, num_labels=2)
    model = HyenaDNAForTokenClassification(config).eval()
    tokenizer = DNATokenizer(model_max_length=66)
    run = pipeline("token-classification", model=model, tokenizer=tokenizer)
    rows = run("ACGTTN", ignore_labels=[])
    assert [(row["start"], row["end"], row["word"]) for row in rows] == [
        (i, i + 1, letter) for i, letter in enumerate("ACGTTN")
    ]
