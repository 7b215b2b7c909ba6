"""In-context learning: questions behind solved examples, asked as the model is or after tuning."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.errors import ConfigError
from megabase.genome.files import write_json, write_whole
from megabase.tasks.digests import start_model
from megabase.tasks.finetune import describe_data
from megabase.tasks.in_context_config import InContextConfig, to_yaml
from megabase.tasks.in_context_plan import (
    InContextPlan,
    fixed_examples,
    plan_in_context,
    read_splits,
)
from megabase.training.engine import FitResult, fit
from megabase.training.evaluation import evaluate
from megabase.training.process import build_fabric
from megabase.training.run_folder import check_run, finished_result, own_folder, started_run

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from rich.console import Console
    from torch import nn

__all__ = ["InContextResult", "in_context", "in_context_grid", "in_context_table"]


@dataclass(frozen=True)
class InContextResult:
    """What a run came to; written to ``result.json``."""

    run: str
    """Run folder."""
    model: str
    """Name of the model that it started from."""
    family: str
    """Its family."""
    tune: str
    """What was trained: none, prompt or all."""
    shots: int
    """Solved examples of each class."""
    samples: int
    """Training questions; 0 without training."""
    vectors: int
    """Soft prompt vectors."""
    trained_parameters: int
    """Numbers that were trained."""
    examples: str
    """Where the examples of valid and test questions came from."""
    letters: dict[str, str]
    """Class to letter."""
    tokens: int
    """Tokens of a question with its examples and prompt."""
    rows: dict[str, int]
    """Sequences of each split."""
    steps: int
    """Optimizer steps done."""
    best_step: int | None
    """Step of the prompt that was measured; None without validation."""
    seconds: float
    """Time of the whole call."""
    valid: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the validation rows."""
    test: dict[str, float] = field(default_factory=dict)
    """Loss and metrics of the test rows."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the numbers has to know."""
    signal: int | None = None
    """Signal that stopped the run early; then nothing was measured."""


