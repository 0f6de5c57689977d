"""How likely does an answer begin like a refusal? A view on the model that needs no decoding and no judge."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.prompts import Phrases
from neurontune_peft.prompts.answers import evaluating, fitting_ids, generation_options
from neurontune_peft.prompts.batches import pad_rows, token_ids


def first_token_probabilities(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    phrases: Phrases,
    *,
    max_new_tokens: int = 1,
    batch_size: int = 32,
    chat_template: str | os.PathLike[str] | None = None,
) -> list[tuple[float, float]]:
    """
    Probability that an answer begins with the first token of a refusal, and with that of a compliance (ours).

    First tokens that refusals and compliances share count for neither, so the two are lower bounds; compare them
    between models, not with rates of judged answers.

    Args:
        model (`nn.Module`): A causal language model, or a `PeftModel` of one; dynamic adapters decide as they do when
            they answer.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]`): Requests.
        phrases ([`Phrases`]): Openings of refusals and compliances.
        max_new_tokens (`int`, *optional*, defaults to `1`): Room that long prompts leave in the context: as much as
            the answers that this is compared with had.
        batch_size (`int`, *optional*, defaults to `32`): Rows at once.
        chat_template (`str` or `os.PathLike`, *optional*): As in `evaluate`.

    Returns:
        `list[tuple[float, float]]`: The two probabilities for each request; empty when no first token is peculiar to
            refusals or to compliances.
    """
    rows = fitting_ids(model, tokenizer, prompts, max_new_tokens, chat_template=chat_template)
    return first_token_probabilities_of_rows(model, tokenizer, rows, phrases, batch_size=batch_size)


@torch.no_grad()
def first_token_probabilities_of_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    phrases: Phrases,
    *,
    batch_size: int = 32,
) -> list[tuple[float, float]]:
    """
    [`first_token_probabilities`] of requests that are tokenised already.

    Args:
        model (`nn.Module`): As in [`first_token_probabilities`], like all other arguments.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        rows (`Sequence[list[int]]`): Token ids of the requests, as `fitting_ids` returns them.
        phrases ([`Phrases`]): Openings of refusals and compliances.
        batch_size (`int`, *optional*, defaults to `32`): Rows at once.

    Returns:
        `list[tuple[float, float]]`: The two probabilities for each request.
    """
    refusal, compliance = (_first_tokens(tokenizer, texts) for texts in (phrases.refusal, phrases.compliance))
    shared = refusal & compliance
    refusal, compliance = refusal - shared, compliance - shared
    if not refusal or not compliance or not rows:
        return []
    options = generation_options(model, tokenizer)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    found = [(0.0, 0.0)] * len(rows)
    device = next(model.parameters()).device
    with evaluating(model), logging.tqdm(total=len(rows), desc="first tokens", delay=2) as progress:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = pad_rows(
                [rows[i] for i in part], [[] for _ in part], pad_id=options["pad_token_id"], padding_side="left"
            ).to(device)
            made = model.generate(  # type: ignore[operator]
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )
            shares = made.logits[0].double().softmax(dim=-1)  # (B, V)
            sums = [shares[:, sorted(tokens)].sum(dim=-1).tolist() for tokens in (refusal, compliance)]
            for i, refused, complied in zip(part, *sums, strict=True):
                found[i] = (refused, complied)
            progress.update(len(part))
    return found


def _first_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    return {int(row[0]) for row in token_ids(tokenizer, texts) if row}
