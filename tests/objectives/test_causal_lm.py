from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from published import reverse_complement_text
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.base import score_targets
from megabase.objectives.language import CausalLM

MakeBatch = Callable[..., dict[str, Tensor]]
LOG16, LOG4 = math.log(16), math.log(4)


def test_a_window_of_one_more_base_gives_inputs_and_next_tokens(make_batch: MakeBatch) -> None:
    inputs, targets, weights = CausalLM().prepare(make_batch("ACGTN"))
    assert inputs.tolist() == [[7, 8, 9, 10]]
    assert targets.tolist() == [[8, 9, 10, 11]]
    assert weights.tolist() == [[1, 1, 1, 0]]


def test_sums_of_a_uniform_model(make_batch: MakeBatch, uniform_model: nn.Module) -> None:
    output = CausalLM()(uniform_model, make_batch("AACGN..", "ACGTACG"))
    assert output.count.item() == 3 + 6
    assert output.loss_sum.item() == pytest.approx(9 * LOG16)
    metrics = {name: value.item() for name, value in output.metrics.items()}
    assert metrics == pytest.approx(
        {
            "targets": 9,
            "nll": 9 * LOG16,
            "correct": 0,
            "acgt_targets": 9,
            "acgt_nll": 9 * LOG4,
        }
    )


def test_sums_worked_out_by_hand(
    make_batch: MakeBatch, table_model: Callable[[Tensor], nn.Module]
) -> None:
    table = torch.zeros(16, 16)
    table[7, 8] = 2.0  # after A, C is likely
    table[8, 0] = 3.0  # after C, a token that is no base is likely
    model = table_model(table)
    output = CausalLM(soft_mask_weight=0.5)(model, make_batch("ACg", "AAC"))
    after_a = math.log(15 + math.exp(2))
    after_c = math.log(15 + math.exp(3))
    # A->C, C->g (weight 0.5), A->A, A->C
    want = (after_a - 2) + 0.5 * after_c + after_a + (after_a - 2)
    assert output.loss_sum.item() == pytest.approx(want)
    assert output.count.item() == 3.5
    assert output.metrics["targets"].item() == 4
    assert output.metrics["correct"].item() == 2
    assert output.metrics["nll"].item() == pytest.approx(want + 0.5 * after_c)
    four = math.log(3 + math.exp(2))
    assert output.metrics["acgt_nll"].item() == pytest.approx((four - 2) * 2 + four + LOG4)


def test_soft_mask_weight_zero_leaves_repeats_out(
    make_batch: MakeBatch, uniform_model: nn.Module
) -> None:
    output = CausalLM(soft_mask_weight=0.0)(uniform_model, make_batch("AacgT"))
    assert output.count.item() == 1
    assert output.metrics["targets"].item() == 1
    assert output.loss_sum.item() == pytest.approx(LOG16)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [1, 0, 0]),
        ({"include_n": True}, [1, 1, 0]),
        ({"include_padding": True}, [1, 0, 1]),
        ({"n_as_padding": True, "include_n": True}, [1, 0, 0]),
        ({"n_as_padding": True, "include_padding": True}, [1, 1, 1]),
    ],
)
def test_n_and_padding_are_targets_only_when_asked(
    make_batch: MakeBatch, options: dict[str, bool], weights: list[float]
) -> None:
    inputs, targets, got = CausalLM(**options).prepare(make_batch("ACN."))  # pyright: ignore
    assert got.tolist() == [weights]
    n = 4 if options.get("n_as_padding") else 11
    assert inputs.tolist() == [[7, 8, n]]
    assert targets.tolist() == [[8, n, 4]]


def test_published_separator_takes_the_place_of_the_last_base(make_batch: MakeBatch) -> None:
    inputs, targets, weights = CausalLM(
        include_n=True, include_padding=True, special_tokens="published"
    ).prepare(make_batch("ACGTNA", "..ACNG"))
    assert inputs.tolist() == [[7, 8, 9, 10, 11], [4, 7, 8, 11, 9]]
    assert targets.tolist() == [[8, 9, 10, 11, 1], [7, 8, 11, 9, 1]]
    assert weights.tolist() == [[1] * 5] * 2
    _, _, weights = CausalLM(special_tokens="published").prepare(make_batch("ACGTNA", "..ACNG"))
    assert weights.tolist() == [[1, 1, 1, 0, 1], [1, 1, 0, 1, 1]]


def test_marked_rows_are_read_as_their_reverse_complement(make_batch: MakeBatch) -> None:
    text = "AACgtNCT"
    objective = CausalLM(soft_mask_weight=0.25)
    turned = objective.prepare(make_batch(text, text, reverse=[True, False]))
    plain = objective.prepare(make_batch(reverse_complement_text(text), text))
    for one, two in zip(turned, plain, strict=True):
        assert torch.equal(one, two)


def test_parts_of_a_batch_sum_to_the_batch(
    make_batch: MakeBatch, table_model: Callable[[Tensor], nn.Module]
) -> None:
    texts = ["ACGTNACGTA", "acgtNNNNNN", "NNNNNNNNNN", "GATTACAGAT"]
    model = table_model(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).double())
    objective = CausalLM(soft_mask_weight=0.3)
    whole = objective(model, make_batch(*texts))
    parts = [objective(model, make_batch(text)) for text in texts]
    assert whole.loss_sum.dtype == torch.float64
    total = sum(part.loss_sum.item() for part in parts)
    assert total == pytest.approx(whole.loss_sum.item(), rel=1e-12)
    assert sum(part.count.item() for part in parts) == pytest.approx(whole.count.item())
    assert parts[2].count.item() == parts[2].loss_sum.item() == 0


def test_targets_outside_the_loss_pass_no_gradient_even_when_infinite() -> None:
    logits = torch.zeros(1, 3, 16)
    logits[0, 1, 4] = float("-inf")
    logits.requires_grad_()
    targets = torch.tensor([[7, 4, 8]])
    output = score_targets(logits, targets, torch.tensor([[1.0, 0.0, 1.0]]))
    output.loss_sum.backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert bool((logits.grad[0, 1] == 0).all())
    assert output.loss_sum.item() == pytest.approx(2 * LOG16)


def test_loss_of_a_half_precision_model_is_float32(make_batch: MakeBatch) -> None:
    inputs, targets, weights = CausalLM().prepare(make_batch("ACGT"))
    logits = torch.zeros(*inputs.shape, 16, dtype=torch.bfloat16)
    output = score_targets(logits, targets, weights)
    assert output.loss_sum.dtype == torch.float32
    assert output.loss_sum.item() == pytest.approx(3 * LOG16)


def test_bad_options_and_models_are_refused(make_batch: MakeBatch) -> None:
    with pytest.raises(InputError, match="special_tokens"):
        CausalLM(special_tokens="bos")  # pyright: ignore
    with pytest.raises(InputError, match="negative"):
        CausalLM(soft_mask_weight=-1)
    with pytest.raises(InputError, match="must agree"):
        score_targets(torch.zeros(1, 2, 16), torch.zeros(1, 3).long(), torch.ones(1, 3))
