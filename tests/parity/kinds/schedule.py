"""Stage rule of the length warm-up: recorded stages, accumulation and resumes, exactly."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Case, covers
from published_training import PublishedStages

from megabase.errors import ConfigError


def _row(stages: list[dict[str, Any]], epoch: int, stage: int, reloads: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "stage": stage,
        "seq_len": stages[stage]["seq_len"],
        "batch_size": stages[stage].get("batch_size"),
        "dataset_reloads_so_far": reloads,
    }


def _follow(
    rule: PublishedStages, stages: list[dict[str, Any]], rows: list[Any], stage: int
) -> None:
    """Compare the epochs of one run from its first stage on; each stage reloads the data once."""
    reloads = 1
    for number, row in enumerate(rows):
        if number:
            following = rule.next_stage(stage, row["epoch"])
            reloads += following != stage
            stage = following
        assert _row(stages, row["epoch"], stage, reloads) == row


@covers("seqlen_warmup_schedule")
def seqlen_warmup(case: Case) -> None:
    recorded = {entry["name"]: entry for entry in case.output_json}
    assert set(recorded) == {entry["name"] for entry in case.input_json}
    for entry in case.input_json:
        want, stages = recorded[entry["name"]], entry["stages"]
        rule = PublishedStages(
            epochs=[stage["epochs"] for stage in stages],
            batch_sizes=[stage.get("batch_size") for stage in stages],
            global_batch=entry["global_batch_size"],
        )
        assert rule.cumulative == want["cumulative_epochs"]
        table = rule.accumulation
        found = None if table is None else {str(key): value for key, value in table.items()}
        assert found == want["accumulate_grad_batches"]
        _follow(rule, stages, want["from_scratch"], rule.at(0))
        assert [rule.at(row["epoch"]) for row in want["from_scratch"]] == [
            row["stage"] for row in want["from_scratch"]
        ]
        for start, rows in want["resumed"].items():
            if "raises" in rows[0]:
                with pytest.raises(ConfigError):
                    rule.on_resume(int(start))
            else:
                _follow(rule, stages, rows, rule.on_resume(int(start)))
