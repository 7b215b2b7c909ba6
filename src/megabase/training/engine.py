"""The training loop, to be read from top to bottom.

One optimizer step reads the windows ``first_index .. first_index + global_batch`` of its stage.
Each reader takes an equal share in order, in micro-batches. The gradient is that of the sum of the
losses over all processes and micro-batches, divided by the global sum of the target weights (the
number of valid tokens): without dropout 1 x 8 and 8 x 1 sequences, or 1 and 2 processes, take the
same step up to rounding. A reader is one process, or several that share each sequence
(``devices.context_parallel``); all of these are given whole windows, and the objective takes its
part of them.

Data order, sequence length and learning rate are pure functions of the step, dropout masks of the
step and the reader. The only state is weights, optimizer state and a few counters, so a run
resumed by as many processes is the same run.
"""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megabase.data.hashing import FIRST, GOLDEN, SECOND, mix_word
from megabase.errors import NotFiniteError, RunError
from megabase.objectives.base import Batch, Objective
from megabase.settings import TrainConfig
from megabase.training.checkpoint import Checkpoints, Progress, SaveModel
from megabase.training.evaluation import Batches, EvalSet, evaluate, prefetched
from megabase.training.logging import RunLog, perplexity
from megabase.training.optimizer import build_optimizer
from megabase.training.process import stop_signals
from megabase.training.schedule import LengthSchedule, StagePoint, lr_at


@dataclass(frozen=True)
class FitResult:
    """How a call of :func:`fit` ended."""

    progress: Progress  # counters at the end
    signal: int | None = None
    """Number of the signal that stopped the run early; None when it reached its end."""


def _step_seed(seed: int, step: int, reader: int) -> int:
    """Mix seed, step and number of the reader into a seed of 63 bits."""
    return mix_word(seed * GOLDEN + step * FIRST + reader * SECOND) >> 1


def fit(
    module: nn.Module, objective: Objective, data: Batches, config: TrainConfig, *, fabric: Fabric,
    save_model: SaveModel, validation: EvalSet | None = None, console: Console | None = None,
) -> FitResult:  # fmt: skip
    """Train a module until the end of the schedule, a signal, or too many bad steps.

    `module` is anything the objective can call, which gives sums for ``(module, batch)`` and whose
    ``unit`` names what it counts; its ``parameter_groups(lr, weight_decay)`` is honored. The folder
    ``config.output`` must exist: metrics and checkpoints go there. `save_model` (in the first
    process only) writes the model in its own format. `validation` is read every
    ``config.eval_every`` steps and at the end. A NotFiniteError when ``config.max_non_finite``
    steps have been skipped, a RunError when a checkpoint cannot be written or read.
    """
    run, shared = Path(config.output), config.devices.context_parallel
    reader, readers = fabric.global_rank // shared, fabric.world_size // shared
    schedule = LengthSchedule(config, readers, data.epoch_size)
    main = fabric.global_rank == 0
    model, optimizer = _set_up(module, config, fabric)
    progress = _restore(run, model, optimizer, config, fabric)
    first, total = progress.step, schedule.total_steps
    scaled = config.precision == "fp16-mixed"
    points = map(schedule.at, range(first, total))
    requests = (  # of every micro-batch of this reader, in order
        (point.stage, indices, point.length)
        for point in points
        for indices in _shares(point, reader, schedule.world)
    )
    signal: int | None = None
    fabric.barrier()

    log_file = run / "metrics.jsonl" if main else None
    unit = getattr(objective, "unit", "tokens")
    with (
        stop_signals() as stops,
        prefetched(lambda request: data.batch(*request), requests) as batches,
        RunLog(log_file, total, first, console if main else None, unit, config.log) as log,
    ):
        if first >= total or _out_of_patience(progress, config):
            log.note(f"nothing left to do: {first} of {total} steps are done")
            total = first
        model.train()
        lap, lap_tokens, clock = progress.seconds, 0, time.perf_counter()
        for step in range(first, total):
            # 1. One step over the global batch.
            point = schedule.at(step)
            torch.manual_seed(_step_seed(config.seed, step, reader))
            number = len(_shares(point, reader, readers))
            added = _backward(model, objective, batches, point, number, fabric, bool(stops))
            added["grad_norm"] = _clip(model, optimizer, config, fabric)
            # The step's one wait for the device: whether to step is decided on the host.
            sums = dict(zip(added, torch.stack(list(added.values())).tolist(), strict=True))
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, config.optim, total, base_lr=group["base_lr"])
            lr, norm = lr_at(step, config.optim, total), sums["grad_norm"]
            loss = sums["loss"] / sums["count"] if sums["count"] else 0.0
            usable = math.isfinite(loss) and math.isfinite(norm)
            # A scaler of float16 has to see every step: it skips those that overflow itself.
            if scaled or (usable and sums["count"]):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            # 2. Count it.
            progress.step = done = step + 1
            tokens = point.global_batch * point.length
            progress.tokens += tokens
            lap_tokens += tokens
            now = time.perf_counter()
            progress.seconds += now - clock
            clock = now

            # 3. Record it.
            if not usable:
                progress.non_finite += not (scaled and math.isfinite(loss))
                log.write("skipped", done, loss=loss, grad_norm=norm, lr=lr)
                what = f"gradient norm {norm}" if math.isfinite(loss) else f"loss {loss}"
                most = f"{progress.non_finite} of {config.max_non_finite} allowed"
                log.note(f"step {done} skipped: {what} ({most})")
                if progress.non_finite >= config.max_non_finite:
                    raise NotFiniteError(_stop_text(run, progress, config, lr))
            elif done % config.log_every == 0 or done == total:
                log.train(
                    done, stage=point.stage, length=point.length, loss=loss,
                    perplexity=perplexity(loss), lr=lr, grad_norm=norm, tokens=progress.tokens,
                    count=sums["count"], seconds=round(progress.seconds, 3),
                    tokens_per_second=lap_tokens / (progress.seconds - lap),
                    memory_mb=_resident_mb(fabric.device), **_ratios(sums),
                )  # fmt: skip
                lap, lap_tokens = progress.seconds, 0

            # 4. Validate, keep, stop.
            improved = False
            if validation is not None and _due(done, total, config.eval_every):
                improved = _validate(model, validation, config, fabric, progress, log)
                clock = time.perf_counter()
            signal = (stops[-1] if stops else 15) if sums["stop"] else None
            enough = _out_of_patience(progress, config)
            regular = _due(done, total, config.checkpoint_every) or done == total or enough
            if regular or improved or signal is not None:
                _keep(run, model, optimizer, progress, config, fabric, save_model, log)
                clock = time.perf_counter()
            if signal is not None:
                log.note(f"stopped by signal {signal} after step {done}; continue with --resume")
                break
            if enough:
                log.note(f"stopped after step {done}: {progress.stale} validations without a best")
                break
    fabric.barrier()
    return FitResult(progress, signal)


