"""Wanda: how much a neuron's activations and outgoing weights amount to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.activations import Reading, token_sums
from neurontune_peft.attribution.engine import site_modules
from neurontune_peft.attribution.weights import outgoing_weights
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def wanda(
    model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective | None = None
) -> dict[str, Tensor]:
    """
    `||W[:, i]||_1 * ||x_i||_2` over the real tokens of each row: the scores `|W[o, i]| * ||x_i||_2` of Wanda
    (arXiv 2306.11695) added up over a neuron's outgoing weights (`ours`).

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`, *optional*): Not used.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores, `(B, F)`, at least 0. Activations of experts are weighted by
        routing.
    """
    modules = site_modules(model, sites)
    norms = {name: torch.zeros(site.width) for name, site in sites.items()}

    def weigh(reading: Reading) -> None:
        weight = outgoing_weights(modules[reading.site], reading.start, reading.values.shape[1])  # (O, I)
        norms[reading.site][reading.columns] = weight.abs().sum(dim=0, dtype=torch.float32).cpu()

    with torch.no_grad():
        squares = token_sums(model, batch, sites, batch.attention_mask.bool(), power=2, see=weigh)
    return {name: total.sqrt() * norms[name].to(total.device) for name, total in squares.items()}
