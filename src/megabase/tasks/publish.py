"""A run as a folder for the Hugging Face Hub: the model, and a card made of the run's own records.

The card says what a reader cannot ask anybody: data with checksums, settings, numbers with the
rows they are of, versions, and limits. Nothing in it is typed by hand.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megabase import __version__
from megabase.errors import ConfigError, ModelError, OutputError, RunError
from megabase.genome.files import write_whole
from megabase.training.run_folder import RunFolder
from megabase.untrusted import read_json, read_text

_MODEL = ("*.json", "*.safetensors", "*.txt", "*.model")
"""Files of a model folder: settings, weights, vocabularies."""
_RECORDS = ("config.yaml", "data.json", "environment.json", "result.json", "evaluation.json")
"""What a run wrote about itself, published beside the model."""
_ABSOLUTE = re.compile(r"(?<![\w.:/`~-])/(?:[^\s\"',:/]+/)+([^\s\"',:/]+)")
"""A path from the root on, not a part of an address or of a relative path."""
_LOADS = """
import sys, torch, megabase.models
from transformers import AutoConfig, AutoTokenizer
import transformers
folder, name = sys.argv[1:]
model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=False).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
ids = tokenizer("ACGT" * 8, return_tensors="pt")
assert torch.isfinite(model(input_ids=ids["input_ids"]).logits).all()
"""
"""Run in a process of its own: what a reader of the card does first."""
_AUTO = {
    "causal-lm": ("AutoModelForCausalLM", "text-generation"),
    "masked-lm": ("AutoModelForMaskedLM", "fill-mask"),
    "sequence-classification": ("AutoModelForSequenceClassification", "text-classification"),
    "token-classification": ("AutoModelForTokenClassification", "text-classification"),
}
"""Class of transformers and name of the Hub by what a model is for."""
_OTHER = ("AutoModel", "text-classification")  # those of other models


def publish(
    run: str | Path, name: str, folder: str | Path, *, license: str, overwrite: bool = False
) -> Path:
    """Write the folder that is sent to the Hub: model, records and ``README.md``.

    `run` is a folder of pretraining or fine-tuning, `name` ``owner/name`` on the Hub, `license` an
    SPDX name; `overwrite` replaces a folder of an earlier call. A RunError or ModelError
    where the run lacks a finished model, or its folder does not load in a new process.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"a model on the Hub is named owner/name; found {name!r}")
    source, target = RunFolder(Path(run)), Path(folder)
    checkpoint = source.checkpoint()
    if checkpoint is None or not (checkpoint / "config.json").is_file():
        raise RunError(
            f"{run}: holds no model (best or last); is it a run of pretrain or finetune?"
        )
    if target.exists():
        if not overwrite or not (target / "run-config.yaml").is_file():
            raise OutputError(
                f"{target} exists; name another folder, or one of an earlier call with "
                "overwrite=True"
            )
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for pattern in _MODEL:
        for path in sorted(checkpoint.glob(pattern)):
            shutil.copyfile(path, target / path.name)
    for record in _RECORDS:
        if (source.path / record).is_file():
            text = read_text(source.path / record, RunError)
            write_whole(target / f"run-{record}", _without_folders(text))
    from megabase.models.describe import describe

    about = describe(str(checkpoint))
    write_whole(target / "README.md", _without_folders(_card(source, name, license, about)))
    auto, _ = _AUTO.get(about["kind"], _OTHER)
    command = [sys.executable, "-c", _LOADS, str(target), auto]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        raise ModelError(f"{target}: does not load in a new process: {tried.stderr.strip()[-500:]}")
    return target


def _without_folders(text: str) -> str:
    """Leave of each absolute path the name: folders tell of the person, not of the model."""
    return _ABSOLUTE.sub(r"\1", text)


def _card(run: RunFolder, name: str, license: str, about: dict[str, Any]) -> str:
    """Write the card: metadata of the Hub, then what a person reads."""
    from huggingface_hub import ModelCardData

    config, data, environment = (
        run.config(), run.record("data.json"), run.record("environment.json")
    )  # fmt: skip
    results, (auto, pipeline) = list(_results(run, data)), _AUTO.get(about["kind"], _OTHER)
    start = str(config.get("model")) if isinstance(config.get("model"), str) else None
    card = ModelCardData(
        license=license, library_name="transformers", tags=["megabase", "dna", "genomics"],
        pipeline_tag=pipeline, model_name=name,
        base_model=start if start is not None and start.count("/") == 1 else None,
        eval_results=[one for one, _ in results] or None,
    )  # fmt: skip
    command = shlex.join(environment.get("command") or ["megabase"])
    rows = "\n".join(
        f"| {one.dataset_name} | {one.metric_name} | {one.metric_value:.4g} | {text} |"
        for one, text in results
    )
    facts = {
        "class": about["class_name"], "parameters": f"{about['parameters']:,}",
        "longest input": f"{about['longest']:,} tokens" if about["longest"] else "no limit",
        "starts from": start or "fresh weights", "made by": f"`{command}`, megabase {__version__}",
        "packages": ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v),
        "machine": f"{environment['processor']}, {', '.join(environment['devices']) or 'no GPU'}",
    }  # fmt: skip
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    shown = json.dumps(data, indent=1)
    return f"""---
{card.to_yaml()}
---

# {name.split("/")[1]}

A DNA model of [megabase](https://megabase.readthedocs.io), published from the records of its run
(`run-*` beside it).

```python
import megabase as mb

model = mb.load("{name}")
```

or, after `import megabase.models`, `transformers.{auto}.from_pretrained("{name}")`; no remote
code is run.

| | |
| --- | --- |
{table}

## Numbers

{"| data | metric | value | rows |" if rows else "No evaluation was recorded in the run."}
{"| --- | --- | ---: | --- |" if rows else ""}
{rows}

## Data

What the model was trained and measured on, with checksums:

```json
{shown}
```

## Limits

- The numbers above are of the rows named beside them and of nothing else.
- Held-out rows of one genome share repeats and gene families with the training rows.
- Not for medical use.
"""


def _results(run: RunFolder, data: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Give what was measured, each with the rows that it is of."""
    from huggingface_hub import EvalResult

    def of(task: str, dataset: str, split: str, metric: str, value: float) -> Any:
        return EvalResult(
            task_type=task, dataset_type="dna", dataset_name=dataset, dataset_split=split,
            metric_type=metric, metric_name=metric, metric_value=value,
        )  # fmt: skip

    pretrained = "genome" in data
    genome = str(data["genome"]["name"]) if pretrained else ""
    if (run.path / "result.json").is_file():
        found = run.record("result.json")
        task, unit = (
            ("text-generation", "windows") if pretrained else ("text-classification", "rows")
        )
        for split in ("test", "valid"):
            known = {k: v for k, v in (found.get(split) or {}).items() if v is not None}
            for metric, value in known.items():
                rows = f"{found['rows'][split]:,} {unit} of {split}"
                dataset = genome or Path(found.get("run", run.path.name)).name
                yield of(task, dataset, split, metric, value), rows
    if (run.path / "evaluation.json").is_file():
        found = read_json(run.path / "evaluation.json", RunError)
        measure = found["overall"]
        value = measure["perplexity_acgt"]
        one = of("text-generation", genome or "genome", "test", "perplexity", value)
        yield one, f"{measure['targets']:,} bases"
