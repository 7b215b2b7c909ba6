"""Read token by token, a model gives the scores of its full forward pass."""

import pytest
import torch
from torch import Tensor

from megabase.errors import InputError
from megabase.inference.generation.decoding import Decoder
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM
from megabase.ops import backend

LENGTH = 150
HYENAS = {
    "hyena": {},
    "order 4": {"hyena_order": 4},
    "order 3, standalone": {"hyena_order": 3, "filter_layout": "standalone"},
    "gelu, four taps": {"output_activation": "gelu", "short_filter_order": 4},
    "no skip, normalized": {"use_bias": False, "normalized_filter": True},
    "with attention": {"attention_layers": [1], "attention_heads": 2},
    "with positions": {"max_position_embeddings": LENGTH},
}


def hyena(**settings: object) -> HyenaDNAForCausalLM:
    config = {"d_model": 12, "n_layer": 2, "max_seq_len": LENGTH, "filter_order": 8, **settings}
    model = HyenaDNAForCausalLM(HyenaDNAConfig(**config))
    with torch.no_grad():  # filters that reach far and matter
        for name, parameter in model.named_parameters():
            if "implicit_filter" in name and "freq" not in name:
                parameter.mul_(20)
    return model.double().eval()


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if name in HYENAS:
        return hyena(**HYENAS[name])
    if name == "gpt":
        config = GPTConfig(d_model=12, n_layer=2, num_heads=3, max_position_embeddings=LENGTH)
        return GPTForCausalLM(config).double().eval()
    return MambaForCausalLM(MambaConfig(d_model=12, n_layer=2)).double().eval()


def full(model: torch.nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("name", [*HYENAS, "gpt", "mamba"])
@pytest.mark.parametrize("how", ["fast", "plain"])  # plain: fixed steps
@pytest.mark.parametrize("prompt", [0, 1, 2, 77])
def test_steps_after_a_prompt_equal_the_full_pass(name: str, prompt: int, how: str) -> None:
    model = build(name)
    ids = torch.randint(7, 11, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    wanted = full(model, ids)
    with backend.override(how):
        reader = Decoder(model, batch=2, length=LENGTH)
        check(reader, ids, wanted, prompt)


def check(reader: Decoder, ids: Tensor, wanted: Tensor, prompt: int) -> None:
    scores = reader.prefill(ids[:, :prompt])
    if prompt:
        assert torch.allclose(scores, wanted[:, prompt - 1], atol=1e-9)
    else:
        assert (scores == 0).all()
    for t in range(prompt, LENGTH):
        scores = reader.step(ids[:, t])
        assert torch.allclose(scores, wanted[:, t], atol=1e-9), t
    assert reader.position == LENGTH


@pytest.mark.parametrize("name", ["with attention", "mamba"])
def test_a_fixed_step_is_one_graph_that_is_compiled_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name)
    ids = torch.randint(7, 11, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    wanted, graphs = full(model, ids), []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    with backend.override("plain"):
        reader = Decoder(model, batch=2, length=LENGTH)
        for t in range(80):
            scores = reader.step(ids[:, t])
            assert torch.allclose(scores, wanted[:, t], atol=1e-9), t
            if t == 0:  # the first step has made what is made once
                torch._dynamo.reset()
                run = torch.compile(reader._run, fullgraph=True, backend=count)
                monkeypatch.setattr(reader, "_run", run)
    assert len(graphs) == 1


def test_a_reset_forgets_and_may_change_the_batch() -> None:
    model = hyena()
    ids = torch.randint(7, 11, (3, 70), generator=torch.Generator().manual_seed(3))
    reader = Decoder(model, batch=1, length=80)
    for t in range(70):
        reader.step(ids[0, t : t + 1])
    reader.reset(batch=3)
    reader.prefill(ids[:, :69])
    assert torch.allclose(reader.step(ids[:, 69]), full(model, ids)[:, -1], atol=1e-9)


def test_half_precision_runs_in_its_own_type() -> None:
    model = hyena().to(torch.bfloat16)
    ids = torch.randint(7, 11, (1, 20), generator=torch.Generator().manual_seed(3))
    reader = Decoder(model, length=20)
    reader.prefill(ids[:, :10])
    for t in range(10, 20):
        scores = reader.step(ids[:, t])
    assert scores.dtype == torch.bfloat16
    assert torch.allclose(scores.float(), full(model, ids)[:, -1].float(), atol=0.05)


def test_what_cannot_be_read_is_refused() -> None:
    model = hyena()
    with pytest.raises(InputError, match="at most 150"):
        Decoder(model, length=LENGTH + 1)
    reader = Decoder(model, length=3)
    reader.prefill(torch.tensor([[7, 8]]))
    with pytest.raises(InputError, match="prefill comes first"):
        reader.prefill(torch.tensor([[7, 8]]))
    reader.step(torch.tensor([7]))
    with pytest.raises(InputError, match="4 positions"):
        reader.step(torch.tensor([7]))
    assert reader.position == 3
    with pytest.raises(InputError, match="expected ids"):
        Decoder(model, batch=2).prefill(torch.tensor([[7, 8]]))
    with pytest.raises(InputError, match="1 or more"):
        Decoder(model, batch=0)
    with pytest.raises(InputError, match="bidirectional"):
        Decoder(hyena(bidirectional="published"))
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1))
    with pytest.raises(InputError, match="fills masked bases"):
        Decoder(masked)
