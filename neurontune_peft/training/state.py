"""What changes from step to step? All of it, as tensors and JSON values: a run resumes from these, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neurontune_peft.training.budgets import Pressure
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.log import StepLog, ValidationLog

NUMBERS = (
    "step",
    "history",
    "validations",
    "pressure",
    "start_loss",
    "course",
    "lowest_mean",
    "lowest_step",
    "kept_step",
    "kept_score",
)
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class LoopState:
    """
    All that changes from step to step.

    Args:
        deltas ([`Deltas`]): The trained numbers.
        optimizer (`torch.optim.Optimizer`): Adam over them.
        step (`int`, *optional*, defaults to `0`): The next step.
        history (`tuple[StepLog, ...]`, *optional*): The steps so far.
        pressure ([`Pressure`], *optional*): Multipliers of the budgets.
        validations (`tuple[ValidationLog, ...]`, *optional*): The validations so far.
        average (`list[torch.Tensor]`, *optional*): Exponential moving average of the deltas, per site `(k,)`.
        start_loss (`float`, *optional*): The highest loss of the first tasks before the first step.
        course (`tuple[float, ...]`, *optional*): Loss of each step so far.
        lowest (`list[torch.Tensor]`, *optional*): The deltas where the course was lowest, per site `(k,)`.
        lowest_mean (`float`, *optional*): The smoothed loss there.
        lowest_step (`int`, *optional*): How many steps led to them.
        kept (`list[torch.Tensor]`, *optional*): The best values so far, per site `(k,)`.
        kept_step (`int`, *optional*): How many steps led to them.
        kept_score (`list[float]`, *optional*): How good they are; the lexically smallest is best.
    """

    deltas: Deltas
    optimizer: torch.optim.Optimizer
    step: int = 0
    history: tuple[StepLog, ...] = ()
    pressure: Pressure = field(default_factory=lambda: Pressure({}, {}))
    validations: tuple[ValidationLog, ...] = ()
    start_loss: float | None = None
    course: tuple[float, ...] = ()
    lowest: list[Tensor] | None = None
    lowest_mean: float = 0.0
    lowest_step: int | None = None
    average: list[Tensor] | None = None
    kept: list[Tensor] | None = None
    kept_step: int | None = None
    kept_score: list[float] | None = None

    def keep(self, values: list[Tensor], score: list[float]) -> None:
        """Keep values if they are better than those kept before."""
        if self.kept_score is None or score < self.kept_score:
            self.kept = [value.detach().clone() for value in values]
            self.kept_step, self.kept_score = self.step, score

    @torch.no_grad()
    def follow(self, memory: float) -> None:
        """Move the average by a share of `1 - memory` towards the deltas; it starts at those of the first step."""
        values = [parameter.detach() for parameter in self.deltas.parameters]
        start = values if self.average is None else self.average
        self.average = [memory * old + (1 - memory) * new for old, new in zip(start, values, strict=True)]

    @property
    def shipped(self) -> list[Tensor]:
        """What would be shipped now: the deltas, or their average where the deltas themselves are not 0."""
        values = [parameter.detach() for parameter in self.deltas.parameters]
        if self.average is None:
            return values
        return [old * (new != 0) for old, new in zip(self.average, values, strict=True)]

    @torch.no_grad()
    def finish(self) -> None:
        """Give the parameters the kept values, or what would be shipped now."""
        chosen = self.shipped if self.kept is None else self.kept
        for parameter, value in zip(self.deltas.parameters, chosen, strict=True):
            parameter.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the tensors, named `kind.site number`."""
        named: dict[str, Tensor] = {}
        for number, parameter in enumerate(self.deltas.parameters):
            named[f"delta.{number}"] = parameter
            for name, value in self.optimizer.state.get(parameter, {}).items():
                named[f"{name}.{number}"] = value
        for kind, values in (("kept", self.kept), ("average", self.average), ("lowest", self.lowest)):
            named |= {f"{kind}.{number}": value for number, value in enumerate(values or ())}
        return {name: value.detach().clone() for name, value in named.items()}

    def numbers(self) -> dict[str, Any]:
        """Everything else: JSON values, and entries of the log."""
        return {name: getattr(self, name) for name in NUMBERS}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Become the state that [`tensors`] and [`numbers`] were taken from."""
        self.optimizer.state.clear()
        for number, parameter in enumerate(self.deltas.parameters):
            parameter.copy_(tensors[f"delta.{number}"])
            if f"step.{number}" in tensors:  # Adam counts its steps on the CPU
                moments = {name: tensors[f"{name}.{number}"].to(parameter.device) for name in MOMENTS}
                self.optimizer.state[parameter] = {"step": tensors[f"step.{number}"], **moments}
        self.kept, self.average, self.lowest = (self._list(tensors, kind) for kind in ("kept", "average", "lowest"))
        for name in NUMBERS:
            setattr(self, name, numbers[name])

    def _list(self, tensors: dict[str, Tensor], kind: str) -> list[Tensor] | None:
        if f"{kind}.0" not in tensors:
            return None
        places = enumerate(self.deltas.parameters)
        return [tensors[f"{kind}.{number}"].to(parameter.device) for number, parameter in places]
