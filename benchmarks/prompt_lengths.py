"""Accuracy of soft prompts against their length, on a model that stays as it is.

    python benchmarks/prompt_lengths.py --train train.csv --test test.csv --output runs/prompts

In a model that reads left to right the sequence's own positions do not depend on a prompt behind
them. What they send to later positions is computed once: for each Hyena block the last two
projected positions (the short convolution reads them) and the long convolution's sums. A training
step then costs the positions of the prompt instead of all. The answers are those of
``megabase prompt`` with ``--prompt.position after``: for some test sequences both are computed, and
the largest difference of a logit is written. For HyenaDNA models of order 2 and sequences of one
length; no reverse complements.

For each answer and length the settings in the grid are tried; validation accuracy chooses the
setting and the step, and the test rows are scored once with them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.data.label_files import read_text
from megabase.data.labeled import label_splits, split_rows
from megabase.genome import alphabet
from megabase.genome.files import write_json
from megabase.models import load_model
from megabase.models.adapt.prompt import (
    PROMPT_FILES,
    PromptedModel,
    PromptSpec,
    label_letters,
    save_prompt,
)
from megabase.report.plots import save_prompt_lengths
from megabase.training.run_folder import environment

_CHECKED = 48


@dataclass
class Rows:
    """Sequences of a split as the prompt's positions see them."""

    ids: Tensor
    """int64 (n, length)."""
    labels: Tensor
    """int64 (n,)."""
    tails: list[Tensor] = field(default_factory=list)
    """For each block, the last two projected positions (n, 2, 3 width)."""
    sums: list[Tensor] = field(default_factory=list)
    """For each block, the long convolution's part from the sequence (n, later positions, width)."""
    mean: Tensor | None = None
    """Mean of the hidden vectors (n, width)."""


