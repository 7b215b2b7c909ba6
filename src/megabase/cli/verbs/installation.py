"""Verbs about this installation: what works and what is missing, completion in a shell."""

import argparse
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from megabase import __file__, __version__
from megabase.cli.parser import Namespace, Verb, VerbParser, build_parser
from megabase.cli.streams import print_table
from megabase.memory import available_bytes

_Row = tuple[str, str, str]
"""ok, missing (of what is optional) or wrong; what; what was found, and how to repair it."""
_SAME = 2e-4
"""Difference of two backends allowed, relative to the largest number: float32 summed in another
order, through a few layers."""


def _doctor(_: Namespace) -> int:
    """Check this installation: versions, devices, and every backend against the definitions.

    Exit status 1 when something is wrong; what is optional and missing is told with the command
    that installs it.
    """
    rows = [*_packages(), *_machine(), *_backends()]
    print_table(("", "", ""), rows)
    wrong = [what for status, what, _ in rows if status == "wrong"]
    print(f"to repair: {', '.join(wrong)}" if wrong else "megabase works here")
    return 1 if wrong else 0


def _packages() -> Iterator[_Row]:
    """Compare what is installed with what the distribution asks for."""
    about = f"{__version__}, Python {platform.python_version()}"
    try:
        needs = metadata.requires("megabase") or ()
        yield "ok", "megabase", about
    except metadata.PackageNotFoundError:
        where = __file__.rpartition("/megabase/")[0]
        more = f"not installed, only on the path ({where}): what it needs is not compared"
        yield "missing", "megabase", f"{about}; {more}; pip install it"
        return
    of_extra: dict[str, list[str]] = {}
    for need in map(Requirement, needs):
        extra = str(need.marker or "").rpartition("extra == ")[2].strip('"')
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        try:
            found = metadata.version(need.name)
            fits = need.specifier.contains(found, prereleases=True)
        except metadata.PackageNotFoundError:
            found, fits = "not installed", False
        if extra:
            lacks = [] if fits else [f"{need.name} {found}"]
            of_extra[extra] = [*of_extra.get(extra, ()), *lacks]
        else:
            more = "" if fits else f"; pip install '{need.name}{need.specifier}'"
            yield "ok" if fits else "wrong", need.name, found + more
    for extra, lacks in of_extra.items():
        advice = f"{', '.join(lacks)}; pip install 'megabase[{extra}]'"
        yield "missing" if lacks else "ok", f"extra {extra}", advice if lacks else "installed"


