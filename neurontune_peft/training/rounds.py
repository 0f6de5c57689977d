"""Another round: the neurons that matter once the first ones are scaled, added to an adapter that keeps its deltas."""

from __future__ import annotations

import copy

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.training.deltas import active_layers


def without(scores: Scores, neurons: Neurons) -> Scores:
    """The same scores with 0 at the neurons that are selected already, in every role, so that others come next."""
    taken = {
        site: torch.cat([part[site] for part in neurons.indices.values() if site in part]) for site in neurons.sites
    }

    def masked(sites: dict[str, Tensor]) -> dict[str, Tensor]:
        return {site: s.index_fill(0, taken[site], 0.0) if site in taken else s for site, s in sites.items()}

    values = {role: masked(dict(sites)) for role, sites in scores.values.items()}
    families = {family: masked(dict(sites)) for family, sites in scores.by_family.items()}
    return Scores(values=values, by_family=families, metadata=scores.metadata)


def deltas_of(model: PeftModel) -> dict[tuple[str, int], Tensor]:
    """Delta of every neuron of the active adapter, by site and index."""
    layers, name = active_layers(model)
    sites = model.base_model.neuron_layers(name)
    found: dict[tuple[str, int], Tensor] = {}
    for site, layer in zip(sites, layers, strict=True):
        index, delta = layer.neurontune_index[name].tolist(), layer.neurontune_delta[name].detach()
        found |= {(site, i): value for i, value in zip(index, delta, strict=True)}
    return found


@torch.no_grad()
def with_neurons(model: PeftModel, neurons: Neurons) -> PeftModel:
    """
    The same model with an adapter on other neurons. Those that it had keep their deltas, new ones start at 0.

    Args:
        model (`PeftModel`): A model with one NeuronTune adapter, which is taken off.
        neurons ([`Neurons`]): The neurons of the new adapter.

    Returns:
        `PeftModel`: To be used in its place.

    Raises:
        ValueError: When the model has several adapters.
    """
    if len(model.peft_config) > 1:
        raise ValueError(
            f"got a model with the adapters {sorted(model.peft_config)}; expected one; delete the others first"
        )
    name, deltas = model.active_adapter, deltas_of(model)
    config = copy.copy(model.peft_config[name])
    config.neurons, config.neuron_counts, config.site_widths = neurons, neurons.counts, None
    config.target_modules = list(neurons.sites)
    config.base_model_fingerprint = None  # of the scaled weights, which may be others now
    changed = get_peft_model(model.unload(), config, adapter_name=name)
    for site, layer in changed.base_model.neuron_layers(name).items():
        held = layer.neurontune_delta[name]
        for place, index in enumerate(layer.neurontune_index[name].tolist()):
            if (site, index) in deltas:
                held[place] = deltas[site, index].to(held)
    return changed
