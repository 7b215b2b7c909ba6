"""Token ids of the public tokenizers: every recorded call, exactly."""

from __future__ import annotations

from typing import Any

from harness import Case, covers

from megabase.models.tokenizers.character import DNATokenizer

# How each recorded implementation is named in our options. Before transformers 4.34 special tokens
# written in the text were read as letters; the character tokenizers were recorded with 4.26.
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "standalone": {"special_tokens": "standalone", "case_sensitive": True, "iupac": "unk",
                   "split_special_tokens": True},
    "repo": {"special_tokens": "hyenadna", "case_sensitive": True, "iupac": "unk",
             "split_special_tokens": True},
    "hyenadna-hf": {"case_sensitive": True, "iupac": "unk", "model_input_names": ["input_ids"]},
    "caduceus": {"iupac": "unk", "model_input_names": ["input_ids"]},
}  # fmt: skip
ALL_OUTPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def build(implementation: str, **options: Any) -> DNATokenizer:
    return DNATokenizer(**{**IMPLEMENTATIONS[implementation], **options})


def check_calls(cases: list[dict[str, Any]], **options: Any) -> None:
    for row in cases:
        tokenizer = build(
            row["implementation"],
            padding_side=row["padding_side"],
            model_max_length=row["model_max_length"],
            **options,
        )
        want_types = row["result"].get("token_type_ids")
        if want_types and len(want_types) == len(row["result"]["input_ids"]) + 1:
            # Published defect: one token type more than there are tokens (a CLS that is not added).
            assert row["implementation"] == "repo"
            row["result"]["token_type_ids"] = want_types[1:]
        got = dict(tokenizer(row["text"], verbose=False, **row["call"]))
        assert got == row["result"], row
        batched = isinstance(row["text"], list)
        if batched and len({len(ids) for ids in row["result"]["input_ids"]}) > 1:
            continue  # ragged: no array
        for kind in ("np", "pt"):
            array = tokenizer(row["text"], return_tensors=kind, verbose=False, **row["call"])
            for key, want in row["result"].items():
                assert array[key].tolist() == (want if batched else [want]), (kind, key, row)


def texts_of_pair(ids: list[int]) -> list[str]:
    """Read the two texts of a recorded pair, each of which ends with SEP."""
    letters = "".join("|" if index == 1 else "ACGTN"[index - 7] for index in ids if index)
    return letters.removesuffix("|").split("|")


@covers("char_tokenizer")
def char_tokenizer(case: Case) -> None:
    record = case.output_json
    for name, info in record["info"].items():
        tokenizer = build(name, characters=case.config["characters"], model_max_length=20)
        assert tokenizer.get_vocab() == info["vocab"]
        assert (tokenizer.vocab_size, len(tokenizer)) == (info["vocab_size"], info["len"])
        for token in ("pad", "eos", "bos", "unk", "mask", "cls", "sep"):
            assert getattr(tokenizer, f"{token}_token_id") == info[token], (name, token)
        assert sorted(tokenizer.all_special_ids) == info["all_special_ids"]
        every = list(range(info["len"]))
        assert tokenizer.decode(every) == info["decode_all"]
        assert tokenizer.decode(every, skip_special_tokens=True) == info["decode_skip_special"]
        # Published: decoding an id that the model can emit raises. Ours gives a named token.
        assert "raises" in info["decode_id_12"]
        assert tokenizer.decode(12) == "[RESERVED_12]"
        letters = [chr(code) for code in info["config"]["char_ords"]]
        assert letters == case.config["characters"]
        first, second = texts_of_pair(info["pair"])
        assert tokenizer(first, second)["input_ids"] == info["pair"]
        letters = "A" * info["special_tokens_mask"].count(0)
        got = tokenizer(letters, return_special_tokens_mask=True)
        assert got["special_tokens_mask"] == info["special_tokens_mask"]
    check_calls(record["cases"], model_input_names=ALL_OUTPUTS)


@covers("char_tokenizer_hf")
def char_tokenizer_hf(case: Case) -> None:
    record = case.output_json
    check_calls(record["cases"])
    want = {int(key): value for key, value in record["complement_map"].items()}
    tokenizer = build("caduceus")
    assert tokenizer.complement_map == want
    for length in record["len"].values():
        assert len(tokenizer) == length
    for name, text in record["decode"].items():
        decoder = build(name.removesuffix(" skip"))
        assert (
            decoder.decode(range(len(decoder)), skip_special_tokens=name.endswith("skip")) == text
        )
    # The rest of this record documents defects of the -hf port's model (order 3 fails, a short
    # filter other than 3 is not causal, no scaled initialization); none of it is about tokens.
