"""A new adapter out of attached ones: their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from neurontune_peft.neurons import Neurons
from neurontune_peft.tuner.layer import NeuronTuneLayer


class Combining:
    """Methods of [`NeuronTuneModel`] that make an adapter out of others."""

    model: nn.Module
    peft_config: dict
    if TYPE_CHECKING:  # of the classes that this one is mixed with

        def get_neurons(self, adapter_name: str = "default") -> Neurons: ...

        def neuron_layers(self, adapter_name: str) -> dict[str, NeuronTuneLayer]: ...

        def inject_adapter(self, model: nn.Module, adapter_name: str) -> None: ...

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """
        Add the weighted sum of attached adapters as a new adapter, which is not active yet.

        The new adapter holds the neurons of all of them, each with `delta = sum(weight * delta)`. A neuron keeps the
        role that the first of the adapters gives it, and its best rank decides its place within that role. Dials and
        triggers are not taken over: its modulation is static.

        Args:
            adapters (`Sequence[str]`): Names of attached adapters.
            weights (`Sequence[float]`): One weight per adapter; negative ones are allowed.
            adapter_name (`str`): Name of the new adapter.

        Raises:
            ValueError: When names, weights or adapters do not fit together. Nothing is added then.

        Example:

            ```py
            >>> model.add_weighted_adapter(["jailbreaks", "privacy"], [1.0, 0.5], "both")
            >>> model.set_adapter("both")
            ```
        """
        self._check_combination(adapters, weights, adapter_name)
        neurons = combined_neurons([self.get_neurons(name) for name in adapters])
        deltas = self._summed_deltas(adapters, weights)
        configs = [self.peft_config[name] for name in adapters]
        self.peft_config[adapter_name] = replace(
            configs[0],
            neurons=neurons,
            target_modules=list(neurons.sites),
            exclude_modules=None,
            layers_to_transform=None,
            layers_pattern=None,
            modules_to_save=next((c.modules_to_save for c in configs if c.modules_to_save), None),
            provenance={"adapters": list(adapters), "weights": [float(weight) for weight in weights]},
            # Triggers are not summed.
            modulation="static",
            presets=None,
            # Some of the sites may be other adapters' only, so it is taken anew.
            base_model_fingerprint=None,
        )
        self.inject_adapter(self.model, adapter_name)
        for site, layer in self.neuron_layers(adapter_name).items():
            chosen = deltas[site][layer.neurontune_index[adapter_name].long()]
            layer.neurontune_delta[adapter_name].data.copy_(chosen)
        for wrapper in self._wrappers_of(adapters):
            source = next(name for name in adapters if name in wrapper.modules_to_save)
            wrapper.update(adapter_name)
            wrapper.modules_to_save[adapter_name].load_state_dict(wrapper.modules_to_save[source].state_dict())
            wrapper.modules_to_save[adapter_name].requires_grad_(False)

    def _summed_deltas(self, adapters: Sequence[str], weights: Sequence[float]) -> dict[str, torch.Tensor]:
        """Site to the weighted sum of deltas for each of its neurons, shape `(F,)`; 0 where no adapter has one."""
        deltas: dict[str, torch.Tensor] = {}
        for name, weight in zip(adapters, weights, strict=True):
            for site, layer in self.neuron_layers(name).items():
                delta = layer.neurontune_delta[name].detach().float()
                total = deltas.setdefault(site, delta.new_zeros(layer.width))
                total.index_add_(0, layer.neurontune_index[name], weight * delta)
        return deltas

    def _wrappers_of(self, adapters: Sequence[str]) -> list[ModulesToSaveWrapper]:
        wrappers = [module for module in self.model.modules() if isinstance(module, ModulesToSaveWrapper)]
        return [wrapper for wrapper in wrappers if any(name in wrapper.modules_to_save for name in adapters)]

    def _check_combination(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Refuse what cannot be summed, before anything changes."""
        if not adapters or len(adapters) != len(weights) or not all(math.isfinite(weight) for weight in weights):
            raise ValueError(
                f"got adapters={list(adapters)} with weights={list(weights)}; expected one finite weight per adapter; "
                "make them equally long"
            )
        if adapter_name in self.peft_config:
            raise ValueError(
                f"got adapter_name={adapter_name!r}, which is attached; expected a new name; delete_adapter it first"
            )
        layers = [layer for name in adapters for layer in self.neuron_layers(name).values()]
        sides = sorted({self.peft_config[name].neuron_side for name in adapters})
        if len(sides) > 1:
            raise ValueError(
                f"got adapters with neuron_side {sides}; expected one side, as their neurons are not the same things; "
                "activate them together with set_adapter instead"
            )
        if any(layer.merged_adapters for layer in layers):
            raise ValueError("got a merged model; expected plain weights; call unmerge_adapter() first")
        shared = [w for w in self._wrappers_of(adapters) if sum(name in w.modules_to_save for name in adapters) > 1]
        if shared:
            raise ValueError(
                f"got {len(shared)} modules that several of {list(adapters)} hold in modules_to_save; expected one "
                "adapter for each at most, as whole modules are not summed; leave the others out"
            )


def combined_neurons(adapters: Sequence[Neurons]) -> Neurons:
    """
    The neurons of several adapters in one ranking.

    Args:
        adapters (`Sequence[Neurons]`): The first one that holds a neuron decides its role.
    """
    role_of: dict[tuple[str, int], str] = {}
    best: dict[tuple[str, int], int] = {}
    widths: dict[str, int] = {}
    for neurons in adapters:
        widths |= neurons.widths
        for role in neurons.roles:
            for rank, neuron in enumerate(neurons.ranked(role)):
                role_of.setdefault(neuron, role)
                best[neuron] = min(rank, best.get(neuron, rank))
    ranked: dict[str, list[tuple[str, int]]] = {}
    for neuron in sorted(role_of, key=lambda neuron: best[neuron]):  # stable: ties go to the first adapter
        ranked.setdefault(role_of[neuron], []).append(neuron)
    return Neurons.from_ranked(ranked, widths=widths)
