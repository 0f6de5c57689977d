"""Random scores: the control. A ranking that knows nothing about the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def random(
    model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective, *, seed: int = 0
) -> dict[str, Tensor]:
    """
    Draw one uniform score in (0, 1] per neuron; the same for every example, so that averaging keeps it.

    Args:
        model (`nn.Module`): Not used.
        batch (`Batch`): B examples; only their number is used.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): Not used.
        seed (`int`, *optional*, defaults to `0`): Start of the random sequence.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores of shape `(B, F)`.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = batch.input_ids.shape[0]
    return {name: (1 - torch.rand(site.width, generator=generator)).expand(rows, -1) for name, site in sites.items()}
