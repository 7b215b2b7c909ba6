"""Modules are called where their weights say not all: offload, hooks, shards, quantization."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook

from megabase.inference.attribution import attribute
from megabase.inference.embedding import embed
from megabase.inference.generation.decoding import Decoder
from megabase.inference.generation.generate import GenerateOptions, generate
from megabase.inference.scoring import score
from megabase.layers.incremental import can_stream
from megabase.layers.linear import bare
from megabase.models.auto import load_model
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

CPU = torch.device("cpu")


def _close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_offloaded_to_memory(model: Any, ids: Tensor) -> None:
    want = model(ids).logits
    cpu_offload(model, execution_device=CPU, offload_buffers=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    for _ in range(2):
        _close(model(ids).logits, want)


@pytest.mark.usefixtures("any_backend")
def test_offloaded_on_every_backend(language_model: Any, ids: Tensor) -> None:
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([0, 1]), 0)
    want, masked = language_model(ids).logits, language_model(ids, attention_mask=mask).logits
    cpu_offload(language_model, execution_device=CPU)
    _close(language_model(ids).logits, want)
    _close(language_model(ids, attention_mask=mask).logits, masked)


def test_offloaded_to_disk(language_model: Any, ids: Tensor, tmp_path: Path) -> None:
    want = language_model(ids).logits
    disk_offload(language_model, tmp_path, execution_device=CPU)
    _close(language_model(ids).logits, want)


def test_a_device_map_with_disk(language_model: Any, ids: Tensor, tmp_path: Path) -> None:
    want = language_model(ids).logits
    language_model.save_pretrained(tmp_path / "model")
    names = [name for name, _ in language_model.named_modules() if name]
    (last,) = [name for name in names if name.endswith("layers.1")]
    above = {name for name in names if last.startswith(f"{name}.")} | {"", last}
    whole = {n: "cpu" for n in names if n not in above and n.rpartition(".")[0] in above - {last}}
    loaded = type(language_model).from_pretrained(
        tmp_path / "model", device_map={**whole, last: "disk"}, offload_folder=tmp_path / "rest"
    )
    assert {p.device.type for p in loaded.get_submodule(last).parameters()} == {"meta"}
    assert len({p.device.type for p in loaded.parameters()}) == 2
    _close(loaded.eval()(ids).logits, want)


def test_reading_token_by_token(language_model: Any, ids: Tensor) -> None:
    if not getattr(
        language_model.config,
        "is_causal_model",
        type(language_model).__name__ == "MambaForCausalLM",
    ):
        pytest.skip("reads both sides")
    want = language_model(ids).logits[:, -1]
    cpu_offload(language_model, execution_device=CPU)
    steps = Decoder(language_model, batch=2, length=ids.shape[1])
    steps.prefill(ids[:, :50])
    for i in range(50, ids.shape[1]):
        found = steps.step(ids[:, i])
    _close(found, want)


def _hyena() -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, n_layer=2, max_seq_len=66, filter_order=8)
    return HyenaDNAForCausalLM(config).eval()


def test_what_is_bare() -> None:
    linear = nn.Linear(2, 2)
    assert bare(linear)
    assert not bare(linear, device=torch.device("cuda"))
    assert not bare(nn.Linear(2, 2, device="meta"))
    handle = register_module_forward_hook(lambda *_: None)
    assert not bare(linear)
    handle.remove()
    assert bare(linear)
    linear.forward = linear.forward
    assert not bare(linear)


@pytest.mark.parametrize(
    "name",
    [
        "mixer", "mixer.filter_fn", "mixer.out_proj", "mixer.short_filter", "mlp", "mlp.fc1",
        "norm1", "mixer.filter_fn.implicit_filter.2", "mixer.filter_fn.modulation",
        "mixer.filter_fn.pos_emb",
    ],
)  # fmt: skip
def test_a_replaced_forward_pass_is_run(name: str, ids: Tensor) -> None:
    model = _hyena()
    module, calls = model.hyena.backbone.layers[0].get_submodule(name), []
    forward = module.forward
    module.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    want = _hyena()(ids).logits
    _close(model(ids).logits, want)
    assert calls


def test_hooks_of_all_modules_see_every_module(language_model: Any, ids: Tensor) -> None:
    want, seen = language_model(ids).logits, set()
    with_weights = {m for m in language_model.modules() if m._parameters and m.training is False}
    handle = register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        _close(language_model(ids).logits, want)
    finally:
        handle.remove()
    assert seen >= with_weights


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_linear_maps_quantized_dynamically(language_model: Any, ids: Tensor) -> None:
    want = language_model(ids).logits
    quantized = torch.ao.quantization.quantize_dynamic(language_model, {nn.Linear}, torch.qint8)
    assert any("quantized" in type(module).__module__ for module in quantized.modules())
    found = quantized(ids).logits
    assert 0 < (found - want).abs().max() < 0.5 * want.std()


def test_inference_with_an_offloaded_model() -> None:
    model, sequences = load_model().eval(), ["ACGTTGCATTGACCATGA", "GATTACA"]

    def results() -> tuple[list[Any], list[Any]]:
        scores = score(model, sequences)
        written = generate(model, ["ACGTAC"], GenerateOptions(9, temperature=0))
        numbers = [
            scores.table["log_likelihood"].to_list(),
            embed(model, sequences).vectors,
            attribute(model, sequences[1:])[0].values,
        ]
        return [scores.provenance.model_sha256, written[0].sequence], numbers

    names, numbers = results()
    cpu_offload(model, execution_device=CPU)
    again, found = results()
    assert again == names
    for one, other in zip(found, numbers, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-3)


def test_offloaded_models_do_not_stream() -> None:
    model = _hyena()
    assert can_stream(model.hyena.backbone)
    cpu_offload(model, execution_device=CPU)
    assert not can_stream(model.hyena.backbone)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.usefixtures("one_process")
def test_linear_maps_sharded_each_by_itself(language_model: Any, ids: Tensor) -> None:
    if getattr(language_model.config, "bidirectional_weight_tie", False):
        pytest.skip("torch wants tied projections in one group")
    want = language_model(ids).logits
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    for name, module in reversed(list(language_model.named_modules())):
        own = [n for n, _ in module.named_parameters(recurse=False) if n != "freq"]
        if own and "embedding" not in name and name != "lm_head":  # tied
            fully_shard(module, mesh=mesh)
    fully_shard(language_model, mesh=mesh)
    _close(language_model(ids).logits, want)
    language_model(ids).logits.square().mean().backward()
