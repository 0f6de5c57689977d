"""Which neurons are kept: the best-scored ones of every role, and a rule for neurons that two roles want."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neurontune_peft.neurons import Neurons, Scores


def _as_count(count: float, total: int, *, what: str) -> int:
    """An `int` is a number of neurons, a `float` up to 1 a share of them."""
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


def _eligible(values: Mapping[str, Tensor], widths: Mapping[str, int], per_layer: float | None) -> Tensor:
    """One vector of all sites' scores, with `-inf` where a neuron may not be selected."""
    parts = []
    for site in widths:
        score = values[site].float() if site in values else torch.zeros(widths[site])
        allowed = score > 0
        if per_layer is not None:
            cap = _as_count(per_layer, score.numel(), what="per_layer")
            order = torch.sort(score, descending=True, stable=True).indices[cap:]
            allowed[order] = False
        parts.append(torch.where(allowed, score, -torch.inf))
    return torch.cat(parts)


def _ranking(scores: Tensor, limit: int) -> list[int]:
    """Positions of the `limit` highest scores, the highest first; equal scores in the order of sites and indices."""
    limit = min(limit, int(torch.isfinite(scores).sum()))
    if limit == 0:
        return []
    # topk breaks ties as it likes: it only gives the threshold, a stable sort of what reaches it gives the order.
    threshold = torch.topk(scores, limit, sorted=False).values.min()
    candidates = (scores >= threshold).nonzero().squeeze(1)
    order = torch.sort(scores[candidates], descending=True, stable=True).indices[:limit]
    return candidates[order].tolist()


def _resolve(rankings: Mapping[str, list[int]], wanted: Mapping[str, int], first: str | None) -> dict[str, list[int]]:
    """
    Fill every role from its ranking without using a neuron twice.

    A neuron that two roles reach goes to `first` when that is one of them, and to none otherwise; whoever loses it
    takes the next of its ranking. The set of dropped neurons only grows and the result does not depend on the order
    in which roles are served.
    """
    owner: dict[int, str] = {}
    if first is not None:
        owner = dict.fromkeys(rankings[first][: wanted[first]], first)
    dropped: set[int] = set()
    place = dict.fromkeys(rankings, 0)
    held = dict.fromkeys(rankings, 0)
    queue = [role for role in rankings if role != first]
    while queue:
        role = queue.pop()
        while held[role] < wanted[role] and place[role] < len(rankings[role]):
            neuron = rankings[role][place[role]]
            place[role] += 1
            other = owner.get(neuron)
            if other is None and neuron not in dropped:
                owner[neuron] = role
                held[role] += 1
            elif other is not None and other != first:
                del owner[neuron]
                dropped.add(neuron)
                held[other] -= 1
                queue.append(other)
    chosen: dict[str, list[int]] = {role: [] for role in rankings}
    for role, ranking in rankings.items():
        chosen[role] = [neuron for neuron in ranking if owner.get(neuron) == role]
    return chosen


def _check_request(scores: Scores, counts: Mapping[str, float], overlap: str) -> None:
    unknown = [role for role in counts if role not in scores.values]
    if unknown or not any(counts.values()):
        raise ValueError(
            f"got counts {dict(counts)}; expected at least one neuron of the roles {list(scores.roles)}; name "
            "one of them"
        )
    if overlap != "drop" and overlap not in counts:
        raise ValueError(
            f"got overlap='{overlap}'; expected 'drop' or one of the selected roles {list(counts)}; use 'drop' to "
            "keep neurons out of both roles"
        )


def select(
    scores: Scores, counts: Mapping[str, float], *, overlap: str = "drop", per_layer: float | None = None
) -> Neurons:
    """
    Keep the neurons with the highest scores of every role.

    Only positive scores count: a neuron whose amplification lowers the role's objective is never selected. Equal
    scores are ranked in the order of sites and indices.

    Args:
        scores (`Scores`): Scores per role, site and neuron.
        counts (`Mapping[str, int | float]`):
            Role to a number of neurons (`int`) or to a share of all the sites' neurons (`float`). A role with 0
            neurons is left out.
        overlap (`str`, *optional*, defaults to `"drop"`):
            What happens to a neuron that two roles want: `"drop"` gives it to none, the name of a role gives it to
            that role. Whoever loses a neuron takes the next of its ranking.
        per_layer (`int` or `float`, *optional*):
            At most this many neurons (or this share of a site's neurons) of each site and role.

    Returns:
        `Neurons`: The selected neurons with their ranks.

    Raises:
        ValueError: When a role is unknown, a count is no count, or more neurons are asked for than there are.
    """
    _check_request(scores, counts, overlap)
    widths = scores.widths
    sites = list(widths)
    total = sum(widths.values())
    wanted = {role: _as_count(count, total, what=f"counts['{role}']") for role, count in counts.items() if count}
    flat = {role: _eligible(scores.values[role], widths, per_layer) for role in wanted}
    available = {role: int(torch.isfinite(values).sum()) for role, values in flat.items()}
    first = overlap if overlap in wanted else None
    limit = 2 * sum(wanted.values())  # enough unless roles want mostly the same neurons; then look deeper
    while True:
        chosen = _resolve({role: _ranking(values, limit) for role, values in flat.items()}, wanted, first)
        short = [role for role in wanted if len(chosen[role]) < wanted[role]]
        if not short:
            break
        if limit >= max(available[role] for role in short):
            found = {role: min(available[role], len(chosen[role])) for role in short}
            raise ValueError(
                f"got counts {wanted}; expected at most {found} (neurons with a positive score that no other role "
                "took); lower the counts, or score more prompts"
            )
        limit *= 4
    starts = torch.tensor([0, *widths.values()]).cumsum(0)
    return Neurons.from_ranked({role: _pairs(chosen[role], sites, starts) for role in wanted}, widths=widths)


def _pairs(positions: Sequence[int], sites: Sequence[str], starts: Tensor) -> list[tuple[str, int]]:
    """Positions in the vector of all scores as (site, index) pairs."""
    flat = torch.tensor(positions, dtype=torch.long)
    numbers = torch.searchsorted(starts, flat, right=True) - 1
    return [(sites[n], p) for n, p in zip(numbers.tolist(), (flat - starts[numbers]).tolist(), strict=True)]
