"""What does a step ask of the deltas in all? Refusing attacked and plain harmful prompts, and answering the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.inner import Task, Values, attacked_gradient

T = TypeVar("T", float, Tensor)
Weigh = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Outer:
    """
    The gradient of a step's outer loss, and what to log about it.

    Args:
        family (`str`): The attack family; several are joined by `+`.
        gradients (`Sequence[torch.Tensor]`): Per site `(k,)`.
        safety (`float`): Loss of refusing attacked and plain harmful prompts, nats per token.
        costs (`Mapping[str, float]`): As in [`Task`].
        inner (`tuple[float, ...]`): Loss on the support set before each inner step.
    """

    family: str
    gradients: Values
    safety: float
    costs: Mapping[str, float] = field(default_factory=dict)
    inner: tuple[float, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether every number is finite."""
        numbers = torch.tensor([self.safety, *self.costs.values(), *self.inner])
        return bool(torch.isfinite(numbers).all()) and all(bool(torch.isfinite(g).all()) for g in self.gradients)


def utility_of(costs: Mapping[str, T], config: MetaConfig) -> T:
    """The utility term before its weight."""
    return config.kl_weight * costs["kl"] + config.nll_weight * costs["nll"]


def outer_gradient(deltas: Deltas, task: Task, config: MetaConfig, weigh: Weigh) -> Outer:
    """
    Gradient of the outer loss: attacked prompts after the inner steps, everything else at the deltas themselves.

    Args:
        deltas ([`Deltas`]): The trained numbers.
        task ([`Task`]): The step's losses.
        config ([`MetaConfig`]): Weights.
        weigh (`Callable`): From the costs to their part of the loss.
    """
    attacked = attacked_gradient(deltas, task, config)
    plain, costs, others = _elsewhere(deltas.parameters, task, config, weigh)
    return Outer(
        task.family,
        gradients=[one + other for one, other in zip(attacked.gradients, others, strict=True)],
        safety=attacked.loss + plain,
        costs=costs,
        inner=attacked.inner,
    )


def _elsewhere(
    values: Sequence[nn.Parameter], task: Task, config: MetaConfig, weigh: Weigh
) -> tuple[float, dict[str, float], Values]:
    """Loss on plain harmful prompts, costs, and the gradient of both; one after the other, to hold one graph only."""
    with (task.costs_at or task.safety_at)(values):
        costs = task.costs(values)
        gradients = torch.autograd.grad(weigh(costs), values)
    numbers = {name: cost.item() for name, cost in costs.items()}
    if task.plain is None:
        return 0.0, numbers, gradients
    with task.safety_at(values):
        plain = config.plain_weight * task.plain(values)
        apart = torch.autograd.grad(plain, values)
    return plain.item(), numbers, [one + other for one, other in zip(gradients, apart, strict=True)]


def mean_of(outers: Sequence[Outer]) -> Outer:
    """The mean over the tasks of a step."""
    if len(outers) == 1:
        return outers[0]
    count = len(outers)
    return Outer(
        "+".join(outer.family for outer in outers),
        gradients=[torch.stack(parts).mean(dim=0) for parts in zip(*(o.gradients for o in outers), strict=True)],
        safety=sum(outer.safety for outer in outers) / count,
        costs={name: sum(outer.costs[name] for outer in outers) / count for name in outers[0].costs},
        inner=tuple(sum(losses) / count for losses in zip(*(o.inner for o in outers), strict=True)),
    )
