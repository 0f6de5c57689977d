"""Activation contrast: how active each neuron is where the answer begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.activations import token_sums
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def activation_contrast(
    model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective | None = None
) -> dict[str, Tensor]:
    """
    Activation at the last token of the prompt; weighed by kinds of prompts, its mean becomes the difference of means
    that contrastive work scores neurons by.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`, *optional*): Not used.

    Returns:
        `dict[str, torch.Tensor]`: Site to activations, `(B, F)`. Those of experts are weighted by routing.
    """
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
    return token_sums(model, batch, sites, positions == batch.last_prompt.unsqueeze(1))
