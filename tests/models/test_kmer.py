"""k-mer tokenizers: ids, limits, bad input, and codes against text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.errors import MegabaseError
from megabase.genome.alphabet import PAD, encode
from megabase.models.auto import load_tokenizer
from megabase.models.hyenadna import HyenaDNAConfig
from megabase.models.tokenizers.bpe import BPETokenizer, train_bpe
from megabase.models.tokenizers.kmer import (
    DNABERTTokenizer,
    KmerTokenizer,
    _all_kmers,
    _kmer_count,
    _split_kmers,
)


def _codes(*texts: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([encode(text) for text in texts]))


def _dna(length: int, letters: str = "ACGT", seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


@pytest.mark.parametrize("k", [3, 4, 5, 6])
def test_dnabert_ids_follow_the_order_a_t_c_g(k: int) -> None:
    tokenizer = DNABERTTokenizer(k=k)
    assert len(tokenizer) == 4**k + 5
    assert tokenizer.convert_tokens_to_ids(["A" * k, "A" * (k - 1) + "T", "G" * k]) == [
        5,
        6,
        4**k + 4,
    ]
    assert _all_kmers(k, "ATCG")[:2] == ["A" * k, "A" * (k - 1) + "T"]


@pytest.mark.filterwarnings("ignore:the tokenizer:megabase.errors.AmbiguousLettersWarning")
@pytest.mark.parametrize("text", [_dna(40), _dna(41, "ACGTN"), _dna(40).lower(), "ACGTRYACGTAC"])
@pytest.mark.parametrize(
    "tokenizer", [DNABERTTokenizer(k=3), DNABERTTokenizer(k=6, drop_last=True), KmerTokenizer(),
                  KmerTokenizer(4), KmerTokenizer(3, stride=1)],
    ids=["dnabert3", "dnabert6-drop", "kmer6", "kmer4", "kmer3-overlapping"],
)  # fmt: skip
def test_codes_and_text_give_the_same_ids(
    tokenizer: DNABERTTokenizer | KmerTokenizer, text: str
) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.ids_from_codes(_codes(text)).tolist() == [ids]
    assert tokenizer.token_count(len(text), add_special_tokens=False) == len(ids)
    assert tokenizer.token_count(len(text)) == len(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("tokenizer", [DNABERTTokenizer(k=4), KmerTokenizer(),
                                       KmerTokenizer(5, stride=1)])  # fmt: skip
def test_decoding_gives_the_sequence_back(tokenizer: DNABERTTokenizer | KmerTokenizer) -> None:
    text = _dna(53)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_padding_codes_become_padding_tokens() -> None:
    codes = _codes("ACGTACGTACGT")
    codes[:, 6:] = PAD
    assert KmerTokenizer(3).ids_from_codes(codes)[0, 2:].tolist() == [4, 4]
    dnabert = DNABERTTokenizer(k=3).ids_from_codes(codes)[0].tolist()
    assert dnabert[4:6] == [1, 1]
    assert dnabert[6:] == [0] * 4


def test_side_by_side_kmers_keep_every_base() -> None:
    tokenizer = KmerTokenizer()
    text = _dna(6 * 7 + 5)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    assert len(ids) == 7 + 5 + 1
    assert tokenizer.decode(ids[:-1]) == text
    # The characters left over have the ids of the character tokenizer.
    assert set(ids[7:-1].tolist()) <= {7, 8, 9, 10}


@pytest.mark.parametrize("make", [lambda: DNABERTTokenizer(k=4), lambda: KmerTokenizer(3, 1)])
def test_a_tokenizer_survives_saving(make: object, tmp_path: Path) -> None:
    tokenizer = make()  # type: ignore[operator]
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text = _dna(30)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.k == tokenizer.k


@pytest.mark.parametrize("tokenizer", [DNABERTTokenizer(), KmerTokenizer()])
def test_another_alphabet_is_refused_with_its_position(
    tokenizer: DNABERTTokenizer | KmerTokenizer,
) -> None:
    with pytest.raises(MegabaseError, match=r"'E' at position 6 .*expected A, C, G, T"):
        tokenizer("ACGTACEFILPQ")


def test_misuse_is_refused_with_advice() -> None:
    tokenizer = DNABERTTokenizer(k=6)
    with pytest.raises(MegabaseError, match="give 6 bases or more"):
        tokenizer("ACG")
    with pytest.raises(MegabaseError, match="6-mers separated by spaces"):
        tokenizer("ACG CGT")
    with pytest.raises(MegabaseError, match=r"595 6-mers \(600 bases\).*515 bases"):
        tokenizer("A" * 600)
    assert len(tokenizer("A" * 600, truncation=True, max_length=512)["input_ids"]) == 512
    with pytest.raises(MegabaseError, match="without spaces"):
        KmerTokenizer()("ACGTAC GTACGT")
    with pytest.raises(MegabaseError, match="stride is 1"):
        KmerTokenizer(6, stride=2)
    with pytest.raises(MegabaseError, match="hold no 6-mer"):
        tokenizer.ids_from_codes(_codes("ACG"))


def test_long_inputs_in_pieces() -> None:
    published = DNABERTTokenizer(k=3, long_inputs="published-pieces")
    ours = DNABERTTokenizer(k=3, long_inputs="pieces")
    text = "A" * (510 + 2)  # 510 3-mers fill one piece
    assert len(ours(text)["input_ids"]) == 512
    assert len(published(text)["input_ids"]) == 514  # and an empty piece
    assert ours("A" * 513)["input_ids"].count(2) == 2
    assert ours.token_count(513) == len(ours("A" * 513)["input_ids"])


def test_a_published_folder_is_recognized_whatever_its_settings_say(tmp_path: Path) -> None:
    DNABERTTokenizer(k=3).save_vocabulary(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 69}))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "max_len": 512}')
    assert load_tokenizer(tmp_path)("ACGT")["input_ids"] == [2, 16, 50, 3]


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_all_kmers(3)]))
    with pytest.raises(MegabaseError, match=r"line 7: expected 'AAT'.*found 'AAC'"):
        DNABERTTokenizer.read_k(file)
    file.write_text("a\nb\n")
    with pytest.raises(MegabaseError, match="holds 2 tokens"):
        DNABERTTokenizer.read_k(file)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 30522}))
    with pytest.raises(MegabaseError, match="model_type is 'bert'"):
        load_tokenizer(tmp_path)
    DNABERTTokenizer(k=3).save_vocabulary(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 4101}))
    with pytest.raises(MegabaseError, match=r"4101 tokens, its vocab\.txt has 69"):
        load_tokenizer(tmp_path)


def test_splitting_counts() -> None:
    for length in range(12):
        for k, stride in ((3, 1), (3, 3), (6, 1), (6, 6)):
            assert len(_split_kmers("A" * length, k, stride)) == _kmer_count(length, k, stride)


def test_the_six_mer_hyenadna_reads_what_its_tokenizer_gives() -> None:
    tokenizer = KmerTokenizer.for_bases(100)
    config = HyenaDNAConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=tokenizer.model_max_length, n_layer=1
    )
    ids = tokenizer(_dna(100))["input_ids"]
    assert len(ids) <= config.max_length == tokenizer.model_max_length
    assert max(ids) < config.vocab_rows


@pytest.mark.filterwarnings("ignore:the tokenizer:megabase.errors.AmbiguousLettersWarning")
def test_byte_pairs_are_learnt_saved_and_checked(tmp_path: Path) -> None:
    pieces = [_dna(500, seed=number) for number in range(43)]
    tokenizer = train_bpe(pieces, vocab_size=300)
    assert len(tokenizer) == 300
    assert [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id] == [0, 1, 4]
    text = _dna(1_000, seed=2)
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (2, 3)
    assert len(ids) < 400
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer(text.lower())["input_ids"] == ids
    assert tokenizer("ACGTR")["input_ids"] == tokenizer("ACGTN")["input_ids"]
    with pytest.raises(MegabaseError, match="'E' at position 4"):
        tokenizer(["ACGT", "ACGTE"])
    tokenizer.save_pretrained(tmp_path)
    assert BPETokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
    with pytest.raises(MegabaseError, match="at least 10"):
        train_bpe(pieces, vocab_size=5)
    with pytest.raises(MegabaseError, match="no sequences"):
        train_bpe([], vocab_size=50)
