"""How likely are the reference answers, and how far is the model from its base on them?"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.evaluation.statistics import Interval, bootstrap_ratio
from neurontune_peft.objectives import kl_of_logits, response_logits
from neurontune_peft.prompts import Batch, encode
from neurontune_peft.prompts.answers import context_length, evaluating


def likelihood(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    base: nn.Module | None = None,
    batch_size: int = 32,
    chat_template: str | os.PathLike[str] | None = None,
) -> tuple[float | None, float | None]:
    """
    Perplexity of reference answers, and the KL to the base model on them.

    Args:
        model (`nn.Module`): A causal language model, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        pairs (`Sequence[tuple[str, str]]`): Requests with their answers.
        base (`nn.Module`, *optional*): As in `evaluate`.
        batch_size (`int`, *optional*, defaults to `32`): Rows at once.
        chat_template (`str` or `os.PathLike`, *optional*): As in `evaluate`.

    Returns:
        `tuple[float | None, float | None]`: Perplexity per token, and `KL(base || tuned)` in nats averaged over all
            tokens; `None` where not measured.
    """
    perplexity, kl = likelihood_intervals(
        likelihood_of_rows(model, tokenizer, pairs, base=base, batch_size=batch_size, chat_template=chat_template)
    )
    return None if perplexity is None else perplexity.value, None if kl is None else kl.value


def likelihood_of_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    base: nn.Module | None = None,
    batch_size: int = 32,
    chat_template: str | os.PathLike[str] | None = None,
) -> list[tuple[float, float | None, int]]:
    """
    The sums behind [`likelihood`], for each reference answer.

    Args:
        model (`nn.Module`): As in [`likelihood`], like all other arguments.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        pairs (`Sequence[tuple[str, str]]`): Requests with their answers.
        base (`nn.Module`, *optional*): As in `evaluate`.
        batch_size (`int`, *optional*, defaults to `32`): Rows at once.
        chat_template (`str` or `os.PathLike`, *optional*): As in `evaluate`.

    Returns:
        `list[tuple[float, float | None, int]]`: Nats of its tokens, sum of `KL(base || tuned)` over them (`None` where
            not measured), and the number of tokens. The order is that of length.
    """
    if not pairs:
        return []
    rows = encode(
        tokenizer,
        [prompt for prompt, _ in pairs],
        [response for _, response in pairs],
        chat_template=chat_template,
        max_length=context_length(model),
    )
    device = next(model.parameters()).device
    measured = base is not None or isinstance(model, PeftModel)
    found: list[tuple[float, float | None, int]] = []
    with evaluating(model), torch.no_grad(), logging.tqdm(total=len(rows), desc="perplexity", delay=2) as progress:
        for batch in _by_length(rows, batch_size):
            batch = batch.to(device)
            logits = response_logits(model, batch)  # (N, V)
            counts = batch.response_mask.sum(dim=1).tolist()
            nats = F.cross_entropy(logits.float(), batch.input_ids[batch.response_mask], reduction="none").double()
            divergence = torch.zeros_like(nats)  # (N,)
            with _base_of(model, base) as reference:
                if reference is not None:
                    divergence = kl_of_logits(response_logits(reference, batch), logits).double()
            for own, other, count in zip(nats.split(counts), divergence.split(counts), counts, strict=True):
                found.append((own.sum().item(), other.sum().item() if measured else None, count))
            progress.update(len(batch))
    return found


def likelihood_intervals(rows: Sequence[Sequence[Any]]) -> tuple[Interval | None, Interval | None]:
    """
    Perplexity and KL with their intervals over resampled prompts.

    Args:
        rows (`Sequence`): What [`likelihood_of_rows`] returned.

    Returns:
        `tuple[Interval | None, Interval | None]`: Perplexity per token and KL in nats per token; `None` where not
            measured.
    """
    counts = [count for _, _, count in rows]
    mean = bootstrap_ratio([nats for nats, _, _ in rows], counts)
    divergences = [divergence for _, divergence, _ in rows if divergence is not None]
    kl = bootstrap_ratio(divergences, counts) if rows and len(divergences) == len(rows) else None
    return mean and Interval(*map(_exponential, (mean.value, mean.low, mean.high))), kl


def _exponential(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf  # above, the exponential overflows


def _by_length(rows: Batch, batch_size: int) -> Iterator[Batch]:
    """Cut a right-padded batch into smaller ones of rows of similar length."""
    lengths = rows.attention_mask.sum(dim=1)  # (B,)
    for part in lengths.argsort(stable=True).split(batch_size):
        width = int(lengths[part].max())
        yield Batch(rows.input_ids[part, :width], rows.attention_mask[part, :width], rows.response_mask[part, :width])


@contextmanager
def _base_of(model: nn.Module, base: nn.Module | None) -> Iterator[nn.Module | None]:
    """The model to compare with, if there is one."""
    if base is not None:
        with evaluating(base):
            yield base
    elif isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        yield None
