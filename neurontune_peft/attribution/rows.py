"""The examples of a task as token ids: within the model's context, of similar length side by side."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from neurontune_peft.attribution.pairs import pair
from neurontune_peft.attribution.tasks import Example, Task
from neurontune_peft.objectives import RefusalMargin
from neurontune_peft.prompts.batches import Batch, pad_rows, padding_id, prompt_ids, shorten, token_ids

Ids = list[list[int]]


@dataclass(frozen=True)
class Rows:
    """
    Token ids of a task's examples, the shortest first.

    Args:
        examples (`tuple[Example, ...]`): The examples, in the order of the rows.
        heads (`list[list[int]]`): Ids of the prompts.
        tails (`list[list[int]]`): Ids of the responses; empty lists where there are none.
        plain (`list[list[int]]`, *optional*): Ids of the prompts without their attack, for methods that need pairs.
        pad_id (`int`): Id to pad with.
        shortened (`int`): How many prompts were longer than the context, their responses included.
    """

    examples: tuple[Example, ...]
    heads: Ids
    tails: Ids
    plain: Ids | None
    pad_id: int
    shortened: int

    def batch(self, places: Sequence[int], device: torch.device) -> Batch:
        """The examples at these places as a `Batch`, or as a `PairedBatch` where there are plain forms."""
        batch = self._batch(self.heads, places).to(device)
        if self.plain is None:
            return batch
        return pair(batch, self._batch(self.plain, places).to(device))

    def _batch(self, heads: Ids, places: Sequence[int]) -> Batch:
        return pad_rows([heads[i] for i in places], [self.tails[i] for i in places], pad_id=self.pad_id)


def tokenize(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: bool,
    context: int | None,
    chat_template: str | os.PathLike[str] | None,
) -> Rows:
    """
    Tokenise a task.

    Args:
        task ([`Task`]): The task.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        pairs (`bool`): Tokenise the plain forms, too.
        context (`int`, *optional*): Most tokens of a row; longer prompts lose their middle.
        chat_template (`str` or `os.PathLike`, *optional*): Replaces the tokenizer's own.

    Raises:
        ValueError: When the context leaves no room for a prompt.
    """
    heads = prompt_ids(tokenizer, [example.text for example in task.examples], chat_template=chat_template)
    tails = _response_ids(tokenizer, [example.response for example in task.examples])
    plain = None
    if pairs:
        texts = [example.plain or example.text for example in task.examples]
        plain = prompt_ids(tokenizer, texts, chat_template=chat_template)
    shortened = 0
    if context is not None:
        if isinstance(task.objective, RefusalMargin):  # its openings follow the prompt in the same context
            context -= max(len(ids) for ids in task.objective.refusal_ids + task.objective.compliance_ids)
        whole = list(zip(heads, tails, strict=True))
        plain = None if plain is None else _fit(plain, tails, context)[0]
        heads, tails = _fit(heads, tails, context)
        shortened = sum(before != after for before, after in zip(whole, zip(heads, tails, strict=True), strict=True))
    order = sorted(range(len(heads)), key=lambda i: (len(heads[i]) + len(tails[i]), i))
    return Rows(
        examples=tuple(task.examples[i] for i in order),
        heads=[heads[i] for i in order],
        tails=[tails[i] for i in order],
        plain=None if plain is None else [plain[i] for i in order],
        pad_id=padding_id(tokenizer),
        shortened=shortened,
    )


def warn_of_shortened(rows: Sequence[Rows], context: int | None) -> None:
    """Say once, for all roles together, how many prompts were longer than the context."""
    if count := sum(part.shortened for part in rows):
        warnings.warn(
            f"got {count} of {sum(len(part.examples) for part in rows)} prompts longer than the context of {context} "
            "tokens allows; the middle of each was left out (and the end of a response longer than half of that)",
            UserWarning,
            stacklevel=4,
        )


def _response_ids(tokenizer: Any, responses: Sequence[str | None]) -> Ids:
    """Token ids of answers with their end; none where there is no answer."""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    known = iter(token_ids(tokenizer, [response for response in responses if response is not None]))
    return [[] if response is None else [*next(known), *end] for response in responses]


def _fit(heads: Ids, tails: Ids, context: int) -> tuple[Ids, Ids]:
    with warnings.catch_warnings():  # counted over all tasks and said once
        warnings.simplefilter("ignore", UserWarning)
        return shorten(heads, tails, max_length=context)
