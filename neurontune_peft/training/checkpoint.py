"""Where does an interrupted run go on? A file of tensors and JSON that belongs to one run only."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from neurontune_peft.checks import check_format_version, write_atomically
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.training.budgets import Pressure
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import active_layers
from neurontune_peft.training.log import StepLog, ValidationLog
from neurontune_peft.training.state import LoopState

CHECKPOINT_VERSION = 1


@dataclass(frozen=True)
class Saved:
    """
    Content of a checkpoint.

    Args:
        tensors (`dict[str, torch.Tensor]`): As [`LoopState.tensors`] gives them.
        numbers (`dict`): As [`LoopState.numbers`] gives them.
        refusals (`tuple[str, ...]`): What the run trains towards, so that the model's own need not be sampled again.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    refusals: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """
    The file of a run.

    Args:
        path (`Path`): Where it stands.
        run (`str`): Fingerprint of the run it belongs to.
    """

    path: Path
    run: str

    def save(self, state: LoopState, refusals: tuple[str, ...]) -> None:
        """Write the state of the run and the refusals it trains towards; the old file is replaced in one move."""
        content = {"run": self.run, "refusals": refusals, "state": state.numbers()}
        metadata = {"format_version": str(CHECKPOINT_VERSION), "content": json.dumps(content, default=asdict)}
        tensors = {name: value.cpu().contiguous() for name, value in state.tensors().items()}
        write_atomically(self.path, serialize(tensors, metadata=metadata))

    def load(self) -> Saved | None:
        """
        Read the file, if there is one.

        Returns:
            [`Saved`]: Its content; `None` without a file.

        Raises:
            ValueError: When the file is no checkpoint, damaged, or belongs to another run.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                metadata = file.metadata() or {}
                version, content = int(metadata["format_version"]), json.loads(metadata["content"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"got '{self.path}' ({error}); expected a checkpoint of this run; name another file, or delete it"
            ) from error
        check_format_version(version, CHECKPOINT_VERSION, what=f"checkpoint '{self.path}'")
        if content["run"] != self.run:
            raise ValueError(
                f"got '{self.path}', a checkpoint of another run ({content['run']:.12}); expected this one "
                f"({self.run:.12}): the same options, prompts, model and neurons; name another file, or delete it"
            )
        numbers = content["state"]
        numbers["history"] = tuple(StepLog.from_dict(entry) for entry in numbers["history"])
        numbers["validations"] = tuple(ValidationLog(**entry) for entry in numbers["validations"])
        numbers["course"] = tuple(numbers["course"])
        numbers["pressure"] = Pressure(**numbers["pressure"])
        return Saved(tensors, numbers, tuple(content["refusals"]))


def checkpoint_of(
    path: str | os.PathLike[str],
    model: PeftModel,
    prompts: PromptSet,
    config: MetaConfig,
    *,
    chat_template: str | None = None,
) -> Checkpoint:
    """
    The checkpoint of a run, known by everything that decides its result.

    Args:
        path (`str` or `os.PathLike`): The file.
        model (`PeftModel`): The model with its active adapter; its deltas do not count.
        prompts ([`PromptSet`]): The prompts.
        config ([`MetaConfig`]): The options.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
    """
    layers, name = active_layers(model)
    options = {
        "config": config.to_dict(),
        "prompts": prompts.fingerprint,
        "base": getattr(model.peft_config[name], "base_model_fingerprint", None),
        "chat_template": read_template(chat_template),
    }
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for layer in layers:
        for buffer in (layer.neurontune_index[name], layer.neurontune_rank[name]):
            digest.update(buffer.to(device="cpu", dtype=torch.int32).numpy().tobytes())
        digest.update(json.dumps({role: part.stop for role, part in layer.roles[name].items()}).encode())
    return Checkpoint(Path(path), digest.hexdigest())