def _out_of_patience(progress: Progress, config: TrainConfig) -> bool:
    return config.patience is not None and progress.stale >= config.patience


def _due(done: int, total: int, every: int | None) -> bool:
    return every is not None and (done % every == 0 or done == total)


def _set_up(
    module: nn.Module, config: TrainConfig, fabric: Fabric
) -> tuple[_FabricModule, _FabricOptimizer]:
    """Put the module on its devices and build the optimizer over the placed parameters."""
    inner: Any = module
    if config.compile:
        # One kernel per length, whatever came before: a resumed run compiles the same ones.
        torch._dynamo.config.recompile_limit = 64  # pyright: ignore[reportAttributeAccessIssue]
        inner = torch.compile(module, dynamic=False)
    model = fabric.setup_module(inner)
    # A fused optimizer wants scaled gradients, and clipping wants them as they are.
    fused = config.precision != "fp16-mixed"
    optimizer: Any = fabric.setup_optimizers(build_optimizer(module, config.optim, fused))
    return model, optimizer


def _restore(
    run: Path, model: _FabricModule, optimizer: _FabricOptimizer, config: TrainConfig,
    fabric: Fabric,
) -> Progress:  # fmt: skip
    finished, progress = Checkpoints(run).finished() if config.resume else [], Progress()
    if finished:  # the newest complete folder, not the link: a kill may fall between the two
        progress = Checkpoints.load(finished[-1], _bare(model), optimizer.optimizer)
    if progress.scaler is not None:
        fabric.strategy.precision.load_state_dict(progress.scaler)
    if fabric.global_rank == 0:
        Checkpoints(run).clean(progress.step)
    return progress


def _bare(model: _FabricModule) -> nn.Module:
    """Give the module as the strategy wrapped it, without Fabric's and the compiler's shells."""
    inner: Any = model._forward_module
    return getattr(inner, "_orig_mod", inner)


def _shares(point: StagePoint, reader: int, readers: int) -> list[np.ndarray]:
    """Give the window numbers of one reader at a step, one array per micro-batch."""
    share = point.global_batch // readers
    start = point.first_index + reader * share
    edges = [*range(0, share, point.micro_batch), share]
    return [np.arange(start + low, start + high, dtype=np.int64) for low, high in pairwise(edges)]


