"""``python -m benchmarks MEASUREMENT``: speed and memory of the models on this machine."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks import (
    context_parallel,
    data,
    generation,
    gpu,
    gpu_page,
    launches,
    prescore,
    runtime,
    scaling,
    scan,
    species,
    step,
    variants,
)
from benchmarks.harness import disturbed
from megabase.cli.parser import HelpFormatter
from megabase.errors import MegabaseError
from megabase.genome.files import check_output, write_json

MEASUREMENTS = {
    "runtime": (runtime.RuntimeConfig, runtime.run_runtime),
    "generate": (generation.GenerateConfig, generation.run_generation),
    "step": (step.StepConfig, step.run_step),
    "memory": (step.MemoryConfig, step.run_memory),
    "context-parallel": (context_parallel.SharingConfig, context_parallel.run_sharing),
    "gpu": (gpu.GpuConfig, gpu.run_gpu),
    "launches": (launches.LaunchConfig, launches.run_launches),
    "load": (data.LoadConfig, data.run_load),
    "store": (data.StoreConfig, data.run_store),
    "scan": (scan.ScanConfig, scan.run_scan),
    "prescore": (prescore.PrescoreConfig, prescore.run_prescore),
    "scaling": (scaling.ScalingConfig, scaling.run_scaling),
    "species": (species.LikelihoodConfig, species.run_likelihood),
    "variants": (variants.VariantsConfig, variants.run_variants),
}
"""Settings and function of each; the function gives what is written as JSON."""
PICTURES = {
    "runtime": runtime.save_plots,
    "gpu": gpu_page.save_page,
    "scaling": scaling.save_plot,
    "species": species.save_plot,
}
"""What is written beside the JSON."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement; give 0, or 2 after an error that is printed as one line."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=HelpFormatter
    )
    actions = parser.add_subcommands(required=True, dest="action")
    for name, (config, _) in MEASUREMENTS.items():
        own = ArgumentParser(formatter_class=HelpFormatter, description=config.__doc__)
        own.add_argument("-o", "--output", metavar="FILE", help="write the result as JSON")
        own.add_argument("--overwrite", action="store_true", help="replace an earlier result")
        own.add_class_arguments(config)
        actions.add_subcommand(name, own, help=str(config.__doc__).split(".", maxsplit=1)[0])
    try:
        args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
        given = args[args.action]
        config, measure = MEASUREMENTS[args.action]
        settings = config(**{f.name: given[f.name] for f in dataclasses.fields(config)})
        if given.output is not None:
            check_output(Path(given.output), given.overwrite)
        found = measure(settings, print)
        machine = found["environment"]
        torch = machine["packages"]["torch"]
        print(f"{machine['processor']}, {machine['threads']} threads, torch {torch}")
        if disturbed(found["other_cores"]):
            print(f"others kept {found['other_cores']:.1f} cores busy meanwhile: measure again")
        if given.output is not None:
            write_json(Path(given.output), found)
            print(f"wrote {given.output}")
            for path in PICTURES.get(args.action, lambda *_: [])(found, Path(given.output)):
                print(f"wrote {path}")
    except MegabaseError as error:
        text = str(error).replace("overwrite=True", "--overwrite")
        print(f"benchmarks: error: {text}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
