"""Which neurons are not needed? Those that a penalty drove to exactly 0: dropped, the file shrinks."""

from __future__ import annotations

import copy

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from neurontune_peft.neurons import Neurons
from neurontune_peft.training.deltas import Deltas, active_layers


@torch.no_grad()
def shrink_(deltas: Deltas, amount: float) -> None:
    """
    Pull every delta towards 0 by `amount`, and to exactly 0 where it is no further away: the proximal step of an L1
    penalty (soft thresholding, Daubechies et al. 2004).

    Args:
        deltas ([`Deltas`]): Changed in place.
        amount (`float`): At least 0.
    """
    for parameter in deltas.parameters:
        parameter.copy_(parameter.sign() * (parameter.abs() - amount).clamp(min=0))


def drop_zeros(model: PeftModel) -> tuple[Neurons, dict[str, dict[str, Tensor]]]:
    """
    The neurons of the active adapter whose deltas are not 0, and these deltas.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter; not changed.

    Returns:
        `tuple`: [`Neurons`] with closed-up ranks, and role to site to deltas in their order, `(k,)`.

    Raises:
        ValueError: When every delta is 0.
    """
    layers, name = active_layers(model)
    neurons = model.base_model.get_neurons(name)
    values: dict[tuple[str, int], Tensor] = {}
    for site, layer in zip(neurons.widths, layers, strict=True):
        delta = layer.neurontune_delta[name].detach().cpu()
        index = layer.neurontune_index[name].tolist()
        values |= {(site, i): value for i, value in zip(index, delta, strict=True) if bool(value != 0)}
    if not values:
        raise ValueError("got an adapter whose deltas are all 0; expected one that was trained; train it, or lower l1")
    ranked = {role: [pair for pair in neurons.ranked(role) if pair in values] for role in neurons.roles}
    kept = Neurons.from_ranked(ranked, widths=neurons.widths)
    deltas = {
        role: {site: torch.stack([values[site, i] for i in index.tolist()]) for site, index in sites.items()}
        for role, sites in kept.indices.items()
    }
    return kept, deltas


@torch.no_grad()
def without_zeros(model: PeftModel) -> PeftModel:
    """
    The same model with an adapter that computes the same and holds no neuron whose delta is 0.

    Args:
        model (`PeftModel`): A model with one NeuronTune adapter, which is taken off.

    Returns:
        `PeftModel`: To be used in its place.

    Raises:
        ValueError: When every delta is 0, or the model has several adapters.
    """
    if len(model.peft_config) > 1:
        raise ValueError(
            f"got a model with the adapters {sorted(model.peft_config)}; expected one; delete the others first"
        )
    neurons, deltas = drop_zeros(model)
    name = model.active_adapter
    config = copy.copy(model.peft_config[name])
    config.neurons, config.neuron_counts, config.site_widths = neurons, neurons.counts, None
    config.target_modules = list(neurons.sites)
    smaller = get_peft_model(model.unload(), config, adapter_name=name)
    layers, _ = active_layers(smaller)
    for site, layer in zip(neurons.sites, layers, strict=True):
        for role, part in layer.roles[name].items():
            layer.neurontune_delta[name][part] = deltas[role][site].to(layer.neurontune_delta[name])
    return smaller
