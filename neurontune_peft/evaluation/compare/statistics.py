"""How sure is a difference between methods? Paired tests over seeds, and intervals by resampling prompts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neurontune_peft.evaluation.statistics import RESAMPLES, Interval, mcnemar

Hits = Mapping[str, bool]  # prompt to outcome; attacks are named by family, tab and id


@dataclass(frozen=True)
class Paired:
    """
    An exact McNemar test on prompts that two methods were both measured on.

    Args:
        total (`int`): Prompts in both.
        better (`int`): Attacks that succeed against the control only.
        worse (`int`): Attacks that succeed against the reference only.
        p (`float`): Two-sided p-value of `better` and `worse` being equally likely.
        margin ([`Interval`], *optional*):
            Attack success of the reference less that of the control, interval over resampled requests.
    """

    total: int
    better: int
    worse: int
    p: float
    margin: Interval | None


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
    return Paired(len(shared), better, worse, mcnemar(better, worse), difference(reference, control))


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


def bootstrap(seeds: Sequence[Hits], *, resamples: int = RESAMPLES) -> Interval | None:
    """
    The median over seeds of the share of hits, with a percentile interval over resampled requests (Efron 1979).

    A request is drawn with all attacks on it, because these are not independent. Where all outcomes are alike there
    is nothing to resample; the bound is then that of Clopper and Pearson (1934) on the requests.

    Args:
        seeds (`Sequence[Mapping[str, bool]]`): Outcomes of each seed.
        resamples (`int`, *optional*, defaults to `1000`): How often requests are drawn.
    """
    value = median_share(seeds)
    if value is None:
        return None
    requests = _requests(seeds)
    if len({hit for hits in seeds for hit in hits.values()}) == 1:
        reach = 1 - 0.025 ** (1 / len(requests))
        return Interval(value, max(0.0, value - reach), min(1.0, value + reach))
    return _interval(value, _resampled(seeds, requests, resamples))


def difference(first: Sequence[Hits], second: Sequence[Hits], *, resamples: int = RESAMPLES) -> Interval | None:
    """
    Share of hits of the first less that of the second (medians over seeds), the same requests drawn for both.

    Args:
        first (`Sequence[Mapping[str, bool]]`): Outcomes of each seed.
        second (`Sequence[Mapping[str, bool]]`): Outcomes of each seed of the other method.
        resamples (`int`, *optional*, defaults to `1000`): How often requests are drawn.
    """
    values = median_share(first), median_share(second)
    if values[0] is None or values[1] is None:
        return None
    requests = _requests([*first, *second])
    drawn = [_resampled(seeds, requests, resamples) for seeds in (first, second)]
    return _interval(values[0] - values[1], drawn[0] - drawn[1])


def _requests(seeds: Sequence[Hits]) -> dict[str, int]:
    """Request to its place; an attack's key ends with its request."""
    return {
        request: i for i, request in enumerate(sorted({key.rpartition("\t")[2] for hits in seeds for key in hits}))
    }


def _resampled(seeds: Sequence[Hits], requests: Mapping[str, int], resamples: int) -> Tensor:
    """Median over seeds of the share of hits for every draw of the requests, `(R,)`."""
    count = len(requests)
    drawn = torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))  # (R, N)
    shares = []
    for hits in filter(None, seeds):
        sums, totals = torch.zeros(count), torch.zeros(count)  # (N,)
        for key, hit in hits.items():
            place = requests[key.rpartition("\t")[2]]
            sums[place] += hit
            totals[place] += 1
        shares.append(sums[drawn].sum(dim=1) / totals[drawn].sum(dim=1).clamp_min(1))  # (R,)
    return torch.stack(shares).double().quantile(0.5, dim=0)


def _interval(value: float, resampled: Tensor) -> Interval:
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(value, min(low, value), max(high, value))
