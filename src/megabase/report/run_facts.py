"""Sections of a page that say what a run was: data, model, settings, machine."""

from __future__ import annotations

from typing import Any

from megabase.report.page import definitions, section
from megabase.report.run_record import RunRecord

__all__ = ["data_section", "duration", "family_name", "settings_section", "short_number"]

Record = dict[str, Any]


def family_name(run: RunRecord) -> str:
    """Give the name of the model family as its paper writes it."""
    names = {"hyenadna": "HyenaDNA", "gpt": "GPT", "mamba": "Mamba", "caduceus": "Caduceus"}
    kind = str(run.model.get("model_type", "model"))
    return names.get(kind, kind)


def short_number(value: float) -> str:
    """Write 1,234,567 as 1.23 M."""
    for scale, word in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.3g} {word}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Write a time in hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def data_section(run: RunRecord) -> str:
    """Give the section on genome and split."""
    splits, genome = run.data["splits"], run.data["genome"]

    def part(name: str) -> str:
        split = splits[name]
        if not split["bases"]:
            return "none"
        shown = ", ".join(split["regions"][:4])
        more = split["number_of_regions"] - 4
        return f"{split['bases']:,} bases: {shown}" + (f" and {more:,} more" if more > 0 else "")

    return section(
        "Data",
        [
            definitions(
                [
                    (
                        "genome",
                        f"{genome['name']}, {sum(run.data['contigs'].values()):,} bases in "
                        f"{len(run.data['contigs']):,} contigs",
                    ),
                    ("sha256", genome["sha256"]),
                    ("training", part("train")),
                    ("validation", part("validation")),
                    ("test", part("test")),
                    ("windows", str(run.data["windows"])),
                    (
                        "reverse complement",
                        f"{run.config['data'].get('reverse_complement', 0):.0%} of "
                        "the training windows",
                    ),
                ]
            )
        ],
    )


def settings_section(run: RunRecord) -> str:
    """Give the section on model, optimizer, time, machine and software."""
    config, optim = run.config, run.config.get("optim", {})
    last, place = run.of_kind("train")[-1], run.environment
    shape = run.model
    layers = shape.get("n_layer") or shape.get("num_hidden_layers")
    width = shape.get("d_model") or shape.get("hidden_size")
    longest = shape.get("max_seq_len") or shape.get("max_length")
    commit = place.get("git") or {}
    memory = max(record.get("memory_mb") or 0.0 for record in run.of_kind("train"))
    devices = ", ".join(place.get("devices") or []) or place.get("processor") or ""
    return section(
        "Run",
        [
            definitions(
                [
                    (
                        "model",
                        f"{family_name(run)}, {layers} layers, width {width}"
                        + (f", longest input {longest:,}" if longest else ""),
                    ),
                    ("parameters", f"{run.parameters:,}"),
                    ("checkpoint", run.checkpoint),
                    ("steps", f"{last['step']:,} of {_batch(config)}"),
                    (
                        "optimizer",
                        f"AdamW, learning rate {optim.get('lr', 0):g} "
                        f"({optim.get('schedule')}), weight decay "
                        f"{optim.get('weight_decay', 0):g}",
                    ),
                    ("precision", str(config.get("precision", ""))),
                    ("seed", str(config.get("seed", ""))),
                    (
                        "time",
                        f"{duration(last['seconds'])} of training steps, "
                        f"{last['tokens'] / max(last['seconds'], 1e-9):,.0f} tokens a second",
                    ),
                    ("memory", f"{memory:,.0f} MB" if memory else ""),
                    ("machine", f"{devices}, {place.get('cores')} cores"),
                    (
                        "software",
                        ", ".join(
                            [f"megabase {place.get('megabase')}", f"Python {place.get('python')}"]
                            + [
                                f"{name} {version}"
                                for name, version in place.get("packages", {}).items()
                                if version and name in ("torch", "transformers", "lightning-fabric")
                            ]
                        ),
                    ),
                    (
                        "commit",
                        str(commit.get("commit", ""))[:12]
                        + (" with changes" if commit.get("changed") else ""),
                    ),
                ]
            )
        ],
    )


def _batch(config: Record) -> str:
    if config.get("global_batch_tokens"):
        return f"{config['global_batch_tokens']:,} tokens"
    return f"{config.get('global_batch', 0):,} sequences"
