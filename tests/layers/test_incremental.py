"""A streamed pass gives the vectors of an ordinary one."""

import pytest
import torch

from megabase.layers import incremental
from megabase.layers.incremental import can_stream, stream_backbone
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAModel


def build(**settings: object) -> HyenaDNAModel:
    torch.manual_seed(0)
    config = {"d_model": 12, "n_layer": 3, "max_seq_len": 80, "filter_order": 8, **settings}
    model = HyenaDNAModel(HyenaDNAConfig(**config)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hyena_order": 4},
        {"hyena_order": 3, "filter_layout": "standalone", "output_activation": "gelu"},
        {"use_bias": False, "normalized_filter": True, "max_position_embeddings": 80},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [1, 2, 77, 80])
def test_every_position_sees_all_it_would_see(
    settings: dict[str, object], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incremental, "_PIECE", 13)
    monkeypatch.setattr(incremental, "_CHANNELS", 5)
    monkeypatch.setattr(incremental, "_CONVOLVED", 2)
    model = build(**settings)
    assert can_stream(model.backbone)
    ids = torch.randint(7, 11, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=ids).last_hidden_state
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = list(stream_backbone(model.backbone, ids))
    assert [part.start for part, _ in parts] == list(range(0, length, 13))
    assert torch.allclose(torch.cat([hidden for _, hidden in parts], 1), wanted, atol=1e-10)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_what_cannot_be_streamed() -> None:
    assert not can_stream(build(attention_layers=[1], attention_heads=2).backbone)
    assert not can_stream(build(bidirectional="two_sided").backbone)
    assert not can_stream(build().to(torch.bfloat16).backbone)
    hooked = build()
    hooked.backbone.ln_f.register_forward_hook(lambda *_: None)
    assert not can_stream(hooked.backbone)
