"""Which modules an adapter wraps, checked before the first of them is replaced."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_target_module_exists
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neurontune_peft.neurons import Neurons
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.experts import Experts, experts_layout, experts_shape
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.linear import Linear
from neurontune_peft.tuner.names import DENSE_ROLE, NOT_LOADED
from neurontune_peft.tuner.quantized import QuantizedLinear, quantization_backend


def matching_modules(config: NeuronTuneConfig, model: nn.Module) -> dict[str, nn.Module]:
    """The modules that the configuration targets, in the model's order; adapter internals are never among them."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return {
        name.removeprefix("_orig_mod."): module  # a compiled model's prefix is no part of a site's name
        for name, module in model.named_modules()
        if name and not name.startswith(inside) and check_target_module_exists(config, name)
    }


def in_chosen_layers(config: NeuronTuneConfig, name: str) -> bool:
    """Whether a module is in one of the layers to which `layers_to_transform` restricts an adapter."""
    last = {name.rsplit(".", 1)[-1]}
    probe = replace(config, target_modules=last, exclude_modules=None)
    return bool(check_target_module_exists(probe, name))


def follow_renaming(config: NeuronTuneConfig, model: nn.Module) -> None:
    """
    Give the sites of a saved adapter the names that its model's modules have today.

    Transformers has renamed modules of some models and keeps patterns for old checkpoints; PEFT applies the same ones
    to the names of an adapter's tensors.
    """
    patterns: Mapping[str, str] = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    present = {name for name, _ in model.named_modules()} if patterns else set()

    def renamed(site: str) -> str:
        if not patterns or site in present:
            return site
        found = (re.subn(pattern, new, site) for pattern, new in patterns.items())
        return next((name for name, count in found if count), site)

    if config.neuron_counts is not None:
        counts = config.neuron_counts.items()
        config.neuron_counts = {role: {renamed(s): k for s, k in sites.items()} for role, sites in counts}
    if config.site_widths is not None:
        config.site_widths = {renamed(site): width for site, width in config.site_widths.items()}
    if isinstance(config.target_modules, set):
        config.target_modules = {renamed(name) if "." in name else name for name in config.target_modules}


def base_of(module: nn.Module) -> nn.Module:
    """The module under any tuner layers."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def width_of(module: nn.Module, neuron_side: str) -> int:
    """Number of neurons of a module on the given side."""
    base = base_of(module)
    if (layout := experts_layout(base)) is not None:
        return math.prod(experts_shape(base, layout))
    return int(_get_in_out_features(base)[0 if neuron_side == "input" else 1])


def scaled_weight(module: nn.Module) -> Tensor | None:
    """The weight that scales act on; `None` where it is quantised."""
    base: Any = base_of(module)
    if quantization_backend(base) is not None:
        return None
    return base.weight if experts_layout(base) is None else base.down_proj


def wrap(module: nn.Module, neuron_side: str, **recipe: Any) -> NeuronTuneLayer:
    """The layer that scales the neurons of a module; `recipe` is what PEFT's `get_quantization_kwargs` finds."""
    if (layout := experts_layout(module)) is not None:
        return Experts(module, layout=layout)
    if (backend := quantization_backend(module, **recipe)) is not None:
        return QuantizedLinear(module, backend=backend, neuron_side=neuron_side)
    return Linear(module, neuron_side=neuron_side)


