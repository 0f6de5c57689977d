"""Do the phrases of a prompt set and a model speak of the same refusals? Questions that a bad ranking raises."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.utils import logging

from neurontune_peft.attribution.engine import base_of
from neurontune_peft.attribution.rows import Rows
from neurontune_peft.attribution.tasks import Task
from neurontune_peft.objectives import RefusalMargin
from neurontune_peft.prompts import generate_answers

logger = logging.get_logger(__name__)

LOOKED_AT, SHOWN, OPENING = 8, 2, 8  # prompts whose margin is read, prompts that are answered, tokens of an answer


def openings(model: nn.Module, tokenizer: Any, task: Task, *, chat_template: Any = None) -> str:
    """How the model itself begins to answer two prompts of a task, quoted; empty where it cannot generate."""
    if not isinstance(base_of(model), GenerationMixin):
        return ""
    texts = [example.plain or example.text for example in task.examples[:SHOWN]]
    answers = generate_answers(model, tokenizer, texts, max_new_tokens=OPENING, chat_template=chat_template)
    return " and ".join(repr(answer) for answer in answers)


def warn_if_nothing_is_refused(
    model: nn.Module, tokenizer: Any, task: Task, rows: Rows, device: torch.device, *, chat_template: Any = None
) -> None:
    """
    Say so when the refusal margin of each of a few plain harmful prompts is negative: the model refuses nothing, or
    it refuses in other words, perhaps in another language, than the phrases. One pass without gradients.

    Args:
        model (`nn.Module`): The model, held still.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        task ([`Task`]): The task of the safety role; one with an objective of the user's own is not looked at.
        rows ([`Rows`]): Its prompts.
        device (`torch.device`): Where the batch goes.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
    """
    places = [i for i, example in enumerate(rows.examples) if example.kind == "harmful"][:LOOKED_AT]
    if not places or not isinstance(task.objective, RefusalMargin):
        return
    with torch.no_grad():  # one by one, so that the check needs less memory than the passes after it
        margin = torch.cat([task.objective(model, rows.batch([i], device)) for i in places])  # (B,)
    if margin.max() < 0:
        logger.warning(
            "The model refuses none of %d plain harmful prompts: it prefers the complying phrases by at least %.2f "
            "nats. Its answers begin with %s. If it refuses in other words or in another language, write these into "
            "the prompt set's phrases.json.",
            len(places),
            -float(margin.max()),
            openings(model, tokenizer, task, chat_template=chat_template),
        )
