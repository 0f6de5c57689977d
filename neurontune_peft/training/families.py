"""What do a step's prompts ask of the model? Attack families as losses of its deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from neurontune_peft.objectives import RefusalMargin, TokenBatch
from neurontune_peft.prompts import Batch, encode
from neurontune_peft.training.budgets import limits_of
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.costs import ASKED, Costs
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.inner import Loss, Place, Task, Values
from neurontune_peft.training.losses import answer_loss
from neurontune_peft.training.tasks import Pairs, StepData, TaskSampler
from neurontune_peft.training.views import View, find_ranks, one_after_another, prefix_view, zeroed_view


@dataclass(frozen=True)
class Families:
    """
    Attack families as the tasks of a model.

    Args:
        model (`PeftModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        deltas ([`Deltas`]): Its deltas.
        sampler ([`TaskSampler`]): Draws the prompts.
        config ([`MetaConfig`]): Weights.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
        margin ([`RefusalMargin`], *optional*): For budgets of refusals and for `margin_weight`.
        tie (`Callable`, *optional*): Makes neurons share their deltas.
    """

    model: PeftModel
    tokenizer: Any
    deltas: Deltas
    sampler: TaskSampler
    config: MetaConfig
    chat_template: str | None = None
    margin: RefusalMargin | None = None
    tie: View | None = None
    originals: tuple[Tensor, ...] = field(init=False)  # the parameters, whatever stands in their place for a while

    def __post_init__(self) -> None:
        object.__setattr__(self, "originals", tuple(self.deltas.parameters))

    def draw(self, number: int) -> Task:
        """
        The task of a number: the same number gives the same prompts.

        Args:
            number (`int`): From 0; without accumulation the number of the step.
        """
        return self.task(self.sampler.draw(number), self._views(number))

    def task(self, data: StepData, views: Sequence[View] = ()) -> Task:
        """
        The losses of given prompts.

        Args:
            data ([`StepData`]): The prompts.
            views (`Sequence[Callable]`, *optional*): What the safety losses see of the deltas; all when left out.
        """
        tie = () if self.tie is None else (self.tie,)
        at = self._at(one_after_another(tie))
        return Task(
            data.family,
            support=self._refusing(data.support),
            query=self._refusing(data.query),
            plain=self._refusing(data.plain) if data.plain else None,
            costs=self._costs(data),
            rows=(len(data.support), len(data.query)),
            safety_at=self._at(one_after_another((*tie, *views))) if views else at,
            costs_at=at if views else None,
        )

    def encode(self, pairs: Pairs) -> Batch:
        """Prompts with answers as a batch on the model's device."""
        texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
        batch = encode(self.tokenizer, texts, answers, chat_template=self.chat_template)
        return batch.to(self.deltas.parameters[0].device)

    def _encode_prompts(self, texts: Sequence[str]) -> Batch:
        batch = encode(self.tokenizer, texts, chat_template=self.chat_template)
        return batch.to(self.deltas.parameters[0].device)

    def _refusing(self, pairs: Pairs) -> Loss:
        prompts = None
        if self.config.margin_weight:
            prompts = self._encode_prompts([text for text, _ in pairs])
        return partial(self._refusal_loss, self.encode(pairs), prompts)

    def _refusal_loss(self, batch: TokenBatch, prompts: TokenBatch | None, values: Values) -> Tensor:
        """Loss of refusing, of the model as it stands: its place has given it the values."""
        loss = answer_loss(
            self.model, batch, first_token_weight=self.config.first_token_weight, focus=self.config.focus
        )
        if prompts is not None and self.margin is not None:
            loss = loss + self.config.margin_weight * F.softplus(-self.margin(self.model, prompts)).mean()
        return loss

    def _costs(self, data: StepData) -> Costs:
        limits = limits_of(self.config)
        asked = {
            budget: [text for (text, _), found in zip(data.utility, data.kinds, strict=True) if found == kind]
            for budget, kind in ASKED.items()
            if budget in limits
        }
        for budget, texts in asked.items():
            if not texts:
                raise ValueError(
                    f"got {budget} without {ASKED[budget]} train prompts with an answer; expected some; add them and "
                    "draw them (borderline_size, wrapped_size), or leave the budget out"
                )
        device = self.deltas.parameters[0].device
        return Costs(
            self.model,
            self.deltas,
            self.originals,
            batch=self.encode(data.utility),
            benign=torch.tensor([kind == "benign" for kind in data.kinds], device=device),
            asked={budget: self._encode_prompts(texts) for budget, texts in asked.items()},
            margin=self.margin,
            config=self.config,
        )

    def _views(self, number: int) -> list[View]:
        """What the safety losses of a task see of the deltas."""
        seed, views = f"{self.config.seed}-{number}", []
        if self.config.nested:
            views.append(prefix_view(find_ranks(self.model), seed))
        if self.config.zero_share:
            sizes = [original.numel() for original in self.originals]
            views.append(zeroed_view(sizes, self.config.zero_share, seed))
        return views

    def _at(self, view: View | None) -> Place:
        return lambda values: self.deltas.replaced_by(values if view is None else view(values))