def _machine() -> Iterator[_Row]:
    """Say what there is to compute with."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from megabase.ops import backend, kernels, triton
    from megabase.training.run_folder import environment

    about, package = environment(), kernels.package() if kernels.verified() else None
    memory = available_bytes(torch.device("cpu")) / 1e9
    yield "ok", "processor", f"{about['processor']}, {about['cores']} cores, {memory:.1f} GB free"
    yield "ok", "GPUs", ", ".join(about["devices"]) or "none"
    if package is not None:
        yield "ok", "kernels", f"{package.__version__} for {package.instruction_set()}"
    else:
        why = str(kernels.why_missing())
        status = "missing" if "not installed" in why else "wrong"
        yield status, "kernels", f"{why}; models train slower without"
    why = triton.why_missing()
    yield ("ok", "triton", "works") if why is None else ("missing", "triton", why)
    yield "ok", "backend in use", backend.active()
    kept = "offline" if os.environ.get("HF_HUB_OFFLINE") else "downloads"
    yield "ok", "models of the Hub", f"{kept}, kept in {HF_HUB_CACHE} (HF_HOME)"


def _backends() -> Iterator[_Row]:
    """Compare a step of small models, forward and backward, with the definitions."""
    import torch

    from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
    from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
    from megabase.models.mamba import MambaConfig, MambaForCausalLM
    from megabase.ops import backend, kernels

    names = ["fast", "plain", *(["kernels"] if kernels.package() is not None else [])]
    ids = torch.arange(2 * 99).reshape(2, 99) * 7 % 4 + 7  # A, C, G and T; an odd length
    shape: dict[str, Any] = {"d_model": 16, "n_layer": 2}
    torch.manual_seed(0)
    for family, model in {
        "HyenaDNA": HyenaDNAForCausalLM(HyenaDNAConfig(**shape, max_seq_len=128)),
        "Mamba": MambaForCausalLM(MambaConfig(**shape)),
        "Caduceus": CaduceusForMaskedLM(CaduceusConfig(**shape, rcps=True)),
    }.items():
        found: dict[str, list[torch.Tensor]] = {}
        for name in ("reference", *names):
            model.eval().zero_grad()  # without dropout
            with backend.override(name):
                output = model(input_ids=ids, labels=ids)
                output.loss.backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            found[name] = [output.logits.detach(), *grads]
        for name in names:
            pairs = zip(found["reference"], found[name], strict=True)
            worst = max(float((a - b).abs().max() / a.abs().max().clamp(1e-3)) for a, b in pairs)
            text = f"differs by {worst:.0e} from the definitions"
            if not worst <= _SAME:
                text += "; do without it: MEGABASE_BACKEND=reference"
            yield "ok" if worst <= _SAME else "wrong", f"{family}, {name}", text


_ZSH = "#compdef megabase\nautoload -U +X bashcompinit && bashcompinit\n"
"""zsh runs completions written for bash."""


def _add_completion(parser: VerbParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")


def _completion(args: Namespace) -> None:
    """Print a script that completes verbs, options and their choices in a shell.

    bash: `source <(megabase completion bash)`; zsh: the same with zsh, in ~/.zshrc; fish:
    `megabase completion fish > ~/.config/fish/completions/megabase.fish`.
    """
    from megabase.cli import main

    parsers = {
        name: build_parser(name, f"megabase.cli.verbs.{module}")[0]
        for name, (module, _) in main.VERBS.items()
    }
    known = {name: _options(parser) for name, parser in parsers.items()}
    if args.shell == "fish":
        print(_fish(known, {name: text for name, (_, text) in main.VERBS.items()}))
    else:
        print((_ZSH if args.shell == "zsh" else "") + _bash(known), end="")


def _options(parser: VerbParser) -> dict[str, str]:
    """Give every option of a parser and its actions with its choices; of no option, the words."""
    found = {"": ""}
    for action in parser._actions:
        choices = " ".join(str(choice) for choice in action.choices or ())
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= _options(inner)
        if action.option_strings:
            found |= dict.fromkeys(action.option_strings, choices)
        else:
            found[""] = f"{found['']} {choices}".strip()
    return found


def _bash(known: Mapping[str, Mapping[str, str]]) -> str:
    choices = [
        f'    "{verb} {option or verb}") options="{words}" ;;'
        for verb, options in known.items()
        for option, words in options.items()
        if words
    ]
    lists = [f'      {verb}) options="{" ".join(filter(None, known[verb]))}" ;;' for verb in known]
    verbs = " ".join([*known, "help"])
    # The verb is the second word; what begins with no dash is a file. __file__ is of the package.
    text = Path(__file__).with_name("cli").joinpath("completion.bash").read_text()
    for name, value in (("verbs", [verbs]), ("choices", choices), ("options", lists)):
        text = text.replace(f"@{name}@", "\n".join(value))
    return text


def _fish(known: Mapping[str, Mapping[str, str]], texts: Mapping[str, str]) -> str:
    start = "complete -c megabase -n"
    lines = [f"{start} __fish_use_subcommand -a {verb} -d '{texts[verb]}'" for verb in known]
    for verb, options in known.items():
        here = f"{start} '__fish_seen_subcommand_from {verb}'"
        for option, words in options.items():
            kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            if option:
                lines.append(f"{here} {kind}" + (f" -xa '{words}'" if words else ""))
            elif words:
                lines.append(f"{here} -a '{words}'")
    return "\n".join(lines)


# fmt: off
VERBS = {
    "doctor": Verb(lambda parser: None, _doctor, (
        "megabase doctor",
    )),
    "completion": Verb(_add_completion, _completion, (
        "megabase completion bash",
    )),
}
