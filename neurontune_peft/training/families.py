"""What do a step's prompts ask of the model? Attack families as losses of its deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from neurontune_peft.objectives import RefusalMargin, TokenBatch
from neurontune_peft.prompts import encode
from neurontune_peft.training.budgets import limits_of
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.costs import ASKED, Costs
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.inner import Place, Task, Values
from neurontune_peft.training.losses import answer_loss
from neurontune_peft.training.tasks import Pairs, StepData, TaskSampler
from neurontune_peft.training.views import View, find_ranks, prefix_view


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
        margin ([`RefusalMargin`], *optional*): For budgets of refusals.
    """

    model: PeftModel
    tokenizer: Any
    deltas: Deltas
    sampler: TaskSampler
    config: MetaConfig
    chat_template: str | None = None
    margin: RefusalMargin | None = None
    originals: tuple[Tensor, ...] = field(init=False)  # the parameters, whatever stands in their place for a while

    def __post_init__(self) -> None:
        object.__setattr__(self, "originals", tuple(self.deltas.parameters))

    def draw(self, number: int) -> Task:
        """
        The task of a number: the same number gives the same prompts.

        Args:
            number (`int`): From 0; without accumulation the number of the step.
        """
        return self.task(self.sampler.draw(number), self._view(number))

    def task(self, data: StepData, view: View | None = None) -> Task:
        """
        The losses of given prompts.

        Args:
            data ([`StepData`]): The prompts.
            view (`Callable`, *optional*): What the safety losses see of the deltas; all when left out.
        """
        at = self._at()
        return Task(
            data.family,
            support=self._refusing(data.support),
            query=self._refusing(data.query),
            plain=self._refusing(data.plain) if data.plain else None,
            costs=self._costs(data),
            rows=(len(data.support), len(data.query)),
            safety_at=at if view is None else self._at(view),
            costs_at=None if view is None else at,
        )

    def _encode(self, pairs: Pairs) -> TokenBatch:
        texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
        batch = encode(self.tokenizer, texts, answers, chat_template=self.chat_template)
        return batch.to(self.deltas.parameters[0].device)

    def _encode_prompts(self, texts: Sequence[str]) -> TokenBatch:
        batch = encode(self.tokenizer, texts, chat_template=self.chat_template)
        return batch.to(self.deltas.parameters[0].device)

    def _refusing(self, pairs: Pairs) -> Any:
        return partial(self._refusal_loss, self._encode(pairs))

    def _refusal_loss(self, batch: TokenBatch, values: Values) -> Tensor:
        """Loss of refusing, of the model as it stands: its place has given it the values."""
        return answer_loss(self.model, batch, first_token_weight=self.config.first_token_weight)

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
            batch=self._encode(data.utility),
            benign=torch.tensor([kind == "benign" for kind in data.kinds], device=device),
            asked={budget: self._encode_prompts(texts) for budget, texts in asked.items()},
            margin=self.margin,
            config=self.config,
        )

    def _view(self, number: int) -> View | None:
        """What the safety losses of a task see of the deltas; `None` for all."""
        if self.config.nested:
            return prefix_view(find_ranks(self.model), f"{self.config.seed}-{number}")
        return None

    def _at(self, view: View | None = None) -> Place:
        return lambda values: self.deltas.replaced_by(values if view is None else view(values))
