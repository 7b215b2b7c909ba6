"""Whether a language model uses what it read far back: segments of a genome, repeated by design.

A row is DNA of the genome that ends with a segment as it stands there, the second copy. The first
bases of the row are replaced by a first copy of it, `distance` bases before the second, and in a
paired row by another segment of the same genome. The advantage is how much more probable the bases
of the second copy are in the first row. Every test, at every distance, takes the same segments.

Shape suffixes of names: n segments, s bases of a segment.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.data.regions import Intervals, Regions
from megabase.data.vocabulary import codes_to_ids
from megabase.errors import InputError
from megabase.evaluate.log_probs import Masking, base_logits, look_up, predict_tokens
from megabase.evaluate.results import Measure
from megabase.genome.alphabet import BASE_TOKEN_IDS, T, reverse_complement
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.models.checkpoints.checks import require_finite
from megabase.models.loading import Loaded, inference_mode, language_model_kind
from megabase.options import LongContextOptions

_MUTATED = 0.1
"""Share of substituted bases of a mutated copy, as between repeats of one young family."""
_SHORTEST = 10  # bases of a segment: fewer have no tenth to substitute, and turn up by chance
_CANDIDATES = 100
"""Places looked at for a segment: one in a hundred may lie in upper case, between repeats and N."""

_DISTRACTORS = (4,)
"""Mutated copies beside a needle unless said: enough that a guess among all finds it seldom."""

_Codes = NDArray[np.uint8]


def long_context(
    model: Loaded, store: Genome, regions: Regions, options: LongContextOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> pl.DataFrame:  # fmt: skip
    """Measure how far back a language model finds a copy of what it reads, on the forward strand.

    The second copies are drawn from the upper-case A, C, G, T of the regions, non-overlapping; what
    stands before them may lie before the region, and may hold N. A masked model has each base of
    the second copy hidden in turn. `progress` is called with what is being done, rows done and
    rows in all.

    Returns
    -------
    polars.DataFrame
        A row for each test and distance: ``test`` (``exact``, ``mutated``: 10 percent of the first
        copy substituted, ``reverse_complement``, ``shuffled``: its bases in another order, which
        shows what composition alone does, and ``needle``: an exact first copy, then mutated ones
        spread evenly between, in both paired rows), ``distance`` (bases from the start of the
        first copy to that of the second), ``copies`` before the second, ``n`` segments,
        ``advantage`` (nats a base) with ``low`` and ``high`` (95 percent, by bootstrap over
        segments), ``recovery`` and ``recovery_without`` (share of the bases whose most probable
        base is right, with and without the first copy).

    Raises
    ------
    InputError
        When a row does not fit the model, distractors fit no distance, the regions hold too few
        segments, or the model gives no probability to single bases.
    NotFiniteError
        For a probability that is zero or not a number.
    """
    options = options or LongContextOptions()
    size, count = options.segment, options.count
    language_model_kind(model.model)  # refuses models without probabilities of bases
    distances = _distances(model, regions, options)
    needles = sorted(set(_DISTRACTORS if options.distractors is None else options.distractors))
    if options.distractors and not 1 <= needles[0] <= needles[-1] < distances[-1] // size:
        raise InputError(
            f"between copies {distances[-1]:,} bases apart there is room for 1 to "
            f"{distances[-1] // size - 1:,} distractors of {size:,} bases; found {needles}"
        )
    generator = np.random.default_rng(options.seed)
    places = _draw_places(store, regions, options, distances[-1], generator)
    exact = store.fetch_many(places.contig, places.start, size)
    first = {
        "exact": exact,
        "mutated": _mutate(exact, generator),
        "reverse_complement": reverse_complement(exact),
        "shuffled": generator.permuted(exact, axis=1),
    }
    near = [_mutate(exact, generator) for _ in range(max(needles, default=0))]
    score = partial(_score, model, store, places, options.batch_tokens)
    wanted = [
        (distance, between, ("exact",) if between else tuple(first))
        for distance in distances
        for between in (0, *needles)
        if (between + 1) * size <= distance
    ]
    total, done, found = sum(1 + len(names) for *_, names in wanted), 0, []
    for distance, between, names in wanted:
        # The segment of another row: other DNA of the genome, drawn as its own.
        without = score(distance, np.roll(exact, 1, axis=0), near[:between])
        for name in names:
            scores = score(distance, first[name], near[:between])
            gain = scores[:, 0] - without[:, 0]
            found.append((
                "needle" if between else name, distance, 1 + between, count, gain.mean(),
                *Measure.interval(gain), scores[:, 1].mean(), without[:, 1].mean(),
            ))  # fmt: skip
        done += 1 + len(names)
        if progress is not None:
            progress("long context", done * count, total * count)
    tests = [*first, "needle"]
    found.sort(key=lambda row: (tests.index(row[0]), row[2], row[1]))
    columns = ["test", "distance", "copies", "n", "advantage", "low", "high"]
    columns += ["recovery", "recovery_without"]
    return pl.DataFrame(found, schema=columns, orient="row")


def _score(
    model: Loaded, store: Genome, places: Intervals, batch_tokens: int, distance: int,
    first_ns: _Codes, between: list[_Codes],
) -> NDArray[np.float64]:  # fmt: skip
    """Score the second copies behind first copies and distractors: float64 (n, 2).

    The mean log-probability of the bases of each, and the share of them predicted right.
    """
    count, size = first_ns.shape
    length, part = distance + size, slice(distance, distance + size)
    masking: Masking = "single" if model.masked else "causal"
    out = np.zeros((count, 2))
    step = max(1, batch_tokens // length)
    for low in range(0, count, step):
        rows = slice(low, low + step)
        codes = store.fetch_many(places.contig[rows], places.start[rows] - distance, length)
        codes[:, :size] = first_ns[rows]
        for number, copies in enumerate(between, start=1):
            at = number * distance // (len(between) + 1)
            codes[:, at : at + size] = copies[rows]
        ids = codes_to_ids(torch.from_numpy(codes).to(model.device))
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        hidden[:, part] = True
        with inference_mode(model.model):
            found = predict_tokens(
                model.model, ids, masking, _read, columns=part, wanted_BL=hidden,
                batch_tokens=batch_tokens,
            )  # fmt: skip
        out[rows] = found[:, part].mean(1).cpu().numpy()

    def locus(row: int) -> str:
        contig, start, end = (int(column[row]) for column in places)
        return str(Interval(store.contigs[contig].name, start, end))

    require_finite(out, model.name, "log-probabilities", locus)
    return out


def _read(logits: Tensor, ids: Tensor) -> Tensor:
    """Give the log-probability of each base, and 1 where it is the most probable, (..., 2)."""
    found = look_up(logits, ids)
    right = base_logits(logits).argmax(-1) + BASE_TOKEN_IDS[0] == ids
    return torch.stack((found, right.to(found.dtype)), dim=-1)


def _mutate(codes_ns: _Codes, generator: np.random.Generator) -> _Codes:
    """Substitute a tenth of the bases of every row, rounded, each by another base."""
    count, size = codes_ns.shape
    order = generator.permuted(np.tile(np.arange(size), (count, 1)), axis=1)
    at = np.arange(count)[:, None], order[:, : round(_MUTATED * size)]
    out = codes_ns.copy()
    out[at] = (out[at] + generator.integers(1, 4, at[1].shape, dtype=np.uint8)) & np.uint8(3)
    return out


def _distances(model: Loaded, regions: Regions, options: LongContextOptions) -> list[int]:
    """Give the distances in order; refuse what fits neither the segments nor the model."""
    size, longest = options.segment, options.window or model.longest
    if options.window is not None:
        model.require_length(options.window, "a window")
    if size < _SHORTEST or options.count < 2:
        raise InputError(
            f"expected segments of {_SHORTEST} bases or more, and 2 of them or more; found "
            f"segment={size} and count={options.count}"
        )
    if longest is not None and 2 * size > longest:
        raise InputError(
            f"two copies of {size:,} bases do not fit an input of {longest:,} positions; take "
            "shorter ones (segment=...)"
        )
    if options.distances:
        chosen = sorted(set(options.distances))
        far = chosen[-1] if longest is None else longest - size
        if chosen[0] < size or chosen[-1] > far:
            raise InputError(
                f"copies of {size:,} bases lie {size:,} to {far:,} bases apart in an input; found "
                f"{', '.join(map(str, chosen))}"
            )
        return chosen
    if longest is None:
        raise InputError("the model reads any length; say how long an input is (window=...)")
    far = longest - size
    chosen = [*(1 << power for power in range(31) if size <= 1 << power <= 0.95 * far), far]
    while len(chosen) > 1 and len(_tiles(regions, options, chosen[-1], 1).start) < options.count:
        chosen.pop()  # too few segments have so much DNA in front of them
    return chosen


def _tiles(regions: Regions, options: LongContextOptions, before: int, each: int) -> Intervals:
    """Spread `each` places for every segment wanted over the regions."""
    limit = each * options.count
    return regions.tile(options.segment, before=before, whole=True, limit=limit)


def _draw_places(
    store: Genome, regions: Regions, options: LongContextOptions, before: int,
    generator: np.random.Generator,
) -> Intervals:  # fmt: skip
    """Draw the second copies: upper-case A, C, G, T, with `before` bases in front of each."""
    tiles = _tiles(regions, options, before, _CANDIDATES)
    codes = store.fetch_many(tiles.contig, tiles.start, options.segment)
    usable = np.all(codes <= T, axis=1)  # the bit of a soft-masked base is above
    order = generator.permutation(len(codes))
    order = order[usable[order]][: options.count]
    if len(order) < options.count:
        raise InputError(
            f"found {len(order):,} of {options.count:,} segments of {options.segment:,} A, C, G, T "
            f"in upper case with {before:,} bases in front of them in the regions; name longer "
            "regions, or take fewer (count=...) or nearer ones (distances=...)"
        )
    return Intervals(tiles.contig[order], tiles.start[order], tiles.end[order])
