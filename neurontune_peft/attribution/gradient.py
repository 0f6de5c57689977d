"""Gradient at the identity: how the objective answers to a small change of each neuron's scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from neurontune_peft.attribution.engine import gate_gradients
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def gradient(model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective) -> dict[str, Tensor]:
    """
    `dF/dg` at `g = 1`, the point at which scales start to train (`ours`): one forward and one backward pass.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): `(model, batch) -> (B,)`.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores of shape `(B, F)`; positive means that amplifying the neuron raises
        the objective.
    """
    return gate_gradients(model, batch, sites, objective)
