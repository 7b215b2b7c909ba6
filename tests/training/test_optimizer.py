"""Muon: which parameters it takes, what its update is, and that a run with it resumes exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import megabase as mb
from megabase.errors import ConfigError
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.settings import DeviceConfig, OptimConfig, Stage, TrainConfig
from megabase.training.optimizer import build_optimizer


def model() -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layer": 2, "max_seq_len": 34}
    return HyenaDNAForCausalLM(HyenaDNAConfig(**shape))


def test_muon_takes_the_matrices_of_the_layers() -> None:
    module = model()
    optimizer = build_optimizer(module, OptimConfig(name="muon"))
    taken = {
        id(p) for group in optimizer.param_groups if group.get("muon") for p in group["params"]
    }
    names = {name for name, p in module.named_parameters() if id(p) in taken}
    assert {name.split(".layers.")[1].split(".", 1)[1] for name in names} == {
        "mixer.in_proj.weight", "mixer.out_proj.weight", "mlp.fc1.weight", "mlp.fc2.weight",
    }  # fmt: skip
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == sum(p.requires_grad for p in module.parameters())


def test_the_update_is_the_momentum_with_singular_values_near_one() -> None:
    module = model()
    settings = OptimConfig(name="muon", lr=0.1, weight_decay=0.5, betas=(0.9, 0.95))
    optimizer = build_optimizer(module, settings)
    weight = module.get_parameter("hyena.backbone.layers.0.mixer.out_proj.weight")
    before, momentum = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        momentum = 0.95 * momentum + 0.05 * weight.grad
        start = weight.detach().clone()
        optimizer.step()
        moved = (start * (1 - 0.1 * 0.5) - weight.detach()) / 0.1
        u, s, v = torch.linalg.svd(0.05 * weight.grad + 0.95 * momentum)
        kept = s > 0.1 * s[0]  # what is very small is brought less far
        sizes = (u.T @ moved @ v.T).diagonal() / (0.2 * 32**0.5)
        assert sizes[kept].min() > 0.6
        assert sizes[kept].max() < 1.3
    assert not torch.equal(before, weight)


def test_stacked_square_matrices_are_taken_one_by_one() -> None:
    module = model()
    weight = module.get_parameter("hyena.backbone.layers.0.mixer.in_proj.weight")
    settings = OptimConfig(name="muon", lr=1.0, weight_decay=0.5)
    optimizer = build_optimizer(module, settings)
    weight.grad = torch.randn_like(weight)
    start = weight.detach().clone()
    optimizer.step()
    blocks = zip((start * 0.5 - weight.detach()).split(32), weight.grad.split(32), strict=True)
    for moved, gradient in blocks:
        u, s, v = torch.linalg.svd(gradient)
        sizes = (u.T @ moved @ v.T).diagonal()[s > 0.1 * s[0]] / (0.2 * 32**0.5)
        assert sizes.min() > 0.6
        assert sizes.max() < 1.3


def test_muon_without_weight_decay_takes_the_same_matrices() -> None:
    def taken(decay: float) -> list[int]:
        groups = build_optimizer(model(), OptimConfig(name="muon", weight_decay=decay)).param_groups
        return [p.numel() for group in groups if group.get("muon") for p in group["params"]]

    assert sorted(taken(0.0)) == sorted(taken(0.1)) != []


def test_muon_with_nothing_to_take_is_refused() -> None:
    module = model()
    for name, parameter in module.named_parameters():
        parameter.requires_grad = ".layers." not in name
    with pytest.raises(ConfigError, match="none is trained here; take adamw"):
        build_optimizer(module, OptimConfig(name="muon"))


def test_fsdp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="muon needs whole matrices"):
        TrainConfig(
            output=str(tmp_path), steps=1, stages=(Stage(length=8),), global_batch=1,
            optim=OptimConfig(name="muon"), devices=DeviceConfig(strategy="fsdp"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genome")
    letters = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(0))
    fasta = folder / "g.fa"
    fasta.write_text(f">a\n{''.join('ACGT'[i] for i in letters)}\n>b\n{'ACGT' * 100}\n")
    mb.Genome.build([fasta], folder / "g.mb", name="g")
    return folder / "g.mb"


def test_a_resumed_run_is_the_same_run(genome: Path, tmp_path: Path) -> None:
    def settings(name: str, resume: bool = False) -> mb.PretrainConfig:
        return mb.PretrainConfig(
            output=str(tmp_path / name), resume=resume, steps=6, global_batch=2,
            stages=(Stage(length=32),), checkpoint_every=3, eval_every=3, keep=9,
            optim=OptimConfig(name="muon", lr=1e-3),
            data=mb.DataConfig(genome=str(genome), validation=["b"]),
            model=mb.ModelConfig(d_model=32, n_layer=1),
        )  # fmt: skip

    whole, half = tmp_path / "whole", tmp_path / "half"
    mb.pretrain(settings("whole"))
    mb.pretrain(settings("half"))
    later = half / "checkpoints" / "step-00000006"
    weights = (later / "model.safetensors").read_bytes()
    for path in sorted(later.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    later.rmdir()
    (half / "result.json").unlink()
    mb.pretrain(settings("half", resume=True))
    assert weights == (later / "model.safetensors").read_bytes()
    assert (whole / "checkpoints" / later.name / "model.safetensors").read_bytes() == weights
