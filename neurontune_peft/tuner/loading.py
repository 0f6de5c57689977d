"""Checks of an adapter's tensors before any of them is loaded into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils import _get_submodules
from torch import Tensor, nn

from neurontune_peft.checks import check_indices, check_ranks
from neurontune_peft.tuner.adapter_file import check_downloaded
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.dynamic import remove_hooks
from neurontune_peft.tuner.layer import NeuronTuneLayer, check_finite
from neurontune_peft.tuner.names import DELTA, INDEX, NOT_LOADED, RANK, SAVED, TRIGGER

# site -> name of the tensor (`neurontune_delta`, …) -> tensor
AdapterTensors = dict[str, dict[str, Tensor]]


def install_load_check(model: nn.Module) -> None:
    """Have `model.load_state_dict` refuse impossible adapters before it changes anything; once per model."""
    if not load_check_keys(model):
        model.register_load_state_dict_pre_hook(check_state_dict)


def remove_load_check(model: nn.Module) -> None:
    """Take back [`install_load_check`], so that an unloaded model is the plain model again."""
    for key in load_check_keys(model):
        del model._load_state_dict_pre_hooks[key]


def load_check_keys(model: nn.Module) -> list[int]:
    """Where torch keeps our hook; torch wraps it in an object whose attribute `hook` is the function."""
    hooks = model._load_state_dict_pre_hooks.items()
    return [key for key, hook in hooks if getattr(hook, "hook", None) is check_state_dict]


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """
    The hook itself: check every adapter of which `state_dict` holds a tensor.

    An adapter that was attached in order to be loaded and turns out to be broken is taken off again.

    Raises:
        ValueError: Names the adapter's first fault.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, NeuronTuneLayer)}
    configs: dict[str, Any] = getattr(model, "peft_config", {})  # not there on a model that PEFT took apart
    try:
        for adapter_name, tensors in tensors_by_adapter(state_dict, prefix).items():
            if isinstance(config := configs.get(adapter_name), NeuronTuneConfig):
                check_downloaded(config)  # PEFT has just downloaded the file that these tensors are from
            layouts = {
                name: SiteLayout(
                    layer.roles[adapter_name], layer.width, dynamic=adapter_name in layer.neurontune_trigger
                )
                for name, layer in layers.items()
                if adapter_name in layer.neurontune_delta
            }
            check_adapter_tensors(tensors, layouts)
    except ValueError:
        for adapter_name in {name for layer in layers.values() for name in layer.neurontune_delta}:
            discard_unloaded_adapter(model, layers, adapter_name)
        raise


def tensors_by_adapter(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, AdapterTensors]:
    """Sort the adapter tensors of a state dict by adapter, site and name; keys end in `site.neurontune_….adapter`."""
    found: dict[str, AdapterTensors] = {}
    for key, tensor in state_dict.items():
        parts = key.removeprefix(prefix).rsplit(".", 2)
        if len(parts) == 3 and parts[1] in (*SAVED, TRIGGER):
            site, name, adapter_name = parts
            found.setdefault(adapter_name, {}).setdefault(site, {})[name] = tensor
    return found


@dataclass(frozen=True)
class SiteLayout:
    """
    What the tensors of one site must look like.

    Args:
        roles (`Mapping[str, slice]`): Role to its slice of the site's neurons.
        width (`int`): Number of neurons that the site has in all.
        dynamic (`bool`, *optional*, defaults to `False`): Whether the site holds weights of a trigger.
    """

    roles: Mapping[str, slice]
    width: int
    dynamic: bool = False

    @property
    def saved(self) -> tuple[str, ...]:
        """Names of the tensors of the site."""
        return (*SAVED, TRIGGER) if self.dynamic else SAVED

    @property
    def count(self) -> int:
        """Number of selected neurons."""
        return max((part.stop for part in self.roles.values()), default=0)


def check_adapter_tensors(tensors: AdapterTensors, layouts: Mapping[str, SiteLayout]) -> None:
    """
    Refuse tensors that do not fit: sites, shapes, dtypes, ranges, repetitions, ranks, finiteness.

    Args:
        tensors (`dict[str, dict[str, torch.Tensor]]`): Site to name to tensor.
        layouts (`Mapping[str, SiteLayout]`): Site to what is expected there.

    Raises:
        ValueError: At the first fault.
    """
    if set(tensors) != set(layouts):
        differing = sorted(set(tensors) ^ set(layouts))
        raise ValueError(
            f"got an adapter with {len(tensors)} sites; expected the {len(layouts)} of its configuration (differing: "
            f"{differing[:3]}); load the adapter_config.json that was saved with these tensors"
        )
    ranks: dict[str, list[Tensor]] = {}
    for site, layout in layouts.items():
        check_site_tensors(site, tensors[site], layout)
        for role, part in layout.roles.items():
            ranks.setdefault(role, []).append(tensors[site][RANK][part])
    for role, parts in ranks.items():
        check_ranks(role, parts)


def check_site_tensors(site: str, tensors: Mapping[str, Tensor], layout: SiteLayout) -> None:
    """
    Refuse the tensors of one site.

    Raises:
        ValueError: Names site, tensor, what was found and what was expected.
    """
    if TRIGGER in tensors and not layout.dynamic:
        raise ValueError(
            f"got {TRIGGER} at '{site}' of an adapter with static modulation; expected {', '.join(SAVED)}; load the "
            "adapter_config.json that was saved with these tensors"
        )
    for name in layout.saved:
        if name not in tensors:
            raise ValueError(
                f"got no {name} at '{site}'; expected {', '.join(layout.saved)}; download or save the adapter again"
            )
        shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
        wanted_shape = (layout.count, 2) if name == TRIGGER else (layout.count,)
        if shape != wanted_shape:
            raise ValueError(
                f"got {name} of shape {shape} at '{site}'; expected {wanted_shape}; load the adapter_config.json "
                "that was saved with these tensors"
            )
        if dtype.is_floating_point != (name in (DELTA, TRIGGER)) or dtype.is_complex or dtype is torch.bool:
            wanted = "floating point" if name in (DELTA, TRIGGER) else "integer"
            raise ValueError(f"got {name} of dtype {dtype} at '{site}'; expected {wanted}; save the adapter again")
    check_indices(site, tensors[INDEX], layout.width)
    check_finite(site, tensors[DELTA])
    if layout.dynamic:
        check_finite(site, tensors[TRIGGER], what="trigger weight")


def discard_unloaded_adapter(model: nn.Module, layers: Mapping[str, NeuronTuneLayer], adapter_name: str) -> None:
    """Detach an adapter whose tensors never arrived; one that already held numbers stays as it is."""
    attached = {name: layer for name, layer in layers.items() if adapter_name in layer.neurontune_delta}
    indices = [layer.neurontune_index[adapter_name] for layer in attached.values()]
    if any(not index.is_meta and (index != NOT_LOADED).any() for index in indices):
        return
    for name, layer in attached.items():
        if set(layer.neurontune_delta) == {adapter_name}:
            parent, _, child = _get_submodules(model, name)
            setattr(parent, child, layer.base_layer)
        else:
            layer.delete_adapter(adapter_name)
    peft_config = getattr(model, "peft_config", {})
    peft_config.pop(adapter_name, None)
    if not peft_config and hasattr(model, "peft_config"):
        del model.peft_config
        remove_load_check(model)
        remove_hooks(model)
