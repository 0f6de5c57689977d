"""A change of scales as an IA3 adapter: a dense vector with ones for all other neurons."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import IA3Config
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from neurontune_peft.export.change import Change
from neurontune_peft.export.checkpoint import Checkpoint
from neurontune_peft.export.peft_files import target_modules, write_adapter

PREFIX = "base_model.model."


def write_ia3(change: Change, checkpoint: Checkpoint, directory: Path, *, base: str | None) -> dict[str, object]:
    """
    Write an IA3 adapter that PEFT loads; scales of inputs as those of `feedforward_modules`.

    Args:
        change ([`Change`]): The change.
        checkpoint ([`Checkpoint`]): The base model; only its shapes are read.
        directory (`Path`): Where to write.
        base (`str` or `None`): Name of the base model for the configuration.

    Returns:
        `dict[str, object]`: Modules, for the record.

    Raises:
        ValueError: When a site holds fused experts.
    """
    tensors = {f"{PREFIX}{site}.ia3_l": vector for site, vector in scale_vectors(change, checkpoint).items()}
    targets = target_modules(list(change.sites), checkpoint.model)
    config = IA3Config(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        target_modules=targets,
        feedforward_modules=targets if change.neuron_side == "input" else [],
        fan_in_fan_out=all(isinstance(checkpoint.module(site), Conv1D) for site in change.sites),
        inference_mode=True,
    )
    write_adapter(directory, config, tensors)
    return {"targets": targets}


def scale_vectors(change: Change, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """
    The scales of all neurons of each site, float32, as IA3 shapes them: `(1, in)`, or `(out, 1)` for outputs.

    Raises:
        ValueError: When a site holds fused experts.
    """
    vectors = {}
    for site, (index, delta) in change.sites.items():
        weights = checkpoint.weights_of(site)
        if weights.layout is not None:
            raise ValueError(
                f"got neurons of the fused experts '{site}'; expected linear modules, as IA3 has no vector for each "
                "expert; use --to merged"
            )
        parameter = checkpoint.model.get_parameter(f"{site}.weight")
        outputs, inputs = reversed(parameter.shape) if weights.transposed else parameter.shape
        side = change.neuron_side
        scale = torch.ones(inputs if side == "input" else outputs).index_add_(0, index, delta)
        vectors[site] = scale.view(1, -1) if side == "input" else scale.view(-1, 1)
    return vectors


def check_ia3(directory: Path, change: Change, checkpoint: Checkpoint) -> float:
    """
    Compare the vectors in an IA3 file with the scales, bit for bit.

    Returns:
        `float`: 0.

    Raises:
        ValueError: When one differs.
    """
    found = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    for site, vector in scale_vectors(change, checkpoint).items():
        if not torch.equal(found[f"{PREFIX}{site}.ia3_l"], vector):
            raise ValueError(f"got other scales of '{site}' back; expected what was written; report this as a defect")
    return 0.0
