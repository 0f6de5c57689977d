"""How far is the model from refusing what it should, and from answering the rest as before? Losses on answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurontune_peft.objectives import TokenBatch, kl_of_logits, response_logits


def token_weights(batch: TokenBatch, first_token_weight: float) -> Tensor:
    """
    Weights of the answer tokens; the first token of an answer decides whether it refuses, so it may weigh more.

    Args:
        batch (`TokenBatch`): Prompts with answers, `(B, T)`.
        first_token_weight (`float`): Weight of a row's first answer token relative to its others.

    Returns:
        `Tensor`: Shape `(N,)`, row after row; those of a row add up to `1 / B`.
    """
    answer = batch.response_mask[:, 1:]  # (B, T - 1)
    first = answer & ~batch.response_mask[:, :-1]
    weights = answer.float() + first.float() * (first_token_weight - 1)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    return weights[answer] / answer.shape[0]


def answer_loss(model: nn.Module, batch: TokenBatch, *, first_token_weight: float, focus: float = 1.0) -> Tensor:
    """
    Weighted negative log-likelihood of the answers.

    Args:
        model (`nn.Module`): A causal LM.
        batch (`TokenBatch`): Prompts with answers.
        first_token_weight (`float`): As in `token_weights`.
        focus (`float`, *optional*, defaults to `1.0`):
            Exponent of each answer's loss. Above 1, answers that the model gives anyway count less than the others, as
            in focal loss (arXiv 1708.02002); that the factor is a power of the loss itself is *ours*.

    Returns:
        `Tensor`: A scalar, nats per token; with a focus, a mean of their powers.
    """
    losses = F.cross_entropy(response_logits(model, batch).float(), answer_targets(batch), reduction="none")
    weighted = losses * token_weights(batch, first_token_weight)  # (N,)
    if focus == 1:
        return weighted.sum()
    answer = batch.response_mask[:, 1:]  # (B, T - 1)
    rows = answer.nonzero()[:, 0]  # (N,)
    each = weighted.new_zeros(len(answer)).index_add(0, rows, weighted) * len(answer)  # (B,)
    return each.pow(focus).mean()


def utility_losses(
    model: nn.Module, batch: TokenBatch, base_logits: Tensor, *, first_token_weight: float
) -> tuple[Tensor, Tensor]:
    """
    What the scales cost on prompts that shall stay answered.

    Args:
        model (`nn.Module`): The tuned model.
        batch (`TokenBatch`): Prompts with answers.
        base_logits (`Tensor`): What `response_logits` gave with the scales off, `(N, V)`.
        first_token_weight (`float`): As in `token_weights`.

    Returns:
        `tuple[Tensor, Tensor]`: KL(base || tuned) and the answers' negative log-likelihood, scalars, nats per token.
    """
    logits = response_logits(model, batch)  # (N, V)
    return losses_of_logits(logits, batch, base_logits, first_token_weight=first_token_weight)


def losses_of_logits(
    logits: Tensor, batch: TokenBatch, base_logits: Tensor, *, first_token_weight: float
) -> tuple[Tensor, Tensor]:
    """As [`utility_losses`], from logits of the tuned model, `(N, V)`."""
    weights = token_weights(batch, first_token_weight)
    kl = (kl_of_logits(base_logits, logits) * weights).sum()
    nll = (F.cross_entropy(logits.float(), answer_targets(batch), reduction="none") * weights).sum()
    return kl, nll


def answer_targets(batch: TokenBatch) -> Tensor:
    """Token ids of the answers, row after row, `(N,)`."""
    return batch.input_ids[:, 1:][batch.response_mask[:, 1:]]
