"""Which neurons are kept? Counts or a quantile per role, a rule for neurons that two roles want, and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers.utils import logging

from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.selection.candidates import (
    RELATIVE,
    as_count,
    candidate_count,
    flatten,
    in_layers,
    quantile_of,
    ranking_keys,
    within_cap,
)
from neurontune_peft.selection.filling import fill, ranking, site_numbers

SAFETY = "safety"  # the role that is scored per attack family

logger = logging.get_logger(__name__)


def select(
    scores: Scores,
    counts: Mapping[str, float] | None = None,
    *,
    quantile: float | Mapping[str, float] | None = None,
    overlap: str = "drop",
    per_layer: float | None = None,
    layers: tuple[int, int] | None = None,
    min_agreement: int | None = None,
    spread: float | Literal["auto"] | None = None,
) -> Neurons:
    """
    Keep the neurons with the highest scores of every role.

    Only positive scores count: a neuron whose amplification lowers the role's objective is never selected. Equal
    scores are ranked in the order of sites and indices.

    A lower count gives the beginning of the ranking that a higher one gives, with these exceptions: under `"drop"`,
    and for a role that loses neurons to a named one, higher counts reach more neurons that two roles want; and
    `min_agreement` asks for a place among the best `count` of a family, which more neurons reach when it is higher.

    Args:
        scores (`Scores`): Scores per role, site and neuron.
        counts (`Mapping[str, int | float]`, *optional*):
            Role to a number of neurons (`int`) or to a share of all the sites' neurons (`float`). A role with 0
            neurons is left out. Give either this or `quantile`.
        quantile (`float` or `Mapping[str, float]`, *optional*):
            Keep the neurons above this quantile of all of a role's scores (0.99: the best hundredth), for every role
            or per role. A role that loses neurons by another rule gets fewer.
        overlap (`str`, *optional*, defaults to `"drop"`):
            What happens to a neuron that two roles want. `"drop"` gives it to none, the name of a role gives it to
            that role; whoever loses a neuron takes the next of its ranking. `"difference"` and `"ratio"` divide the
            scores of each role by their largest absolute value and give a neuron to the role in which it then scores
            highest, ranked by the difference from (the ratio to) the best other role of `scores`. A score below 0
            counts as 0 there, and in a ratio one below 0.001 as 0.001 (*ours*).
        per_layer (`int` or `float`, *optional*):
            At most this many neurons (or this share of a site's neurons) of each site and role.
        layers (`tuple[int, int]`, *optional*):
            First and last block, counted from 0, both included, as PEFT's `layers_to_transform` reads block numbers
            from module names. Sites without a number are left out.
        min_agreement (`int`, *optional*):
            Keep only safety neurons that are among the best `count` of at least this many attack families. The role
            may then get fewer neurons than `count`.
        spread (`float` or `"auto"`, *optional*):
            At most this share of a role's neurons in one site, rounded up, and so for every beginning of its ranking:
            a neuron of a site that is full waits until it is not. *ours*, after the redundancy that SafeNeuron asks
            for. `"auto"` is a quarter, or a quarter more than an equal share where there are few sites.

    Returns:
        `Neurons`: The selected neurons with their ranks.

    Raises:
        ValueError: When a role or an option is unknown, a count is no count, more neurons are asked for than there
            are, or a role is left without any.
    """
    roles = _check_request(scores, counts, quantile, overlap)
    limit = largest_share(len(scores.widths)) if spread == "auto" else spread
    _check_limits(scores, roles, layers=layers, min_agreement=min_agreement, spread=limit)
    widths = scores.widths
    flat = {role: flatten(values, widths) for role, values in scores.values.items()}
    every_key = ranking_keys(flat, overlap) if overlap in RELATIVE else ranking_keys({r: flat[r] for r in roles}, "")
    keys = {role: every_key[role] for role in roles}
    if counts is not None:
        total = sum(widths.values())
        wanted = {role: as_count(counts[role], total, what=f"counts['{role}']") for role in roles}
    else:
        for role, share in _per_role(quantile, roles).items():
            keys[role][flat[role] <= quantile_of(flat[role], share)] = -torch.inf
        wanted = {role: candidate_count(key) for role, key in keys.items()}
    agreed = None if min_agreement is None else _agreed(scores, wanted[SAFETY], min_agreement)
    _limit(keys, widths, layers=layers, agreed=agreed, per_layer=per_layer)
    flexible = set(roles) if counts is None else {SAFETY} if min_agreement is not None else set()
    first = overlap if overlap in roles else None
    chosen = _choose(keys, wanted, flexible, first=first, widths=widths, spread=limit)
    return Neurons.from_ranked({role: _pairs(chosen[role], widths) for role in roles}, widths=widths)


def _limit(
    keys: Mapping[str, Tensor],
    widths: Mapping[str, int],
    *,
    layers: tuple[int, int] | None,
    agreed: Tensor | None,
    per_layer: float | None,
) -> None:
    """Take out, in place, what the options exclude; `per_layer` comes last and counts what the others left."""
    if layers is not None:
        outside = ~in_layers(widths, layers)
        for key in keys.values():
            key[outside] = -torch.inf
    if agreed is not None:
        keys[SAFETY][~agreed] = -torch.inf
    if per_layer is not None:
        for key in keys.values():
            key[~within_cap(key, widths, per_layer)] = -torch.inf


def largest_share(sites: int) -> float:
    """
    What `spread="auto"` stands for (*ours*): a quarter of the neurons in one site, or a quarter more than an equal
    share where a model has so few sites that a quarter could not be kept.
    """
    return max(0.25, min(1.0, 1.25 / sites))


def _choose(
    keys: Mapping[str, Tensor],
    wanted: Mapping[str, int],
    flexible: set[str],
    *,
    first: str | None,
    widths: Mapping[str, int],
    spread: float | None,
) -> dict[str, list[int]]:
    """Positions per role, the best first; only the `flexible` roles may get fewer than they want."""
    available = {role: candidate_count(key) for role, key in keys.items()}
    limit = max(1, 2 * sum(wanted.values()))  # enough unless roles want mostly the same neurons; then look deeper
    while True:
        rankings = {role: ranking(key, limit) for role, key in keys.items()}
        chosen = fill(rankings, wanted, first=first, starts=_starts(widths), spread=spread)
        short = [role for role in wanted if len(chosen[role]) < wanted[role]]
        if not short or limit >= max(available[role] for role in short):
            break
        limit *= 4
    _check_found({role: len(chosen[role]) for role in short}, wanted, flexible)
    empty = [role for role in chosen if not chosen[role]]
    if empty:
        raise ValueError(
            f"got no neurons of the roles {empty}; expected some that every rule allows; lower quantile or "
            "min_agreement, or choose another overlap"
        )
    return chosen


def _check_found(found: Mapping[str, int], wanted: Mapping[str, int], flexible: set[str]) -> None:
    missing = {role: count for role, count in found.items() if role not in flexible}
    if missing:
        raise ValueError(
            f"got counts {dict(wanted)}; expected at most {missing} (neurons with a positive score that no other role "
            "took and that layers, per_layer and spread allow); lower the counts, loosen the limits, or score more "
            "prompts"
        )
    for role, count in found.items():
        logger.warning("Of %d neurons of role '%s', the other rules leave %d.", wanted[role], role, count)


def _check_request(
    scores: Scores,
    counts: Mapping[str, float] | None,
    quantile: float | Mapping[str, float] | None,
    overlap: str,
) -> list[str]:
    """The roles to select, in the order in which they were asked for."""
    if (counts is None) == (quantile is None):
        raise ValueError(
            f"got counts={counts} and quantile={quantile}; expected one of the two; give numbers per role, or a "
            "quantile of the scores"
        )
    shares = _per_role(quantile, scores.roles) if counts is None else {}
    asked: Mapping[str, float] = shares if counts is None else counts
    unknown = [role for role in asked if role not in scores.values]
    if unknown or not asked or (counts is not None and not any(counts.values())):
        raise ValueError(
            f"got {'counts' if quantile is None else 'quantile'} {dict(asked)}; expected at least one neuron of the "
            f"roles {list(scores.roles)}; name one of them"
        )
    if any(isinstance(share, bool) or not 0 <= share < 1 for share in shares.values()):
        raise ValueError(f"got quantile {shares}; expected numbers from 0 to below 1; use for example 0.99")
    if overlap not in ("drop", *RELATIVE, *asked):
        raise ValueError(
            f"got overlap='{overlap}'; expected 'drop' or one of the selected roles {list(asked)}, 'difference' or "
            "'ratio'; use 'drop' to keep neurons out of both roles"
        )
    if overlap in RELATIVE and len(scores.roles) < 2:
        raise ValueError(
            f"got overlap='{overlap}' with scores of {list(scores.roles)}; expected two roles to compare; score "
            "another role, or use 'drop'"
        )
    return list(asked) if counts is None else [role for role, count in counts.items() if count]


def _check_limits(
    scores: Scores,
    roles: Sequence[str],
    *,
    layers: tuple[int, int] | None,
    min_agreement: int | None,
    spread: float | None,
) -> None:
    if layers is not None and (len(layers) != 2 or not 0 <= layers[0] <= layers[1]):
        raise ValueError(f"got layers={layers}; expected (first, last), counted from 0; use for example (4, 12)")
    if spread is not None and not 0 < spread <= 1:
        raise ValueError(f"got spread={spread}; expected a share above 0, up to 1.0; use for example 0.2")
    if min_agreement is None:
        return
    families = scores.by_family
    if not families or SAFETY not in roles:
        raise ValueError(
            f"got min_agreement={min_agreement} with roles {list(roles)} and scores per attack family of "
            f"{list(families)}; expected the role '{SAFETY}', scored per family; score again with attacks of several "
            "families, or leave min_agreement out"
        )
    if not 1 <= min_agreement <= len(families):
        raise ValueError(
            f"got min_agreement={min_agreement}; expected 1 to {len(families)}, the number of the families "
            f"{list(families)}; lower it"
        )


def _agreed(scores: Scores, count: int, least: int) -> Tensor:
    """Whether each neuron is among the best `count` of at least `least` families, `(N,)`, bool."""
    return flatten(scores.agreement(count), scores.widths) >= least


def _per_role(quantile: float | Mapping[str, float] | None, roles: Sequence[str]) -> dict[str, float]:
    if quantile is None:
        return {}
    return dict(quantile) if isinstance(quantile, Mapping) else dict.fromkeys(roles, quantile)


def _starts(widths: Mapping[str, int]) -> Tensor:
    """Position at which each site begins, `(S + 1,)`."""
    return torch.tensor([0, *widths.values()]).cumsum(0)


def _pairs(positions: Sequence[int], widths: Mapping[str, int]) -> list[tuple[str, int]]:
    """Positions in the vector of all scores as (site, index) pairs."""
    sites, starts = list(widths), _starts(widths)
    numbers = site_numbers(positions, starts)
    indices = torch.tensor(positions, dtype=torch.long) - starts[numbers]
    return [(sites[n], i) for n, i in zip(numbers.tolist(), indices.tolist(), strict=True)]
