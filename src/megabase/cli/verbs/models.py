"""Verbs about model folders: convert a checkpoint, describe a model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from megabase.cli.parser import Namespace, Verb, VerbParser
from megabase.cli.streams import note, print_table
from megabase.errors import MegabaseError


def _add_convert(parser: VerbParser) -> None:
    add = parser.add_argument
    add("source", metavar="SRC", help="checkpoint file, folder with one, preset name or Hub "
        "repository (owner/name)")  # fmt: skip
    add("destination", metavar="DST", help="model folder to write")
    add("--config", type=str, metavar="FILE", help="config.json to use instead of the one next to "
        "the weights")  # fmt: skip
    add("--window-shift", type=float, metavar="NUMBER", help="constant added to a Hyena filter's "
        "window: 0.05 in the published loaders (default), 0.0 in the published training code; no "
        "file records it")  # fmt: skip
    add("--longest", type=int, metavar="POSITIONS", help="give a trained HyenaDNA room for longer "
        "inputs: SRC is a model folder, a run folder or `default`; outputs for inputs that it "
        "could take before stay the same")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier model folder of this name")


def _convert(args: Namespace) -> None:
    """Turn a published checkpoint into a model folder.

    Reads Lightning checkpoints (.ckpt), torch files (.pt, .bin), safetensors and Hugging Face
    folders. Pickles are read without running any code in them. Every tensor that is missing,
    unexpected or of another shape is named.
    """
    from megabase.models.checkpoints.convert import convert_checkpoint, lengthen_model

    if args.longest is not None:
        if args.config is not None or args.window_shift is not None:
            raise MegabaseError(
                "--longest takes a model folder as it is; convert the checkpoint first, then give "
                "the folder with --longest alone"
            )
        made = lengthen_model(args.source, args.destination, args.longest, args.overwrite)
    else:
        options = {} if args.window_shift is None else {"window_shift": args.window_shift}
        made = convert_checkpoint(
            args.source, args.destination, config=args.config, overwrite=args.overwrite, **options
        )
    count = sum(parameter.numel() for parameter in made.model.parameters())
    limit = getattr(made.model.config, "max_length", None)
    longest = f", inputs of up to {limit:,} tokens" if limit else ""
    print(f"{type(made.model).__name__}: {count:,} parameters{longest}")
    for text in made.notes:
        print(f"note: {text}")
    if made.dropped:
        print(f"left out: {', '.join(made.dropped)}")
    note(f"wrote {Path(args.destination).expanduser()}")


_TRAINED = 1026  # positions of a packaged model that has no longest input: those it was trained at
_SHOWN_LABELS = 10  # classes that are listed: a line or two; JSON has all of them
_SCORING_VALUES = 14
"""Values alive at the peak, per position and unit of width: measured on HyenaDNA in float32 without
gradients, at 4 x 65,536 tokens."""
_PROCESS_BYTES = 500_000_000  # of a process that has imported torch and transformers: measured


def _add_info(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", type=str, metavar="MODEL", help="model folder, run folder, preset or "
        "Hub repository (default: the packaged model)")  # fmt: skip
    add("--length", type=int, help="tokens of each input in the memory estimate (default: the "
        "longest input)")  # fmt: skip
    add("--batch", default=1, type=int, help="inputs in one batch of the estimate")
    add("--list", action="store_true", help="list the models known by name: size, longest "
        "training input, memory for scoring one, license of the weights, use")  # fmt: skip
    add("--json", action="store_true", help="print everything as JSON")


def _info(args: Namespace) -> None:
    """Describe a model, its inputs and the memory it needs; or list the models known by name.

    The memory is an estimate for float32 on a CPU, meant to be right within a third.
    """
    if args.list:
        _list(args.json)
        return
    from megabase.models.describe import describe

    model = describe(args.model)
    if args.batch < 1 or (args.length is not None and args.length < 1):
        raise MegabaseError("--length and --batch must be at least 1")
    longest = model["longest"]
    if args.length is not None and longest is not None and args.length > longest:
        raise MegabaseError(
            f"--length {args.length:,} is over the longest input of {model['path']}, {longest:,}"
        )
    memory = _memory(model, args.length or longest, args.batch)
    if args.json:
        print(json.dumps({**model, "memory": memory}, indent=2))
    else:
        _show_model(model, memory, packaged=args.model in (None, "default", "default-masked"))


def _memory(model: dict[str, Any], length: int | None, batch: int) -> dict[str, int] | None:
    """Estimate bytes for scoring and for a training step; None where the formula does not apply."""
    if model["layers"] is None or model["width"] is None or length is None:
        return None
    from megabase.models.describe import step_memory

    step = step_memory(model, batch, length)
    stored = 4 * model["constants"]
    scoring = _scoring(model["parameters"], batch * length, model["width"], model["columns"] or 0)
    return {
        "length": length,
        "batch": batch,
        "inference_bytes": scoring + stored,
        "training_step_bytes": step["total"] + stored,
    }


def _scoring(parameters: int, positions: int, width: int, columns: int) -> int:
    return (
        _PROCESS_BYTES + 4 * parameters + positions * (_SCORING_VALUES * 4 * width + 12 * columns)
    )


def _size(count: int) -> str:
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _show_model(model: dict[str, Any], memory: dict[str, int] | None, packaged: bool) -> None:
    shown = ", ".join(model["labels"][:_SHOWN_LABELS])
    more = len(model["labels"]) - _SHOWN_LABELS
    tokenizer = dict(model["tokenizer"])
    name = tokenizer.pop("class")
    constants = model["constants"]
    facts: list[tuple[str, object]] = [
        ("model", f"{model['path']}{' (packaged with megabase)' if packaged else ''}"),
        ("class", f"{model['class_name']} ({model['model_type']}, {model['kind']})"),
        ("shape", f"{model['layers']} layers of width {model['width']}" if model["layers"] else ""),
        ("parameters", f"{model['parameters']:,}"),
        ("constants", f"{constants:,} (stored, not trained)" if constants else ""),
        ("file size", _size(model["file_bytes"])),
        ("longest input", f"{model['longest']:,} tokens" if model["longest"] else ""),
        ("labels", shown + (f", and {more} more" if more > 0 else "")),
        ("tokenizer", f"{name} ({', '.join(f'{k} {v}' for k, v in tokenizer.items())})"),
        ("window shift", model["settings"].get("window_shift")),
    ]
    if memory is not None:
        at = f"at {memory['batch']} x {memory['length']:,} tokens, estimated"
        facts.append(("memory, scoring", f"{_size(memory['inference_bytes'])} {at}"))
        facts.append(("memory, training", f"{_size(memory['training_step_bytes'])} {at}"))
    if model["source"]:
        facts.append(("converted from", model["source"].get("source")))
        facts += [("", f"note: {text}") for text in model["source"].get("notes", [])]
    print_table(("", ""), [(name, str(one)) for name, one in facts if one not in (None, "")])


def _list(as_json: bool) -> None:
    from megabase.models.describe import describe
    from megabase.models.presets import PRESETS, Preset

    packaged = []
    for name, what in (("default", ""), ("default-masked", ", both sides")):
        own = describe(name)
        packaged.append(Preset(
            name, own["model_type"], {"d_model": own["width"], "n_layer": own["layers"]},
            own["parameters"], (own["longest"] or _TRAINED) - 2, source="in the package",
            license="Apache-2.0", use=f"to try the commands: human chr20 alone{what}",
        ))  # fmt: skip
    rows = []
    for one in sorted((*packaged, *PRESETS.values()), key=lambda one: not one.license):
        # A convolutional network has no width, and needs little.
        width = one.config.get("d_model", 768 if one.family in ("bigbird", "dnabert") else 0)
        width = one.config.get("hidden_size", width)
        tokens = min(one.length, 4096) if one.family == "bigbird" else one.length
        memory = _scoring(one.parameters, tokens, width, 16) if width else None
        shape = dataclasses.asdict(dataclasses.replace(one, config=dict(one.config)))
        rows.append({**shape, "scoring_bytes": memory})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ("model", ">parameters", ">bases", ">memory", "license", "good for"),
        [
            (one["name"], f"{one['parameters']:,}", f"{one['length']:,}",
             _size(one["scoring_bytes"]) if one["scoring_bytes"] else "", one["license"],
             one["use"])
            for one in rows
        ],
    )  # fmt: skip


def _add_publish(parser: VerbParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", type=str, help="run folder of pretrain or finetune")
    add("name", metavar="OWNER/NAME", type=str, help="repository on the Hub")
    add("-o", "--output", type=str, metavar="FOLDER", help="folder to send (default: RUN-hub)")
    add("--license", type=str, default="apache-2.0", help="SPDX name of the license of the weights")
    add("--private", action="store_true", help="only for the owner")
    add("--dry-run", action="store_true", help="write the folder, and send nothing")
    add("--overwrite", action="store_true", help="replace the folder of an earlier call")


def _publish(args: Namespace) -> None:
    """Publish a run: its model, and a card with data, numbers and limits from its own records.

    The folder has to load in a new process through the Auto classes of transformers, without remote
    code, before it is sent.
    """
    from huggingface_hub import HfApi

    from megabase.tasks.publish import publish

    folder = Path(args.output or f"{args.run.rstrip('/')}-hub")
    publish(args.run, args.name, folder, license=args.license, overwrite=args.overwrite)
    note(f"wrote {folder}")
    if not args.dry_run:  # needs `hf auth login`
        HfApi().create_repo(args.name, private=args.private, exist_ok=True)
        print(HfApi().upload_folder(repo_id=args.name, folder_path=str(folder)))


# fmt: off
VERBS = {
    "convert": Verb(_add_convert, _convert, (
        "megabase convert weights.ckpt folder",
        "megabase convert default longer --longest 16386",
    )),
    "publish": Verb(_add_publish, _publish, (
        "megabase publish runs/tuned me/promoters --dry-run",
    )),
    "info": Verb(_add_info, _info, (
        "megabase info",
        "megabase info runs/mine --length 1024 --batch 32",
        "megabase info --list",
    )),
}
