"""transformers and peft write sequences with our models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import pipeline, set_seed

from megabase.errors import ConfigError
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM
from megabase.models.tokenizers.character import DNATokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LETTERS = [7, 8, 9, 10, 11]
PROMPT = torch.tensor([[7, 8, 9, 10, 7, 7], [9, 9, 8, 7, 10, 8]])


def _hyenadna(**settings: Any) -> HyenaDNAForCausalLM:
    return HyenaDNAForCausalLM(
        HyenaDNAConfig(d_model=16, n_layer=2, max_seq_len=64, attention_heads=2, **settings)
    )


MODELS = {
    "hyenadna": _hyenadna,
    "hyenadna attention": lambda: _hyenadna(attention_layers=[1]),
    "gpt": lambda: GPTForCausalLM(
        GPTConfig(d_model=16, n_layer=2, num_heads=2, max_position_embeddings=64)
    ),
    "mamba": lambda: MambaForCausalLM(MambaConfig(d_model=16, n_layer=2, ssm_cfg={"d_state": 4})),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    """A model whose head prefers special tokens and unused rows."""
    set_seed(3)
    model: Any = MODELS[request.param]().eval()
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.normal_()
        others = [row for row in range(16) if row not in LETTERS]
        head[others] *= 20
    return model


def _argmax(model: Any, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Write the best letter of full passes, token by token."""
    for _ in range(tokens):
        letters = model(ids).logits[:, -1, LETTERS].argmax(dim=-1)
        ids = torch.cat([ids, letters[:, None] + LETTERS[0]], dim=1)
    return ids


@pytest.mark.parametrize("use_cache", [None, True, False])
def test_greedy_is_the_argmax_of_full_passes(model: Any, use_cache: bool | None) -> None:
    written = model.generate(PROMPT, max_new_tokens=12, do_sample=False, use_cache=use_cache)
    assert torch.equal(written, _argmax(model, PROMPT, 12))


def test_beams_have_the_best_sequence_of_full_passes(model: Any) -> None:
    """As wide as there are sequences: the search is exhaustive."""
    written = model.generate(PROMPT, max_new_tokens=2, num_beams=25, do_sample=False)
    for row, prompt in zip(written, PROMPT, strict=True):
        pairs = torch.cartesian_prod(torch.tensor(LETTERS), torch.tensor(LETTERS))
        rows = torch.cat([prompt.expand(len(pairs), -1), pairs], dim=1)
        # Scores before the special tokens are left out, as the beams of transformers have them.
        scores = model(rows).logits.log_softmax(dim=-1)
        first = scores[:, -3].gather(1, pairs[:, :1])
        total = first + scores[:, -2].gather(1, pairs[:, 1:])
        assert torch.equal(row[-2:], pairs[total[:, 0].argmax()])


def test_only_letters_are_drawn(model: Any) -> None:
    set_seed(5)
    written = model.generate(PROMPT, max_new_tokens=30, do_sample=True, temperature=5.0, top_k=0)
    assert written.shape == (2, 36)
    assert set(written.unique().tolist()) <= set(LETTERS)


def test_given_vectors_are_a_prompt(model: Any) -> None:
    vectors = model.get_input_embeddings()(PROMPT)
    written = model.generate(inputs_embeds=vectors, max_new_tokens=6, do_sample=False)
    assert torch.equal(written, _argmax(model, PROMPT, 6)[:, PROMPT.shape[1] :])


def test_the_text_generation_pipeline(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    DNATokenizer().save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path), tokenizer=DNATokenizer())
    assert write.model.generation_config is not None
    (output,) = write("ACGTAA", max_new_tokens=8, do_sample=False)
    text = output["generated_text"]
    assert text.startswith("ACGTAA")
    assert set(text) <= set("ACGTN")
    assert len(text) == 14


def test_the_end_behind_a_prompt_is_not_read(model: Any) -> None:
    """As tokenizers end what they read, letters would be written after the end."""
    tokenizer = DNATokenizer()
    ended = tokenizer(["ACGTAA"], return_tensors="pt")
    bare = tokenizer(["ACGTAA"], return_tensors="pt", add_special_tokens=False)
    assert ended["input_ids"][0, -1] == tokenizer.sep_token_id
    after = model.generate(**ended, max_new_tokens=5, do_sample=False)
    assert torch.equal(after[:, :7], ended["input_ids"])
    wanted = model.generate(**bare, max_new_tokens=5, do_sample=False)[:, 6:]
    assert torch.equal(after[:, 7:], wanted)
    assert torch.equal(wanted, _argmax(model, bare["input_ids"], 5)[:, 6:])
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    text = write("ACGTAA", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text == "ACGTAA" + tokenizer.decode(wanted[0])
    mixed = torch.cat([ended["input_ids"], ended["input_ids"].roll(1, 1)])
    for prompt in (mixed, ended["input_ids"][:, -1:]):
        with pytest.raises(ConfigError, match=r"end token.*add_special_tokens=False"):
            model.generate(prompt, max_new_tokens=2)


def test_peft_adapts_and_writes(model: Any) -> None:
    linear = "in_proj" if "Wqkv" not in str(model) or "in_proj" in str(model) else "Wqkv"
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[linear], r=2)
    adapted = peft.get_peft_model(model, settings)
    adapted(input_ids=PROMPT, labels=PROMPT).loss.backward()
    adapted.eval()
    written = adapted.generate(input_ids=PROMPT, max_new_tokens=5, do_sample=False)
    assert torch.equal(written, _argmax(adapted, PROMPT, 5))


def test_peft_trains_and_writes_with_a_prompt(model: Any) -> None:
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    prompted = peft.get_peft_model(model, settings)
    prompted(input_ids=PROMPT, labels=PROMPT).loss.backward()
    prompted.eval()
    mask = torch.ones_like(PROMPT)
    written = prompted.generate(
        input_ids=PROMPT, attention_mask=mask, max_new_tokens=5, do_sample=False
    )
    vectors = torch.cat(
        [prompted.get_prompt(2, task_ids=None), model.get_input_embeddings()(PROMPT)], dim=1
    )
    letters = model(inputs_embeds=vectors).logits[:, -1, LETTERS].argmax(dim=-1) + LETTERS[0]
    assert torch.equal(written[:, 6], letters)
    assert written.shape == (2, 11)


@pytest.mark.parametrize("rcps", [False, True])
def test_peft_trains_a_prompt_of_a_masked_model(rcps: bool) -> None:
    config = CaduceusConfig(d_model=16, n_layer=2, ssm_cfg={"d_state": 4}, rcps=rcps)
    settings = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4)
    prompted = peft.get_peft_model(CaduceusForMaskedLM(config), settings)
    hidden = prompted(input_ids=PROMPT, output_hidden_states=True).hidden_states[-1]
    assert hidden.shape == (2, 10, config.hidden_size)


def test_no_limit_is_claimed_that_the_model_has_not(
    model: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model.generate(PROMPT, max_new_tokens=3, do_sample=False)
    assert "predefined maximum length" not in caplog.text
