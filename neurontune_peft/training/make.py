"""From a prompt set to what the loop needs: tasks to draw, and a measure of what they lead to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel

from neurontune_peft.prompts import PromptSet
from neurontune_peft.training.clusters import cluster_neurons, tied_view
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.families import Families
from neurontune_peft.training.refusals import margin_of
from neurontune_peft.training.tasks import TaskSampler
from neurontune_peft.training.validation import Validator, split_validation

PROFILE_TASKS = 4  # tasks whose prompts the profiles of neurons are taken on; `ours`


def make_families(
    model: PeftModel,
    tokenizer: Any,
    deltas: Deltas,
    prompts: PromptSet,
    config: MetaConfig,
    refusals: Sequence[str],
    *,
    chat_template: str | None = None,
) -> tuple[Families, Validator | None]:
    """
    The tasks of a prompt set, and its validation part when the options ask for one.

    With one usable family training is joint, as `families.config` says, and a warning is given.

    Args:
        model (`PeftModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        deltas ([`Deltas`]): Its deltas; those of tied neurons are made equal.
        prompts ([`PromptSet`]): The prompts.
        config ([`MetaConfig`]): The options.
        refusals (`Sequence[str]`): Texts to refuse with.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Raises:
        ValueError: When the prompt set lacks what training needs.
    """
    usable = prompts if config.attacks else replace(prompts, attacks=())
    train, held_back = split_validation(usable, config) if config.validation_interval else (usable, None)
    sampler = TaskSampler(train, config, refusals)
    families = Families(
        model,
        tokenizer,
        deltas,
        sampler,
        _joint_where_needed(config, sampler.families),
        chat_template=chat_template,
        margin=margin_of(tokenizer, prompts, config.margin_phrases),
    )
    if config.tie == "cluster":
        families = _tied(families)
    families.draw(0)  # refuses missing prompts now
    return families, None if held_back is None else Validator(families, held_back, refusals)


def _joint_where_needed(config: MetaConfig, families: Sequence[str]) -> MetaConfig:
    """Meta-learning generalises from families to families: with one there is nothing to learn that from."""
    if len(families) > 1 or config.order == "none":
        return config
    if config.attacks:
        warnings.warn(
            f"got one usable attack family ('{families[0]}') for meta-learning; expected at least two; training is "
            "joint (order='none'); add attacks of other families",
            stacklevel=4,
        )
    return replace(config, order="none", finetune_steps=0)


@torch.no_grad()
def _tied(families: Families) -> Families:
    config = families.config
    drawn = [families.sampler.draw(number) for number in range(PROFILE_TASKS)]
    batches = [families.encode(data.support + data.utility) for data in drawn]
    labels = cluster_neurons(families.model, batches, clusters=config.clusters, seed=config.seed)
    tie = tied_view(labels)
    for parameter, value in zip(families.originals, tie(families.originals), strict=True):
        parameter.copy_(value)
    return replace(families, tie=tie)
