"""What every attribution method shares: gates on the inputs of the sites, and a model held still while it is scored.

A *gate* is a factor per example and neuron that multiplies the neuron's activation at every position of that example.
At `g = 1` the model is unchanged, and `dF/dg` is the derivative with respect to the very scales that an adapter
trains. The engine keeps gates and their gradients only, `(B, F)` per site: nothing per token, nothing across batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective

Method = Callable[..., dict[str, Tensor]]  # (model, batch, sites, objective, **options) -> {site: (B, F)}


def base_of(model: nn.Module) -> nn.Module:
    """The causal LM in which site names are paths: the model itself, or the one inside a `PeftModel`."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def site_modules(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, nn.Module]:
    """
    Look up the modules of the sites.

    Raises:
        ValueError: When a site does not exist in the model, or is a fused-experts module.
    """
    base = base_of(model)
    modules = {}
    for name, site in sites.items():
        if site.kind != "linear":
            raise ValueError(
                f"got site '{name}' of kind '{site.kind}'; expected linear sites, since tokens reach fused experts in "
                "an order of their own; score the linear sites only"
            )
        try:
            modules[name] = base.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"got site '{name}'; expected a module of {type(base).__name__}; use the sites found in this model"
            ) from error
    return modules


def _gate_input(gate: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook: multiply the module's input by the gates of its rows' examples, at least in float32."""
    x = args[0]  # (R, T, F), or (R * T, F) where a model flattens its tokens; R = B * rows per example
    rows = gate.repeat_interleave(x.shape[0] // gate.shape[0], dim=0)  # (R, F) or (R * T, F)
    factor = rows.unsqueeze(1) if x.ndim == 3 else rows
    return ((x.to(torch.promote_types(x.dtype, factor.dtype)) * factor).to(x.dtype), *args[1:])


@contextmanager
def gated(modules: Mapping[str, nn.Module], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """
    Multiply the input of each module by its gate while the context is open.

    Args:
        modules (`Mapping[str, nn.Module]`): Site to module.
        gates (`Mapping[str, torch.Tensor]`):
            Site to a tensor of shape `(B, F)`. An objective that expands each example into P rows (row `b * P + p`
            belongs to example `b`) shares the example's gate among them, so that their gradients add up.
    """
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(partial(_gate_input, gates[name])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def gate_gradients(
    model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective, *, value: float = 1.0
) -> dict[str, Tensor]:
    """
    Derivative of the objective with respect to the gates, all sites at once.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): `(model, batch) -> (B,)`.
        value (`float`, *optional*, defaults to `1.0`): The gates' common value; 1 is the model as it is.

    Returns:
        `dict[str, torch.Tensor]`: Site to `dF/dg` of shape `(B, F)`, float32.
    """
    modules = site_modules(model, sites)
    rows = batch.input_ids.shape[0]
    gates = {
        name: torch.full((rows, site.width), value, device=batch.input_ids.device, requires_grad=True)
        for name, site in sites.items()
    }
    with torch.enable_grad(), gated(modules, gates):
        # Summed over examples: each gate row touches its own example only, so its gradient is that example's alone.
        total = objective(model, batch).sum()
        gradients = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    return {
        name: torch.zeros_like(gate) if gradient is None else gradient
        for (name, gate), gradient in zip(gates.items(), gradients, strict=True)
    }


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """
    Put the model into evaluation mode without parameter gradients, and restore both afterwards, module by module.

    Raises:
        ValueError: When a parameter is on the meta device.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise ValueError(
                f"got a model whose '{name}' is on the meta device; expected real weights; load the model first"
            )
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(on and isinstance(module, nn.Dropout) and module.p > 0 for module, on in training.items()):
        warnings.warn(
            "The model is in training mode with dropout; it is scored in evaluation mode and put back afterwards.",
            stacklevel=4,
        )
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, on in training.items():
            module.training = on
