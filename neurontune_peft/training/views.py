"""What does a step let the model see of the deltas? All, a prefix of each ranking, or some neurons at scale 0."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from neurontune_peft.training.deltas import active_layers
from neurontune_peft.training.inner import Values

View = Callable[[Values], Values]
SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the counts; `ours`


@dataclass(frozen=True)
class Ranks:
    """
    Places of the neurons in the rankings of their roles.

    Args:
        places (`tuple[torch.Tensor, ...]`): Rank within the role over all sites, per site `(k,)`.
        totals (`tuple[torch.Tensor, ...]`): How many neurons the role has, per site `(k,)`.
    """

    places: tuple[Tensor, ...]
    totals: tuple[Tensor, ...]

    def within(self, share: float) -> list[Tensor]:
        """
        Which neurons belong to the first `share` of their role's ranking, rounded up.

        Args:
            share (`float`): From 0 to 1.

        Returns:
            `list[torch.Tensor]`: Per site `(k,)`, bool.
        """
        pairs = zip(self.places, self.totals, strict=True)
        return [place < torch.ceil(share * total) for place, total in pairs]


def find_ranks(model: PeftModel) -> Ranks:
    """The ranks of the active adapter's neurons, in the order of [`Deltas`]."""
    layers, name = active_layers(model)
    totals: dict[str, int] = {}
    for layer in layers:
        for role, part in layer.roles[name].items():
            totals[role] = totals.get(role, 0) + part.stop - part.start
    places = tuple(layer.neurontune_rank[name].long() for layer in layers)
    sizes = [torch.empty_like(place) for place in places]
    for layer, size in zip(layers, sizes, strict=True):
        for role, part in layer.roles[name].items():
            size[part] = totals[role]
    return Ranks(places, tuple(sizes))


def prefix_view(ranks: Ranks, seed: str) -> View:
    """
    The deltas of a prefix of each role's ranking, its share drawn from [`SHARES`]; the other neurons rest.

    Training on drawn prefixes makes any prefix work at load time (*ours*, after slimmable networks, arXiv 1812.08928).

    Args:
        ranks ([`Ranks`]): The rankings.
        seed (`str`): Decides the share.
    """
    acts = ranks.within(random.Random(f"{seed}-share").choice(SHARES))
    return lambda values: [value * mask for value, mask in zip(values, acts, strict=True)]


def zeroed_view(values_per_site: Sequence[int], share: float, seed: str) -> View:
    """
    Some neurons at scale 0, as an attacker would leave them who prunes what the adapter relies on (*ours*, after
    SafeNeuron's pruning attack): what is learnt under it does not hang on single neurons.

    Args:
        values_per_site (`Sequence[int]`): Number of neurons of each site.
        share (`float`): Share of all neurons, from 0 to 1, rounded.
        seed (`str`): Decides which.
    """
    total = sum(values_per_site)
    hit = torch.zeros(total, dtype=torch.bool)
    hit[random.Random(f"{seed}-zero").sample(range(total), round(share * total))] = True
    masks = hit.split(list(values_per_site))
    return lambda values: [v.masked_fill(mask.to(v.device), -1.0) for v, mask in zip(values, masks, strict=True)]


def one_after_another(views: Sequence[View]) -> View | None:
    """The views applied in their order; `None` for none."""
    if not views:
        return None

    def view(values: Values) -> Values:
        for part in views:
            values = part(values)
        return values

    return view
