"""The one table of bases: letters, codes, complements and token ids; and k-mers of them.

A base is stored as one unsigned byte, its *code*: A 0, C 1, G 2, T 3, N 4, and 5 for padding (a
position that is not a base). Bit 8 (:data:`SOFT_MASK`) is set for a base that was written in lower
case, which is how repeats are marked; ``code & BASE_BITS`` is the base without it. IUPAC letters
other than A, C, G, T (R, Y, S, W, K, M, B, D, H, V, and U) become N. K-mers are integers, two bits
a base, the first base highest.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megabase.errors import AmbiguousLettersWarning, GenomeError, warn

A, C, G, T, N, PAD = range(6)
BASES = "ACGT"
"""Letters by code; N is not among them, for it can neither be predicted nor substituted."""
BASE_BITS = 7
"""Mask that takes the base out of a code."""
SOFT_MASK = 8
"""Bit of a code that says: written in lower case."""
AMBIGUITY_LETTERS = "RYSWKMBDHVU"
"""The IUPAC letters that become N."""
BASE_TOKEN_IDS = (7, 8, 9, 10)
"""Published token ids of A, C, G, T (HyenaDNA's character vocabulary)."""

_LETTERS = "ACGTN."  # of the codes 0..5; a padding position is shown as a dot
_INVALID = 0xFF  # above every code and mark
_Codes = NDArray[np.uint8]
_Kmers = NDArray[np.uint64]


def _letter_table() -> bytes:
    table = bytearray([_INVALID]) * 256
    for code, letters in enumerate((*BASES, "N" + AMBIGUITY_LETTERS)):
        for letter in letters:
            table[ord(letter)], table[ord(letter.lower())] = code, code | SOFT_MASK
    return bytes(table)


def _code_table(soft_mask: bool) -> bytes:
    table = bytearray(256)  # 0 marks a byte that is not a code
    for code, letter in enumerate(_LETTERS):
        table[code] = ord(letter)
        table[code | SOFT_MASK] = ord(letter.lower() if soft_mask else letter)
    return bytes(table)


def _token_table() -> NDArray[np.uint8]:
    table = np.full(256, 6, dtype=np.uint8)  # [UNK] for a byte that is not a code
    for code, token in enumerate((*BASE_TOKEN_IDS, 11, 4)):
        table[code] = table[code | SOFT_MASK] = token
    table.flags.writeable = False
    return table


CODE_OF_LETTER = _letter_table()
"""256 bytes for :meth:`bytes.translate`: letter to code, 0xFF where there is none."""
_LETTER_OF_CODE = {flag: _code_table(flag) for flag in (False, True)}
"""The inverse, by whether soft-masked bases are written in lower case."""
TOKEN_ID_OF_CODE: NDArray[np.uint8] = _token_table()
"""uint8[256]: token id of a code, with or without the soft-mask bit (A 7, C 8, G 9, T 10, N 11;
padding 4; 6, unknown, for a byte that is not a code)."""
# What to delete to count the rest.
_NOT_AMBIGUOUS = bytes(byte for byte in range(256) if chr(byte).upper() not in AMBIGUITY_LETTERS)


def count_ambiguous(sequence: str | bytes) -> Counter[str]:
    """Count the IUPAC letters that :func:`encode` reads as N, by letter, in either case."""
    raw = sequence.encode("ascii", "replace") if isinstance(sequence, str) else bytes(sequence)
    found = raw.translate(None, _NOT_AMBIGUOUS).upper().decode()
    return Counter({letter: found.count(letter) for letter in AMBIGUITY_LETTERS if letter in found})


def describe_ambiguous(counts: Mapping[str, int]) -> str:
    """List letters that were read as N, and the remedy for RNA: ``R 1, U 4; U is RNA: ...``."""
    text = ", ".join(f"{letter} {count:,}" for letter, count in counts.items())
    return text + ("; U is RNA: write T for U to keep those bases" if "U" in counts else "")


def warn_ambiguous(counts: Mapping[str, int], where: object) -> None:
    """Warn (AmbiguousLettersWarning) of IUPAC letters of a file that were read as N, if any."""
    total = sum(counts.values())
    if total:
        warn(
            f"{where}: {total:,} letter{'s' * (total > 1)} read as N: {describe_ambiguous(counts)}",
            AmbiguousLettersWarning,
        )


def encode(sequence: str | bytes, ambiguous: Counter[str] | None = None) -> NDArray[np.uint8]:
    """Turn letters into codes (length,), with the soft-mask bit for lower case.

    IUPAC letters other than A, C, G, T become N, and are counted in `ambiguous` for
    :func:`warn_ambiguous`. Any other character (gaps and stops too) is a GenomeError that gives its
    0-based position.

    >>> encode("ACgtR").tolist()
    [0, 1, 10, 11, 4]
    """
    # A character outside ASCII becomes "?", which is refused below at its own position.
    raw = sequence.encode("ascii", "replace") if isinstance(sequence, str) else bytes(sequence)
    codes = bytearray(raw.translate(CODE_OF_LETTER))
    wrong = codes.find(_INVALID)
    if wrong >= 0:
        found = sequence[wrong : wrong + 1]
        found = found if isinstance(found, str) else found.decode("latin-1")
        raise GenomeError(
            f"character {found!r} at position {wrong:,} (0-based) is not a DNA letter; "
            f"expected A, C, G, T, N or an IUPAC letter ({AMBIGUITY_LETTERS}), in either case"
        )
    if ambiguous is not None:
        ambiguous.update(count_ambiguous(raw))
    return np.frombuffer(codes, dtype=np.uint8)


def decode(codes: NDArray[np.uint8], soft_mask: bool = False) -> str:
    """Turn codes (length,) into letters; a padding position is written as ``.``.

    Soft-masked bases are written in lower case with `soft_mask`, else all are upper case. A byte
    that is not a code is a GenomeError that gives its 0-based position.

    >>> decode(encode("ACgtR"), soft_mask=True)
    'ACgtN'
    """
    array = np.ascontiguousarray(codes, dtype=np.uint8)
    if array.ndim != 1:
        raise GenomeError(f"expected codes of shape (length,), found shape {array.shape}")
    letters = array.tobytes().translate(_LETTER_OF_CODE[soft_mask])
    wrong = letters.find(0)
    if wrong >= 0:
        raise GenomeError(
            f"byte {int(array[wrong])} at position {wrong:,} (0-based) is not a base code; "
            f"expected 0-5, plus {SOFT_MASK} for soft-masked bases"
        )
    return letters.decode("ascii")


def reverse_complement(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reverse complement of codes (..., length) along the last axis, as a new array.

    A and T, C and G are exchanged, N and padding kept; the soft-mask bit moves with its base.

    >>> decode(reverse_complement(encode("AACgtN")), soft_mask=True)
    'NacGTT'
    """
    # A C G T are 0..3, so complement is XOR 3; N and PAD have bit 4 set and are unchanged.
    # Arithmetic on bytes is several times faster than a 256-entry table, and complementing before
    # turning round keeps it on contiguous memory.
    flip = ((codes & np.uint8(4)) == 0).view(np.uint8)
    flip *= np.uint8(3)
    flip ^= codes
    return flip[..., ::-1].copy()


def pack_kmers(
    codes: _Codes, k: int, *, canonical: bool = False
) -> tuple[_Kmers, NDArray[np.bool_]]:
    """Pack every k-mer (k 1 to 32) of base codes (n,) into an uint64 (n - k + 1,), or empty.

    With `canonical` each is the smaller of it and its reverse complement. The second array, bool of
    the same shape, says which are all A, C, G, T; others are packed as if they had an A in place of
    each other letter.
    """
    if len(codes) < k:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=bool)
    base = codes & BASE_BITS
    bad = np.concatenate([[0], np.cumsum(base > T)])
    two = np.where(base > T, 0, base).astype(np.uint64)
    packed = _pack(two, k)
    if canonical:
        packed = np.minimum(packed, _pack(np.uint64(3) - two[::-1], k)[::-1])
    return packed, bad[k:] == bad[:-k]


def dinucleotide_shuffle(codes: _Codes, rng: np.random.Generator) -> _Codes:
    """Shuffle base codes (n,) so that every dinucleotide is as often there, and both ends stay.

    All such orders are equally likely: a base is left for the last time by an edge of a random tree
    that leads to the last base, and before that by its other edges in random order (Altschul and
    Erickson 1985, doi:10.1093/oxfordjournals.molbev.a040370). Lower case is not kept.
    """
    bases = (codes & BASE_BITS).tolist()
    if len(bases) < 4:
        return np.array(bases, dtype=np.uint8)
    after: dict[int, list[int]] = {}
    for one, other in pairwise(bases):
        after.setdefault(one, []).append(other)
    while True:
        exits = {one: int(rng.integers(len(after[one]))) for one in after if one != bases[-1]}
        ends = set(after)
        for _ in exits:  # as many steps lead any base to the last one, or round in a circle
            ends = {after[one][exits[one]] if one in exits else one for one in ends}
        if ends <= {bases[-1]}:
            break
    walks: dict[int, Iterator[int]] = {}
    for one, others in after.items():
        final = [others.pop(exits[one])] if one in exits else []
        walks[one] = iter([*rng.permutation(others).tolist(), *final])
    found = bases[:1]
    for _ in bases[1:]:
        found.append(next(walks[found[-1]]))
    return np.array(found, dtype=np.uint8)


def _pack(two: _Kmers, k: int) -> _Kmers:
    """Pack k-mers from k-mers of half their length: log2(k) passes over the array."""
    if k == 1:
        return two
    half = k // 2
    low, n = _pack(two, half), len(two) - k + 1
    first, second = low[:n], low[half : half + n]
    if k % 2:
        extra = two[half * 2 : half * 2 + n]
        return (first << np.uint64(2 * (half + 1))) | (second << np.uint64(2)) | extra
    return (first << np.uint64(2 * half)) | second
