"""A trained HyenaDNA with room for longer inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megabase.cli.main import main
from megabase.errors import MegabaseError
from megabase.models import load_model, load_tokenizer
from megabase.models.checkpoints.convert import _lengthen
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM


def _model(**settings: Any) -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    shape = {"d_model": 16, "n_layer": 2, "filter_order": 8, "max_seq_len": 66}
    return HyenaDNAForCausalLM(HyenaDNAConfig(**{**shape, **settings})).eval()


@torch.no_grad()
def test_short_inputs_get_the_same_answer() -> None:
    model = _model()
    longer = _lengthen(model, 300)
    assert sum(p.numel() for p in longer.parameters()) == sum(p.numel() for p in model.parameters())
    ids = torch.randint(7, 11, (2, 300))
    short = model(ids[:, :66]).logits
    torch.testing.assert_close(longer(ids[:, :66]).logits, short, rtol=1e-5, atol=1e-5)
    # The first positions of a long input have seen nothing else.
    whole = longer(ids).logits
    torch.testing.assert_close(whole[:, :66], short, rtol=1e-4, atol=1e-5)
    assert whole.isfinite().all()
    # A model of that length from the formulas alone has other taps.
    stretched = _model(max_seq_len=300)
    stretched.load_state_dict(
        {k: v for k, v in model.state_dict().items() if ".pos_emb." not in k}, strict=False
    )
    assert (stretched(ids[:, :66]).logits - short).abs().max() > 1e-4


def test_the_window_decays_on_and_features_stay_in_their_range() -> None:
    model = _model()
    before = model.state_dict()
    for name, table in _lengthen(model, 200).state_dict().items():
        if name.endswith("pos_emb.t"):
            assert torch.equal(table[:, :66], before[name])
            steps = table[0, 1:, 0] - table[0, :-1, 0]
            torch.testing.assert_close(steps, torch.full((199,), 1 / 65), rtol=1e-3, atol=1e-6)
        elif name.endswith("pos_emb.z"):
            assert torch.equal(table[:, :66], before[name])
            assert table[..., 0].max() == 1
            # The second band has the period of the old length.
            torch.testing.assert_close(table[0, 66:132, 2], table[0, :66, 2], rtol=0, atol=1e-4)


def test_convert_writes_a_longer_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "long")
    assert main(["convert", "default", folder, "--longest", "2050"]) == 0
    said = capsys.readouterr().out
    assert "inputs of up to 2,050 tokens" in said
    assert "the longest input was 1,026 positions and is 2,050" in said
    longer, default = load_model(folder), load_model()
    ids = load_tokenizer(folder)("ACGTTGCA" * 16, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        found, wanted = (m.eval()(ids["input_ids"]).logits for m in (longer, default))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    assert load_tokenizer(folder).model_max_length == 2050
    assert main(["convert", "default", folder, "--longest", "2050"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    arguments = ["convert", folder, str(tmp_path / "x"), "--longest", "4098"]
    assert main([*arguments, "--window-shift", "0.0"]) == 2
    assert "with --longest alone" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("settings", "longest", "message"),
    [
        ({}, 66, "takes 66 already"),
        ({"bidirectional": "two_sided"}, 100, "two-sided"),
        ({"max_position_embeddings": 66}, 100, "learned positions"),
    ],
)
def test_what_cannot_be_lengthened(settings: Any, longest: int, message: str) -> None:
    with pytest.raises(MegabaseError, match=message):
        _lengthen(_model(**settings), longest)
