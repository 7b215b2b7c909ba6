"""Copies far back: toys whose advantage is known, and a plain definition beside the fast one."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

import megabase as mb
from megabase.data.regions import Regions
from megabase.errors import InputError, NotFiniteError
from megabase.evaluate.log_probs import token_log_probs
from megabase.evaluate.long_context import _draw_places, long_context
from megabase.genome.store import Genome
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.loading import Loaded
from megabase.options import LongContextOptions

SEED = 12
"""Bases that the toy has to recognize before it copies; they turn up by chance once in 4 ** 12."""
SURE = 0.97  # probability of the base it copies


class Toy(nn.Module):
    """A model by a function from ids (rows, length) to logits (rows, length, 16)."""

    def __init__(self, function: Callable[[Tensor], Tensor], longest: int | None) -> None:
        super().__init__()
        self.function = function
        self.config = SimpleNamespace(max_length=longest)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        self.seen.append(input_ids)
        return SimpleNamespace(logits=self.function(input_ids))


class ToyForMaskedLM(Toy):
    """A model that fills in hidden bases, as its name says."""


def loaded(function: Callable[[Tensor], Tensor], longest: int | None = 300) -> Loaded:
    return Loaded(Toy(function, longest), "causal-lm", "toy")


def guess(base: int | None) -> list[float]:
    """Logits of a position that is sure of a base, or knows nothing."""
    logits = [-math.inf] * 16
    for one in range(7, 11):
        share = 0.25 if base is None else SURE if one == base else (1 - SURE) / 3
        logits[one] = math.log(share)
    return logits


def copier(which: int) -> Callable[[Tensor], Tensor]:
    """Looks the last bases up in what it has read, and gives what followed: 0 first, -1 last."""

    def function(ids: Tensor) -> Tensor:
        rows = []
        for row in ids.tolist():
            text, places, logits = bytes(row), dict[bytes, list[int]](), []
            for end in range(1, len(row) + 1):
                last = text[max(0, end - SEED) : end]
                before = places.setdefault(last, [])
                logits.append(guess(row[before[which]] if before and len(last) == SEED else None))
                before.append(end)
            rows.append(logits)
        return torch.tensor(rows, dtype=torch.float64)

    return function


def by_the_last(ids: Tensor) -> Tensor:
    """Order 1: the same for the second copy whatever stands far before it."""
    table = torch.linspace(-2, 3, 16 * 16, dtype=torch.float64).view(16, 16).sin()
    return table[ids]


def running_mean(ids: Tensor) -> Tensor:
    """Depends on everything read so far, and on where."""
    table = torch.linspace(-2, 3, 16 * 16, dtype=torch.float64).view(16, 16).sin()
    steps = torch.arange(1, ids.shape[1] + 1)[:, None]
    return 9 * (table[ids] * steps.sin()).cumsum(1) / steps


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    """Random DNA with a repeat in lower case and a gap."""
    folder = tmp_path_factory.mktemp("long")
    letters = np.random.default_rng(3).choice(list("ACGT"), size=30_000)
    letters[5_000:9_000] = np.char.lower(letters[5_000:9_000])
    letters[15_000:16_000] = "N"
    (folder / "g.fa").write_text(f">one\n{''.join(letters)}\n>low\n{'acgt' * 200}\n")
    return Genome.build(folder / "g.fa", folder / "g.mb")


@pytest.fixture
def regions(store: Genome) -> Regions:
    return Regions.read(store, ["one"])


def row(table: pl.DataFrame, test: str, distance: int) -> dict[str, float]:
    (found,) = table.filter(test=test, distance=distance).rows(named=True)
    return found


def test_a_model_that_copies_has_the_advantage_of_its_certainty(
    store: Genome, regions: Regions
) -> None:
    """After 12 bases it is sure, at any distance; a reverse complement tells it nothing."""
    options = LongContextOptions(segment=64, count=6, distances=[64, 200])
    table = long_context(loaded(copier(0)), store, regions, options)
    wanted = (64 - SEED) / 64 * math.log(SURE / 0.25)
    for distance in (64, 200):
        exact = row(table, "exact", distance)
        assert exact["advantage"] == pytest.approx(wanted, abs=1e-12)
        assert (exact["low"], exact["high"]) == pytest.approx((wanted, wanted), abs=1e-12)
        assert exact["recovery"] >= (64 - SEED) / 64
        assert exact["recovery_without"] < 0.5
        back = row(table, "reverse_complement", distance)
        assert back["advantage"] == pytest.approx(0, abs=1e-12)
        assert row(table, "shuffled", distance)["advantage"] == pytest.approx(0, abs=1e-12)
        mutated = row(table, "mutated", distance)
        assert 0 < mutated["advantage"] < wanted
        assert mutated["low"] < mutated["advantage"] < mutated["high"]


def test_a_needle_is_found_by_who_looks_back_to_the_first_copy(
    store: Genome, regions: Regions
) -> None:
    options = LongContextOptions(segment=48, count=5, distances=[230], distractors=[1, 3])
    far = long_context(loaded(copier(0)), store, regions, options).filter(test="needle")
    near = long_context(loaded(copier(-1)), store, regions, options).filter(test="needle")
    assert far["copies"].to_list() == near["copies"].to_list() == [2, 4]
    assert far["advantage"].min() > 0.05
    assert near["advantage"].to_list() < far["advantage"].to_list()
    assert far["recovery_without"].min() > 0.3  # by the distractors


@pytest.mark.parametrize("function", [by_the_last, lambda ids: torch.zeros(*ids.shape, 16)])
def test_a_model_without_memory_has_none(
    store: Genome, regions: Regions, function: Callable[[Tensor], Tensor]
) -> None:
    """The first base of the second copy follows the same DNA in both rows."""
    options = LongContextOptions(segment=20, count=9, distances=[21, 200])
    table = long_context(loaded(function), store, regions, options)
    assert table.height == 9
    for name in ("advantage", "low", "high"):
        assert (table[name] == 0).all()
    assert (table["recovery"] == table["recovery_without"]).all()


def plain(
    model: nn.Module, store: Genome, regions: Regions, options: LongContextOptions
) -> list[tuple[int, float, float]]:
    """The definition for exact copies, one segment and one base at a time."""
    size, distances = options.segment, list(options.distances or ())
    generator = np.random.default_rng(options.seed)
    places = _draw_places(store, regions, options, max(distances), generator)
    found = []
    for distance in distances:
        gains, right = [], []
        for number in range(options.count):
            scores = []
            for source in (number, number - 1):
                start = int(places.start[number])
                other = int(places.start[source])
                codes = store.view("one")[start - distance : start + size].copy()
                codes[:size] = store.view("one")[other : other + size]
                ids = torch.from_numpy((codes & 7).astype(np.int64) + 7)[None]
                scores.append(token_log_probs(model, ids)[0, distance:])
                if source == number:
                    for at in range(distance, distance + size):
                        best = []
                        for base in range(7, 11):
                            tried = ids.clone()
                            tried[0, at] = base
                            best.append(float(token_log_probs(model, tried)[0, at]))
                        right.append(7 + int(np.argmax(best)) == int(ids[0, at]))
            gains.append(float((scores[0] - scores[1]).mean()))
        found.append((distance, float(np.mean(gains)), float(np.mean(right))))
    return found


def test_equals_a_plain_loop(store: Genome, regions: Regions) -> None:
    torch.manual_seed(1)
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=8, n_layer=1, rcps=False)).double()
    options = LongContextOptions(segment=11, count=3, distances=[11, 30], seed=4, window=60)
    for model, kind in ((Toy(running_mean, 60), "causal-lm"), (masked, "masked-lm")):
        table = long_context(Loaded(model, kind, "toy"), store, regions, options)
        exact = table.filter(test="exact").select("distance", "advantage", "recovery").rows()
        for one, other in zip(exact, plain(model, store, regions, options), strict=True):
            assert one == pytest.approx(other, abs=1e-9)
            assert abs(one[1]) > 1e-6


def test_rows_are_what_the_tests_say(store: Genome, regions: Regions) -> None:
    toy = loaded(lambda ids: torch.zeros(*ids.shape, 16))
    options = LongContextOptions(segment=20, count=4, distances=[130], distractors=[5])
    long_context(toy, store, regions, options)
    without, exact, mutated, back, shuffled, alone, needle = (i - 7 for i in toy.model.seen)
    target = exact[:, 130:]  # all but the last base, which nothing predicts from
    for rows in (without, mutated, back, shuffled, alone, needle):
        assert (rows[:, 130:] == target).all()
    assert (exact[:, :19] == target).all()
    assert (back[:, 1:20] == 3 - target.flip(1)).all()
    assert (shuffled[:, :20].sort(1)[0] == exact[:, :20].sort(1)[0]).all()
    assert (without[:, :20] != exact[:, :20]).any(1).all()
    assert ((mutated[:, :20] != exact[:, :20]).sum(1) == 2).all()
    for rows in (without, exact, mutated, back, shuffled):
        assert (rows[:, 20:130] == exact[:, 20:130]).all()
    for k in range(1, 6):
        part = slice(k * 130 // 6, k * 130 // 6 + 20)
        assert ((needle[:, part] != exact[:, :20]).sum(1) == 2).all()
        assert (needle[:, part] == alone[:, part]).all()


def test_second_copies_are_upper_case_without_n_and_apart(store: Genome, regions: Regions) -> None:
    options = LongContextOptions(segment=32, count=200)
    places = _draw_places(store, regions, options, 1_000, np.random.default_rng(0))
    codes = store.fetch_many(places.contig, places.start, 32)
    assert (codes < 4).all()
    assert places.start.min() >= 1_000
    assert (np.diff(np.sort(places.start)) >= 32).all()


def test_a_seed_decides_and_batches_do_not(store: Genome, regions: Regions) -> None:
    def table(**changed: int) -> pl.DataFrame:
        options = LongContextOptions(segment=16, count=8, distances=[32, 100], **changed)
        return long_context(loaded(running_mean), store, regions, options)

    first = table(seed=1)
    assert first.equals(table(seed=1))
    assert first.equals(table(seed=1, batch_tokens=1))
    assert not first.equals(table(seed=2))


def test_distances_reach_the_longest_input_and_the_start_of_the_contig(store: Genome) -> None:
    options = LongContextOptions(segment=64, count=2)
    toy = loaded(lambda ids: torch.zeros(*ids.shape, 16), 2_000)
    table = long_context(toy, store, Regions.read(store, ["one"]), options)
    assert table.filter(test="exact")["distance"].to_list() == [64, 128, 256, 512, 1_024, 1_936]
    assert table.filter(test="needle")["distance"].to_list() == [512, 1_024, 1_936]
    table = long_context(toy, store, Regions.read(store, ["one:1-700"]), options)
    assert table.filter(test="exact")["distance"].to_list() == [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("settings", "place", "message"),
    [
        ({"segment": 9}, "one", "expected segments of 10 bases or more"),
        ({"count": 1}, "one", "found segment=64 and count=1"),
        ({"segment": 160}, "one", "two copies of 160 bases do not fit an input of 300 positions"),
        ({"window": 100}, "one", "do not fit an input of 100 positions; take shorter"),
        ({"window": 400}, "one", "a window of 400 does not fit the model toy"),
        ({"distances": [128, 237]}, "one", "lie 64 to 236 bases apart in an input; found 128, 237"),
        ({"distances": [63]}, "one", "lie 64 to 236 bases apart"),
        ({"distractors": [4]}, "one", "there is room for 1 to 2 distractors of 64 bases; found"),
        ({"distractors": [0]}, "one", "there is room for 1 to 2"),
        ({}, "low", "found 0 of 100 segments of 64 A, C, G, T in upper case"),
        ({"count": 400}, "one", "of 400 segments of 64"),
    ],
)
def test_what_does_not_fit_is_refused(
    store: Genome, settings: dict[str, int], place: str, message: str
) -> None:
    toy = loaded(lambda ids: torch.zeros(*ids.shape, 16))
    with pytest.raises(InputError, match=message):
        long_context(toy, store, Regions.read(store, [place]), LongContextOptions(**settings))


def test_a_model_of_any_length_is_told_one(store: Genome, regions: Regions) -> None:
    toy = loaded(lambda ids: torch.zeros(*ids.shape, 16), None)
    with pytest.raises(InputError, match="say how long an input is"):
        long_context(toy, store, regions)
    options = LongContextOptions(count=3, distances=[500])
    assert long_context(toy, store, regions, options).height == 5


def test_a_value_that_is_not_finite_is_named_by_its_place(store: Genome, regions: Regions) -> None:
    with pytest.raises(NotFiniteError, match=r"log-probabilities that are not finite .* one:"):
        long_context(loaded(lambda ids: torch.full((*ids.shape, 16), torch.nan)), store, regions)


def test_the_method_of_a_model(store: Genome) -> None:
    options = mb.LongContextOptions(count=4, distances=[64, 512])
    table = mb.load(device="cpu").evaluate_long_context(store, regions=["one"], options=options)
    assert table["test"].to_list() == [
        "exact", "exact", "mutated", "mutated", "reverse_complement", "reverse_complement",
        "shuffled", "shuffled", "needle",
    ]  # fmt: skip
    assert table["n"].to_list() == [4] * 9
    assert (table["low"] <= table["advantage"]).all()


def test_a_masked_model_sees_all_but_the_hidden_base(store: Genome, regions: Regions) -> None:
    """Sure of the base 50 before a hidden one; knows nothing else."""

    def back(ids: Tensor) -> Tensor:
        known = torch.tensor([guess(None), *map(guess, range(7, 11))], dtype=torch.float64)
        before = torch.roll(ids, 50, 1)
        before[:, :50] = 11
        return known[torch.where((ids == 3) & (before < 11), before - 6, 0)]

    toy = ToyForMaskedLM(back, 90)
    options = LongContextOptions(segment=30, count=5, distances=[50])
    exact = row(long_context(Loaded(toy, "masked-lm", "toy"), store, regions, options), "exact", 50)
    assert exact["recovery"] == 1
    assert all(int((ids == 3).sum(1).max()) == 1 for ids in toy.seen)
    wrong = 1 - exact["recovery_without"]
    assert exact["advantage"] == pytest.approx(wrong * math.log(SURE * 3 / (1 - SURE)))
