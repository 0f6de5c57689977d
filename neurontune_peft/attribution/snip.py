"""SNIP: what the objective would lose, to first order, with each of a neuron's outgoing weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.activations import Reading, filled, read_neurons
from neurontune_peft.attribution.engine import differentiable, site_modules
from neurontune_peft.attribution.weights import outgoing_weights
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def snip(model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective) -> dict[str, Tensor]:
    """
    `sum_o |W[o, i] * dF/dW[o, i]|` for each example: SNIP's connection sensitivity (arXiv 1810.02340) added up over a
    neuron's outgoing weights (`ours`).

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): `(model, batch) -> (B,)`.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores, `(B, F)`, at least 0.
    """
    modules = site_modules(model, sites)
    rows = batch.input_ids.shape[0]
    readings: list[Reading] = []

    def take(reading: Reading) -> Tensor:
        nothing = torch.zeros_like(reading.output, requires_grad=True)
        readings.append(replace(reading, output=nothing))
        return reading.output + nothing  # the gradient of what is added is that of the output

    scores = filled(batch, sites, 0.0)
    with torch.enable_grad(), differentiable(model):
        with read_neurons(model, sites, take):
            total = objective(model, batch).sum()
        gradients = torch.autograd.grad(total, [reading.output for reading in readings], allow_unused=True)
    for reading, gradient in zip(readings, gradients, strict=True):
        if gradient is not None:
            weight = outgoing_weights(modules[reading.site], reading.start, reading.values.shape[1])
            part = _sensitivity(reading, gradient.flatten(0, -2), weight, rows)
            scores[reading.site][:, reading.columns] += part.to(batch.input_ids.device)
    return scores


def _sensitivity(reading: Reading, gradient: Tensor, weight: Tensor, rows: int) -> Tensor:
    """`sum_o |W * dF/dW|` of one reading, from the gradient of what it put out, `(n, O)`; `(B, I)`."""
    example = reading.examples(rows)
    parts = []
    for row in range(rows):  # one gradient of the weight at a time
        mine = example == row
        slopes = gradient[mine].float().T @ reading.values[mine].float()  # (O, I)
        parts.append((weight.float() * slopes).abs().sum(dim=0))
    return torch.stack(parts)
