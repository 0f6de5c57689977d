"""Set chosen neurons of a model to a scale, one set after the other, without attaching anything twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from neurontune_peft.neurons import Neurons
from neurontune_peft.tuner import NeuronTuneConfig

_ADAPTER = "default"


@contextmanager
def attached(model: nn.Module, neurons: Neurons, *, scale: float = 2.0) -> Iterator[Any]:
    """
    A model with one adapter on the neurons, all at one scale.

    The model is itself again afterwards, on exceptions too.

    Args:
        model (`nn.Module`): A causal LM without adapters.
        neurons ([`Neurons`]): The neurons.
        scale (`float`, *optional*, defaults to `2.0`): Their scale. At 2 all deltas are 1, as [`set_scale`] needs it.

    Yields:
        `PeftModel`: The model with the adapter.
    """
    tuned: Any = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    try:
        with torch.no_grad():
            for layer in tuned.neuron_layers(_ADAPTER).values():
                layer.neurontune_delta[_ADAPTER].fill_(scale - 1)
        yield tuned.eval()
    finally:
        tuned.unload()


def set_scale(tuned: Any, scale: float) -> None:
    """Set the attached neurons to a scale; 1 is the model as it is, bit for bit."""
    tuned.set_strength(scale - 1)


def exchange(tuned: Any, neurons: Neurons) -> None:
    """
    Put other neurons into the place of the attached ones.

    Args:
        tuned (`PeftModel`): What [`attached`] gave.
        neurons ([`Neurons`]): As many neurons at every site, in the same one role.
    """
    for site, layer in tuned.neuron_layers(_ADAPTER).items():
        for role, part in layer.roles[_ADAPTER].items():
            layer.neurontune_index[_ADAPTER][part] = neurons.indices[role][site].to(layer.neurontune_index[_ADAPTER])


def only(neurons: Neurons, role: str) -> Neurons:
    """The neurons of one role, with their ranks."""
    return Neurons.from_ranked({role: neurons.ranked(role)}, widths=neurons.widths)
