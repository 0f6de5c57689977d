"""How are roles filled from their rankings, so that no neuron is used twice and no site holds too many?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice

import torch
from torch import Tensor

from neurontune_peft.selection.candidates import candidate_count


def ranking(keys: Tensor, limit: int) -> list[int]:
    """Positions of the `limit` highest keys, the highest first; equal keys in the order of sites and indices."""
    limit = min(limit, candidate_count(keys))
    if limit == 0:
        return []
    # topk breaks ties as it likes: it only gives the threshold, a stable sort of what reaches it gives the order.
    threshold = torch.topk(keys, limit, sorted=False).values.min()
    candidates = (keys >= threshold).nonzero().squeeze(1)
    order = torch.sort(keys[candidates], descending=True, stable=True).indices[:limit]
    return candidates[order].tolist()


def spread_out(positions: Sequence[int], sites: Sequence[int], share: float, count: int) -> list[int]:
    """
    Take the best-ranked neurons such that of the first j, for every j, one site holds at most `share * j`, rounded up.

    As every beginning keeps the rule, a lower count gives a beginning of the same list.

    Args:
        positions (`Sequence[int]`): Neurons, the best first.
        sites (`Sequence[int]`): The number of each one's site.
        share (`float`): Between 0 and 1.
        count (`int`): How many to take; fewer come back when the rule leaves none.
    """
    queues: dict[int, list[int]] = {}  # site to its places in the ranking, the best last
    for place in reversed(range(len(positions))):
        queues.setdefault(sites[place], []).append(place)
    open_sites = [(queue.pop(), site) for site, queue in queues.items()]  # the best unused place of each
    heapify(open_sites)
    full: list[int] = []
    held: Counter[int] = Counter()
    taken: list[int] = []
    cap = 1
    while len(taken) < count:
        allowed = math.ceil(share * (len(taken) + 1) - 1e-9)  # 0.07 * 100 is a little more than 7
        if allowed > cap:
            cap = allowed
            for site in full:
                heappush(open_sites, (queues[site].pop(), site))
            full = []
        if not open_sites:
            break
        place, site = heappop(open_sites)
        taken.append(positions[place])
        held[site] += 1
        if queues[site] and held[site] < cap:
            heappush(open_sites, (queues[site].pop(), site))
        elif queues[site]:
            full.append(site)
    return taken


def fill(
    rankings: Mapping[str, Sequence[int]],
    wanted: Mapping[str, int],
    *,
    first: str | None,
    starts: Tensor,
    spread: float | None,
) -> dict[str, list[int]]:
    """
    Fill every role from its ranking without using a neuron twice.

    A neuron that two roles reach goes to `first` when that is one of them, and to none otherwise; whoever loses it
    takes the next of its ranking. The set of dropped neurons only grows and the result does not depend on the order
    of the roles.

    Args:
        rankings (`Mapping[str, Sequence[int]]`): Role to positions in the vector of all neurons, the best first.
        wanted (`Mapping[str, int]`): Role to how many neurons it gets, if there are enough.
        first (`str`, *optional*): The role that is served before the others.
        starts (`torch.Tensor`): Position at which each site begins, `(S + 1,)`.
        spread (`float`, *optional*): Largest share of one site, see [`spread_out`].
    """

    def take(role: str, blocked: set[int]) -> list[int]:
        free = (position for position in rankings[role] if position not in blocked)
        if spread is None:
            return list(islice(free, wanted[role]))
        positions = list(free)
        return spread_out(positions, site_numbers(positions, starts).tolist(), spread, wanted[role])

    chosen: dict[str, list[int]] = {}
    blocked: set[int] = set()
    if first is not None:
        chosen[first] = take(first, blocked)
        blocked = set(chosen[first])
    others = [role for role in rankings if role != first]
    while True:
        chosen |= {role: take(role, blocked) for role in others}
        reached = Counter(position for role in others for position in chosen[role])
        shared = {position for position, roles in reached.items() if roles > 1}
        if not shared:
            return chosen
        blocked |= shared


def site_numbers(positions: Sequence[int], starts: Tensor) -> Tensor:
    """The number of the site that each position lies in, `(k,)`."""
    return torch.searchsorted(starts, torch.tensor(positions, dtype=torch.long), right=True) - 1
