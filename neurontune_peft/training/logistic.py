"""Logistic regression and the area under its curve: small enough to need no further library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """
    A linear score.

    Args:
        weights (`torch.Tensor`): Shape `(k,)`, or `(k, 2)` for [`Features`]; float64.
        bias (`float`): The score of zeros.
    """

    weights: Tensor
    bias: float

    def score(self, features: Tensor) -> Tensor:
        """Scores of rows of features `(n, k)`, shape `(n,)`; above 0 the positive class is likelier."""
        return features.double() @ self.weights + self.bias


def fit_logistic(
    features: Tensor, labels: Tensor, *, l2: float, precision: torch.dtype = torch.float64, most_steps: int = 200
) -> Linear:
    """
    L2-regularised logistic regression on standardised features, both classes of equal weight; by L-BFGS.

    Mean and standard deviation are folded into weights and bias.

    Args:
        features (`torch.Tensor`): Shape `(n, k)`.
        labels (`torch.Tensor`): True for the positive class, bool, shape `(n,)`.
        l2 (`float`): Factor of half the squared norm of the standardised weights.
        precision (`torch.dtype`, *optional*, defaults to `torch.float64`):
            To what weights are rounded; the bias is worked out with rounded ones.
        most_steps (`int`, *optional*, defaults to `200`): Most steps of L-BFGS.
    """
    data = features.double()
    mean, std = data.mean(dim=0), data.std(dim=0)
    std = torch.where(std > 0, std, 1.0)  # a silent neuron says nothing
    standard = (data - mean) / std
    weights = torch.zeros(data.shape[1], dtype=torch.float64, device=data.device)
    bias = minimise(lambda w: standard @ w, weights, labels, l2=l2, most_steps=most_steps)
    folded = (weights / std).to(precision).double()
    return Linear(weights=folded, bias=float(bias - folded @ mean))


def minimise(
    score: Callable[[Tensor], Tensor], weights: Tensor, labels: Tensor, *, l2: float, most_steps: int
) -> Tensor:
    """
    Learn weights in place by L-BFGS, both classes of equal weight; returns the bias.

    Args:
        score (`Callable[[torch.Tensor], torch.Tensor]`): Weights to scores of the examples without bias, `(n,)`.
        weights (`torch.Tensor`): Where to begin.
        labels (`torch.Tensor`): True for the positive class, bool, shape `(n,)`.
        l2 (`float`): Factor of half the squared norm of the weights.
        most_steps (`int`): Most steps of L-BFGS.
    """
    target = labels.to(weights.dtype)
    share = torch.where(labels, 0.5 / target.sum(), 0.5 / (1 - target).sum())
    bias = weights.new_zeros(())
    parameters = [weights.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=most_steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        each = F.binary_cross_entropy_with_logits(score(weights) + bias, target, reduction="none")
        total = (share * each).sum() + l2 / 2 * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    weights.requires_grad_(False)
    return bias.detach()


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """
    Probability that a positive example scores above a negative one; ties count half (Mann-Whitney).

    Args:
        positive (`torch.Tensor`): Scores, shape `(n,)`.
        negative (`torch.Tensor`): Scores, shape `(m,)`.
    """
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, right=False)
    upto = torch.searchsorted(ordered, positive, right=True)
    return float((below + upto).double().mean() / 2 / len(negative))
