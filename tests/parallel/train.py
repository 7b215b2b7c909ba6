"""Short pretraining runs in processes of their own, as torchrun starts them.

``python train.py FOLDER`` makes a genome and the runs ``one``, ``two by two`` (readers of two
processes each) and ``killed``, which begins with three processes that share each sequence, is
killed, and is resumed by two.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint.state_dict

# Loaded before the processes part, not in each of them.
import megabase as mb
import megabase.models.hyenadna
import megabase.tasks.pretrain
from megabase.training.checkpoint import Checkpoints


def settings(folder: Path, name: str, processes: int, shared: int, resume: bool) -> Any:
    return mb.PretrainConfig(
        output=str(folder / name),
        data=mb.DataConfig(
            genome=str(folder / "toy.mb"), validation=["chr2"], max_n_fraction=1.0, eval_windows=4
        ),
        model=mb.ModelConfig(
            d_model=12, n_layer=2, overrides={"filter_order": 8, "embed_dropout": 0.0}
        ),
        stages=(mb.Stage(length=64, micro_batch=1, steps=4), mb.Stage(length=97, micro_batch=2)),
        global_batch=4,
        steps=10,
        eval_every=5,
        checkpoint_every=4,
        log_every=1,
        optim=mb.OptimConfig(lr=3e-3, warmup_steps=2),
        devices=mb.DeviceConfig(
            accelerator="cpu", devices=processes, threads=1, context_parallel=shared
        ),
        resume=resume,
    )


def die_after_a_checkpoint() -> None:
    save = Checkpoints.save

    def then_die(self: Any, *given: Any) -> Any:
        save(self, *given)
        os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = then_die  # pyright: ignore[reportAttributeAccessIssue]


def run(
    folder: Path, name: str, processes: int, shared: int, kill: bool = False, resume: bool = False
) -> None:
    """Pretrain; with `kill` the first process ends by SIGKILL after its first checkpoint."""

    def work() -> None:
        if kill:
            die_after_a_checkpoint()
        mb.pretrain(settings(folder, name, processes, shared, resume))

    launch(work, processes, kill)


def launch(work: Callable[[], object], processes: int, kill: bool = False) -> None:
    """Call in forked processes with the environment of torchrun.

    With `kill` the first one ends by SIGKILL, and then the others.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
        if processes == 1:
            del os.environ["TORCHELASTIC_RUN_ID"]
        try:
            work()
        except BaseException:  # noqa: BLE001 (told by the status)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill:
        assert os.waitstatus_to_exitcode(os.waitpid(children.pop(0), 0)[1]) == -signal.SIGKILL
        for child in children:
            os.kill(child, signal.SIGKILL)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    assert kill or not failed, f"{len(failed)} of {processes} processes failed"


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    lines = []
    for name in ("chr1", "chr2"):
        bases = draw.choice(list("ACGTacgtN"), size=1500, p=[0.2] * 4 + [0.04] * 4 + [0.04])
        lines += [f">{name}", "".join(bases)]
    (folder / "toy.fa").write_text("\n".join(lines) + "\n")
    mb.Genome.build(folder / "toy.fa", folder / "toy.mb")
    run(folder, "one", 1, 1)
    run(folder, "two by two", 4, 2)
    run(folder, "killed", 3, 3, kill=True)
    run(folder, "killed", 2, 2, resume=True)


if __name__ == "__main__":
    main()
