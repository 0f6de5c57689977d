"""RMS change: how much a neuron does otherwise in another checkpoint, or without the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from neurontune_peft.attribution.activations import Reading, chosen, filled, read_once, sum_by_example
from neurontune_peft.attribution.engine import input_device
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def rms_change(
    model: nn.Module,
    batch: Any,
    sites: Mapping[str, Site],
    objective: Objective | None = None,
    *,
    other: nn.Module | None = None,
) -> dict[str, Tensor]:
    """
    Root mean square, over the real tokens of each row, of the difference between a neuron's activations in two models
    that read the same tokens.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score; the other model has them, too.
        objective (`Callable`, *optional*): Not used.
        other (`nn.Module`, *optional*): The other model; `model` without its adapters when left out.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores, `(B, F)`, at least 0. Activations are those that an adapter has
        scaled; of experts, weighted by routing.

    Raises:
        ValueError: When there is neither another model nor an adapter.
    """
    if other is None and not isinstance(model, PeftModel):
        raise ValueError(
            f"got a {type(model).__name__} and no other model; expected two models, or one with adapters; pass the "
            "other checkpoint as `other`"
        )
    mask = batch.attention_mask.bool()
    sums = filled(batch, sites, 0.0)
    first: dict[tuple[str, int], Reading] = {}

    def keep(reading: Reading) -> None:
        first[reading.site, reading.start] = replace(reading, output=reading.values)  # the output may go

    def compare(reading: Reading) -> None:
        before = first.pop((reading.site, reading.start), None)
        _add(sums, reading if before is None else _difference(before, reading), mask)

    read_once(model, batch, sites, keep)
    disabled = model.disable_adapter() if other is None and isinstance(model, PeftModel) else nullcontext()
    second = model if other is None else other
    with disabled:
        read_once(second, batch.to(input_device(second)), sites, compare)
    for reading in first.values():  # of experts to which the other model sends nothing
        _add(sums, reading, mask)
    counts = mask.sum(dim=1, keepdim=True)  # (B, 1)
    return {name: (total / counts).sqrt() for name, total in sums.items()}


def _difference(one: Reading, other: Reading) -> Reading:
    """Difference of two readings of the same neurons, for all tokens; where one has none, it is 0."""
    spread = one.values.new_zeros(one.count, one.values.shape[1]).index_copy(0, one.tokens, one.values)
    spread = spread.index_add(0, other.tokens.to(spread.device), -other.values.to(spread))
    return replace(one, tokens=torch.arange(one.count, device=spread.device), values=spread)


def _add(sums: Mapping[str, Tensor], reading: Reading, mask: Tensor) -> None:
    example, values = chosen(reading, mask)
    total = sums[reading.site]
    total[:, reading.columns] += sum_by_example(values.square(), example, len(mask)).to(total)
