"""Perplexity of toy models whose answer is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megabase.data.regions import Regions
from megabase.errors import InputError, NotFiniteError, OutputError
from megabase.evaluate.perplexity import _default_context_lengths, evaluate
from megabase.evaluate.results import EvaluationResult, Measure
from megabase.genome.store import Genome
from megabase.options import EvaluateOptions


class Toy(nn.Module):
    """A model by a function from ids (rows, length) to logits (rows, length, 16)."""

    def __init__(self, function: Callable[[Tensor], Tensor], max_length: int | None = None) -> None:
        super().__init__()
        self.function = function
        self.config = SimpleNamespace(max_length=max_length)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.function(input_ids))


class ToyForMaskedLM(Toy):
    """A model that fills in hidden bases, as its name says."""


def uniform(ids: Tensor) -> Tensor:
    return torch.zeros(*ids.shape, 16)


def next_letter(ids: Tensor) -> Tensor:
    """Certain of the letter after the one it reads: A, C, G, T, A, ..."""
    after = (ids - 7 + 1) % 4 + 7
    return 40.0 * nn.functional.one_hot(after, 16)


def by_context(ids: Tensor) -> Tensor:
    """P(A) = 1 - 2 ** -(bases seen); what it reads makes no difference."""
    seen = torch.arange(1, ids.shape[1] + 1, dtype=torch.float64)
    share = 1 - 0.5**seen
    logits = torch.full((ids.shape[1], 16), -math.inf, dtype=torch.float64)
    logits[:, 7] = share.log()
    logits[:, 8:11] = ((1 - share) / 3).log()[:, None]
    return logits.expand(ids.shape[0], -1, -1)


def running_mean(ids: Tensor) -> Tensor:
    """Depends on everything read so far."""
    table = torch.linspace(-2, 3, 16 * 16).view(16, 16).sin()
    steps = torch.arange(1, ids.shape[1] + 1)[:, None]
    return 3 * table[ids].cumsum(1) / steps


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    generator = np.random.default_rng(5)
    letters = "".join(generator.choice(list("ACGTacgtN"), size=3_000))
    fasta = tmp_path / "toy.fa"
    fasta.write_text(
        f">mixed\n{letters}\n>ramp\n{'ACGT' * 500}\n>flat\n{'A' * 2_000}\n>short\nACGTACG\n"
    )
    return Genome.build(fasta, tmp_path / "toy.mb")


def on(store: Genome, contig: str, start: int = 0, end: int | None = None) -> Regions:
    index = store.contig_index(contig)
    return Regions.of([index], [start], [int(store.lengths[index]) if end is None else end])


def test_uniform_model_has_sixteen_and_four(store: Genome) -> None:
    result = evaluate(Toy(uniform, 256), store, on(store, "mixed"))
    assert result.overall.perplexity == pytest.approx(16)
    assert result.overall.perplexity_acgt == pytest.approx(4)
    assert result.overall.perplexity_acgt_se == pytest.approx(0, abs=1e-6)
    assert result.baselines[0].measure.perplexity_acgt == pytest.approx(4)
    assert result.baselines[0].measure.targets == result.overall.targets


def test_targets_are_the_bases_after_the_first_and_the_rest_is_counted(store: Genome) -> None:
    codes = store.view("mixed")
    result = evaluate(
        Toy(uniform, 256), store, on(store, "mixed"), EvaluateOptions(context_lengths=[])
    )
    known = (codes & 7) < 4
    assert result.overall.targets == known[1:].sum()
    assert result.skipped == (~known[1:]).sum()
    soft = (codes & 8) > 0
    assert result.by_soft_mask["soft-masked"].targets == (known & soft)[1:].sum()
    assert result.by_soft_mask["upper case"].targets == (known & ~soft)[1:].sum()
    assert result.context == ()


def test_a_model_that_knows_the_rule_has_perplexity_one(store: Genome) -> None:
    result = evaluate(Toy(next_letter, 64), store, on(store, "ramp"))
    assert result.overall.perplexity == pytest.approx(1)
    assert result.overall.perplexity_acgt == pytest.approx(1)


def test_each_target_sees_the_stated_context(store: Genome) -> None:
    lengths = (4, 8, 16)
    result = evaluate(
        Toy(by_context, 16),
        store,
        on(store, "flat"),
        EvaluateOptions(context_lengths=lengths, context_targets=4),
    )
    for point, length in zip(result.context, lengths, strict=True):
        assert (point.context_min, point.context) == (length - 3, length)
        seen = np.arange(length - 3, length + 1)
        assert point.measure.nats_acgt == pytest.approx(-np.log1p(-(0.5**seen)).mean(), rel=1e-3)
    assert result.context[0].saved_nats == 0
    saved = result.context[0].measure.nats_acgt - result.context[2].measure.nats_acgt
    assert result.context[2].saved_nats == pytest.approx(saved)


def test_blocks_of_one_see_exactly_the_stated_context(store: Genome) -> None:
    result = evaluate(
        Toy(by_context, 16),
        store,
        on(store, "flat"),
        EvaluateOptions(context_lengths=[1, 5, 16], context_targets=1),
    )
    for point in result.context:
        assert point.context_min == point.context
        assert point.measure.perplexity_acgt == pytest.approx(1 / (1 - 0.5**point.context))


def test_headline_windows_give_contexts_from_one_to_the_window(store: Genome) -> None:
    result = evaluate(
        Toy(by_context, 10), store, on(store, "flat", 100, 200), EvaluateOptions(context_lengths=[])
    )
    assert (result.window, result.stride, result.windows) == (10, 10, 10)
    assert result.overall.nats_acgt == pytest.approx(-np.log1p(-(0.5 ** np.arange(1, 11))).mean())


def test_stride_leaves_context_in_front_of_every_target(store: Genome) -> None:
    result = evaluate(
        Toy(by_context, 10),
        store,
        on(store, "flat", 100, 200),
        EvaluateOptions(stride=4, context_lengths=[]),
    )
    assert result.overall.nats_acgt == pytest.approx(
        -np.log1p(-(0.5 ** np.arange(7, 11))).mean(), rel=1e-3
    )


def test_every_context_scores_the_same_targets(store: Genome) -> None:
    result = evaluate(
        Toy(running_mean, 128), store, on(store, "mixed"), EvaluateOptions(context_blocks=20)
    )
    assert [point.context for point in result.context] == [64, 128]
    assert len({point.measure.targets for point in result.context}) == 1
    assert result.baselines[0].context_measure.targets == result.context[0].measure.targets


@pytest.mark.parametrize("batch_tokens", [1, 100, 5_000, 1 << 20])
def test_batch_size_makes_no_difference(store: Genome, batch_tokens: int) -> None:
    regions = Regions.whole(store.lengths)
    model = Toy(running_mean, 100)
    reference = evaluate(model, store, regions, EvaluateOptions(max_order=3), train_regions=regions)
    other = evaluate(
        model,
        store,
        regions,
        EvaluateOptions(max_order=3, batch_tokens=batch_tokens),
        train_regions=regions,
    )
    assert other.overall.targets == reference.overall.targets
    for a, b in zip(_numbers(other.to_dict()), _numbers(reference.to_dict()), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for key, part in value.items() if key != "seconds" for x in _numbers(part)]
    if isinstance(value, list | tuple):
        return [x for part in value for x in _numbers(part)]
    return [value] if isinstance(value, float) else []


def test_equals_a_plain_loop(store: Genome) -> None:
    codes = store.view("mixed") & 7
    model = Toy(running_mean, 50)
    result = evaluate(
        model, store, on(store, "mixed", 200, 900), EvaluateOptions(context_lengths=[])
    )
    ids = torch.from_numpy(codes.astype(np.int64)) + 7
    total, count = 0.0, 0
    for start in range(200, 900, 50):
        window = ids[start - 1 : start + 49][None]
        logs = running_mean(window).log_softmax(-1)[0]
        for i in range(50):
            if codes[start + i] < 4:
                total -= float(logs[i, ids[start + i]])
                count += 1
    assert result.overall.targets == count
    assert result.overall.nats == pytest.approx(total / count, rel=1e-6)


def test_bases_after_a_target_change_nothing(store: Genome) -> None:
    whole = evaluate(
        Toy(running_mean, 64),
        store,
        on(store, "mixed", 64, 192),
        EvaluateOptions(context_lengths=[]),
    )
    parts = [
        evaluate(
            Toy(running_mean, 64),
            store,
            on(store, "mixed", a, b),
            EvaluateOptions(context_lengths=[]),
        )
        for a, b in ((64, 128), (128, 192))
    ]
    total = sum(part.overall.nats * part.overall.targets for part in parts)
    assert whole.overall.nats * whole.overall.targets == pytest.approx(total)


def test_contigs_are_told_apart(store: Genome) -> None:
    regions = Regions.whole(store.lengths)
    result = evaluate(Toy(next_letter, 128), store, regions)
    assert set(result.by_contig) == {"mixed", "ramp", "flat", "short"}
    assert result.by_contig["ramp"].perplexity_acgt == pytest.approx(1)
    assert result.by_contig["short"].targets == 6
    assert result.by_contig["flat"].perplexity_acgt > 4


def test_sampled_windows_are_spread_evenly(store: Genome) -> None:
    result = evaluate(
        Toy(uniform, 10),
        store,
        on(store, "ramp"),
        EvaluateOptions(max_windows=5, context_lengths=[]),
    )
    assert result.windows == 5
    assert result.overall.targets == 50


def test_markov_baselines_see_the_same_targets(store: Genome) -> None:
    regions = on(store, "ramp", 1_000)
    train = on(store, "ramp", 0, 1_000)
    result = evaluate(
        Toy(next_letter, 64), store, regions, EvaluateOptions(max_order=2), train_regions=train
    )
    names = [baseline.name for baseline in result.baselines]
    markov = [f"Markov order {order}" for order in range(3)]
    assert names == ["uniform", *markov, *(f"{name}, fitted" for name in markov)]
    assert {baseline.measure.targets for baseline in result.baselines} == {result.overall.targets}
    assert result.baseline_bases == 1_000
    assert result.train_overlap == 0
    for baseline in result.baselines:
        margin = baseline.measure.nats_acgt - result.overall.nats_acgt
        assert baseline.margin_nats == pytest.approx(margin)
    assert result.baselines[1].measure.perplexity_acgt == pytest.approx(4, abs=0.01)
    assert result.baselines[2].measure.perplexity_acgt == pytest.approx(1, abs=0.05)


def test_masked_models_never_see_their_target(store: Genome) -> None:
    def copies(ids: Tensor) -> Tensor:
        """Certain of what it reads; knows nothing where the mask token stands."""
        return torch.where((ids == 3)[..., None], 0.0, 40.0 * nn.functional.one_hot(ids, 16))

    result = evaluate(ToyForMaskedLM(copies, 64), store, on(store, "mixed"))
    assert result.objective == "masked"
    assert result.overall.perplexity_acgt == pytest.approx(4)
    assert result.overall.targets == ((store.view("mixed") & 7) < 4).sum()


def test_masked_models_see_both_sides(store: Genome) -> None:
    def between(ids: Tensor) -> Tensor:
        """In ACGTACGT...: the letter after the left neighbor, if it is not hidden itself."""
        left = torch.roll(ids, 1, 1)
        right = torch.roll(ids, -1, 1)
        guess = torch.where(left != 3, (left - 7 + 1) % 4 + 7, (right - 7 - 1) % 4 + 7)
        return 40.0 * nn.functional.one_hot(guess.clamp(0, 15), 16)

    options: dict[str, Any] = {"window": 64, "stride": 16, "context_lengths": [32, 64]}
    regions = on(store, "ramp", 200, 1_800)
    result = evaluate(ToyForMaskedLM(between, 64), store, regions, EvaluateOptions(**options))
    assert result.overall.perplexity_acgt == pytest.approx(1)
    assert result.context[0].measure.perplexity_acgt == pytest.approx(1)


def test_result_survives_json(store: Genome, tmp_path: Path) -> None:
    regions = on(store, "mixed")
    result = evaluate(
        Toy(running_mean, 100), store, regions, EvaluateOptions(max_order=2), train_regions=regions
    )
    path = tmp_path / "evaluation.json"
    result.save(path)
    assert EvaluationResult.load(path) == result
    record = json.loads(path.read_text())
    assert record["overall"]["perplexity_acgt"] == pytest.approx(result.overall.perplexity_acgt)
    assert record["regions"] == ["mixed:1-3,000"]
    assert [p.name for p in tmp_path.glob("*evaluation*")] == ["evaluation.json"]


def test_files_that_are_no_evaluation_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="expected an evaluation of format 2"):
        EvaluationResult.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"x\.json cannot be read"):
        EvaluationResult.load(path)
    with pytest.raises(OutputError, match="cannot write"):
        _tiny_result().save(tmp_path / "missing" / "x.json")


def _tiny_result() -> EvaluationResult:
    part = Measure(1, None, 1.0, None, None, None, math.e)
    facts = ("m", "causal", "g", "c", (), 0, 0, 1, 1, 1, None, 0)
    return EvaluationResult(*facts, part, {}, {}, (), (), 0, 0.0, "0")


def test_training_mode_is_restored(store: Genome) -> None:
    model = Toy(uniform, 64)
    model.train()
    evaluate(model, store, on(store, "short"), EvaluateOptions(context_lengths=[]))
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 65}, "window of 65 positions does not fit .* 64 positions"),
        ({"window": 0}, "1 position or more, found 0"),
        ({"stride": 65}, "between 1 and the window, 64; found 65"),
        ({"context_lengths": [128]}, "context of 128 bases does not fit"),
        ({"context_lengths": [8]}, "context of 8 is shorter than a target block of 16"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(
    store: Genome, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(Toy(uniform, 64), store, on(store, "mixed"), EvaluateOptions(**options))


def test_regions_without_bases_are_refused(store: Genome) -> None:
    with pytest.raises(InputError, match="no regions"):
        evaluate(Toy(uniform, 64), store, Regions.of([], [], []))
    with pytest.raises(InputError, match="no A, C, G or T to score"):
        evaluate(
            Toy(uniform, 64), store, on(store, "ramp", 0, 1), EvaluateOptions(context_lengths=[])
        )
    with pytest.raises(InputError, match="no base of the regions has 64 bases"):
        evaluate(Toy(uniform, 64), store, on(store, "short"), EvaluateOptions(context_lengths=[64]))


def test_a_broken_model_is_named(store: Genome) -> None:
    def broken(ids: Tensor) -> Tensor:
        return torch.full((*ids.shape, 16), math.nan)

    with pytest.raises(NotFiniteError, match=r"for ramp:2-65"):
        evaluate(Toy(broken, 64), store, on(store, "ramp"))

    def one_column(ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, 4)

    with pytest.raises(InputError, match="more than 10 columns"):
        evaluate(Toy(one_column, 64), store, on(store, "ramp"))


def test_default_context_lengths() -> None:
    assert _default_context_lengths(1_026) == (64, 128, 256, 512, 1_024)
    assert _default_context_lengths(1_000) == (64, 128, 256, 512, 1_000)
    assert _default_context_lengths(40) == (40,)


def test_standard_error_is_that_of_the_mean() -> None:
    generator = np.random.default_rng(7)
    sums = generator.normal(100.0, 10.0, 5_000)
    targets = np.full(5_000, 80)
    found = Measure.of(sums, targets)
    # The error of exp(m) is exp(m) times that of m, 10 / 80 / sqrt(5000).
    expected = found.perplexity_acgt * 10 / 80 / math.sqrt(5_000)
    assert found.perplexity_acgt_se == pytest.approx(expected, rel=0.1)
    assert found.perplexity is None


def test_standard_error_knows_that_neighbors_are_alike() -> None:
    generator = np.random.default_rng(8)
    sums = np.repeat(generator.normal(100.0, 10.0, 1_000), 50)
    found = Measure.of(sums, np.full(sums.size, 80))
    expected = found.perplexity_acgt * 10 / 80 / math.sqrt(1_000)
    assert found.perplexity_acgt_se == pytest.approx(expected, rel=0.1)
