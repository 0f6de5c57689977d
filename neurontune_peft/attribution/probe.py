"""Probe: how much a linear probe relies on each neuron to tell two kinds of requests apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurontune_peft.attribution.activations import token_maxima
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective

ROUNDING = 1e-5  # relative spreads below it are rounding of float32 activations, which standardising would blow up


def pooled(
    model: nn.Module, batch: Any, sites: Mapping[str, Site], objective: Objective | None = None
) -> dict[str, Tensor]:
    """
    Largest activation over the tokens of each prompt: a probe's features (as NeST, arXiv 2602.16835).

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples; responses do not count.
        sites (`Mapping[str, Site]`): The sites to read.
        objective (`Callable`, *optional*): Not used.

    Returns:
        `dict[str, torch.Tensor]`: Site to features, `(B, F)`. Activations of experts are weighted by routing, and 0
        for tokens that are not routed to them.
    """
    return token_maxima(model, batch, sites, batch.attention_mask.bool() & ~batch.response_mask)


def probe_weights(positive: Tensor, negative: Tensor, *, l2: float = 1.0) -> Tensor:
    """
    Weights of a logistic regression that tells positive from negative requests by one site's features, each of them
    standardised over both kinds (as NeST; the penalty is `ours`). Both kinds count alike, whatever their numbers.

    Args:
        positive (`torch.Tensor`): Features of requests of the one kind, `(N, F)`.
        negative (`torch.Tensor`): Of the other kind, `(M, F)`.
        l2 (`float`, *optional*, defaults to `1.0`):
            Weight of the penalty `|w|^2 / 2` against the sum of the losses of all requests; above 0.

    Returns:
        `torch.Tensor`: `(F,)`, float32; positive for neurons that are more active in positive requests, 0 for those
        that are always the same.

    Raises:
        ValueError: When one kind has no requests, the numbers of features differ, or `l2` is not above 0.
    """
    if not len(positive) or not len(negative) or positive.shape[1] != negative.shape[1] or l2 <= 0:
        raise ValueError(
            f"got features of shapes {tuple(positive.shape)} and {tuple(negative.shape)} with l2={l2}; expected "
            "requests of both kinds, the same number of features, and l2 above 0; score both kinds at the same site"
        )
    features = torch.cat([positive, negative]).double()
    spread, mean = torch.std_mean(features, dim=0, correction=0)
    constant = spread <= ROUNDING * mean.abs()
    features = (features - mean) / spread.masked_fill(constant, 1.0) * ~constant  # (N + M, F)
    target = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(features)
    share = torch.where(target > 0, 0.5 / len(positive), 0.5 / len(negative))
    return _fit(features, target, share, penalty=l2 / len(features)).float()


def _fit(features: Tensor, target: Tensor, share: Tensor, *, penalty: float) -> Tensor:
    """Logistic regression with intercept by L-BFGS on all rows at once; features `(n, F)` -> weights `(F,)`."""
    weight = features.new_zeros(features.shape[1], requires_grad=True)
    intercept = features.new_zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, intercept], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(features @ weight + intercept, target, share, reduction="sum")
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach()