class Behind:
    """The frozen model at the positions behind a sequence.

    Parameters
    ----------
    length
        Tokens of every sequence.
    later
        Most positions behind it.
    """

    def __init__(self, length: int, later: int) -> None:
        self.model: Any = load_model(None, "causal-lm").requires_grad_(False)
        self.shell: Any = self.model.base_model.backbone
        self.table: Tensor = self.shell.embeddings.word_embeddings.weight
        self.length, self.later = length, later
        filters = [layer.mixer.filters(length + later) for layer in self.shell.layers]
        self.taps = [taps[0] for taps, _ in filters]
        self.skips = [skips[0] for _, skips in filters]

    @staticmethod
    def _gated(mixer: Any, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Give the outer gate and the input of the long convolution, (n, width, positions)."""
        short = F.conv1d(
            projected, mixer.short_filter.weight, mixer.short_filter.bias, groups=projected.shape[1]
        )
        out, gate, value = short.chunk(3, dim=1)
        return out, value * gate

    @torch.no_grad()
    def read(self, rows: Rows, size: int = 32) -> Rows:
        """Compute what the sequences send to later positions."""
        place = torch.arange(self.length)[:, None]
        later = torch.arange(self.later)
        spread = [taps[:, self.length + later - place] for taps in self.taps]
        found: list[list[Tensor]] = []
        for ids in rows.ids.split(size):
            hidden, residual, parts = self.table[ids], None, []
            blocks = zip(self.shell.layers, self.taps, self.skips, spread, strict=True)
            for layer, taps, skip, spreading in blocks:
                residual = hidden if residual is None else hidden + residual
                projected = layer.mixer.in_proj(layer.norm1(residual))
                padded = F.pad(projected.transpose(1, 2), (2, 0))
                out, inside = self._gated(layer.mixer, padded)
                sums = torch.bmm(inside.transpose(0, 1), spreading).permute(1, 2, 0)
                parts += [projected[:, -2:].clone(), sums.contiguous()]
                points = 2 * self.length
                spectrum = torch.fft.rfft(inside, points) * torch.fft.rfft(
                    taps[:, : self.length], points
                )
                mixed = torch.fft.irfft(spectrum, points)[..., : self.length]
                mixed = mixed + inside * skip[:, None]
                residual = residual + layer.mixer.out_proj((mixed * out).transpose(1, 2))
                hidden = layer.mlp(layer.norm2(residual))
            found.append(
                [
                    *parts,
                    self.shell.ln_f(hidden if residual is None else hidden + residual).mean(dim=1),
                ]
            )
        joined = [torch.cat(column) for column in zip(*found, strict=True)]
        rows.tails, rows.sums, rows.mean = joined[0:-1:2], joined[1:-1:2], joined[-1]
        return rows

    def hidden(self, rows: Rows, pick: Tensor, embedded: Tensor) -> Tensor:
        """Give the hidden vectors of positions behind some sequences, (n, positions, width)."""
        hidden, residual = embedded, None
        place = torch.arange(embedded.shape[1])
        lags = place[None, :] - place[:, None]
        for i, layer in enumerate(self.shell.layers):
            residual = hidden if residual is None else hidden + residual
            own = layer.mixer.in_proj(layer.norm1(residual))
            projected = torch.cat([rows.tails[i][pick], own], dim=1).transpose(1, 2)
            out, inside = self._gated(layer.mixer, projected)
            matrix = torch.where(lags >= 0, self.taps[i][:, lags.clamp(min=0)], 0.0)
            mixed = torch.bmm(inside.transpose(0, 1), matrix).transpose(0, 1)
            mixed = mixed + rows.sums[i][pick][:, : embedded.shape[1]].transpose(1, 2)
            mixed = mixed + inside * self.skips[i][:, None]
            residual = residual + layer.mixer.out_proj((mixed * out).transpose(1, 2))
            hidden = layer.mlp(layer.norm2(residual))
        return self.shell.ln_f(hidden if residual is None else hidden + residual)


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    answer: str
    length: int
    rate: float
    """Learning rate of the vectors."""
    over: str = "all"
    """Positions that the head averages."""


class Learner(nn.Module):
    """A prompt behind the sequences, and its head."""

    def __init__(self, behind: Behind, spec: PromptSpec) -> None:
        super().__init__()
        self.behind, self.spec = (behind,), spec
        start = behind.table[torch.randint(7, 11, (spec.length,))]
        self.vectors = nn.Parameter(start.clone())
        self.head = nn.Linear(start.shape[1], len(spec.classes))

    def forward(self, rows: Rows, pick: Tensor) -> Tensor:
        """Give token logits (n, vocabulary), or the head's (n, classes)."""
        behind, count = self.behind[0], len(pick)
        vectors = F.dropout(self.vectors, 0.1, self.training).expand(count, -1, -1)
        if self.spec.answer == "label_tokens":
            separator = behind.table[self.spec.end_id].expand(count, 1, -1)
            embedded = torch.cat([vectors, separator], dim=1)
            return behind.model.lm_head(behind.hidden(rows, pick, embedded)[:, -1])
        mean = rows.mean[pick]  # pyright: ignore[reportOptionalSubscript]
        if not self.spec.length:
            return self.head(mean)
        found = behind.hidden(rows, pick, vectors)
        if self.spec.over == "prompt":
            return self.head(found.mean(dim=1))
        whole = behind.length + self.spec.length
        return self.head((behind.length * mean + found.sum(dim=1)) / whole)

    @torch.no_grad()
    def measure(self, rows: Rows) -> tuple[dict[str, float], Tensor]:
        """Give the figures of a split, and the logits."""
        self.eval()
        numbers = torch.arange(len(rows.labels))
        logits = torch.cat([self(rows, pick) for pick in numbers.split(256)])
        self.train()
        ids = torch.tensor(self.spec.label_ids)
        if self.spec.answer == "head":
            right = logits.argmax(dim=1) == rows.labels
            return {"accuracy": right.float().mean().item()}, logits
        said = logits[:, ids].argmax(dim=1) == rows.labels
        strict = logits.argmax(dim=1) == ids[rows.labels]
        return {
            "accuracy": said.float().mean().item(), "strict_accuracy": strict.float().mean().item()
        }, logits  # fmt: skip


def learn(
    behind: Behind, spec: PromptSpec, setting: Setting, splits: dict[str, Rows], steps: int
) -> tuple[Learner, float, int]:
    """Train one prompt; give it at its best validation, with that accuracy and step."""
    torch.manual_seed(0)
    learner, batch = Learner(behind, spec).train(), 64
    train = splits["train"]
    trained = list(learner.head.parameters()) if spec.answer == "head" else []
    groups: list[dict[str, Any]] = [{"params": trained, "lr": 1e-2}] if trained else []
    if spec.length:
        groups.append({"params": [learner.vectors], "lr": setting.rate})
    best = (learner.measure(splits["valid"])[0]["accuracy"], 0, learner.state_dict())
    if not groups:
        return learner, best[0], 0
    best = (-1.0, 0, best[2])
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    peaks = [group["lr"] for group in optimizer.param_groups]
    size = len(train.labels)
    order = torch.cat([torch.randperm(size) for _ in range(-(-steps * batch // size))])
    for step in range(steps):
        share = min(1.0, (step + 1) / (0.05 * steps))
        cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * step / steps))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share * cosine
        pick = order[step * batch : (step + 1) * batch]
        labels = train.labels[pick]
        target = labels if spec.answer == "head" else torch.tensor(spec.label_ids)[labels]
        optimizer.zero_grad()
        F.cross_entropy(learner(train, pick), target).backward()
        for group in optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        if (step + 1) % max(1, steps // 8) == 0:
            accuracy = learner.measure(splits["valid"])[0]["accuracy"]
            if accuracy > best[0]:
                state = {name: value.clone() for name, value in learner.state_dict().items()}
                best = (accuracy, step + 1, state)
    learner.load_state_dict(best[2])
    return learner, best[0], best[1]


def finish(learner: Learner, rows: Rows, folder: Path) -> dict[str, Any]:
    """Save a prompt, score the test rows, and compare with the prompted model itself."""
    figures, logits = learner.measure(rows)
    spec = learner.spec
    kind = "causal-lm" if spec.answer == "label_tokens" else "base"
    prompted = PromptedModel(load_model(None, kind), spec, start=learner.vectors).eval()
    if prompted.head is not None:
        prompted.head.load_state_dict(learner.head.state_dict())
    with torch.no_grad():
        output = prompted(rows.ids[:_CHECKED])
    said = output.logits if output.token_logits is None else output.token_logits
    save_prompt(prompted, folder, model="default")
    size = sum((folder / name).stat().st_size for name in PROMPT_FILES)
    return {
        "trained": prompted.trained_parameters, "bytes": size, "test": figures,
        "largest_difference": float((said - logits[:_CHECKED]).abs().max()),
    }  # fmt: skip


def read_rows(train: str, test: str) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Read the splits; a tenth of the training rows of each class is held out (seed 0)."""
    texts = {"train": read_text(train), "test": read_text(test)}
    found = label_splits(texts, "classes")
    kept, cut = split_rows(found["train"].labels, 0.1, 0)
    parts = {"train": found["train"].take(kept), "valid": found["train"].take(cut)}
    splits = {}
    for name, part in {**parts, "test": found["test"]}.items():
        codes = part.codes.reshape(len(part), -1)
        ids = alphabet.TOKEN_ID_OF_CODE[codes].astype(np.int64)
        splits[name] = Rows(torch.from_numpy(ids), torch.from_numpy(part.labels))
    return splits, found["train"].classes


def spec_of(setting: Setting, classes: tuple[str, ...]) -> PromptSpec:
    """Give what a prompt is, as ``megabase prompt`` would make it."""
    tokens: dict[str, Any] = {}
    if setting.answer == "label_tokens":
        letters = label_letters(len(classes))
        ids = tuple(alphabet.encode(letters).tolist())
        tokens = {
            "letters": letters, "end_id": 1,
            "label_ids": tuple(int(alphabet.TOKEN_ID_OF_CODE[code]) for code in ids),
        }  # fmt: skip
    over: Any = setting.over if setting.length else "sequence"
    return PromptSpec(
        length=setting.length, classes=classes, position="after", answer=setting.answer,  # pyright: ignore[reportArgumentType]
        over=over, **tokens,
    )  # fmt: skip


def main() -> None:
    """Run the sweep and write ``results.json``, ``table.md`` and ``lengths.svg``."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=[0, 2, 8, 32, 128])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.06])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--full", type=float, help="accuracy of full fine-tuning, for the picture")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    splits, classes = read_rows(options.train, options.test)
    started, cpu = time.perf_counter(), time.process_time()
    behind = Behind(splits["train"].ids.shape[1], max(options.lengths) + 1)
    for rows in splits.values():
        behind.read(rows)
    print(f"read {sum(len(r.labels) for r in splits.values()):,} sequences, "
          f"{time.process_time() - cpu:.0f} s of CPU", flush=True)  # fmt: skip
    results: list[dict[str, Any]] = []
    for answer in ("head", "label_tokens"):
        for length in options.lengths:
            overs = ("all", "prompt") if answer == "head" and length else ("all",)
            rates = options.rates if length else options.rates[:1]
            tried = []
            for setting in [Setting(answer, length, r, o) for o in overs for r in rates]:
                spec = spec_of(setting, classes)
                learner, valid, step = learn(behind, spec, setting, splits, options.steps)
                tried.append((valid, step, setting, learner))
            valid, step, setting, learner = max(tried, key=lambda one: one[0])
            results.append(
                {
                    **asdict(setting), "best_step": step, "valid_accuracy": valid,
                    "tried": [(asdict(one[2]), one[0]) for one in tried],
                    **finish(learner, splits["test"], output / f"{answer}-{length}"),
                }
            )  # fmt: skip
            print(json.dumps(results[-1]), flush=True)
            seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
            sizes = {name: len(rows.labels) for name, rows in splits.items()}
            write_json(
                output / "results.json",
                {"rows": sizes, **seconds, "results": results, "environment": environment()},
            )
    head = "| answer | vectors | trained | bytes | valid | test | test, strict |\n|" + " --- |" * 7
    lines = [
        f"| {r['answer']} | {r['length']} | {r['trained']:,} | {r['bytes']:,} | "
        f"{r['valid_accuracy']:.3f} | {r['test']['accuracy']:.3f} | "
        + (f"{r['test']['strict_accuracy']:.3f} |" if "strict_accuracy" in r["test"] else "|")
        for r in results
    ]
    (output / "table.md").write_text("\n".join([head, *lines]) + "\n")
    series = {
        f"answer by {answer.replace('_', ' ')}": [
            (r["length"], r["test"]["accuracy"]) for r in results if r["answer"] == answer
        ]
        for answer in ("head", "label_tokens")
    }
    full = None if options.full is None else ("full fine-tuning", options.full)
    save_prompt_lengths(output / "lengths.svg", series, "test accuracy", full)


if __name__ == "__main__":
    main()
