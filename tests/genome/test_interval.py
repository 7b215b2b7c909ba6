"""Intervals and variants: validation, the text people write, and arithmetic."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabase.errors import GenomeError
from megabase.genome.interval import Interval, Strand, Variant, one_based, zero_based

names = st.from_regex(r"[A-Za-z0-9_.|*:-]{1,20}", fullmatch=True)
intervals = st.builds(
    lambda name, start, length, strand: Interval(name, start, start + length, strand),
    names,
    st.integers(-(10**6), 10**10),
    st.integers(1, 10**9),
    st.sampled_from(Strand),
)


def test_text_is_one_based_and_closed() -> None:
    interval = Interval("chr1", 1000, 2000)
    assert str(interval) == "chr1:1,001-2,000"
    assert Interval.parse("chr1:1,001-2,000") == interval
    assert Interval.parse("chr1:1001-2000") == interval
    assert Interval.parse(" chr1:5 ") == Interval("chr1", 4, 5)
    assert Interval.parse("chr1:1-1").length == 1
    assert Interval.parse("chr1:1-10(-)").strand is Strand.REVERSE


@given(intervals)
def test_parse_inverts_str(interval: Interval) -> None:
    assert Interval.parse(str(interval)) == interval


@pytest.mark.parametrize(
    "text", ["", "chr1", "chr1:", "chr1:a-b", "chr1:1-2-3x", "chr1:1..5", ":1-5", "chr 1:1-5"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(GenomeError, match=r"expected CONTIG:START-END"):
        Interval.parse(text)


@pytest.mark.parametrize(("start", "end"), [(5, 5), (6, 5), (-1, -1)])
def test_start_must_be_before_end(start: int, end: int) -> None:
    with pytest.raises(GenomeError, match=f"start < end, found start {start} and end {end}"):
        Interval("chr1", start, end)


def test_text_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(GenomeError, match="ends before it starts"):
        Interval.parse("chr1:10-9")


@pytest.mark.parametrize("value", [1.5, "3", None])
def test_coordinates_are_whole_numbers(value: object) -> None:
    with pytest.raises(GenomeError, match="whole number"):
        Interval("chr1", value, 10)


def test_numpy_integers_become_plain_ones() -> None:
    interval = Interval("chr1", np.int32(1), np.int64(5))
    assert type(interval.start) is int
    assert hash(interval) == hash(Interval("chr1", 1, 5))


def test_strand_and_contig_are_checked() -> None:
    assert Interval("chr1", 0, 1, "-").strand is Strand.REVERSE
    with pytest.raises(GenomeError, match="strand"):
        Interval("chr1", 0, 1, "x")
    with pytest.raises(GenomeError, match="contig name"):
        Interval("", 0, 1)


def test_frozen_and_picklable() -> None:
    interval = Interval("chr1", 0, 5, Strand.REVERSE)
    with pytest.raises(AttributeError):
        interval.start = 3
    assert pickle.loads(pickle.dumps(interval)) == interval


@given(intervals, st.integers(1, 10**6))
def test_resize_keeps_the_centre_base_at_half_the_length(interval: Interval, length: int) -> None:
    resized = interval.resize(length)
    assert resized.length == length
    assert interval.center - resized.start == length // 2
    assert resized.center == interval.center
    assert resized.strand is interval.strand


def test_centre_of_odd_and_even_lengths() -> None:
    assert Interval("c", 10, 11).center == 10
    assert Interval("c", 10, 12).center == 11
    assert Interval("c", 10, 13).center == 11
    assert Interval("c", 5000, 5001).resize(1024).start == 5000 - 512


def test_what_an_interval_contains() -> None:
    interval = Interval("c", 10, 20)
    assert not interval.contains(Interval("d", 10, 20))
    assert interval.contains(Interval("c", 10, 20, "-"))
    assert not interval.contains(Interval("c", 9, 11))
    with pytest.raises(GenomeError, match="1 or more"):
        interval.resize(0)


def test_conversion_between_counts() -> None:
    assert zero_based(1) == 0
    assert one_based(zero_based(17)) == 17
    assert zero_based(np.array([1, 5])).tolist() == [0, 4]


def test_variant_text_and_properties() -> None:
    variant = Variant.parse("chr1:1,001:a>G")
    assert variant == Variant("chr1", 1000, "A", "G") == Variant.parse("chr1-1001-A-G")
    assert variant == Variant.parse("chr1:1001:A:G")
    assert str(variant) == "chr1:1,001:A>G"
    deletion = Variant("chr1", 10, "ACG", "A")
    assert deletion.interval == Interval("chr1", 10, 13)
    assert deletion.end == 13


alleles = st.text("ACGTN", min_size=1, max_size=9)


@given(names, st.integers(0, 10**9), alleles, alleles)
def test_variant_parse_inverts_str(name: str, position: int, ref: str, alt: str) -> None:
    variant = Variant(name, position, ref, alt)
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c", -1, "A", "G"), "0 or more"),
        (("c", 1, "", "G"), "ref allele"),
        (("c", 1, "A", "<DEL>"), "alt allele"),
        (("c", 1, "A", "*"), "alt allele"),
        (("c", 1, "A", None), "alt allele"),
    ],
)
def test_variants_that_are_no_sequence_are_refused(
    arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(GenomeError, match=message):
        Variant(*arguments)


@pytest.mark.parametrize("text", ["chr1:5", "chr1:0:A>G", "chr1:x:A>G", "chr1:5:A>", ""])
def test_other_variant_text_is_refused(text: str) -> None:
    with pytest.raises(GenomeError, match="expected CONTIG:POSITION:REF>ALT"):
        Variant.parse(text)
