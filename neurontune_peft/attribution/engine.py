"""What every attribution method shares: gates on the neurons of the sites, and a model held still while it is scored.

A *gate* is a factor per example and neuron that multiplies the neuron's activation at every position of that example.
At `g = 1` the model is unchanged, and `dF/dg` is the derivative with respect to the very scales that an adapter
trains. The engine keeps gates and their gradients only, `(B, F)` per site: nothing per token, nothing across batches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from accelerate.utils import has_offloaded_params
from peft import PeftModel
from torch import Tensor, nn

from neurontune_peft.attribution.experts import gated_experts
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective
from neurontune_peft.tuner.experts import experts_layout
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.packing import unpack_for_training
from neurontune_peft.tuner.targets import base_of as innermost

Method = Callable[..., dict[str, Tensor]]  # (model, batch, sites, objective, **options) -> {site: (B, F)}


def base_of(model: nn.Module) -> nn.Module:
    """The causal LM in which site names are paths: the model itself, or the one inside a `PeftModel`."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def site_modules(model: nn.Module, sites: Mapping[str, Site]) -> dict[str, nn.Module]:
    """
    Look up the modules of the sites: of a linear site, the one whose input is its neurons as an adapter scales them.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        sites (`Mapping[str, Site]`): Sites by name.

    Returns:
        `dict[str, nn.Module]`: Site to module; of fused experts the module that the model calls.

    Raises:
        ValueError: When a site does not exist in the model, or is of another kind there.
    """
    base = base_of(model)
    modules = {}
    for name, site in sites.items():
        try:
            module = base.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"got site '{name}'; expected a module of {type(base).__name__}; use the sites found in this model"
            ) from error
        kind = "linear" if experts_layout(innermost(module), name) is None else "experts"
        if kind != site.kind:
            raise ValueError(
                f"got site '{name}' of kind '{site.kind}'; expected {kind} sites where the model has a "
                f"{type(innermost(module)).__name__}; use the sites found in this model"
            )
        inside = kind == "linear" and isinstance(module, NeuronTuneLayer)
        modules[name] = innermost(module) if inside else module
    return modules


def input_device(model: nn.Module) -> torch.device:
    """The device on which a model expects its rows: that of its first weight which is not offloaded."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def _gate_input(gate: Tensor, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Forward pre-hook: multiply the module's input by the gates of its rows' examples, at least in float32."""
    x = args[0]  # (R, T, F), or (R * T, F) where a model flattens its tokens; R = B * rows per example
    rows = gate.to(x.device).repeat_interleave(x.shape[0] // gate.shape[0], dim=0)  # (R, F) or (R * T, F)
    factor = rows.unsqueeze(1) if x.ndim == 3 else rows
    return ((x.to(torch.promote_types(x.dtype, factor.dtype)) * factor).to(x.dtype), *args[1:])


@contextmanager
def gated(modules: Mapping[str, nn.Module], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """
    Multiply the neurons of each module by their gates while the context is open.

    Args:
        modules (`Mapping[str, nn.Module]`): Site to module, as [`site_modules`] gives them.
        gates (`Mapping[str, torch.Tensor]`):
            Site to a tensor of shape `(B, F)`. An objective that expands each example into P rows (row `b * P + p`
            belongs to example `b`) shares the example's gate among them, so that their gradients add up.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            if experts_layout(innermost(module), name) is None:
                handle = module.register_forward_pre_hook(partial(_gate_input, gates[name]))
                stack.callback(handle.remove)
            else:
                stack.enter_context(gated_experts(module, gates[name]))
        yield


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """
    Have gradients pass through 4-bit weights of bitsandbytes while the context is open.

    They are not packed meanwhile ([`unpack_4bit`]); afterwards a forward pass without gradients packs them as before.
    """
    flag = "support_avx512bf16_for_cpu"  # bitsandbytes' own
    packing: list[Any] = [module for module in model.modules() if getattr(module, flag, False)]
    unpack_for_training(model)
    try:
        yield
    finally:
        for module in packing:
            setattr(module, flag, True)


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
    with torch.enable_grad(), differentiable(model), gated(modules, gates):
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
        ValueError: When a parameter is on the meta device and accelerate does not bring it when it is needed.
    """
    _check_weights(model)
    training = {module: module.training for module in model.modules()}
    # By name: accelerate makes new parameters each time that it brings an offloaded weight.
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if any(on and isinstance(module, nn.Dropout) and module.p > 0 for module, on in training.items()):
        warnings.warn(
            "The model is in training mode with dropout; it is scored in evaluation mode and put back afterwards.",
            stacklevel=4,
        )
    model.eval()
    _set_trainable(model, trainable, on=False)
    try:
        with differentiable(model):
            yield
    finally:
        _set_trainable(model, trainable, on=True)
        for module, on in training.items():
            module.training = on


def _set_trainable(model: nn.Module, names: list[str], *, on: bool) -> None:
    for name in names:
        model.get_parameter(name).requires_grad_(on)


def _check_weights(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if has_offloaded_params(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                raise ValueError(
                    f"got a model whose '{path}.{name}' is on the meta device; expected real weights; load the model "
                    "first"
                )
