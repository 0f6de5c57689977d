"""What do a step's prompts ask of the model? Attack families as losses of its deltas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
from neurontune_peft.training.inner import Task, Values
from neurontune_peft.training.losses import answer_loss, utility_losses
from neurontune_peft.training.tasks import Pairs, TaskSampler


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
        data = self.sampler.draw(number)
        return Task(
            data.family,
            support=self._refusing(data.support),
            query=self._refusing(data.query),
            plain=self._refusing(data.plain) if data.plain else None,
            costs=partial(self._costs, self._encode(data.utility)),
            rows=(len(data.support), len(data.query)),
            safety_at=self._at,
            costs_at=self._at,
        )

    def _encode(self, pairs: Pairs) -> TokenBatch:
        texts, answers = [text for text, _ in pairs], [answer for _, answer in pairs]
        batch = encode(self.tokenizer, texts, answers, chat_template=self.chat_template)
        return batch.to(self.deltas.parameters[0].device)

    def _refusing(self, pairs: Pairs) -> Any:
        return partial(self._refusal_loss, self._encode(pairs))

    def _refusal_loss(self, batch: TokenBatch, values: Values) -> Tensor:
        """Loss of refusing, of the model as it stands: `_at` has given it the values."""
        return answer_loss(self.model, batch, first_token_weight=self.config.first_token_weight)

    def _costs(self, batch: TokenBatch, values: Values) -> dict[str, Tensor]:
        with torch.no_grad(), self.model.disable_adapter():
            base_logits = response_logits(self.model, batch)  # (N, V)
        first = self.config.first_token_weight
        kl, nll = utility_losses(self.model, batch, base_logits, first_token_weight=first)
        return {"kl": kl, "nll": nll}

    @contextmanager
    def _at(self, values: Values) -> Iterator[None]:
        with self.deltas.replaced_by(values):
            yield