def check_targets(config: NeuronTuneConfig, model: nn.Module, targets: Mapping[str, nn.Module]) -> None:
    """
    Refuse targets that name nothing or cannot be wrapped.

    Raises:
        ValueError: When an entry of `target_modules` matches no module.
        TypeError: When a target is no linear module, or is already wrapped by another method.
    """
    names = [name for name, _ in model.named_modules()]
    wanted = config.target_modules if isinstance(config.target_modules, (list, set)) else []
    unknown = [
        entry for entry in sorted(wanted) if not any(name == entry or name.endswith(f".{entry}") for name in names)
    ]
    if unknown or not targets:
        # The beginnings of PEFT's own messages, by which its users know these errors.
        if config.modules_to_save or (unknown and config.exclude_modules):
            beginning = "No modules were targeted for adaptation"
        elif config.exclude_modules:
            beginning = "All modules were excluded"
        else:
            beginning = "Target modules of the adapter not found in the base model"
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))})
        raise NoMatchingPeftModuleError(
            f"{beginning}: got target_modules={unknown or config.target_modules!r}, which match no module "
            f"(exclude_modules={config.exclude_modules!r}, layers_to_transform={config.layers_to_transform!r}); "
            f"expected names such as "
            f"{linear[:12]}; correct target_modules, or leave it out to have the sites found"
        )
    for name, module in targets.items():
        base = base_of(module)
        if isinstance(module, BaseTunerLayer) and not isinstance(module, NeuronTuneLayer):
            raise TypeError(
                f"got '{name}', already wrapped by {type(module).__module__.split('.')[-2]}; expected a plain module, "
                "as merging two methods into one weight would be wrong; merge and unload the other adapter first"
            )
        if experts_layout(base, name) is not None:
            if config.neuron_side != "input":
                raise ValueError(
                    f"got neuron_side='{config.neuron_side}' for the fused experts '{name}'; expected 'input', as "
                    "their neurons are the inputs of their down projections; leave the experts out or change the side"
                )
        elif not isinstance(base, (nn.Linear, Conv1D)) and quantization_backend(base) is None:
            raise TypeError(
                f"got '{name}' of type {type(base).__name__}; expected nn.Linear, Conv1D or fused experts; choose "
                "other target_modules"
            )


def dense_neurons(targets: Mapping[str, nn.Module], neuron_side: str) -> Neurons:
    """Every neuron of every target, in the order of sites and indices, under one role."""
    widths = {name: width_of(module, neuron_side) for name, module in targets.items()}
    indices = {name: torch.arange(width) for name, width in widths.items()}
    starts = dict(zip(widths, torch.tensor([0, *widths.values()]).cumsum(0).tolist(), strict=False))
    ranks = {name: index + starts[name] for name, index in indices.items()}
    return Neurons(indices={DENSE_ROLE: indices}, ranks={DENSE_ROLE: ranks}, widths=widths)


def check_sites(config: NeuronTuneConfig, targets: Mapping[str, nn.Module]) -> None:
    """
    Refuse neurons of sites that are not targeted or have another width on this model.

    Raises:
        ValueError: Names the site.
    """
    sites = {site for per_site in (config.neuron_counts or {}).values() for site in per_site}
    if not sites <= set(targets):
        raise ValueError(
            f"got neurons at {sorted(sites - set(targets))[:3]}; expected sites among {list(targets)[:3]} …; use "
            "neurons of this model, and target_modules that cover them"
        )
    for site, width in (config.site_widths or {}).items():
        found = width_of(targets[site], config.neuron_side) if site in targets else width
        if width != found:
            raise ValueError(
                f"got neurons of '{site}' with width {width}; expected {found}, the width in this model; use the "
                "model for which they were selected"
            )


def selection_at(config: NeuronTuneConfig, site: str) -> dict[str, tuple[Tensor, Tensor]]:
    """
    Indices and ranks per role at one site; `NOT_LOADED` where a file will bring them.

    Returns:
        `dict[str, tuple[torch.Tensor, torch.Tensor]]`: Empty when the adapter has no neurons there.
    """
    if isinstance(config.neurons, Neurons):
        indices, ranks = config.neurons.indices, config.neurons.ranks
        held = {role: (indices[role][site], ranks[role][site]) for role in indices if site in indices[role]}
        return {role: pair for role, pair in held.items() if pair[0].numel()}
    counts = {role: per_site[site] for role, per_site in (config.neuron_counts or {}).items() if site in per_site}
    return {
        role: (torch.full((count,), NOT_LOADED), torch.full((count,), NOT_LOADED)) for role, count in counts.items()
    }
