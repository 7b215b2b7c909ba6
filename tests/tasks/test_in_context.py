from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.made_tables import write_table

from megabase.errors import ConfigError
from megabase.models import load_model, load_prompt
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer
from megabase.settings import DeviceConfig, OptimConfig
from megabase.tasks.config import InContextConfig
from megabase.tasks.in_context import in_context
from megabase.tasks.sweep import sweep


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=8, n_layer=2, max_seq_len=80, filter_order=8, embed_dropout=0.0)
    made = HyenaDNAForCausalLM(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1 and "implicit" not in name:
                parameter.mul_(10)
    folder = tmp_path / "model"
    made.save_pretrained(folder)
    DNATokenizer().save_pretrained(folder)
    return str(folder)


def settings(tmp_path: Path, model: str, **options: Any) -> InContextConfig:
    return InContextConfig(
        train=write_table(tmp_path / "train.csv", 40, 0, 10, "sequence,label"),
        test=write_table(tmp_path / "test.csv", 12, 1, 10, "sequence,label"),
        model=model,
        **{"output": str(tmp_path / "run"), **options},
        devices=DeviceConfig(accelerator="cpu", devices=1),
    )


def test_asked_as_it_is(tmp_path: Path, model: str) -> None:
    result = in_context(settings(tmp_path, model, shots=0))
    assert result is not None
    assert (result.trained_parameters, result.steps, result.samples) == (0, 0, 0)
    assert result.letters == {"a": "A", "g": "N"}
    assert result.rows == {"train": 40, "test": 12}
    # By hand: the sequence, a separator, and the next token.
    plain, loss = load_model(model), 0.0
    tokenizer = DNATokenizer()
    for line in (tmp_path / "test.csv").read_text().split()[1:]:
        letters, label = line.split(",")
        ids = tokenizer(letters, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = plain(torch.cat([ids, torch.tensor([[1]])], dim=1)).logits[0, -1]
        loss -= float(logits.log_softmax(-1)[7 if label == "a" else 11]) / 12
    assert result.test["loss"] == pytest.approx(loss, rel=1e-5)


def test_instruction_tuning_trains_all_weights(tmp_path: Path, model: str) -> None:
    before = (Path(model) / "model.safetensors").read_bytes()
    config = settings(
        tmp_path, model, tune="all", shots=1, samples=16, global_batch=4,
        optim=OptimConfig(lr=1e-2, weight_decay=0.0, schedule="constant", warmup_steps=0),
    )  # fmt: skip
    result = in_context(config)
    untouched = in_context(settings(tmp_path, model, output=str(tmp_path / "2")))
    assert result is not None
    assert untouched is not None
    assert (Path(model) / "model.safetensors").read_bytes() == before
    assert (result.samples, result.steps, result.best_step) == (16, 4, None)
    tuned, start = load_model(tmp_path / "run"), load_model(model)
    assert result.trained_parameters == sum(p.numel() for p in start.parameters())
    changed = [
        not torch.equal(one, other)
        for one, other in zip(tuned.parameters(), start.parameters(), strict=True)
    ]
    assert sum(changed) > 0.9 * len(changed)
    assert result.test["loss"] < untouched.test["loss"] - 0.3


def test_a_soft_prompt_in_front_of_examples(tmp_path: Path, model: str) -> None:
    config = settings(
        tmp_path, model, tune="prompt", shots=1, vectors=3, epochs=2, global_batch=4,
        reverse_complement=0.5, dropout=0.0, optim=OptimConfig(lr=0.1, weight_decay=0.0),
    )  # fmt: skip
    result = in_context(config)
    assert result is not None
    assert (result.trained_parameters, result.rows["valid"], result.tokens) == (24, 4, 40)
    assert result.best_step is not None
    prompted = load_prompt(tmp_path / "run")
    plain, found = load_model(model).state_dict(), prompted.model.state_dict()
    assert all(torch.equal(plain[name], found[name]) for name in plain)
    # The saved prompt brings examples of its own, and equals the model asked by hand.
    assert prompted.vectors is not None
    assert len(prompted.spec.examples) == 2 * 13
    sequence = torch.tensor([[7, 8, 9]])
    ids = torch.tensor([[*prompted.spec.examples, *[4] * 7, 7, 8, 9, 1]])
    table: Any = prompted.model.get_input_embeddings()
    joined = torch.cat([prompted.vectors[None], table(ids)], dim=1)
    with torch.no_grad():
        expected: Any = prompted.model(inputs_embeds=joined).logits[:, -1]
        torch.testing.assert_close(prompted(sequence).token_logits, expected)
        padded = torch.tensor([[7, 8, 9, 4]])
        mask = torch.tensor([[1, 1, 1, 0]])
        torch.testing.assert_close(prompted(padded, mask).token_logits, expected)


def test_a_grid_resumes_to_the_same_table(tmp_path: Path, model: str) -> None:
    options: dict[str, Any] = {"tune": "all", "global_batch": 4}
    config = settings(tmp_path, model, **options)
    grid = {"shots": [0, 1], "samples": [4, 8]}
    swept = sweep(config, grid)
    assert [(r.shots, r.samples, r.steps) for r in swept.results] == [
        (0, 4, 1), (0, 8, 2), (1, 4, 1), (1, 8, 2),
    ]  # fmt: skip
    (tmp_path / "run" / "shots-1-samples-8" / "result.json").unlink()
    again = sweep(settings(tmp_path, model, resume=True, **options), grid)
    assert again.table.equals(swept.table)


def test_published_examples_are_an_option_that_says_so(tmp_path: Path, model: str) -> None:
    result = in_context(settings(tmp_path, model, examples="published", test_rows=6))
    assert result is not None
    assert result.examples == "published"
    assert "6 of 12 test sequences" in result.notes[0]
    assert "labels of the split that it is measured on" in result.notes[1]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["notes"] == result.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 4}, r"make 115 tokens, and .* reads 80; take shots of at most 2"),
        ({"shots": 0, "max_length": 99}, r"make 100 tokens, and .* reads 80; take shorter"),
    ],
)
def test_questions_must_fit(
    tmp_path: Path, model: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        in_context(settings(tmp_path, model, **options))
    assert not (tmp_path / "run").exists()


def test_longer_sequences_are_counted(tmp_path: Path, model: str) -> None:
    with pytest.warns(UserWarning, match="are cut to 6 bases") as caught:
        in_context(settings(tmp_path, model, max_length=6), dry_run=True)
    said = [str(warning.message) for warning in caught]
    assert said[0].startswith("40 of 40 sequences of ")
    assert said[1].startswith("12 of 12 sequences of ")
    assert said[1].endswith("test.csv are cut to 6 bases")
