"""Scores of all neurons, per role."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from neurontune_peft.checks import write_atomically


@dataclass(frozen=True)
class Scores:
    """
    The score of every neuron of every site, per role.

    Args:
        values (`Mapping[str, Mapping[str, torch.Tensor]]`):
            Role to site to a float32 tensor of shape `(F,)`. Positive means that amplifying the neuron raises the
            role's objective.
        metadata (`Mapping[str, str]`, *optional*, defaults to `{}`):
            Where the scores come from (method, steps, seed, fingerprint of the prompts).
        by_family (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*, defaults to `{}`):
            Attack family to site to the `safety` score on prompts attacked by that family alone, shape `(F,)`.

    Raises:
        ValueError: When a tensor is not one-dimensional or holds NaN or infinite values, or a family was scored at
            other neurons than the roles.
    """

    values: Mapping[str, Mapping[str, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    by_family: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role, sites in self.values.items():
            _check_scores(f"role '{role}'", sites)
        for family, sites in self.by_family.items():
            _check_scores(f"family '{family}'", sites)
            if {site: score.numel() for site, score in sites.items()} != self.widths:
                raise ValueError(
                    f"got scores of family '{family}' at other neurons than those of the roles {list(self.roles)}; "
                    "expected the same sites and widths; score them in one call of attribute"
                )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles, in the order in which they were scored."""
        return tuple(self.values)

    @property
    def widths(self) -> dict[str, int]:
        """Number of neurons per site."""
        return {site: score.numel() for sites in self.values.values() for site, score in sites.items()}

    def agreement(self, count: int) -> dict[str, Tensor]:
        """
        In how many attack families is a neuron among the best?

        Args:
            count (`int`): How many of a family's highest scores count as the best; ties go to the earlier neuron.

        Returns:
            `dict[str, torch.Tensor]`: Site to an int64 tensor of shape `(F,)`, from 0 to the number of families.

        Raises:
            ValueError: When there are no scores per family, or `count` is not from 1 to the number of neurons.
        """
        if not self.by_family:
            raise ValueError(
                "got scores without attack families; expected at least one family; score the role 'safety' on a "
                "prompt set with train attacks"
            )
        total = sum(self.widths.values())
        if not 1 <= count <= total:
            raise ValueError(f"got count={count}; expected 1 to {total} neurons; lower the count")
        votes = torch.zeros(total, dtype=torch.long)
        for sites in self.by_family.values():
            flat = torch.cat([sites[site] for site in self.widths])
            votes[torch.argsort(flat, descending=True, stable=True)[:count]] += 1
        return dict(zip(self.widths, votes.split(list(self.widths.values())), strict=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as safetensors: tensors `role/site`, and `family/site` under `by_family/`."""
        # The header sorts tensors by name; the order of roles and sites is part of the value, so it is kept apart.
        order = [[role, site] for role, sites in self.values.items() for site in sites]
        tensors = {f"{role}/{site}": self.values[role][site].contiguous() for role, site in order}
        metadata = {**self.metadata, "order": json.dumps(order)}
        if self.by_family:
            families = [[family, site] for family, sites in self.by_family.items() for site in sites]
            tensors |= {f"by_family/{name}/{site}": self.by_family[name][site].contiguous() for name, site in families}
            metadata["order_by_family"] = json.dumps(families)
        write_atomically(path, serialize(tensors, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """
        Read scores written by [`Scores.save`].

        Raises:
            ValueError: When the file is missing, damaged or not a score file.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = dict(file.metadata() or {})
                values: dict[str, dict[str, Tensor]] = {}
                for role, site in json.loads(metadata.pop("order")):
                    values.setdefault(role, {})[site] = file.get_tensor(f"{role}/{site}")
                by_family: dict[str, dict[str, Tensor]] = {}
                for name, site in json.loads(metadata.pop("order_by_family", "[]")):
                    by_family.setdefault(name, {})[site] = file.get_tensor(f"by_family/{name}/{site}")
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"got '{path}' ({error}); expected a score file; write one with `neurontune attribute` or Scores.save"
            ) from error
        return cls(values=values, metadata=metadata, by_family=by_family)

    def __str__(self) -> str:
        origin = ", ".join(f"{key} {value}" for key, value in self.metadata.items())
        lines = [f"Scores of {sum(self.widths.values())} neurons at {len(self.widths)} sites ({origin})"]
        for role, sites in self.values.items():
            best = max(((float(s.max()), int(s.argmax()), site) for site, s in sites.items()), default=None)
            if best is not None:
                lines.append(f"  {role}: highest {best[0]:.4g} at {best[2]}[{best[1]}]")
        if self.by_family:
            lines.append(f"  families: {', '.join(self.by_family)}")
        return "\n".join(lines)


def _check_scores(whose: str, sites: Mapping[str, Tensor]) -> None:
    for site, score in sites.items():
        if score.ndim != 1:
            raise ValueError(
                f"got scores of shape {tuple(score.shape)} for {whose} at '{site}'; expected (F,), one number per "
                "neuron; average over prompts first"
            )
        if not torch.isfinite(score).all():
            bad = int((~torch.isfinite(score)).nonzero()[0])
            raise ValueError(
                f"got a NaN or infinite score for {whose} at '{site}', neuron {bad}; expected finite numbers; score "
                "again in float32"
            )
