"""What happened during training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from neurontune_peft.checks import write_atomically
from neurontune_peft.training.budgets import Budget


@dataclass(frozen=True)
class StepLog:
    """
    The losses of one outer step, before its update.

    Args:
        step (`int`): Number of the step, from 0.
        family (`str`): The attack family that was this step's task.
        safety (`float`): Loss of refusing attacked (query set) and plain harmful prompts, nats per token.
        utility (`float`): The utility term before its weight.
        kl (`float`): KL(base || tuned) on the answers to benign, borderline and wrapped prompts, nats per token.
        nll (`float`): Negative log-likelihood of these answers, nats per token.
        inner (`tuple[float, ...]`): Loss on the support set before each inner step; empty without meta-learning.
        values (`Mapping[str, float]`): Budget to its value on this step's prompts.
        multipliers (`Mapping[str, float]`): Budget to its multiplier in this step.
    """

    step: int
    family: str
    safety: float
    utility: float
    kl: float
    nll: float
    inner: tuple[float, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    multipliers: Mapping[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """The losses and multipliers by name, as experiment trackers take them."""
        losses = {name: getattr(self, name) for name in ("safety", "utility", "kl", "nll")}
        inner = {f"inner/{number}": loss for number, loss in enumerate(self.inner)}
        values = {f"value/{name}": value for name, value in self.values.items()}
        return losses | inner | values | {f"multiplier/{name}": value for name, value in self.multipliers.items()}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> StepLog:
        """The entry that `dataclasses.asdict` gave."""
        return cls(**{**entry, "inner": tuple(entry["inner"])})


@dataclass(frozen=True)
class ValidationLog:
    """
    One validation.

    Args:
        step (`int`): How many steps led to the deltas.
        safety (`float`): Loss of refusing attacked and plain harmful validation prompts, nats per token.
        utility (`float`): The utility term before its weight.
        costs (`Mapping[str, float]`): `"kl"`, `"nll"` and the value of each budget by its name.
    """

    step: int
    safety: float
    utility: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Log:
    """
    The course of a training run.

    Args:
        steps (`tuple[StepLog, ...]`): One entry per outer step.
        config (`Mapping[str, Any]`): The options of the run, as [`MetaConfig.to_dict`] gives them.
        prompt_set (`str`): Fingerprint of the prompt set.
        validations (`tuple[ValidationLog, ...]`, *optional*): In the order of their steps.
        kept_step (`int`, *optional*): How many steps led to the deltas that were kept; the last when left out.
        budgets (`tuple[Budget, ...]`, *optional*): Whether each budget was met on validation prompts.
        stopped (`str`, *optional*, defaults to `""`): Why the run ended early; empty when all steps were made.
    """

    steps: tuple[StepLog, ...]
    config: Mapping[str, Any]
    prompt_set: str
    validations: tuple[ValidationLog, ...] = ()
    kept_step: int | None = None
    budgets: tuple[Budget, ...] = ()
    stopped: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the log as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Log:
        """
        Read a log written by [`Log.save`].

        Raises:
            ValueError: When the file is missing or no training log.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            steps = tuple(StepLog.from_dict(entry) for entry in content["steps"])
            validations = tuple(ValidationLog(**entry) for entry in content.get("validations", ()))
            budgets = tuple(Budget(**entry) for entry in content.get("budgets", ()))
            return cls(**{**content, "steps": steps, "validations": validations, "budgets": budgets})
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"got '{path}' ({error}); expected a training log; write one with Log.save") from error

    def __str__(self) -> str:
        tenth = max(1, len(self.steps) // 10)
        order = self.config.get("order")
        lines = [f"Training of {len(self.steps)} steps (order '{order}'), mean of the first and last {tenth}"]
        for name in ("safety", "kl", "nll"):
            course = [getattr(entry, name) for entry in self.steps]
            lines.append(f"  {name:<7} {sum(course[:tenth]) / tenth:8.4f} -> {sum(course[-tenth:]) / tenth:8.4f}")
        if self.kept_step is not None:
            why = ", the best on validation prompts" if self.validations else ""
            lines.append(f"  kept the deltas after {self.kept_step} steps{why}")
        lines += [f"  {budget}" for budget in self.budgets]
        if self.stopped:
            lines.append(f"  {self.stopped}")
        return "\n".join(lines)
