"""Lightning Fabric from the settings."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy

from megabase.errors import ConfigError
from megabase.settings import DeviceConfig

__all__ = ["build_fabric", "planned_world"]

_PRECISION = {"fp32": "32-true", "bf16-mixed": "bf16-mixed"}


def build_fabric(devices: DeviceConfig, precision: str) -> Fabric:
    """Build Fabric for the devices; the caller launches it.

    Raises
    ------
    ConfigError
        When the machine does not have what is asked for.
    """
    if devices.threads is not None:
        torch.set_num_threads(devices.threads)
    # Fabric announces its choices through warnings and info lines; the run's own plan says them.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    number: Any = devices.devices
    if number == "auto" and not torch.cuda.is_available():
        number = 1
    strategy: Any = devices.strategy
    if strategy == "ddp":
        strategy = DDPStrategy(gradient_as_bucket_view=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Fabric(
                accelerator=devices.accelerator,
                devices=number,
                num_nodes=devices.nodes,
                strategy=strategy,
                precision=_PRECISION[precision],  # pyright: ignore[reportArgumentType]
            )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"devices cannot be set up (accelerator {devices.accelerator}, devices "
            f"{devices.devices}, strategy {devices.strategy}): {reason}"
        ) from error


def planned_world(fabric: Fabric, devices: DeviceConfig) -> int:
    """Give the number of processes that a launch will make, without launching."""
    return max(fabric.world_size, int(getattr(fabric.strategy, "num_processes", 1)) * devices.nodes)
