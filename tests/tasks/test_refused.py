"""Settings that contradict one another are refused before a file is written, by a message that
names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megabase.errors import MegabaseError
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer
from megabase.settings import DeviceConfig, HeadConfig
from megabase.tasks.config import (
    DataConfig,
    FinetuneConfig,
    GenomeConfig,
    InContextConfig,
    PromptConfig,
    PromptSettings,
    TableConfig,
)
from megabase.tasks.finetune import finetune
from megabase.tasks.in_context import in_context
from megabase.tasks.prompt import learn_prompt

CPU = DeviceConfig(accelerator="cpu", devices=1)


def labeled(make: type, **options: Any) -> Callable[[], Any]:
    given: dict[str, Any] = {"train": "t.csv", "output": "o", "devices": CPU}
    if make is not FinetuneConfig:
        given["model"] = "default"
    return lambda: make(**{**given, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(genome=""), "data.genome is empty"),
        (lambda: GenomeConfig(center="summit"), "needs genome.length"),
        (lambda: GenomeConfig(background=""), "genome.background is empty"),
        (lambda: GenomeConfig(bin=4, length=10, tracks=["a=a.bw"]), "multiple"),
        (lambda: GenomeConfig(bin=4), "only genome.tracks"),
        (labeled(FinetuneConfig, train=""), "train is empty"),
        (
            labeled(FinetuneConfig, devices=DeviceConfig(accelerator="cpu", context_parallel=2)),
            "only pretraining",
        ),
        (labeled(PromptConfig, head=HeadConfig(freeze=True)), "always frozen"),
        (labeled(PromptConfig, head=HeadConfig(loss="mse")), "are for finetune"),
        (
            labeled(
                PromptConfig,
                prompt=PromptSettings(answer="label_tokens"),
                head=HeadConfig(special_tokens="yes"),
            ),
            "head.special_tokens is for prompt.answer head",
        ),
        (
            labeled(PromptConfig, prompt=PromptSettings(answer="head", letters="labels")),
            "label_tokens",
        ),
        (labeled(InContextConfig, valid="v.csv"), "tune prompt"),
    ],
)
def test_settings(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(MegabaseError, match=message):
        make()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A causal and a masked model, and rows: of two classes, and with numbers."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"d_model": 8, "n_layer": 1}
    small_hyena = {"max_seq_len": 80, "filter_order": 8, **small}
    both = HyenaDNAConfig(bidirectional="two_sided", **small_hyena)
    for name, made in (
        ("causal", HyenaDNAForCausalLM(HyenaDNAConfig(**small_hyena))),
        ("both", HyenaDNAForCausalLM(both)),
        ("masked", CaduceusForMaskedLM(CaduceusConfig(**small))),
    ):  # fmt: skip
        made.save_pretrained(tmp_path / name)
        DNATokenizer().save_pretrained(tmp_path / name)
    for name, labels in (("classes", "ab"), ("numbers", ("0.5", "1.5")), ("unknown", ("", ""))):
        rows = "".join(f"{'ACGT' * (3 + i % 2)},{labels[i % 2]}\n" for i in range(16))
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + rows)
    return {path.stem: str(path) for path in tmp_path.iterdir()} | {"output": str(tmp_path / "o")}


def test_tasks(files: dict[str, str]) -> None:
    common: dict[str, Any] = {"output": files["output"], "devices": CPU}
    classes = {"train": files["classes"], **common}
    cases: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: learn_prompt(PromptConfig(model=files["masked"], **classes)),
            "cannot read a soft prompt",
        ),
        (lambda: in_context(InContextConfig(model=files["masked"], **classes)), "families"),
        (lambda: in_context(InContextConfig(model=files["both"], **classes)), "looks ahead"),
        (
            lambda: in_context(
                InContextConfig(
                    model=files["causal"],
                    tune="prompt",
                    table=TableConfig(validation_fraction=0.0),
                    **classes,
                )
            ),
            "no validation rows",
        ),
        (
            lambda: learn_prompt(
                PromptConfig(
                    model=files["causal"],
                    train=files["numbers"],
                    prompt=PromptSettings(answer="label_tokens"),
                    table=TableConfig(kind="regression"),
                    **common,
                )
            ),
            "label_tokens, which is for classes",
        ),
        (
            lambda: finetune(
                FinetuneConfig(
                    model=files["causal"],
                    train=files["unknown"],
                    table=TableConfig(kind="regression"),
                    **common,
                )
            ),
            "known",
        ),
    ]
    for run, message in cases:
        with pytest.raises(MegabaseError, match=message):
            run()
        assert not Path(files["output"]).exists()
