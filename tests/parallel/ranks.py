"""Cases that run in every process of a group; a script for subprocesses, and a list for tests.

``python ranks.py FOLDER small`` (or ``every``) makes groups of 2, 3 and 4 processes; each process
writes ``SIZE-RANK.json`` with the largest differences from one process for each case.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.evaluate.log_probs import token_log_probs
from megabase.models.families import FAMILIES
from megabase.parallel import context_parallel

LENGTHS = (48, 61)
"""One that divides among 2, 3 and 4 processes, and one that divides among none."""

_OFF = dict.fromkeys(("embed_dropout", "resid_dropout", "attention_dropout"), 0.0)
_MAMBA: dict[str, Any] = {"d_model": 10, "n_layer": 2, "ssm_cfg": {"d_state": 4}}
_SETTINGS: dict[str, dict[str, Any]] = {
    "hyenadna": {"d_model": 14, "n_layer": 2, "max_seq_len": 64, "filter_order": 8, **_OFF},
    "gpt": {
        "d_model": 20, "n_layer": 2, "num_attention_heads": 5, "max_position_embeddings": 64, **_OFF
    },
    "mamba": _MAMBA,
    "caduceus": _MAMBA,
}  # fmt: skip


def make(family: str, kind: str = "causal-lm", **fields: Any) -> nn.Module:
    known = FAMILIES[family]
    return known.classes()[kind](known.config_class()(**{**_SETTINGS[family], **fields}))


hyena, gpt = partial(make, "hyenadna"), partial(make, "gpt")
caduceus = partial(make, "caduceus", "masked-lm")

DROPPING: dict[str, Callable[[], nn.Module]] = {
    "hyena": partial(hyena, embed_dropout=0.2, resid_dropout=0.2, hyena_dropout=0.2),
    "gpt": partial(gpt, embed_dropout=0.2, resid_dropout=0.2, attention_dropout=0.2),
}
"""Models with dropout everywhere."""

SCORED = ("hyena order 2", "caduceus-ps")
"""Models whose probabilities of whole sequences are compared."""

MODELS: dict[str, Callable[[], nn.Module]] = {
    "hyena order 2": hyena,
    "hyena order 3": partial(hyena, hyena_order=3, output_activation="gelu"),
    "hyena order 3, standalone": partial(hyena, hyena_order=3, filter_layout="standalone"),
    "hyena two-sided": partial(hyena, bidirectional="two_sided", short_filter_order=4),
    "hyena order 3 two-sided": partial(hyena, bidirectional="two_sided", hyena_order=3),
    "hyena published two-sided": partial(hyena, bidirectional="published"),
    "hyena normalized": partial(hyena, normalized_filter=True, hyena_order=3),
    "hyena and attention": partial(hyena, attention_layers=[1], attention_heads=7),
    "gpt": gpt,
    "mamba": partial(make, "mamba"),
    "caduceus-ph": caduceus,
    "caduceus-ph, multiplied": partial(
        caduceus, bidirectional_strategy="ew_multiply", bidirectional_weight_tie=False
    ),
    "caduceus-ps": partial(caduceus, rcps=True),
    "caduceus-ps, not fused": partial(caduceus, rcps=True, fused_add_norm=False),
}

_SEQUENCES, _BASES = "sequence-classification", "token-classification"
LABELED: dict[str, Callable[[], nn.Module]] = {
    "hyena": partial(hyena, _SEQUENCES, pooling="mean"),
    "hyena tracks": partial(hyena, _BASES),
    "gpt": partial(gpt, _SEQUENCES, pooling="last"),
    "mamba": partial(make, "mamba", _SEQUENCES),
    "caduceus-ps": partial(make, "caduceus", _SEQUENCES, rcps=True),
    "caduceus-ph, both strands": partial(make, "caduceus", _BASES, conjoin_eval=True),
}
"""Models with heads for labels, of sequences and of bases."""


def perturb(model: nn.Module) -> nn.Module:
    """Give every parameter a value of its own, so that no gradient is trivially right."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.double()


