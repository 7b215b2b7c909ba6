"""What a run says: metrics.jsonl, a progress bar or plain lines, and other tools that listen."""

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from megabase.errors import RunError
from megabase.genome.files import without_nan
from megabase.untrusted import parse_yaml, read_text

Listener = Callable[[dict[str, Any]], object]
"""Called with each record of ``metrics.jsonl``, in the first process."""
_listeners: list[Listener] = []  # of the blocks of RunLog.heard_by() that are open

# Values of a record that are shown in their own way, or not at all.
_NOT_METRICS = {
    "loss", "perplexity", "count", "tokens", "seconds", "best", "stage", "length", "lr",
    "grad_norm", "tokens_per_second", "memory_mb",
}  # fmt: skip


def perplexity(loss: float) -> float:
    """Exponential of a loss in nats per token; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Give the numbers of a record as ``train/loss``."""
    numbers = {name: one for name, one in record.items() if isinstance(one, int | float)}
    return {f"{record['kind']}/{name}": numbers[name] for name in numbers if name != "step"}


@contextmanager
def _tensorboard(run: Path, first: int) -> Iterator[Listener]:
    from torch.utils.tensorboard import SummaryWriter

    def write(record: dict[str, Any]) -> None:
        for name, value in _numbers(record).items():
            writer.add_scalar(name, value, record["step"])

    # What a killed run wrote of steps that are done again is hidden.
    with SummaryWriter(run / "tensorboard", purge_step=first + 1) as writer:
        yield write


@contextmanager
def _wandb(run: Path, first: int) -> Iterator[Listener]:
    import wandb  # pyright: ignore[reportMissingImports]

    known = run / "wandb" / "id"
    known.parent.mkdir(exist_ok=True)
    name = known.read_text() if first and known.is_file() else uuid.uuid4().hex[:8]
    known.write_text(name)
    config = run / "config.yaml"
    with wandb.init(
        project="megabase", name=run.resolve().name, id=name, dir=run, resume="allow",
        config=parse_yaml(read_text(config, RunError), config, RunError),
    ) as made:  # fmt: skip
        yield lambda record: made.log(_numbers(record), step=record["step"])


LOGGERS: dict[str, Callable[[Path, int], AbstractContextManager[Listener]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""Tools that hear a run by name, given its folder and the steps that are done already."""


class RunLog:
    """Appends the records of a run to ``metrics.jsonl`` and shows how it goes (both optional).

    Losses of ``tokens`` are shown with their perplexity, those of ``sequences`` with the accuracy
    and other metrics. One JSON object a line, with ``kind`` ``train``, ``validation``, ``skipped``
    or ``checkpoint`` and ``step``, the number of steps done. Losses are in nats per token.
    """

    def __init__(
        self, path: Path | None, total: int, first: int, console: Console | None,
        unit: str = "tokens", loggers: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._file = path.open("a") if path is not None else None
        self._loggers, self._open = loggers, ExitStack()
        self._heard: list[Listener] = []
        self._total, self._console, self._unit = total, console, unit
        self._bar: Progress | None = None
        self._started = (time.monotonic(), first)
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("stage {task.fields[stage]}"), BarColumn(bar_width=24),
                MofNCompleteColumn(), TextColumn("{task.description}"), console=console,
            )  # fmt: skip
            self._task = self._bar.add_task("starting", total=total, completed=first, stage="-")

    @staticmethod
    @contextmanager
    def heard_by(listener: Listener | None) -> Iterator[None]:
        """Let `listener` hear the records of the runs inside a ``with`` block."""
        added = [] if listener is None else [listener]
        _listeners.extend(added)
        try:
            yield
        finally:
            for one in added:
                _listeners.remove(one)

    def __enter__(self) -> Self:
        if self._file is not None:
            run = Path(self._file.name).parent
            made = (LOGGERS[name](run, self._started[1]) for name in self._loggers)
            self._heard = [*map(self._open.enter_context, made), *_listeners]
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._open.close()
        if self._file is not None:
            with suppress(OSError) if kind is not None else nullcontext():
                self._file.close()

    def flush(self) -> None:
        """Bring the records to the disk, before a checkpoint that presumes them."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a record; numbers that are not finite become null."""
        if self._file is not None:
            record = without_nan({"kind": kind, "step": step, **values})
            try:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
            except OSError as failure:
                raise RunError(
                    f"cannot write {self._file.name}: {failure.strerror or failure}; checkpoints "
                    "are whole: make room and continue with resume=True"
                ) from failure
            for hear in self._heard:
                hear(record)

    def train(self, step: int, **values: Any) -> None:
        """Record and show a training step."""
        self.write("train", step, **values)
        if self._console is None:
            return
        start, first = self._started
        pace = (time.monotonic() - start) / max(1, step - first)
        text = (
            f"length {values['length']:,}  loss {values['loss']:.4f}  "
            f"{self._metrics(values, 'ppl {:.3f}')}lr {values['lr']:.2e}  "
            f"{values['tokens_per_second']:,.0f} tok/s  "
            f"ETA {timedelta(seconds=round(pace * (self._total - step)))}  "
            f"{values['memory_mb']:,.0f} MB"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text, stage=values["stage"])
        else:
            self.note(f"step {step}/{self._total}  stage {values['stage']}  {text}")

    def validation(self, step: int, **values: Any) -> None:
        """Record and show a validation."""
        self.write("validation", step, **values)
        acgt = f"(ACGT {values['acgt_perplexity']:.4f})  " if "acgt_perplexity" in values else ""
        best = "  (best so far)" if values.get("best") else ""
        self.note(
            f"step {step}/{self._total}  validation loss {values['loss']:.4f}  "
            f"{self._metrics(values, 'ppl {:.4f}')}{acgt}over {values['count']:,.0f} "
            f"{self._unit}{best}"
        )

    def _metrics(self, values: Mapping[str, Any], perplexity_form: str) -> str:
        if self._unit == "tokens":
            return perplexity_form.format(values["perplexity"]) + "  "
        metrics = {name: values[name] for name in values if name not in _NOT_METRICS}
        return "".join(f"{name} {value:.4f}  " for name, value in metrics.items())

    def note(self, text: str) -> None:
        """Show a line."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
