"""Gate path: integrated gradients along the gates, from neurons switched off to neurons as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.engine import gate_gradients
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def gate_path(
    model: nn.Module,
    batch: Any,
    sites: Mapping[str, Site],
    objective: Objective,
    *,
    steps: int = 8,
    start: float = 0.0,
    end: float = 1.0,
) -> dict[str, Tensor]:
    """
    Integral of `dF/dg` for all gates at once along the line from `start` to `end` (`ours`), by the midpoint rule.

    The scores of an example add up to `F(end) - F(start)`, up to the error of the rule.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): `(model, batch) -> (B,)`.
        steps (`int`, *optional*, defaults to `8`): Number of midpoints; each costs one forward and backward pass.
        start (`float`, *optional*, defaults to `0.0`): Common value of all gates at the start of the path.
        end (`float`, *optional*, defaults to `1.0`): Their value at its end; 1 is the model as it is.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores of shape `(B, F)`.

    Raises:
        ValueError: When `steps` is below 1 or the path has no length.
    """
    if steps < 1 or start == end:
        raise ValueError(
            f"got steps={steps}, start={start}, end={end}; expected at least one step and two different ends; "
            "use steps=8, start=0.0, end=1.0"
        )
    length = end - start
    totals: dict[str, Tensor] = {}
    for step in range(steps):
        value = start + (step + 0.5) / steps * length
        for name, part in gate_gradients(model, batch, sites, objective, value=value).items():
            totals[name] = totals[name].add_(part) if name in totals else part.clone()
    return {name: torch.mul(total, length / steps) for name, total in totals.items()}
