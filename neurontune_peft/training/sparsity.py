"""Which neurons are not needed? Those that a penalty drove to exactly 0: dropped, the file shrinks."""

from __future__ import annotations

import torch
from peft import PeftModel

from neurontune_peft.neurons import Neurons
from neurontune_peft.training.deltas import Deltas, active_layers
from neurontune_peft.training.rounds import deltas_of, with_neurons


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


def drop_zeros(model: PeftModel) -> Neurons:
    """
    The neurons of the active adapter whose deltas are not 0.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter; not changed.

    Returns:
        [`Neurons`]: With closed-up ranks.

    Raises:
        ValueError: When every delta is 0.
    """
    _, name = active_layers(model)
    kept = {pair for pair, delta in deltas_of(model).items() if bool(delta != 0)}
    if not kept:
        raise ValueError("got an adapter whose deltas are all 0; expected one that was trained; train it, or lower l1")
    neurons = model.base_model.get_neurons(name)
    ranked = {role: [pair for pair in neurons.ranked(role) if pair in kept] for role in neurons.roles}
    return Neurons.from_ranked(ranked, widths=neurons.widths)


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
    return with_neurons(model, drop_zeros(model))
