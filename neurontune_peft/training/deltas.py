"""The trained numbers: where the deltas live in a model, their bounds, and how others take their place for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from neurontune_peft.tuner.layer import NeuronTuneLayer


@dataclass(frozen=True)
class Deltas:
    """
    The deltas of one adapter, all sites.

    Args:
        holders (`tuple[nn.ParameterDict, ...]`): Where each site keeps its delta.
        adapter_name (`str`): Its key there.
        low (`tuple[torch.Tensor, ...]`): Lowest values, per site `(k,)`.
        high (`tuple[torch.Tensor, ...]`): Highest values, per site `(k,)`.
    """

    holders: tuple[nn.ParameterDict, ...]
    adapter_name: str
    low: tuple[Tensor, ...]
    high: tuple[Tensor, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, one per site."""
        return [holder[self.adapter_name] for holder in self.holders]

    def project(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The nearest values within the bounds, differentiable."""
        return [
            torch.minimum(torch.maximum(value, low), high)
            for value, low, high in zip(values, self.low, self.high, strict=True)
        ]

    @torch.no_grad()
    def project_(self) -> None:
        """Bring the parameters themselves into the bounds."""
        for parameter, value in zip(self.parameters, self.project(self.parameters), strict=True):
            parameter.copy_(value)

    @contextmanager
    def replaced_by(self, values: Sequence[Tensor]) -> Iterator[None]:
        """
        Let the model compute with other tensors in place of the parameters, such as results of an inner step.

        Keep the context open during the backward pass: gradient checkpointing runs the forward pass again there, and
        would silently use the parameters instead.
        """
        kept = self.parameters
        try:
            for holder, value in zip(self.holders, values, strict=True):
                # Past __setattr__, which insists on an nn.Parameter and would cut the graph of an inner step.
                holder._parameters[self.adapter_name] = value  # type: ignore[assignment]
            yield
        finally:
            for holder, parameter in zip(self.holders, kept, strict=True):
                holder._parameters[self.adapter_name] = parameter


def find_deltas(model: PeftModel, bounds: Mapping[str, tuple[float, float]]) -> Deltas:
    """
    Collect the deltas of the model's active adapter.

    Args:
        model (`PeftModel`): A model with a NeuronTune adapter.
        bounds (`Mapping[str, tuple[float, float]]`): Role to the lowest and highest delta; other roles are free.

    Raises:
        ValueError: When there is no such adapter, or training it would have no effect or a wrong one.
    """
    layers, name = active_layers(model)
    for layer in layers:
        _check_trainable(layer, name)
    limits = [_limits(layer, name, bounds) for layer in layers]
    return Deltas(
        holders=tuple(layer.neurontune_delta for layer in layers),
        adapter_name=name,
        low=tuple(low for low, _ in limits),
        high=tuple(high for _, high in limits),
    )


def active_layers(model: PeftModel) -> tuple[list[NeuronTuneLayer], str]:
    """
    The layers that hold the model's active adapter, in the order of [`Deltas`], and its name.

    Raises:
        ValueError: When there is no such adapter.
    """
    name = model.active_adapter if isinstance(model, PeftModel) else None
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, NeuronTuneLayer) and isinstance(name, str) and name in layer.neurontune_delta
    ]
    if not layers or not isinstance(name, str):
        raise ValueError(
            f"got {type(model).__name__} with the active adapter {name!r}; expected a PeftModel with one active "
            "NeuronTune adapter; attach one with get_peft_model, or choose it with set_adapter"
        )
    return layers, name


def _check_trainable(layer: NeuronTuneLayer, name: str) -> None:
    """Refuse states in which the deltas would be trained without effect, or with the effect of something else."""
    problems = {
        "merged into the weights; call unmerge_adapter() first": bool(layer.merged),
        "disabled; call enable_adapter_layers() first": bool(layer.disable_adapters),
        "frozen; load it with is_trainable=True": not layer.neurontune_delta[name].requires_grad,
        "active beside others; choose one with set_adapter": len(layer.active_adapters) > 1,
        "at a strength other than 1; call set_strength(1.0) first": bool((layer.neurontune_strength[name] != 1).any()),
    }
    for problem, present in problems.items():
        if present:
            what, _, remedy = problem.partition("; ")
            raise ValueError(f"got adapter '{name}' that is {what}; expected one that can be trained; {remedy}")


def _limits(layer: NeuronTuneLayer, name: str, bounds: Mapping[str, tuple[float, float]]) -> tuple[Tensor, Tensor]:
    delta = layer.neurontune_delta[name].detach()
    low, high = torch.full_like(delta, -torch.inf), torch.full_like(delta, torch.inf)
    for role, part in layer.roles[name].items():
        if role in bounds:
            low[part], high[part] = bounds[role]
    return low, high