def _backward(
    model: _FabricModule, objective: Objective, batches: Iterator[Batch], point: StagePoint,
    number: int, fabric: Fabric, stopping: bool,
) -> dict[str, Tensor]:  # fmt: skip
    """Accumulate the gradient of the mean loss over the global batch; give the global sums."""
    # A known size for the backward pass; the true count is divided by at the end.
    nominal = point.global_batch * point.length
    loss_sum = count = torch.zeros((), device=fabric.device)
    metrics: dict[str, Tensor] = {}
    for k in range(number):
        batch = fabric.to_device(next(batches))
        with fabric.no_backward_sync(model, enabled=k < number - 1):
            loss = objective(model, batch)
            fabric.backward(loss.loss_sum / nominal)
        loss_sum = loss_sum + loss.loss_sum.detach()
        count = count + loss.count.detach()
        for name, value in loss.metrics.items():
            metrics[name] = metrics[name] + value.detach() if name in metrics else value.detach()
    flag = torch.full((), float(stopping), device=fabric.device)
    found = {"loss": loss_sum, "count": count, "stop": flag, **metrics}
    sums = torch.stack(list(found.values())).float()
    sums = torch.as_tensor(fabric.all_reduce(sums, reduce_op="sum"))
    # DDP and FSDP give the mean of the processes' gradients, here made their sum; those of the
    # processes that share a sequence add up as well.
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    gradients = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    if gradients:
        factor = fabric.world_size * nominal / sums[1].clamp(min=1e-12)
        torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]
    return dict(zip(found, sums, strict=True))


def _clip(
    model: _FabricModule, optimizer: _FabricOptimizer, config: TrainConfig, fabric: Fabric
) -> Tensor:
    limit = math.inf if config.optim.clip is None else config.optim.clip
    norm = fabric.clip_gradients(model, optimizer, max_norm=limit, error_if_nonfinite=False)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return torch.zeros((), device=fabric.device) if norm is None else norm.float()


def _validate(
    model: _FabricModule, validation: EvalSet, config: TrainConfig, fabric: Fabric,
    progress: Progress, log: RunLog,
) -> bool:  # fmt: skip
    """Run over the fixed windows; say whether the monitored metric is the best so far."""
    size = config.eval_batch or config.stages[-1].micro_batch or 8
    result = evaluate(model, validation, size, fabric, config.devices.context_parallel)
    by_loss = validation.monitor == "loss"
    value = result.loss if by_loss else result.metrics.get(validation.monitor, math.nan)
    earlier = progress.best_loss if by_loss else progress.best_score
    best = math.isfinite(value) and (
        earlier is None
        or (value > earlier if validation.higher else value < earlier)
        # Of equal ones, as accuracies of few rows often are, that with the lower loss.
        or (value == earlier and result.loss < (progress.best_loss or 0.0))
    )
    progress.stale += 1
    if best:
        progress.best_loss, progress.best_score = result.loss, value
        progress.best_step, progress.stale = progress.step, 0
    log.validation(
        progress.step, loss=result.loss, perplexity=perplexity(result.loss),
        count=result.sums["count"], **{**_ratios(result.sums), **result.metrics},
        tokens=progress.tokens, seconds=round(progress.seconds, 3), best=best,
    )  # fmt: skip
    return best


def _keep(
    run: Path, model: _FabricModule, optimizer: _FabricOptimizer, progress: Progress,
    config: TrainConfig, fabric: Fabric, save_model: SaveModel, log: RunLog,
) -> None:  # fmt: skip
    """Write a checkpoint and delete those no longer kept. A collective."""
    progress.scaler = fabric.strategy.precision.state_dict() or None
    state = Checkpoints.state_of(_bare(model), optimizer.optimizer)
    failure: Exception | None = None
    if fabric.global_rank == 0:
        log.flush()
        try:
            folder = Checkpoints(run).save(progress, state, save_model)
            Checkpoints(run).prune(config.keep, progress.best_step)
            log.write("checkpoint", progress.step, folder=folder.name)
        except Exception as error:  # noqa: BLE001 (raised below, in all processes)
            failure = error
    # All processes end together; one that waited for a dead first process would hang.
    failed = torch.tensor(float(failure is not None), device=fabric.device)
    if torch.as_tensor(fabric.all_reduce(failed, reduce_op="sum")) > 0:
        raise failure or RunError("the first process could not save; see there")


def _resident_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the process on a CPU, of the allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _ratios(sums: Mapping[str, float]) -> dict[str, float]:
    """Turn sums into ``PREFIX_perplexity`` (of ``PREFIX_nll``, not the plain one) and accuracy."""
    metrics: dict[str, float] = {}
    for name, value in sums.items():
        prefix = name.removesuffix("nll")
        targets = sums.get(f"{prefix}targets", 0.0)
        if name.endswith("_nll") and targets:
            metrics[f"{prefix}perplexity"] = perplexity(value / targets)
    if sums.get("targets") and "correct" in sums:
        metrics["accuracy"] = sums["correct"] / sums["targets"]
    return metrics


def _stop_text(run: Path, progress: Progress, config: TrainConfig, lr: float) -> str:
    tips = [
        f"a lower optim.lr (it is {config.optim.lr:g}, {lr:.3g} at this step)",
        *(["optim.clip 1.0"] if config.optim.clip is None else []),
        *(["precision fp32"] if config.precision != "fp32" else []),
        "a longer warm-up (optim.warmup_steps)",
    ]
    saved = Checkpoints(run).finished()
    last = f"the last checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    return (
        f"stopped at step {progress.step}: {progress.non_finite} steps had a loss or gradient that "
        f"was not finite; try {', '.join(tips)}; {last}"
    )
