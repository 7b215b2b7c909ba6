"""What a pretraining run says about itself before it starts: the plan, and data.json."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megabase.data.regions import Regions, Split
from megabase.genome.store import GenomeStore
from megabase.models.describe import Estimate
from megabase.tasks.pretrain_config import DataConfig, PretrainConfig
from megabase.training.evaluation import EvalSet
from megabase.training.schedule import LengthSchedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["count_parameters", "data_facts", "plan_text"]

# Regions written out per split; a genome in many small pieces would make a file of megabytes.
_REGIONS = 1000


def count_parameters(model: PreTrainedModel) -> int:
    """Count the numbers of a model; shared tensors count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def plan_text(
    config: PretrainConfig,
    model: PreTrainedModel,
    store: GenomeStore,
    split: Split,
    schedule: LengthSchedule,
    validation: EvalSet | None,
    need: Estimate,
    available: int,
    notes: Sequence[str] = (),
) -> str:
    """Describe a run for people: model, data, stages, budget, memory."""
    shape: Any = model.config
    limit = getattr(shape, "max_length", config.longest)
    held = f"{split.validation.total:,} for validation, {split.test.total:,} for test"
    lines = [
        f"model       {shape.model_type}, {shape.num_hidden_layers} layers, width "
        f"{shape.hidden_size}, {count_parameters(model):,} parameters, "
        + (f"longest input {limit:,}" if limit is not None else "no limit of the input's length"),
        f"genome      {store.name} (sha256 {store.checksum[:12]}): {split.train.total:,} bases to "
        f"train on, {held}; windows {config.data.windows}",
    ]
    for point, steps in schedule.stages():
        share = point.global_batch // schedule.world
        lines.append(
            f"stage {point.stage}     {steps:,} steps of {point.global_batch} x {point.length:,} = "
            f"{point.global_batch * point.length:,} tokens "
            f"({schedule.world} x {-(-share // point.micro_batch)} micro-batches of "
            f"{min(point.micro_batch, share)})"
        )
    lines += [
        f"budget      {schedule.total_steps:,} steps, {schedule.total_tokens:,} tokens",
        f"optimizer   AdamW, lr {config.optim.lr:g} ({config.optim.schedule}), "
        f"weight decay {config.optim.weight_decay:g}, precision {config.precision}",
        "validation  "
        + (
            f"{validation.windows} windows of {validation.length:,} every {config.eval_every} steps"
            if validation
            else "none"
        ),
        f"memory      about {need.total / 1e9:.2f} GB in each process "
        f"(activations {need.activations / 1e9:.2f}, convolution {need.workspace / 1e9:.2f}, "
        f"weights, gradients and optimizer "
        f"{(need.parameters + need.gradients + need.optimizer) / 1e9:.2f}); "
        f"{available / 1e9:.1f} GB available",
        f"output      {config.output}",
    ]
    lines += [f"note        {note}" for note in notes]
    return "\n".join(lines)


def data_facts(
    data: DataConfig, store: GenomeStore, split: Split, validation: EvalSet | None
) -> dict[str, Any]:
    """Give the content of ``data.json``: genome, checksum, contigs, regions of each split."""
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {
        "genome": {"name": store.name, "path": str(store.path), "sha256": store.checksum},
        "contigs": {contig.name: contig.length for contig in store.contigs},
        "windows": data.windows,
        "splits": {
            name: {
                "bases": regions.total,
                "number_of_regions": len(regions),
                "sha256": _digest(regions),
                "regions": _written_out(store, regions),
            }
            for name, regions in parts.items()
        },
        "validation": (
            {"windows": validation.windows, "length": validation.length} if validation else None
        ),
    }


def _digest(regions: Regions) -> str:
    digest = hashlib.sha256()
    for column in (regions.contig, regions.start, regions.end):
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()


def _written_out(store: GenomeStore, regions: Regions) -> list[str]:
    """Write the first regions as people do, 1-based with both ends."""
    first = slice(_REGIONS)
    rows = zip(
        regions.contig[first].tolist(),
        regions.start[first].tolist(),
        regions.end[first].tolist(),
        strict=True,
    )
    return [f"{store.contigs[contig].name}:{start + 1:,}-{end:,}" for contig, start, end in rows]