def in_context(
    config: InContextConfig, *, dry_run: bool = False, console: Console | None = None
) -> InContextResult | None:
    """Ask a language model questions behind solved examples, after tuning if asked for.

    Parameters
    ----------
    config
        Settings of the run.
    dry_run
        Stop after the plan: nothing is written.
    console
        Where to show the plan and the progress; None shows nothing.

    Returns
    -------
    InContextResult or None
        None after a dry run.

    Raises
    ------
    MegabaseError
        For settings, data, a model or a folder that cannot be used.
    """
    started = time.perf_counter()
    resolved = to_yaml(config)
    check_run(config, resolved)
    fabric = build_fabric(config.devices, config.precision)
    if not dry_run:
        fabric.launch()
    plan = plan_in_context(config, fabric)
    show = console if fabric.global_rank == 0 else None
    if show is not None:
        show.print(plan.text, markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        return None
    data = describe_data(plan.splits, start_model(config.model))
    with started_run(config, resolved, fabric, data) as run:
        return _run(plan, run, fabric, show, started)


def _run(
    plan: InContextPlan, run: Path, fabric: Fabric, show: Console | None, started: float
) -> InContextResult:
    config = plan.config
    outcome: FitResult | None = None
    if config.tune == "none":
        plan.model.to(fabric.device)
    else:
        outcome = fit(
            plan.model,
            plan.objective,
            plan.batches,
            plan.config,
            fabric=fabric,
            save_model=lambda folder, state: _save(plan, folder, state),
            validation=plan.evaluations.get("valid"),
            console=show,
        )
    figures: dict[str, dict[str, float]] = {}
    if outcome is None or outcome.signal is None:
        figures = _measure(plan, run, fabric, outcome)
    result = _result(plan, outcome, figures, time.perf_counter() - started)
    if fabric.global_rank == 0 and result.signal is None:
        write_json(run / "result.json", vars(result))
    return result


def _save(plan: InContextPlan, folder: Path, state: Mapping[str, Any]) -> None:
    if plan.config.tune == "all":
        from megabase.models.adapt.classifier import save_classifier

        save_classifier(plan.language_model, plan.tokenizer, folder, state)
        return
    from megabase.models.adapt.prompt import save_prompt

    name = str(plan.config.model)
    name = str(Path(name).absolute()) if Path(name).exists() else name
    facts = {"shots": plan.config.shots, "examples": "one draw of the training rows"}
    spec = fixed_examples(plan)
    save_prompt(plan.prompted, folder, model=name, state=state, facts=facts, spec=spec)


def _measure(
    plan: InContextPlan, run: Path, fabric: Fabric, outcome: FitResult | None
) -> dict[str, dict[str, float]]:
    """Ask valid and test questions, of the best checkpoint where there is one."""
    model: nn.Module = plan.model
    best = run / "best"
    folder = best if "valid" in plan.evaluations and best.is_dir() else run / "last"
    if outcome is not None and plan.config.tune == "all":
        from megabase.models.auto import load_model

        model = load_model(folder, "causal-lm", device=fabric.device)
    elif outcome is not None:
        from megabase.models.adapt.prompt import read_prompt

        plan.prompted.load_state_dict(read_prompt(folder).tensors)
    found: dict[str, dict[str, float]] = {}
    for name, windows in plan.evaluations.items():
        scored = evaluate(model, windows, plan.config.eval_batch or 1, fabric)
        found[name] = {"loss": scored.loss, **scored.figures}
    return found


def _result(
    plan: InContextPlan,
    outcome: FitResult | None,
    figures: Mapping[str, dict[str, float]],
    seconds: float,
) -> InContextResult:
    config = plan.config
    trained = [p for p in plan.model.parameters() if p.requires_grad]
    measured = outcome is not None and "valid" in plan.evaluations
    return InContextResult(
        run=config.output,
        model=str(config.model),
        family=plan.family,
        tune=config.tune,
        shots=config.shots,
        samples=len(plan.batches) if outcome is not None else 0,
        vectors=config.vectors if config.tune == "prompt" else 0,
        trained_parameters=sum(p.numel() for p in trained) if outcome is not None else 0,
        examples=config.examples,
        letters=dict(zip(plan.splits["train"].classes, plan.letters, strict=True)),
        tokens=plan.tokens,
        rows={name: len(split) for name, split in plan.splits.items()},
        steps=outcome.progress.step if outcome is not None else 0,
        best_step=outcome.progress.best_step if outcome is not None and measured else None,
        seconds=seconds,
        valid=figures.get("valid", {}),
        test=figures.get("test", {}),
        notes=plan.notes,
        signal=outcome.signal if outcome is not None else None,
    )


def in_context_grid(
    config: InContextConfig,
    shots: Sequence[int],
    samples: Sequence[int] = (),
    *,
    dry_run: bool = False,
    console: Console | None = None,
) -> list[InContextResult]:
    """Run every number of shots with every number of samples, and write one table.

    Each run is in ``OUTPUT/shots-K`` or ``OUTPUT/shots-K-samples-N``. With ``resume``, finished
    runs are kept and the others go on or start.

    Parameters
    ----------
    config
        Settings; their own numbers are not used where others are given.
    shots
        Examples of each class.
    samples
        Training questions; empty keeps ``config.samples``.
    dry_run
        Only show the plans.
    console
        Where to show plans and progress.

    Returns
    -------
    list of InContextResult
        Shorter when a signal stopped one (the last). Otherwise ``OUTPUT/result.json`` and
        ``OUTPUT/table.md`` hold all of them.

    Raises
    ------
    ConfigError
        Before anything runs, when a folder is taken or a setting cannot be used.
    """
    if samples and config.tune == "none":
        raise ConfigError("several numbers of samples are for tune='prompt' or tune='all'")
    runs: list[InContextConfig] = []
    for number in dict.fromkeys(shots or [config.shots]):
        for size in dict.fromkeys(samples) if samples else [config.samples]:
            name = f"shots-{number}" + (f"-samples-{size}" if samples else "")
            folder = Path(config.output) / name
            resume = config.resume and (folder / "config.yaml").is_file()
            one = replace(config, shots=number, samples=size, output=str(folder), resume=resume)
            check_run(one, to_yaml(one))
            runs.append(one)
    with contextlib.nullcontext() if dry_run else own_folder(Path(config.output)):
        return _run_all(config, runs, dry_run, console)


def _run_all(
    config: InContextConfig,
    runs: Sequence[InContextConfig],
    dry_run: bool,
    console: Console | None,
) -> list[InContextResult]:
    results: list[InContextResult] = []
    for one in runs:
        result = (_finished(one) if one.resume else None) or in_context(
            one, dry_run=dry_run, console=console
        )
        if result is None:
            continue
        results.append(result)
        if result.signal is not None:
            return results
    if results:
        output = Path(config.output)
        write_json(output / "result.json", {"runs": [vars(r) for r in results]})
        write_whole(output / "table.md", in_context_table(results))
    return results


def _finished(config: InContextConfig) -> InContextResult | None:
    found = finished_result(
        Path(config.output),
        to_yaml(config),
        lambda: describe_data(read_splits(config)[0], start_model(config.model)),
    )
    return None if found is None else InContextResult(**found)


def in_context_table(results: Sequence[InContextResult]) -> str:
    """Write results as a Markdown table; it holds nothing that differs between two equal runs."""
    split = "test" if results[0].test else "valid"
    names = list(getattr(results[0], split))
    head = ["tuned", "shots", "samples", "vectors", "examples from"]
    head += [f"{split} {name}" for name in names]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for one in results:
        cells = [one.tune, str(one.shots), str(one.samples), str(one.vectors), one.examples]
        cells += [f"{getattr(one, split)[name]:.4f}" for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
