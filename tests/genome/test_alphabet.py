"""Codes, letters, complements and token ids agree with each other and with a slow definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabase.errors import GenomeError
from megabase.genome.alphabet import (
    AMBIGUITY_LETTERS,
    BASE_BITS,
    PAD,
    SOFT_MASK,
    TOKEN_ID_OF_CODE,
    decode,
    encode,
    reverse_complement,
)

LETTERS = "ACGTN"
dna = st.text(alphabet=LETTERS + LETTERS.lower(), max_size=200)
COMPLEMENT = str.maketrans("ACGTNacgtn.", "TGCANtgcan.")


def test_codes_of_the_letters() -> None:
    assert encode("ACGTN").tolist() == [0, 1, 2, 3, 4]
    assert encode("acgtn").tolist() == [8, 9, 10, 11, 12]
    assert encode(b"ACgt").dtype == np.uint8
    assert encode("").shape == (0,)


@pytest.mark.parametrize("letter", AMBIGUITY_LETTERS)
def test_iupac_letters_become_n_and_keep_their_case(letter: str) -> None:
    assert encode(letter + letter.lower()).tolist() == [4, 12]


@pytest.mark.parametrize("letter", [*".-*>? 5EX\n\xe9", "\u2190", "\0"])
def test_other_characters_are_refused_with_their_position(letter: str) -> None:
    with pytest.raises(GenomeError, match=r"at position 1,002 \(0-based\)") as caught:
        encode("A" * 1002 + letter + "AA")
    assert repr(letter) in str(caught.value)


@given(dna)
def test_decode_inverts_encode(text: str) -> None:
    assert decode(encode(text), soft_mask=True) == text
    assert decode(encode(text)) == text.upper()


def test_padding_is_shown_and_a_byte_that_is_no_code_is_refused() -> None:
    assert decode(np.array([0, PAD, PAD | SOFT_MASK], dtype=np.uint8)) == "A.."
    with pytest.raises(GenomeError, match="byte 6 at position 1"):
        decode(np.array([0, 6], dtype=np.uint8))
    with pytest.raises(GenomeError, match="shape"):
        decode(np.zeros((2, 2), dtype=np.uint8))


@given(dna)
def test_reverse_complement_is_that_of_the_letters(text: str) -> None:
    found = reverse_complement(encode(text))
    assert decode(found, soft_mask=True) == text.translate(COMPLEMENT)[::-1]
    assert np.array_equal(reverse_complement(found), encode(text))


def test_reverse_complement_keeps_padding_and_works_on_batches() -> None:
    codes = np.array([[0, 1, PAD], [12, 3, 10]], dtype=np.uint8)
    before = codes.copy()
    expected = np.array([[PAD, 2, 3], [9, 0, 12]], dtype=np.uint8)
    found = reverse_complement(codes)
    assert np.array_equal(found, expected)
    assert np.array_equal(codes, before)
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_token_ids_are_the_published_ones() -> None:
    assert TOKEN_ID_OF_CODE[encode("ACGTNacgtn")].tolist() == [7, 8, 9, 10, 11] * 2
    assert TOKEN_ID_OF_CODE[[PAD, PAD | SOFT_MASK]].tolist() == [4, 4]
    assert TOKEN_ID_OF_CODE.shape == (256,)
    assert set(TOKEN_ID_OF_CODE[[6, 7, 200]].tolist()) == {6}


def test_a_long_text_is_encoded_at_once() -> None:
    text = "ACGTacgtNR" * 100_000
    codes = encode(text)
    assert codes.nbytes == len(text) == 1_000_000
    assert np.array_equal(codes[:10] & BASE_BITS, [0, 1, 2, 3, 0, 1, 2, 3, 4, 4])
