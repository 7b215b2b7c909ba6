"""transformers' Trainer drives: one step is one step, however its sequences are split.

Run as a program under torchrun, it takes one step in several processes and prints what rank 0 saw.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.made_models import make, needs_name
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from megabase.errors import MegabaseError

SEQUENCES, LENGTH = 16, 60

_ATTENTION_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_SETTINGS: dict[str, dict[str, Any]] = {
    "hyenadna": {"embed_dropout": 0.0},
    "gpt": {"embed_dropout": 0.0, "attention_dropout": 0.0},
    "dnabert": _ATTENTION_OFF,
    "bigbird": {**_ATTENTION_OFF, "attention_type": "original_full"},
    "cnn": {"max_length": LENGTH},
    "deepsea": {"max_length": LENGTH, "kernel": 3, "pool": 2, "dropout": (0, 0, 0)},
}
"""Without dropout, and for inputs of this length."""
_CLASSES = ("sequence-classification", "classes")
_BASES = ("token-classification", "nucleotides")
_SEVERAL = {"num_labels": 3, "problem_type": "multi_label_classification"}
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "hyenadna": ("hyenadna", "causal-lm", "tokens", {}),
    "hyenadna attention": ("hyenadna", "causal-lm", "tokens", {"attention_layers": [1]}),
    "hyenadna regression": ("hyenadna", _CLASSES[0], "numbers", {"num_labels": 1}),
    "hyenadna several labels": ("hyenadna", _CLASSES[0], "several", _SEVERAL),
    "gpt": ("gpt", "causal-lm", "tokens", {}),
    "mamba": ("mamba", "causal-lm", "tokens", {}),
    "caduceus": ("caduceus", "masked-lm", "tokens", {}),
    "caduceus-ps": ("caduceus", "masked-lm", "tokens", {"rcps": True}),
    "dnabert": ("dnabert", "masked-lm", "tokens", {}),
    "bigbird": ("bigbird", "masked-lm", "tokens", {}),
    "cnn twice a sigmoid": ("cnn", *_CLASSES, {"double_sigmoid": True}),
    "deepsea": ("deepsea", _CLASSES[0], "several", _SEVERAL),
    **{f"{family} sequences": (family, *_CLASSES, {})
       for family in ("hyenadna", "gpt", "mamba", "caduceus", "dnabert", "bigbird", "cnn")},
    **{f"{family} nucleotides": (family, *_BASES, {})
       for family in ("hyenadna", "gpt", "mamba", "caduceus")},
}  # fmt: skip


def _model(case: str) -> PreTrainedModel:
    family, kind, _, settings = CASES[case]
    set_seed(1)
    return make(family, kind, **{**_SETTINGS.get(family, {}), **settings})


def _rows(case: str) -> list[dict[str, Tensor]]:
    """Sequences of which each has another number of labels."""
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(7, 11, (SEQUENCES, LENGTH), generator=random)
    hidden = torch.arange(LENGTH) < torch.arange(SEQUENCES)[:, None] * 2
    labels = {
        "tokens": ids.masked_fill(hidden, -100),
        "nucleotides": (ids % 2).masked_fill(hidden, -100),
        "classes": torch.arange(SEQUENCES) % 2,
        "numbers": torch.randn(SEQUENCES, generator=random),
        "several": torch.randint(0, 2, (SEQUENCES, 3), generator=random).float(),
    }[CASES[case][2]]
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


class _Watched(Trainer):
    loss = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.loss += float(loss)
        return loss


class _Norm(TrainerCallback):
    value = 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        grads = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        self.value = float(torch.stack([g.double().norm() for g in grads]).norm())


def _step(case: str, batch: int, accumulate: int, **more: Any) -> tuple[float, float]:
    """Take one step with the Trainer of transformers; give the loss and the gradient's norm."""
    model, norm = _model(case), _Norm()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            # Statistics of a batch depend on the batch by nature; those it came with do not.
            module.eval()
            module.train = lambda mode=True, module=module: module
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=batch, max_steps=1, max_grad_norm=0.0,
            gradient_accumulation_steps=accumulate, report_to="none", use_cpu=True,
            save_strategy="no", disable_tqdm=True, logging_strategy="no", **more,
        )  # fmt: skip
        trainer = _Watched(model, arguments, train_dataset=_rows(case), callbacks=[norm])
        trainer.train()
    return trainer.loss, norm.value


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_accumulating_is_one_batch(case: str) -> None:
    whole, parts = _step(case, 16, 1), _step(case, 4, 4)
    assert whole[1] > 0
    assert parts == pytest.approx(whole, rel=1e-5)


@needs_name
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("case", ["hyenadna", "gpt", "mamba", "caduceus", "caduceus-ps"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_the_same_step(case: str, reentrant: bool) -> None:
    kept = _step(case, 16, 1)
    again = _step(
        case, 16, 1, activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
    )  # fmt: skip
    assert again == pytest.approx(kept, rel=1e-5)


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
        "--master_port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
        "-m", "tests.external.test_trainer", *CASES,
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.strip().splitlines()[-1])
    for case in CASES:
        assert found[case] == pytest.approx(_step(case, 16, 1), rel=1e-5), case


@pytest.mark.parametrize("case", CASES)
def test_arguments_are_refused_or_honored(case: str) -> None:
    """A name that nothing knows, and a value that asks for what there is not, are errors."""
    model = _model(case).eval()
    row = _rows(case)[3]
    inputs = {"input_ids": row["input_ids"][None], "labels": row["labels"][None]}
    plain = model(**inputs)
    same = model(**inputs, use_cache=True, past_key_values=None, output_attentions=False)
    assert torch.equal(plain.logits, same.logits)
    assert torch.equal(plain.loss, same.loss)
    with pytest.raises(MegabaseError, match="no argument 'typo_kw'; its forward pass takes input"):
        model(**inputs, typo_kw=3)
    with pytest.raises(MegabaseError, match="past_key_values"):
        model(**inputs, past_key_values=object())
    counted = model(**inputs, num_items_in_batch=1000).loss
    labels = inputs["labels"][:, 1:] if "CausalLM" in type(model).__name__ else inputs["labels"]
    number = int((labels != -100).sum())
    torch.testing.assert_close(counted * 1000 / number, plain.loss)


@pytest.mark.parametrize("case", ["hyenadna", "gpt", "mamba"])
def test_labels_that_are_shifted_already(case: str) -> None:
    model, row = _model(case).eval(), _rows(case)[3]
    ids, labels = row["input_ids"][None], row["labels"][None]
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    plain = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(model(input_ids=ids, shift_labels=shifted).loss, plain)
    zeros = torch.zeros_like(labels)
    torch.testing.assert_close(model(input_ids=ids, labels=zeros, shift_labels=shifted).loss, plain)


if __name__ == "__main__":
    import torch.distributed as dist

    results = {case: list(_step(case, 8, 1)) for case in sys.argv[1:]}
    for found in results.values():
        # Trainer logs the mean over processes; each has the part of its own half, times two.
        mean = torch.tensor(found[0])
        dist.all_reduce(mean)
        found[0] = float(mean) / dist.get_world_size()
    if dist.get_rank() == 0:
        sys.stdout.write(json.dumps(results) + "\n")
    dist.destroy_process_group()
