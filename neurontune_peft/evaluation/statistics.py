"""How sure is a figure, and how sure a difference? Resampling of prompts, exact paired tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

RESAMPLES = 1000
K = TypeVar("K")  # of what a p-value is


@dataclass(frozen=True)
class Interval:
    """
    A figure with its 95 % interval.

    Args:
        value (`float`): The figure: a share, a mean or a difference.
        low (`float`): Lower end.
        high (`float`): Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%}–{self.high:.1%})"

    def as_dict(self) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: `value`, `low` and `high`.
        """
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Interval:
        """
        Make this of what `as_dict` gave.

        Raises:
            KeyError: a field is missing.
        """
        return cls(values["value"], values["low"], values["high"])


def mcnemar(better: int, worse: int) -> float:
    """
    Two-sided exact p-value: twice the binomial tail with probability one half (McNemar 1947).

    Args:
        better (`int`): Pairs that differ in one direction.
        worse (`int`): Pairs that differ in the other.
    """
    count = better + worse
    tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**count)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """
    Correct p-values for having made several tests, by Holm's step-down method (1979).

    Args:
        p_values (`Mapping[Any, float]`): Name of a test to its p-value.

    Returns:
        `dict[Any, float]`: Name to adjusted p-value: to reject where it is below a level keeps the chance of any false
            rejection below that level.
    """
    adjusted: dict[K, float] = {}
    highest = 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - place)))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def bootstrap_mean(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """
    A mean with its percentile interval over resampled prompts (Efron 1979).

    Args:
        values (`Sequence[float]`): One value for each prompt.
        resamples (`int`, *optional*, defaults to `1000`): How often prompts are drawn.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.

    Returns:
        [`Interval`], *optional*: `None` without values.
    """
    data = torch.tensor(values, dtype=torch.double)  # (N,)
    if not len(data):
        return None
    means = data[_draws(len(data), resamples, seed)].sum(dim=1) / len(data)  # (R,)
    return _around(float(data.sum() / len(data)), means)


def bootstrap_ratio(
    sums: Sequence[float], counts: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """
    A ratio of totals, such as nats per token, with its percentile interval over resampled prompts.

    Args:
        sums (`Sequence[float]`): Numerator of each prompt.
        counts (`Sequence[float]`): Denominator of each prompt.
        resamples (`int`, *optional*, defaults to `1000`): How often prompts are drawn.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.

    Returns:
        [`Interval`], *optional*: `None` without prompts, or where all denominators are 0.
    """
    above, below = torch.tensor(sums, dtype=torch.double), torch.tensor(counts, dtype=torch.double)  # (N,)
    if not len(above) or not below.sum():
        return None
    drawn = _draws(len(above), resamples, seed)  # (R, N)
    ratios = above[drawn].sum(dim=1) / below[drawn].sum(dim=1).clamp_min(1e-12)  # (R,)
    return _around(float(above.sum() / below.sum()), ratios)


def _around(value: float, resampled: Tensor) -> Interval:
    """A figure between the percentiles of what it is on resampled prompts, `(R,)`."""
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(value, min(low, value), max(high, value))


@lru_cache(maxsize=1)  # one part of a report after the other has as many prompts
def _draws(count: int, resamples: int, seed: int) -> Tensor:
    return torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(seed))
