"""Which step is kept? The one that does best on train prompts and templates that were held back from training."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers.utils import logging

from neurontune_peft.prompts import Attack, Prompt, PromptSet
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.families import Families
from neurontune_peft.training.inner import Loss, Task, Values
from neurontune_peft.training.tasks import StepData

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Validation:
    """
    How deltas do on validation prompts.

    Args:
        safety (`float`): Loss of refusing attacked (mean over families) and plain harmful prompts, nats per token.
        costs (`Mapping[str, float]`): As in [`Task`].
    """

    safety: float
    costs: Mapping[str, float]


def split_validation(prompts: PromptSet, config: MetaConfig) -> tuple[PromptSet, PromptSet]:
    """
    Divide the train split into a part to train on and a part to validate on; the test split is in neither.

    A share of each kind of prompt is held back, and of the attacks one template of each family that has several
    (`config.validation="templates"`), or one family with all that it has (`"family"`); the seed decides which. A kind
    or family that cannot be divided is in both parts, and a warning says so.

    Args:
        prompts ([`PromptSet`]): The whole set.
        config ([`MetaConfig`]): Share, way and seed.

    Returns:
        `tuple[PromptSet, PromptSet]`: For training and for validation.
    """
    held = {kind: _held_back(prompts, kind, config) for kind in ("harmful", "benign", "borderline")}
    train, validation = [], []
    for prompt in prompts.select(split="train"):
        if prompt.id not in held[prompt.kind]:
            train.append(prompt)
        if prompt.id in held[prompt.kind] or not held[prompt.kind]:
            validation.append(prompt)
    for_training, for_validation = _divided_attacks(prompts, config)
    return _part(prompts, train, for_training), _part(prompts, validation, for_validation)


def _held_back(prompts: PromptSet, kind: str, config: MetaConfig) -> set[str]:
    """Ids of the prompts of a kind that are held back: two harmful ones and one of each other kind stay."""
    pool = [p for p in prompts.select(kind=kind, split="train") if kind == "harmful" or p.response is not None]
    most = len(pool) - (2 if kind == "harmful" else 1)
    count = max(0, min(most, math.ceil(config.validation_share * len(pool))))
    if pool and not count:
        logger.warning("Too few %s train prompts to hold some back: the same %d validate", kind, len(pool))
    rng = random.Random(f"{config.seed}-validation-{kind}")
    return {prompt.id for prompt in rng.sample(pool, count)}


def _divided_attacks(prompts: PromptSet, config: MetaConfig) -> tuple[list[Attack], list[Attack]]:
    """Attacks to train on and to validate on; those made for one request are in both and follow the request."""
    attacks, families = [a for a in prompts.attacks if a.split == "train"], prompts.train_families
    if config.validation == "family" and len(families) > 1:
        held = families[config.seed % len(families)]
        return [a for a in attacks if a.family != held], [a for a in attacks if a.family == held]
    train, validation = list(attacks), [attack for attack in attacks if attack.template is None]
    for number, family in enumerate(families):
        templates = [a for a in attacks if a.family == family and a.template is not None]
        if len(templates) == 1:
            logger.warning("Family '%s' has one train template: the same validates", family)
        if templates:
            chosen = templates[(config.seed + number) % len(templates)]
            validation.append(chosen)
            if len(templates) > 1:
                train.remove(chosen)
    return train, validation


def _part(prompts: PromptSet, kept: Sequence[Prompt], attacks: Sequence[Attack]) -> PromptSet:
    ids = {prompt.id for prompt in kept}
    usable = tuple(attack for attack in attacks if attack.prompt_id is None or attack.prompt_id in ids)
    return replace(prompts, prompts=tuple(kept), attacks=usable)


class Validator:
    """
    Measures deltas on the validation part, without inner steps, as they are shipped.

    Args:
        families ([`Families`]): How prompts become losses.
        prompts ([`PromptSet`]): The validation part.
        refusals (`Sequence[str]`): Texts to refuse with, in turns.
    """

    def __init__(self, families: Families, prompts: PromptSet, refusals: Sequence[str]) -> None:
        self._config = families.config
        self._tasks = [families.task(data) for data in _validation_data(prompts, refusals, families.config)]

    @torch.no_grad()
    def __call__(self, values: Values) -> Validation:
        """Measure values, per site `(k,)`."""
        safety = [_on(task, task.support, values) for task in self._tasks]
        task = self._tasks[0]
        plain = 0.0 if task.plain is None else self._config.plain_weight * _on(task, task.plain, values)
        return Validation(sum(safety) / len(safety) + plain, self.costs(values))

    @torch.no_grad()
    def costs(self, values: Values) -> dict[str, float]:
        """The costs alone."""
        task = self._tasks[0]
        with (task.costs_at or task.safety_at)(values):
            return {name: cost.item() for name, cost in task.costs(values).items()}


def _on(task: Task, loss: Loss, values: Values) -> float:
    with task.safety_at(values):
        return loss(values).item()


def _validation_data(prompts: PromptSet, refusals: Sequence[str], config: MetaConfig) -> list[StepData]:
    """One entry for each family; the first brings plain harmful prompts and those that shall stay answered."""
    most = config.validation_size
    harmful = prompts.select(kind="harmful")[:most]
    turns = [refusals[i % len(refusals)] for i in range(len(harmful))]
    plain = tuple(zip([p.prompt for p in harmful], turns, strict=True))
    benign, borderline = (
        [p for p in prompts.select(kind=kind) if p.response is not None][:most] for kind in ("benign", "borderline")
    )
    utility = [(p.prompt, str(p.response)) for p in (*benign, *borderline)]
    kinds = ["benign"] * len(benign) + ["borderline"] * len(borderline)
    if prompts.templates(split="train") and config.wrapped_size:
        wrapped = prompts.wrapped(benign, split="train")
        utility += [(text, str(p.response)) for text, p in zip(wrapped, benign, strict=True)]
        kinds += ["wrapped"] * len(wrapped)
    found = []
    for family in prompts.train_families:
        part = prompts.attackable(harmful, family=family, split="train")
        texts = prompts.attacked(part, family=family, split="train")
        if texts:
            pairs = tuple(zip(texts, turns, strict=False))
            found.append(StepData(family, pairs, pairs, plain, tuple(utility), tuple(kinds)))
    return found or [StepData("plain", plain, plain, (), tuple(utility), tuple(kinds))]
