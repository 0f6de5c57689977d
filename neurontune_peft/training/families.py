"""What do a step's prompts ask of the model? Attack families as losses of its deltas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from neurontune_peft.objectives import TokenBatch, response_logits
from neurontune_peft.prompts import encode
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.inner import Place, Task, Values
from neurontune_peft.training.losses import answer_loss, utility_losses
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
    """

    model: PeftModel
    tokenizer: Any
    deltas: Deltas
    sampler: TaskSampler
    config: MetaConfig
    chat_template: str | None = None

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
            costs=partial(self._costs, self._encode(data.utility)),
            rows=(len(data.support), len(data.query)),
            safety_at=at if view is None else self._at(view),
            costs_at=None if view is None else at,
        )

    def _encode(self, pairs: Pairs) -> TokenBatch:
        texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
        batch = encode(self.tokenizer, texts, answers, chat_template=self.chat_template)
        return batch.to(self.deltas.parameters[0].device)

    def _refusing(self, pairs: Pairs) -> Any:
        return partial(self._refusal_loss, self._encode(pairs))

    def _refusal_loss(self, batch: TokenBatch, values: Values) -> Tensor:
        """Loss of refusing, of the model as it stands: its place has given it the values."""
        return answer_loss(self.model, batch, first_token_weight=self.config.first_token_weight)

    def _costs(self, batch: TokenBatch, values: Values) -> dict[str, Tensor]:
        with torch.no_grad(), self.model.disable_adapter():
            base_logits = response_logits(self.model, batch)  # (N, V)
        first = self.config.first_token_weight
        kl, nll = utility_losses(self.model, batch, base_logits, first_token_weight=first)
        return {"kl": kl, "nll": nll}

    def _view(self, number: int) -> View | None:
        """What the safety losses of a task see of the deltas; `None` for all."""
        if self.config.nested:
            return prefix_view(find_ranks(self.model), f"{self.config.seed}-{number}")
        return None

    def _at(self, view: View | None = None) -> Place:
        return lambda values: self.deltas.replaced_by(values if view is None else view(values))