def loss_sum(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    kept = targets != -100
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return total, kept.sum()


def compare(name: str, length: int, group: Any, masked: bool = False) -> dict[str, float]:
    """Give the largest differences of loss, logits and gradients from those of one process."""
    torch.manual_seed(0)
    whole = perturb(MODELS[name]())
    model = copy.deepcopy(whole)
    names = list(model.state_dict())
    ids = torch.randint(7, 11, (2, length))
    mask = torch.ones_like(ids)
    if masked:
        mask[0, : length // 3] = 0
        mask[1, -length // 4 :] = 0
    given = {"attention_mask": mask} if masked else {}
    shifted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], 1)
    logits = whole(input_ids=ids, **given).logits
    total, count = loss_sum(logits, shifted)
    (total / count).backward()

    shards = context_parallel(model, group)
    part = shards.part(length)
    mine = {key: value[:, part] for key, value in given.items()}
    found = model(input_ids=ids[:, part], **mine).logits
    loss = shards.mean(*loss_sum(found, shards.next_tokens(ids[:, part])))
    loss.backward()
    shards.sum_gradients(model)
    assert list(model.state_dict()) == names
    real = mask.bool()[:, part][..., None]
    gradients = {
        key: float((p.grad - q.grad).abs().max())
        for (key, p), q in zip(model.named_parameters(), whole.parameters(), strict=True)
        if q.grad is not None and p.grad is not None
    }
    assert len(gradients) > 5
    if masked:  # of padding itself nothing is said
        return {"logits": float(((found - logits[:, part]) * real).detach().abs().max())}
    return {
        "loss": float((loss.detach() - total.detach() / count).abs()),
        "logits": float((found - logits[:, part]).detach().abs().max()),
        "gradients": max(gradients.values()),
        "scale": max(float(q.grad.abs().max()) for q in whole.parameters() if q.grad is not None),
    }


def scored(name: str, length: int, group: Any) -> dict[str, float]:
    """Give the largest difference of the probabilities of whole sequences."""
    torch.manual_seed(0)
    one = perturb(MODELS[name]())
    model: Any = copy.deepcopy(one)
    context_parallel(model, group, whole=True)
    ids = torch.randint(7, 11, (2, length))
    expected, found = token_log_probs(one, ids), token_log_probs(model, ids)
    assert bool((found.isnan() == expected.isnan()).all())  # a first base has nothing before it
    assert not bool(found[:, 1:].isnan().any())
    return {"scored": float((found - expected).nan_to_num().abs().max())}


def labeled(name: str, length: int, group: Any) -> dict[str, float]:
    """Give the largest difference of the answers of a head, with padding and without."""
    torch.manual_seed(0)
    one = perturb(LABELED[name]()).eval()
    model = copy.deepcopy(one)
    context_parallel(model, group, whole=True)
    ids = torch.randint(7, 11, (2, length))
    mask = torch.ones_like(ids)
    mask[1, -length // 4 :] = 0
    worst = 0.0
    for given in ({}, {"attention_mask": mask}):
        with torch.inference_mode():
            expected, found = (m(input_ids=ids, **given).logits for m in (one, model))
        assert found.shape == expected.shape
        kept = torch.ones(1) if found.dim() == 2 or not given else mask[..., None]
        worst = max(worst, float(((found - expected) * kept).abs().max()))
    return {"labels": worst}


def dropped(name: str, length: int, group: Any, alone: Any) -> dict[str, float]:
    """Give the largest differences between sharing and not, when numbers are drawn for dropout."""
    torch.manual_seed(0)
    one = perturb(DROPPING[name]())
    model = copy.deepcopy(one)
    ids = torch.randint(7, 11, (2, length))
    sums = []
    for given, where in ((one, alone), (model, group)):
        shards = context_parallel(given, where)
        own = ids[:, shards.part(length)]
        torch.manual_seed(1)
        logits = given(input_ids=own).logits
        loss = shards.mean(*loss_sum(logits, shards.next_tokens(own)))
        loss.backward()
        shards.sum_gradients(given)
        sums.append(loss.detach())
    given = copy.deepcopy(one).eval()
    context_parallel(given, alone)
    undropped, _ = loss_sum(given(input_ids=ids).logits[:, :-1], ids[:, 1:])
    assert float((undropped / ids[:, 1:].numel() - sums[0]).detach().abs()) > 1e-4
    gradients = zip(model.parameters(), one.parameters(), strict=True)
    return {
        "loss": float((sums[0] - sums[1]).abs()),
        "gradients": max(
            float((p.grad - q.grad).abs().max())
            for p, q in gradients
            if p.grad is not None and q.grad is not None
        ),
    }


def small(size: int) -> list[tuple[str, int, bool]]:
    """Cases that every run of the tests pays for: name, length, whether positions are padded."""
    few = ("hyena order 2", "hyena order 3 two-sided", "gpt", "mamba", "caduceus-ph", "caduceus-ps")
    names = list(MODELS) if size == 3 else few
    cases = [(name, LENGTHS[1], False) for name in names]
    if size == 4:
        cases += [(name, LENGTHS[0], False) for name in few]
    return cases + [(name, LENGTHS[1], True) for name in few if size == 2]


def every(size: int) -> list[tuple[str, int, bool]]:
    return [(name, n, masked) for name in MODELS for n in LENGTHS for masked in (False, True)]


def in_group(folder: Path, size: int, run: Callable[[int, Any], Any]) -> list[Any]:
    """Give what ``run(rank, mesh)`` gives in each process of a group, forked from this one."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}/meet{size}", rank=rank, world_size=size
                )
                mesh = dist.init_device_mesh("cpu", (1, size), mesh_dim_names=("dp", "cp"))["cp"]
                found = run(rank, mesh)
                (folder / f"{size}-{rank}.json").write_text(json.dumps(found))
                dist.barrier()
                dist.destroy_process_group()
            except BaseException:  # noqa: BLE001 (told by the status)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        raise RuntimeError(f"{len(failed)} of {size} processes failed")
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


def measure(
    cases: list[tuple[str, int, bool]], size: int, rank: int, mesh: Any
) -> dict[str, dict[str, float]]:
    """Run all cases in one process of a group."""
    found = {
        f"{name}/{length}{'/padded' if masked else ''}": compare(name, length, mesh, masked)
        for name, length, masked in cases
    }
    found |= {f"{name}/scored": scored(name, 13, mesh) for name in SCORED}
    found |= {f"{name}/labels/{n}": labeled(name, n, mesh) for name in LABELED for n in LENGTHS}
    # Every process makes the group of every one.
    alone = [dist.new_group([other]) for other in range(size)][rank]
    return found | {f"{name}/dropped": dropped(name, 61, mesh, alone) for name in DROPPING}


def main() -> None:
    folder, cases = Path(sys.argv[1]), {"small": small, "every": every}[sys.argv[2]]
    warnings.simplefilter("error")
    for library in ("torch", "transformers"):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=rf"{library}\..*")
    for size in (2, 3, 4):
        in_group(folder, size, partial(measure, cases(size), size))


if __name__ == "__main__":
    main()
