"""What may be lost? Budgets, as penalties that press harder the longer they are exceeded, or as walls.

A budget limits the rise of a cost over the base model, so the base model itself, where training starts, meets all of
them. An *excess* is `value / limit - 1`: positive where a budget is exceeded, -1 for the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.config_checks import BUDGETS
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.inner import Values

PENALTY = 1.0  # of a squared excess; `ours`
RATE = 0.1  # of the multipliers; `ours`
MEMORY = 0.9  # of the running mean of an excess, which smooths over the prompts of single steps; `ours`
HALVINGS = 10  # of a step that leaves the budgets; `ours`


@dataclass(frozen=True)
class Pressure:
    """
    Multipliers of an augmented Lagrangian (Hestenes 1969, Powell 1969), for costs seen through noise.

    Args:
        multipliers (`Mapping[str, float]`): Budget to its multiplier, at least 0.
        means (`Mapping[str, float]`): Budget to the running mean of its excess, cut off at -1 and 1.
    """

    multipliers: Mapping[str, float]
    means: Mapping[str, float]

    @classmethod
    def none(cls, limits: Mapping[str, float]) -> Pressure:
        """Multipliers of 0, with which training starts."""
        return cls(dict.fromkeys(limits, 0.0), dict.fromkeys(limits, 0.0))

    def loss(self, costs: Mapping[str, Tensor], limits: Mapping[str, float]) -> Tensor:
        """`sum((max(0, m + r * e)^2 - m^2) / 2r)` over the budgets with multiplier m, excess e and penalty r."""
        terms = []
        for name, limit in limits.items():
            multiplier = self.multipliers[name]
            pushed = F.relu(multiplier + PENALTY * (costs[name] / limit - 1))
            terms.append((pushed.square() - multiplier**2) / (2 * PENALTY))
        return torch.stack(terms).sum()

    def after(self, costs: Mapping[str, float], limits: Mapping[str, float]) -> Pressure:
        """The multipliers after a step that cost this much: `max(0, m + rate * mean excess)`."""
        means = {
            name: MEMORY * self.means[name] + (1 - MEMORY) * max(-1.0, min(1.0, costs[name] / limit - 1))
            for name, limit in limits.items()
        }
        return Pressure({name: max(0.0, self.multipliers[name] + RATE * means[name]) for name in limits}, means)


@dataclass(frozen=True)
class Budget:
    """
    Whether a budget was met on validation prompts.

    Args:
        name (`str`): The option of [`MetaConfig`].
        limit (`float`): Its value.
        value (`float`): The rise over the base model, in the same unit.
    """

    name: str
    limit: float
    value: float

    @property
    def met(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.name} {self.limit:g}: {'met' if self.met else 'NOT met'} ({self.value:.4g})"


def limits_of(config: MetaConfig) -> dict[str, float]:
    """The budgets that were set."""
    return {name: getattr(config, name) for name in BUDGETS if getattr(config, name) is not None}


def budgets_met(config: MetaConfig, costs: Mapping[str, float]) -> tuple[Budget, ...]:
    """What became of the budgets, given the costs of the shipped deltas."""
    return tuple(Budget(name, limit, costs[name]) for name, limit in limits_of(config).items())


def worst_excess(costs: Mapping[str, float], limits: Mapping[str, float]) -> float:
    """The largest excess; -1 without budgets."""
    return max((costs[name] / limit - 1 for name, limit in limits.items()), default=-1.0)


def barrier_loss(costs: Mapping[str, Tensor], limits: Mapping[str, float], weight: float) -> Tensor:
    """
    `-weight * log(-excess)` summed over the budgets, continued by its tangent near and beyond the wall, where prompts
    of a single step may take it (log-barrier extension, arXiv 1904.04205, with t = 1 / weight).

    Args:
        costs (`Mapping[str, torch.Tensor]`): Budget to its value, scalars.
        limits (`Mapping[str, float]`): Budget to its limit.
        weight (`float`): Height of the wall, above 0.
    """
    terms = []
    for name, limit in limits.items():
        excess = costs[name] / limit - 1
        inside = -weight * torch.log(-excess.clamp(max=-(weight**2)))
        outside = excess / weight - weight * math.log(weight**2) + weight
        terms.append(torch.where(excess <= -(weight**2), inside, outside))
    return torch.stack(terms).sum()


@torch.no_grad()
def step_back_(deltas: Deltas, start: Values, within: Callable[[Values], bool]) -> None:
    """
    Halve a step until it stays within the budgets, or take it back.

    Args:
        deltas ([`Deltas`]): The parameters after the step.
        start (`Sequence[torch.Tensor]`): Their values before it, within the budgets.
        within (`Callable`): Whether values are within the budgets.
    """
    for _ in range(HALVINGS):
        if within(deltas.parameters):
            return
        for parameter, before in zip(deltas.parameters, start, strict=True):
            parameter.copy_((parameter + before) / 2)
    for parameter, before in zip(deltas.parameters, start, strict=True):
        parameter.copy_(before)
