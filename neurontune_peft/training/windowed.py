"""Logistic regression on the most suspicious window of each request."""

from __future__ import annotations

import torch
from torch import Tensor

from neurontune_peft.training.features import Features
from neurontune_peft.training.logistic import Linear, minimise


def fit_windowed(
    features: Features, labels: Tensor, *, l2: float, precision: torch.dtype = torch.float32, most_steps: int = 80
) -> Linear:
    """
    L2-regularised logistic regression on standardised features, both classes of equal weight; by L-BFGS.

    The score of a request is that of its activations where it ends, plus the highest of its windows (`ours`; a form of
    multiple-instance learning, in which a request is harmful if one of its windows is). Where requests have several
    windows the loss has no single minimum; from weights of zero, at which all windows count alike, the same one is
    always found. Means and standard deviations are folded into weights and bias.

    Args:
        features ([`Features`]): Of n requests.
        labels (`torch.Tensor`): True for the positive class, bool, shape `(n,)`.
        l2 (`float`): Factor of half the squared norm of the standardised weights.
        precision (`torch.dtype`, *optional*, defaults to `torch.float32`):
            To what weights are rounded; the bias is worked out with rounded ones.
        most_steps (`int`, *optional*, defaults to `80`): Most steps of L-BFGS.

    Returns:
        [`Linear`]: Weights of shape `(k, 2)`, for [`Features.score`].
    """
    parts = (features.ends, features.windows)
    means = torch.stack([part.mean(dim=0) for part in parts], dim=-1)  # (k, 2)
    stds = torch.stack([part.std(dim=0, correction=0) for part in parts], dim=-1)
    stds = torch.where(stds > 0, stds, 1.0)  # a silent neuron says nothing
    ends, windows = ((part - means[:, i]) / stds[:, i] for i, part in enumerate(parts))
    weights = torch.zeros_like(means)
    bias = minimise(
        lambda w: ends @ w[:, 0] + features.highest(windows @ w[:, 1]), weights, labels, l2=l2, most_steps=most_steps
    )
    folded = (weights.double() / stds.double()).to(precision).double()
    return Linear(weights=folded, bias=float(bias.double() - (folded * means.double()).sum()))
