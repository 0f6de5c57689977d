"""`W diag(s) = W + B A`: a change of scales as a LoRA, without a decomposition and without loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from neurontune_peft.export.change import Change
from neurontune_peft.export.checkpoint import Checkpoint, float32
from neurontune_peft.export.peft_files import read_config, target_modules, write_adapter

PREFIX = "base_model.model."
# The largest relative error of a weight in float32 that still counts as none.
EXACT = 1e-6


@dataclass(frozen=True)
class Factors:
    """
    The two factors of a change of one weight.

    Args:
        a (`torch.Tensor`): Shape `(r, in)`.
        b (`torch.Tensor`): Shape `(out, r)`.
    """

    a: Tensor
    b: Tensor


def lora_factors(change: Change, checkpoint: Checkpoint) -> dict[str, Factors]:
    """
    Write a change as `B A` at each site (`ours`): one-hot rows of A pick the neurons, B holds their scaled columns.

    All sites have the rank of the one with the most neurons, filled up with zeros, as vLLM drops `rank_pattern`. A
    site with more neurons than output features needs no more rank than those.

    Args:
        change ([`Change`]): The change.
        checkpoint ([`Checkpoint`]): The base model.

    Returns:
        `dict[str, Factors]`: Site to its factors, float32.

    Raises:
        ValueError: When a site holds fused experts, is quantised, or has a bias that would be scaled.
    """
    check_convertible(change, checkpoint)
    found = {}
    for site, (index, delta) in change.sites.items():
        found[site] = _factors(float32(checkpoint.linear_weight(site)), index, delta, side=change.neuron_side)
    rank = max([1, *(factors.a.shape[0] for factors in found.values())])
    return {site: _padded(factors, rank) for site, factors in found.items()}


def check_convertible(change: Change, checkpoint: Checkpoint) -> None:
    """
    Refuse what is no change of linear weights alone, before any of them is read.

    Raises:
        ValueError: Names the site, and says to use `--to merged`.
    """
    for site in change.sites:
        weights = checkpoint.weights_of(site)
        if weights.layout is not None:
            raise ValueError(
                f"got neurons of the fused experts '{site}'; expected linear modules, as engines take no adapters of "
                "this kind for experts; use --to merged"
            )
        if change.neuron_side == "output" and weights.bias is not None:
            raise ValueError(
                f"got neurons on the output side of '{site}', which has a bias; expected modules without one, as a "
                "LoRA changes no bias; use --to merged or --to ia3"
            )


def write_lora(
    change: Change, checkpoint: Checkpoint, directory: Path, *, dtype: torch.dtype, base: str | None
) -> dict[str, object]:
    """
    Write a LoRA that PEFT and serving engines load.

    Args:
        change ([`Change`]): The change.
        checkpoint ([`Checkpoint`]): The base model.
        directory (`Path`): Where to write.
        dtype (`torch.dtype`): Of the factors; below float32 the scaled columns are rounded once.
        base (`str` or `None`): Name of the base model for the configuration.

    Returns:
        `dict[str, object]`: Rank, modules and size, for the record.

    Raises:
        ValueError: As [`lora_factors`].
    """
    factors = lora_factors(change, checkpoint)
    tensors: dict[str, Tensor] = {}
    for site, pair in factors.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = pair.a.to(dtype).contiguous()
        tensors[f"{PREFIX}{site}.lora_B.weight"] = pair.b.to(dtype).contiguous()
    rank = next(iter(factors.values())).a.shape[0]
    targets = target_modules(list(factors), checkpoint.model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=rank,  # a scaling of 1: the strength is in the numbers, or in the engine's own scale
        target_modules=targets,
        fan_in_fan_out=all(isinstance(checkpoint.module(site), Conv1D) for site in factors),
        inference_mode=True,
    )
    write_adapter(directory, config, tensors)
    return {"rank": rank, "modules": sorted({site.rsplit(".", 1)[-1] for site in factors}), "targets": targets}


def read_lora(directory: Path) -> dict[str, Factors]:
    """Read the factors of a LoRA back from its files, with the scaling of its configuration in B."""
    config = read_config(directory)
    tensors = load_file(directory / SAFETENSORS_WEIGHTS_NAME)
    sites = {key.removeprefix(PREFIX).rsplit(".", 2)[0] for key in tensors}
    scaling = config["lora_alpha"] / config["r"]
    return {
        site: Factors(a=tensors[f"{PREFIX}{site}.lora_A.weight"], b=tensors[f"{PREFIX}{site}.lora_B.weight"] * scaling)
        for site in sorted(sites)
    }


def check_factors(
    found: Mapping[str, Factors], change: Change, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32
) -> float:
    """
    Compare factors, as they were read back, with the scaled weights.

    Args:
        found (`Mapping[str, Factors]`): Site to its factors.
        change ([`Change`]): What they stand for.
        checkpoint ([`Checkpoint`]): The base model.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): In which the factors were written.

    Returns:
        `float`: The largest error of a weight relative to the largest of its module's scaled weights.

    Raises:
        ValueError: When it is above 1e-6, or above what rounding to `dtype` explains.
    """
    if set(found) != set(change.sites):
        raise ValueError(
            f"got factors of {len(found)} sites back; expected {len(change.sites)}; report this as a defect"
        )
    worst = 0.0
    for site, (index, delta) in change.sites.items():
        weight = checkpoint.linear_weight(site).to(torch.float64)
        wanted = weight.clone()
        dim = 1 if change.neuron_side == "input" else 0
        scale = (1 + delta).to(torch.float64)
        wanted.index_copy_(dim, index, wanted.index_select(dim, index) * (scale if dim else scale[:, None]))
        written = weight + found[site].b.to(torch.float64) @ found[site].a.to(torch.float64)
        limit = wanted.abs().max().clamp_min(1e-30)
        worst = max(worst, float((written - wanted).abs().max() / limit))
    allowed = EXACT if dtype is torch.float32 else torch.finfo(dtype).eps * max_change(change)
    if worst > max(EXACT, allowed):
        raise ValueError(
            f"got weights that differ by {worst:.1e} from the scaled ones; expected at most {allowed:.1e}; export in "
            "float32, or report this as a defect"
        )
    return worst


def max_change(change: Change) -> float:
    """The largest |scale - 1|, and at least 1."""
    return max([1.0, *(float(delta.abs().max()) for _, delta in change.sites.values() if delta.numel())])


def _factors(weight: Tensor, index: Tensor, delta: Tensor, *, side: str) -> Factors:
    outputs, inputs = weight.shape
    if side == "output":
        pick = torch.zeros(outputs, index.numel()).index_put_((index, torch.arange(index.numel())), torch.tensor(1.0))
        return Factors(a=weight[index] * delta[:, None], b=pick)
    if index.numel() > outputs:  # a dense adapter: the identity on the narrower side
        dense = torch.zeros(outputs, inputs).index_copy_(1, index, weight[:, index] * delta)
        return Factors(a=dense, b=torch.eye(outputs))
    pick = torch.zeros(index.numel(), inputs).index_put_((torch.arange(index.numel()), index), torch.tensor(1.0))
    return Factors(a=pick, b=weight[:, index] * delta)


def _padded(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.a.shape[0]
    return Factors(
        a=torch.nn.functional.pad(factors.a, (0, 0, 0, missing)), b=torch.nn.functional.pad(factors.b, (0, missing))
    )
