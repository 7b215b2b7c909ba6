from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megabase.errors import MegabaseError, ModelError
from megabase.models.adapt.prompt import (
    PromptedModel,
    PromptSpec,
    label_letters,
    load_prompt,
    save_prompt,
)
from megabase.models.base import checkpoint_activations
from megabase.models.checkpoints.checks import weights_hash
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM

IDS = torch.tensor([[7, 8, 9, 10, 7, 7], [10, 9, 8, 7, 11, 8]])
SEP = 1


def build(family: str = "hyenadna", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    if family == "gpt":
        config: Any = GPTConfig(
            d_model=8, n_layer=2, num_heads=2, max_position_embeddings=20, **options
        )
        return GPTForCausalLM(config).eval()
    if family == "mamba":
        return MambaForCausalLM(MambaConfig(d_model=8, n_layer=2, **options)).eval()
    config = HyenaDNAConfig(d_model=8, n_layer=2, max_seq_len=20, filter_order=8, **options)
    return HyenaDNAForCausalLM(config).eval()


def tokens(length: int, position: Any = "before", **options: Any) -> PromptSpec:
    return PromptSpec(
        length=length, classes=("a", "b"), position=position, letters="AN", label_ids=(7, 11),
        end_id=SEP, **options,
    )  # fmt: skip


def head(length: int, position: Any = "before", **options: Any) -> PromptSpec:
    options = {"over": "sequence" if position == "before" else "all", **options}
    return PromptSpec(
        length=length, classes=("a", "b"), position=position, answer="head", **options
    )


def by_hand(model: Any, parts: list[Tensor]) -> Tensor:
    """Logits of the concatenated embeddings (1, length, width)."""
    return model(inputs_embeds=torch.cat(parts, dim=1)).logits


@pytest.mark.parametrize("family", ["hyenadna", "gpt", "mamba"])
@pytest.mark.parametrize("position", ["before", "after", "both"])
def test_positions_are_those_of_a_concatenation(family: str, position: str) -> None:
    model = build(family)
    prompted = PromptedModel(model, tokens(3, position))
    assert prompted.vectors is not None
    table = model.get_input_embeddings()
    vectors = prompted.vectors[None].expand(2, -1, -1)
    cut = {"before": 3, "after": 0, "both": 2}[position]
    parts = [vectors[:, :cut], table(IDS), vectors[:, cut:], table(torch.tensor([[SEP]] * 2))]
    with torch.no_grad():
        said = prompted(IDS)
        expected = by_hand(model, parts)[:, -1]
    torch.testing.assert_close(said.token_logits, expected)
    log = expected.log_softmax(-1)
    torch.testing.assert_close(said.logits, log[:, [7, 11]])


@pytest.mark.parametrize("family", ["hyenadna", "gpt", "mamba"])
def test_no_vectors_is_the_plain_model(family: str) -> None:
    model = build(family)
    prompted = PromptedModel(model, tokens(0, restricted=True))
    with torch.no_grad():
        expected = model(torch.cat([IDS, torch.tensor([[SEP]] * 2)], dim=1)).logits[:, -1]
        said = prompted(IDS)
    torch.testing.assert_close(said.token_logits, expected)
    torch.testing.assert_close(said.logits, expected[:, [7, 11]])
    assert prompted.trained_parameters == 0
    assert list(prompted.state_dict()) == []


@pytest.mark.parametrize("family", ["hyenadna", "gpt", "mamba"])
@pytest.mark.parametrize("position", ["before", "after", "both"])
def test_padding_behind_changes_nothing(family: str, position: str) -> None:
    for spec in (tokens(3, position), head(3, position)):
        prompted = PromptedModel(build(family), spec)
        padded = torch.tensor([[7, 8, 9, 10, 7, 7], [10, 9, 8, 7, 4, 4]])
        mask = (padded != 4).long()
        with torch.no_grad():
            together = prompted(padded, attention_mask=mask).logits
            alone = torch.cat([prompted(padded[:1]).logits, prompted(padded[1:, :4]).logits])
        torch.testing.assert_close(together, alone)


def test_padding_in_front_stays_between_prompt_and_sequence() -> None:
    model = build(mask_padding=False)
    prompted = PromptedModel(model, tokens(2))
    assert prompted.vectors is not None
    padded = torch.tensor([[4, 4, 7, 8]])
    table = model.get_input_embeddings()
    parts = [prompted.vectors[None], table(padded), table(torch.tensor([[SEP]]))]
    with torch.no_grad():
        said = prompted(padded, attention_mask=torch.tensor([[0, 0, 1, 1]])).token_logits
        torch.testing.assert_close(said, by_hand(model, parts)[:, -1])


def test_head_pools_what_it_is_told_to() -> None:
    model = build()
    for over, where in (
        ("sequence", slice(1, 7)), ("all", slice(0, 8)), ("prompt", [0, 7]),
    ):  # fmt: skip
        prompted = PromptedModel(model, head(2, "both", over=over))
        assert prompted.vectors is not None
        assert prompted.head is not None
        vectors = prompted.vectors[None].expand(2, -1, -1)
        parts = [vectors[:, :1], model.get_input_embeddings()(IDS), vectors[:, 1:]]
        with torch.no_grad():
            hidden = model.hyena(inputs_embeds=torch.cat(parts, dim=1)).last_hidden_state
            expected = prompted.head(hidden[:, where].mean(dim=1))
            torch.testing.assert_close(prompted(IDS).logits, expected)


def test_an_answer_for_every_nucleotide() -> None:
    model = build()
    prompted = PromptedModel(model, head(2, "before", kind="nucleotides"))
    assert prompted.vectors is not None
    assert prompted.head is not None
    parts = [prompted.vectors[None].expand(2, -1, -1), model.get_input_embeddings()(IDS)]
    with torch.no_grad():
        hidden = model.hyena(inputs_embeds=torch.cat(parts, dim=1)).last_hidden_state
        said = prompted(IDS).logits
        torch.testing.assert_close(said, prompted.head(hidden[:, 2:]))
    assert said.shape == (2, 6, 2)


@pytest.mark.parametrize("family", ["hyenadna", "gpt", "mamba"])
def test_only_the_prompt_learns(family: str) -> None:
    model = build(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prompted = PromptedModel(model, tokens(3), dropout=0.1).train()
    optimizer = torch.optim.AdamW(prompted.parameters(), lr=0.1)
    assert [name for name, _ in prompted.named_parameters()] == ["vectors"]
    assert prompted.vectors is not None
    start = prompted.vectors.detach().clone()
    for _ in range(3):
        prompted(IDS).logits[:, 0].sum().backward()
        assert all(p.grad is None for p in model.parameters())
        assert prompted.vectors.grad is not None
        assert bool((prompted.vectors.grad != 0).any(dim=1).all())
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(start, prompted.vectors)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_mode_and_type_reach_the_frozen_model() -> None:
    prompted = PromptedModel(build(), tokens(1))
    assert prompted.train().model.training
    assert not prompted.eval().model.training
    prompted.double()
    assert prompted(IDS).logits.dtype == next(prompted.model.parameters()).dtype == torch.float64


def test_the_limit_of_the_model() -> None:
    prompted = PromptedModel(build(), tokens(8))
    assert prompted.max_length == 11
    prompted(torch.full((1, 11), 7))
    with pytest.raises(ModelError, match="reads 20; shorten the sequence to 11 tokens"):
        prompted(torch.full((1, 12), 7))
    with pytest.raises(ModelError, match="leaves no room"):
        PromptedModel(build(), tokens(19))
    assert PromptedModel(build("mamba"), tokens(8)).max_length is None


@pytest.mark.parametrize("answer", ["label_tokens", "head"])
def test_saved_prompt_round_trip(tmp_path: Any, answer: str) -> None:
    model = build()
    model.save_pretrained(tmp_path / "model")
    spec = tokens(3, "both") if answer == "label_tokens" else head(3, "both", pooling="max")
    prompted = PromptedModel(model, spec).eval()
    save_prompt(prompted, tmp_path / "prompt", model=str(tmp_path / "model"))
    for again in (load_prompt(tmp_path / "prompt"), load_prompt(tmp_path / "prompt", model)):
        assert again.spec == spec
        assert not again.training
        assert again.config.id2label == {0: "a", 1: "b"}
        with torch.no_grad():
            torch.testing.assert_close(again(IDS).logits, prompted(IDS).logits)
    assert sum(file.stat().st_size for file in (tmp_path / "prompt").iterdir()) < 3000


def test_a_prompt_of_another_model_is_refused(tmp_path: Any) -> None:
    save_prompt(PromptedModel(build(), tokens(3)), tmp_path, model="mine")
    with pytest.raises(ModelError, match="belongs to another model: it was made for mine"):
        load_prompt(tmp_path, build(seed=1))
    assert weights_hash(build()) == weights_hash(build()) == weights_hash(build().hyena)
    assert weights_hash(build()) != weights_hash(build(seed=1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "prompt.json").unlink(), "holds no prompt.json"),
        (lambda folder: (folder / "prompt.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "prompt.json").write_text('{"format": 9}'), "format 9"),
        (lambda folder: (folder / "prompt.safetensors").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_damaged_prompts(tmp_path: Any, damage: Any, message: str) -> None:
    save_prompt(PromptedModel(build(), tokens(3)), tmp_path, model="mine")
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_prompt(tmp_path, build())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: label_letters(6), "letters for 2 to 5 classes, found 6"),
        (lambda: PromptSpec(length=1, classes=("a", "b"), kind="regression"), "need the head"),
        (lambda: head(1, kind="nucleotides", position="after"), "cannot change"),
        (lambda: head(1, position="after", over="sequence"), "cannot change"),
        (lambda: head(1, over="prompt"), "does not see it"),
        (lambda: head(0, over="prompt"), "there are none"),
        (lambda: head(1, pooling="median"), "pooling is 'median'"),
    ],
)
def test_what_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(MegabaseError, match=message):
        PromptedModel(build(), make())


def test_families_without_prompts() -> None:
    from megabase.models.cnn import GenomicCNNConfig, GenomicCNNForSequenceClassification

    with pytest.raises(ModelError, match="cannot read a soft prompt; models of the families hye"):
        PromptedModel(GenomicCNNForSequenceClassification(GenomicCNNConfig()), head(1))
    with pytest.raises(ModelError, match="has no next-token head"):
        PromptedModel(build().hyena, tokens(1))
    with pytest.raises(ModelError, match="looks ahead"):
        PromptedModel(build(bidirectional="two_sided"), tokens(1))


@pytest.mark.parametrize("family", ["hyenadna", "gpt", "mamba"])
@pytest.mark.parametrize(("position", "length"), [("before", 3), ("after", 3), ("both", 4)])
def test_every_layer_reads_tokens_of_its_own(family: str, position: str, length: int) -> None:
    model = build(family)
    before = {"before": length, "after": 0, "both": -(-length // 2)}[position]
    prompted = PromptedModel(model, tokens(length, position, layers="all"))
    vectors, deeper = prompted.vectors, prompted.deeper
    assert vectors is not None
    assert deeper is not None
    assert deeper.shape == (1, length, 8)
    ids = IDS[:, :5]
    said = prompted(ids)
    places = [*range(before), *range(before + 5, length + 5)]
    seen = []

    def replace(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, residual, *rest = given
        total = hidden + residual
        for place, vector in zip(places, deeper[0], strict=True):
            total[:, place] = vector
        seen.append(total)
        return total, None, *rest

    base = model.base_model
    table = model.get_input_embeddings()
    own = vectors[None].expand(2, -1, -1)
    parts = [own[:, :before], table(ids), own[:, before:]]
    parts.append(table(torch.tensor([[SEP]] * 2)))
    hook = getattr(base, "backbone", base).layers[1].register_forward_pre_hook(replace)
    expected = by_hand(model, parts)[:, -1]
    hook.remove()
    assert len(seen) == 1
    torch.testing.assert_close(said.token_logits, expected)
    said.logits.sum().backward()
    assert deeper.grad is not None
    assert deeper.grad.abs().sum() > 0
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_tokens_of_every_layer_stay_where_padding_moves_them() -> None:
    prompted = PromptedModel(build(), tokens(4, "both", layers="all"))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        padded = prompted(IDS[:1], mask)
        whole = prompted(IDS[:1, :4])
    torch.testing.assert_close(padded.logits, whole.logits)


def test_tokens_of_every_layer_are_saved(tmp_path: Path) -> None:
    model = build()
    prompted = PromptedModel(model, head(3, layers="all")).eval()
    save_prompt(prompted, tmp_path, model="m")
    again = load_prompt(tmp_path, model)
    assert again.spec.layers == "all"
    assert again.trained_parameters == 3 * 8 * 2 + 2 * 8 + 2
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, prompted(IDS).logits)


def test_a_prompt_of_before_there_were_layers_to_choose_loads(tmp_path: Path) -> None:
    model = build()
    save_prompt(PromptedModel(model, head(3)), tmp_path, model="m")
    record = json.loads((tmp_path / "prompt.json").read_text())
    assert record.pop("layers") == "first"
    (tmp_path / "prompt.json").write_text(json.dumps(record))
    assert load_prompt(tmp_path, model).spec.layers == "first"


@pytest.mark.parametrize("family", ["hyenadna", "gpt", "mamba"])
def test_layers_that_are_computed_again_read_their_tokens_again(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(family)
        torch.manual_seed(1)
        prompted = PromptedModel(model, tokens(3, layers="all")).train()
        if checkpointing:
            checkpoint_activations(prompted.model)
        prompted(IDS).logits.sum().backward()
        assert prompted.deeper is not None
        gradients.append(prompted.deeper.grad)
    torch.testing.assert_close(*gradients)
