"""Causal effect: what the objective loses when one neuron is switched off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.activations import filled
from neurontune_peft.attribution.engine import gated, site_modules
from neurontune_peft.checks import check_indices
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective
from neurontune_peft.prompts import Batch


def causal(
    model: nn.Module,
    batch: Any,
    sites: Mapping[str, Site],
    objective: Objective,
    *,
    shortlist: Mapping[str, Tensor],
    chunk: int = 8,
) -> dict[str, Tensor]:
    """
    `F(g = 1) - F(g_i = 0)` for each neuron of a shortlist, alone and everywhere in its example: leave one out.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): `(model, batch) -> (B,)`.
        shortlist (`Mapping[str, torch.Tensor]`): Site to the indices of the neurons to try, `(k,)`.
        chunk (`int`, *optional*, defaults to `8`):
            Neurons for each forward pass, which takes `chunk` times the rows of the batch; 1 for an objective that
            knows the rows of the batch.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores, `(B, F)`; 0 for neurons that are not on the list.

    Raises:
        ValueError: When the list is empty, names another site or an index outside of a site, or `chunk` is below 1.
    """
    tried = _listed(sites, shortlist)
    if chunk < 1 or not tried:
        raise ValueError(
            f"got chunk={chunk} and a shortlist of {len(tried)} neurons; expected at least one of each; take the top "
            "of another method as shortlist"
        )
    scores = filled(batch, sites, 0.0)
    modules = site_modules(model, sites)
    with torch.no_grad():
        base = objective(model, batch)  # (B,)
        for start in range(0, len(tried), chunk):
            part = tried[start : start + chunk]
            effects = base.unsqueeze(1) - _without(model, batch, sites, modules, objective, part)  # (B, C)
            for (name, index), effect in zip(part, effects.unbind(dim=1), strict=True):
                scores[name][:, index] = effect.to(scores[name])
    return scores


def _listed(sites: Mapping[str, Site], shortlist: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """The shortlist as (site, index), checked."""
    unknown = [name for name in shortlist if name not in sites]
    if unknown:
        raise ValueError(
            f"got a shortlist with neurons at '{unknown[0]}'; expected sites among {list(sites)[:3]} …; list neurons "
            "of the sites that are scored"
        )
    for name, indices in shortlist.items():
        check_indices(name, indices, sites[name].width)
    return [(name, index) for name, indices in shortlist.items() for index in indices.tolist()]


def _without(
    model: nn.Module,
    batch: Any,
    sites: Mapping[str, Site],
    modules: Mapping[str, nn.Module],
    objective: Objective,
    neurons: Sequence[tuple[str, int]],
) -> Tensor:
    """Objective of each example with each of C neurons switched off, `(B, C)`."""
    count, rows = len(neurons), batch.input_ids.shape[0]
    touched = {name: modules[name] for name, _ in neurons}
    gates = {name: torch.ones(rows * count, sites[name].width, device=batch.input_ids.device) for name in touched}
    for place, (name, index) in enumerate(neurons):
        gates[name][place::count, index] = 0.0
    parts = (batch.input_ids, batch.attention_mask, batch.response_mask)
    repeated = batch if count == 1 else Batch(*(part.repeat_interleave(count, dim=0) for part in parts))
    with gated(touched, gates):
        return objective(model, repeated).view(rows, count)
