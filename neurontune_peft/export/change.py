"""What an adapter changes at one setting of its dials: one factor per neuron, the same for every request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from neurontune_peft.tuner.files import AdapterFile


@dataclass(frozen=True)
class Change:
    """
    The neurons that a static adapter scales, and by how much.

    Args:
        sites (`Mapping[str, tuple[torch.Tensor, torch.Tensor]]`):
            Site to the indices of its neurons (int64, shape `(k,)`, ascending) and their scales - 1 (float32, `(k,)`).
            Sites of the adapter that rest at this setting are there with no neuron.
        neuron_side (`str`): `"input"` or `"output"` features of the modules.
        strength (`float`): The dial.
        counts (`Mapping[str, int]`): Role to the number of its top-ranked neurons that act.
    """

    sites: Mapping[str, tuple[Tensor, Tensor]]
    neuron_side: str
    strength: float
    counts: Mapping[str, int]

    @property
    def most_per_site(self) -> int:
        """The largest number of neurons of any site."""
        return max((index.numel() for index, _ in self.sites.values()), default=0)


def change_at(
    file: AdapterFile, *, strength: float | None = None, counts: Mapping[str, int | float] | None = None
) -> Change:
    """
    Read the change out of an adapter's file; no model is needed.

    The numbers are those with which [`~NeuronTuneModel.merge_and_unload`] multiplies, bit for bit.

    Args:
        file ([`AdapterFile`]): The adapter.
        strength (`float`, *optional*): The dial; 1 by default. Required for dynamic modulation.
        counts (`Mapping[str, int | float]`, *optional*): Role to count threshold; a float is a share of all neurons.

    Raises:
        ValueError: When `strength` is missing or not finite, a count does not fit, or the adapter holds more than
            scales.
    """
    check_static(file, strength)
    strength = 1.0 if strength is None else float(strength)
    known = check_counts(file, counts or {})
    sites: dict[str, tuple[Tensor, Tensor]] = {}
    for site in file.neurons.sites:
        indices, deltas = [], []
        for role in file.neurons.roles:
            if site not in file.neurons.indices[role]:
                continue
            acts = file.neurons.ranks[role][site] < known[role]
            delta = file.deltas[role][site].to(torch.float32) * strength
            acts &= delta != 0
            indices.append(file.neurons.indices[role][site][acts].long())
            deltas.append(delta[acts])
        index, order = torch.cat(indices).sort()
        sites[site] = (index, torch.cat(deltas)[order])
    return Change(sites=sites, neuron_side=file.config.neuron_side, strength=strength, counts=known)


def check_static(file: AdapterFile, strength: float | None) -> None:
    """
    Refuse what one factor per neuron cannot express.

    Raises:
        ValueError: For dynamic modulation without a strength, a strength that is not finite, and `modules_to_save`.
    """
    if strength is None and file.config.modulation == "dynamic":
        raise ValueError(
            "got an adapter with dynamic modulation and no strength; expected one, as an export cannot decide for "
            "each request and acts on all of them; pass --strength 1.0 to export the static adapter"
        )
    if strength is not None and not math.isfinite(strength):
        raise ValueError(f"got strength={strength}; expected a finite number; 0 is the base model, 1 the adapter")
    if file.config.modules_to_save:
        raise ValueError(
            f"got an adapter with modules_to_save={file.config.modules_to_save}; expected scales alone; load it, call "
            "merge_and_unload and save the model"
        )


def check_counts(file: AdapterFile, counts: Mapping[str, int | float]) -> dict[str, int]:
    """
    Fill in the counts of all roles.

    Args:
        file ([`AdapterFile`]): The adapter.
        counts (`Mapping[str, int | float]`): Role to a number of neurons, or to a share of all neurons.

    Raises:
        ValueError: Names the role that does not exist or whose count does not fit.
    """
    held, width = file.neurons.totals, sum(file.neurons.widths.values())
    if unknown := sorted(set(counts) - set(held)):
        raise ValueError(f"got counts of {unknown}; expected roles among {sorted(held)}; correct the name")
    wanted = {role: round(count * width) if isinstance(count, float) else count for role, count in counts.items()}
    for role, count in wanted.items():
        if not 0 <= count <= held[role]:
            raise ValueError(f"got {role}={count}; expected 0 to {held[role]}; lower the count")
    return dict(held) | wanted
