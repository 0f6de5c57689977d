"""How sure is a difference? Exact paired tests, and intervals by resampling prompts."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

RESAMPLES = 1000
Hits = Mapping[str, bool]  # prompt to outcome; an attack is named family/id


@dataclass(frozen=True)
class Interval:
    """
    A median over seeds with its 95 % interval.

    Args:
        value (`float`): The share, 0 to 1.
        low (`float`): Lower end.
        high (`float`): Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%}–{self.high:.1%})"


@dataclass(frozen=True)
class Paired:
    """
    An exact McNemar test on prompts that two methods were both measured on.

    Args:
        total (`int`): Prompts in both.
        better (`int`): Attacks that succeed against the control only.
        worse (`int`): Attacks that succeed against the reference only.
        p (`float`): Two-sided p-value of `better` and `worse` being equally likely.
    """

    total: int
    better: int
    worse: int
    p: float


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


def paired(reference: Sequence[Hits], control: Sequence[Hits]) -> Paired:
    """
    Compare two methods prompt by prompt.

    Seeds are no independent prompts, so each prompt counts once: it is hit if it is in at least half of the seeds.

    Args:
        reference (`Sequence[Mapping[str, bool]]`): Outcomes of each seed.
        control (`Sequence[Mapping[str, bool]]`): Outcomes of each seed of the control.
    """
    first, second = majority(reference), majority(control)
    shared = first.keys() & second.keys()
    better = sum(second[key] and not first[key] for key in shared)
    worse = sum(first[key] and not second[key] for key in shared)
    return Paired(len(shared), better, worse, mcnemar(better, worse))


def majority(seeds: Sequence[Hits]) -> dict[str, bool]:
    """Prompt to whether it was hit in at least half of the seeds that scored it."""
    found: dict[str, list[bool]] = {}
    for hits in seeds:
        for key, hit in hits.items():
            found.setdefault(key, []).append(hit)
    return {key: 2 * sum(hits) >= len(hits) for key, hits in found.items()}


def median_share(seeds: Sequence[Hits]) -> float | None:
    """Median over seeds of the share of hits; `None` where nothing was measured."""
    shares = [sum(hits.values()) / len(hits) for hits in seeds if hits]
    return statistics.median(shares) if shares else None


def bootstrap(seeds: Sequence[Hits], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """
    The median over seeds of the share of hits, with a percentile interval over resampled requests (Efron 1979).

    A request is drawn with all attacks on it, because these are not independent.

    Args:
        seeds (`Sequence[Mapping[str, bool]]`): Outcomes of each seed.
        resamples (`int`, *optional*, defaults to `1000`): How often requests are drawn.
        seed (`int`, *optional*, defaults to `0`): Start of the random sequence.
    """
    value = median_share(seeds)
    if value is None:
        return None
    requests = sorted({key.rpartition("/")[2] for hits in seeds for key in hits})
    place = {request: number for number, request in enumerate(requests)}
    generator = torch.Generator().manual_seed(random.Random(f"{seed}-bootstrap").randrange(2**31))
    drawn = torch.randint(len(requests), (resamples, len(requests)), generator=generator)  # (R, N)
    shares = []
    for hits in filter(None, seeds):
        sums, counts = torch.zeros(len(requests)), torch.zeros(len(requests))  # (N,)
        for key, hit in hits.items():
            sums[place[key.rpartition("/")[2]]] += hit
            counts[place[key.rpartition("/")[2]]] += 1
        shares.append(sums[drawn].sum(dim=1) / counts[drawn].sum(dim=1).clamp_min(1))  # (R,)
    medians = torch.stack(shares).double().quantile(0.5, dim=0)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(value, min(low, value), max(high, value))
