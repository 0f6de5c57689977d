"""Adapters in the formats of PEFT's own methods."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn

from neurontune_peft.checks import write_atomically


def target_modules(sites: Sequence[str], model: nn.Module) -> list[str]:
    """
    Name sites as briefly as engines like it: by their last part, if no other module has it, else in full.

    Args:
        sites (`Sequence[str]`): Paths of modules.
        model (`nn.Module`): The base model, which may be on the meta device.
    """
    names = {site.rsplit(".", 1)[-1] for site in sites}
    alike = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in names}
    return sorted(names) if alike == set(sites) else sorted(sites)


def write_adapter(directory: Path, config: PeftConfig, tensors: Mapping[str, Tensor]) -> None:
    """
    Write `adapter_model.safetensors` and then `adapter_config.json`, without which it is no adapter.

    Args:
        directory (`Path`): Where to write.
        config (`PeftConfig`): The configuration.
        tensors (`Mapping[str, torch.Tensor]`): The tensors.
    """
    path = directory / SAFETENSORS_WEIGHTS_NAME
    save_file(dict(tensors), path, metadata={"format": "pt"})
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    # PEFT writes sets in an order that changes from run to run.
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    write_atomically(directory / CONFIG_NAME, json.dumps(values, indent=2, sort_keys=True) + "\n")


def read_config(directory: Path) -> dict[str, Any]:
    """Read `adapter_config.json`."""
    values: dict[str, Any] = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    return values


def base_name(name: str | None) -> str | None:
    """The base model as an adapter names it; `None` where that is a path, which no other machine has."""
    if name is None or os.path.isabs(name) or name.startswith((".", "~")) or Path(name).exists():
        return None
    return name
