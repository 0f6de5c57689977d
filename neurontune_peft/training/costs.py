"""What do the deltas cost? Divergence, likelihood and refusals on prompts that shall stay answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from neurontune_peft.objectives import (
    RefusalMargin,
    TokenBatch,
    kl_of_logits,
    mean_over_response,
    response_logits,
)
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.deltas import Deltas
from neurontune_peft.training.inner import Values
from neurontune_peft.training.losses import answer_targets, losses_of_logits

ASKED = {"over_refusal_budget": "borderline", "wrapped_benign_budget": "wrapped"}  # budget to kind of prompts


@dataclass(frozen=True)
class Costs:
    """
    The costs on one batch of prompts, as a function of the deltas.

    Args:
        model (`PeftModel`): The model.
        deltas ([`Deltas`]): Its deltas.
        originals (`tuple[torch.Tensor, ...]`): The parameters, whatever stands in their place for a while.
        batch (`TokenBatch`): Prompts that shall stay answered, with their answers, `(B, T)`.
        benign (`torch.Tensor`): Which of them are plain benign prompts, `(B,)`, bool.
        asked (`Mapping[str, TokenBatch]`): Budget of refusals to its prompts, without answers.
        margin ([`RefusalMargin`], *optional*): Tells how close the model is to refusing; needed for those budgets.
        config ([`MetaConfig`]): The budgets, and the weight of first tokens.
    """

    model: PeftModel
    deltas: Deltas
    originals: tuple[Tensor, ...]
    batch: TokenBatch
    benign: Tensor
    asked: Mapping[str, TokenBatch]
    margin: RefusalMargin | None
    config: MetaConfig

    def __call__(self, values: Values) -> dict[str, Tensor]:
        """
        The costs of the model as it stands.

        Returns:
            `dict[str, torch.Tensor]`: Scalars: `"kl"` and `"nll"` as [`utility_losses`] gives them, and the rise over
            the base model for each budget that was set.
        """
        # PEFT switches gradients of the parameters when it disables an adapter, so those must be the real ones.
        with self.deltas.replaced_by(self.originals), torch.no_grad(), self.model.disable_adapter():
            base_logits = response_logits(self.model, self.batch)  # (N, V)
            base_share = {name: self._refused(prompts) for name, prompts in self.asked.items()}
        logits = response_logits(self.model, self.batch)  # (N, V)
        first = self.config.first_token_weight
        kl, nll = losses_of_logits(logits, self.batch, base_logits, first_token_weight=first)
        costs = {"kl": kl, "nll": nll}
        if self.config.kl_budget is not None:
            costs["kl_budget"] = mean_over_response(kl_of_logits(base_logits, logits), self.batch).mean()
        if self.config.perplexity_budget is not None:
            costs["perplexity_budget"] = self._rise_of_perplexity(logits, base_logits)
        return costs | {name: self._refused(part) - base_share[name] for name, part in self.asked.items()}

    def _rise_of_perplexity(self, logits: Tensor, base_logits: Tensor) -> Tensor:
        """Perplexity of the answers to benign prompts over that of the base model, less 1."""
        answer = self.batch.response_mask[:, 1:]  # (B, T - 1)
        counts = (answer & self.benign[:, None])[answer]  # (N,)
        targets = answer_targets(self.batch)[counts]
        tuned, base = (F.cross_entropy(part[counts].float(), targets) for part in (logits, base_logits))
        return torch.expm1(tuned - base)

    def _refused(self, prompts: TokenBatch) -> Tensor:
        """
        A smooth stand-in for the share of prompts that the model refuses: the mean of `sigmoid(refusal margin)`, which
        is the probability of the refusing opening where one of two typical openings must be chosen (*ours*).
        """
        if self.margin is None:
            raise ValueError("got a budget of refusals without a refusal margin; expected one; pass margin=...")
        return torch.sigmoid(self.margin(self.model, prompts)).mean()
