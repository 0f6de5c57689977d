"""Which neurons may be kept, and by which number are they ranked? One vector over all sites per role.

All vectors have shape `(N,)`, N being the number of neurons of all sites, in the order of sites and indices. A *key*
is the number by which a role ranks its neurons; it is `-inf` where a neuron may not be selected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

RELATIVE = ("difference", "ratio")  # overlap rules that compare a neuron's scores for different roles
RATIO_FLOOR = 1e-3  # of a role's largest score: a ratio to less than that would rank noise (ours)


def as_count(count: float, total: int, *, what: str) -> int:
    """
    An `int` is a number of neurons, a `float` up to 1 a share of `total`.

    Raises:
        ValueError: When it is neither.
    """
    if isinstance(count, bool) or not isinstance(count, int | float) or not count >= 0:
        raise ValueError(
            f"got {count!r} for {what}; expected a number of neurons (int) or a share (float up to 1.0); use for "
            "example 64 or 0.03"
        )
    if isinstance(count, int):
        return count
    if count > 1:
        raise ValueError(
            f"got {count} for {what}; expected a share up to 1.0; write {count:.0f} (int) for a number of neurons"
        )
    return max(1, round(count * total)) if count else 0


def flatten(values: Mapping[str, Tensor], widths: Mapping[str, int]) -> Tensor:
    """All sites' numbers in one vector `(N,)`, 0 where a site has none."""
    return torch.cat([values[site].float() if site in values else torch.zeros(widths[site]) for site in widths])


def ranking_keys(flat: Mapping[str, Tensor], overlap: str) -> dict[str, Tensor]:
    """
    The keys of every role: its scores where they are positive, or how far they stand out from the other roles'.

    Args:
        flat (`Mapping[str, torch.Tensor]`): Role to scores, `(N,)`.
        overlap (`str`): `"difference"` and `"ratio"` compare roles; under any other rule a key is the score itself.

    Returns:
        `dict[str, torch.Tensor]`: Role to keys, `(N,)`, `-inf` at neurons that are not candidates.
    """
    if overlap not in RELATIVE:
        return {role: torch.where(score > 0, score, -torch.inf) for role, score in flat.items()}
    tiny = torch.finfo(torch.float32).tiny
    shares = {
        role: score / torch.stack(score.aminmax()).abs().max().clamp(min=tiny) for role, score in flat.items()
    }  # (N,), -1 to 1
    keys = {}
    for role, share in shares.items():
        rival = torch.zeros(())  # a role that does not want the neuron counts as 0
        for other, its_share in shares.items():
            if other != role:
                rival = torch.maximum(rival, its_share)
        key = share - rival if overlap == "difference" else share / rival.clamp(min=RATIO_FLOOR)
        keys[role] = key.masked_fill_(share <= rival, -torch.inf)  # wanted equally by two: given to none
    return keys


def candidate_count(keys: Tensor) -> int:
    """How many neurons may be selected."""
    return int(torch.count_nonzero(keys > -torch.inf))


def quantile_of(scores: Tensor, quantile: float) -> Tensor:
    """The score at or just below the quantile; as many scores lie above it as above the interpolated quantile."""
    place = int(quantile * (scores.numel() - 1))
    return scores.kthvalue(place + 1).values  # torch.quantile refuses more than 16 million numbers


def block_number(site: str) -> int | None:
    """The number of the block that holds a site, as PEFT's `layers_to_transform` reads it; `None` without one."""
    match = re.match(r".*?\.[^.]*\.(\d+)\.", site)  # the first number: a later one may be that of an expert
    return int(match[1]) if match else None


def in_layers(widths: Mapping[str, int], layers: tuple[int, int]) -> Tensor:
    """
    Whether each neuron's block is in the range, `(N,)`, bool.

    Raises:
        ValueError: When the range is none, or no site is in it.
    """
    first, last = layers
    numbers = {site: block_number(site) for site in widths}
    known = sorted({number for number in numbers.values() if number is not None})
    inside = {site: number is not None and first <= number <= last for site, number in numbers.items()}
    if not any(inside.values()):
        found = f"blocks from {known[0]} to {known[-1]}" if known else "sites whose names hold a block number"
        raise ValueError(
            f"got layers=({first}, {last}), in which no site lies; expected {found}, both ends included; correct "
            "the range or leave it out"
        )
    return torch.cat([torch.full((width,), inside[site]) for site, width in widths.items()])


def within_cap(key: Tensor, widths: Mapping[str, int], per_layer: float) -> Tensor:
    """Whether each neuron is among the `per_layer` highest keys of its site, `(N,)`, bool."""
    parts = []
    for part in key.split(list(widths.values())):
        cap = as_count(per_layer, part.numel(), what="per_layer")
        kept = torch.zeros_like(part, dtype=torch.bool)
        kept[torch.sort(part, descending=True, stable=True).indices[:cap]] = True
        parts.append(kept)
    return torch.cat(parts)
