"""Selected neurons with their ranking."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurontune_peft.checks import check_format_version, check_indices, check_ranks, write_atomically

NEURONS_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Neurons:
    """
    Selected neurons with their ranking; the ranking is the artefact, a count only cuts it.

    Args:
        indices (`Mapping[str, Mapping[str, torch.Tensor]]`):
            Role to site to an int64 tensor of shape `(k,)`, in the order of rank.
        ranks (`Mapping[str, Mapping[str, torch.Tensor]]`):
            Same shapes: place of the neuron within its role over all sites, starting at 0.
        widths (`Mapping[str, int]`): Number of neurons that each site has in all.

    Raises:
        ValueError: When an index is out of range, negative or repeated within a site, or the ranks of a role are not
            `0 … n-1`.
    """

    indices: Mapping[str, Mapping[str, Tensor]]
    ranks: Mapping[str, Mapping[str, Tensor]]
    widths: Mapping[str, int]

    def __post_init__(self) -> None:
        for site in self.sites:
            if site not in self.widths:
                raise ValueError(
                    f"got neurons of '{site}' without its width; expected a width; pass widths={{'{site}': F}}"
                )
            check_indices(
                site, torch.cat([part[site] for part in self.indices.values() if site in part]), self.widths[site]
            )
        for role, sites in self.indices.items():
            for site, part in sites.items():
                if site not in self.ranks.get(role, {}) or self.ranks[role][site].shape != part.shape:
                    raise ValueError(
                        f"got ranks that do not match the indices of role '{role}' at '{site}'; expected one rank per "
                        "neuron; build the value with Neurons.from_ranked"
                    )
            check_ranks(role, self.ranks.get(role, {}).values())

    @classmethod
    def from_ranked(cls, ranked: Mapping[str, Sequence[tuple[str, int]]], *, widths: Mapping[str, int]) -> Neurons:
        """
        Build the value from a ranking.

        Args:
            ranked (`Mapping[str, Sequence[tuple[str, int]]]`): Role to `(site, index)` pairs, the best first.
            widths (`Mapping[str, int]`): Number of neurons that each site has in all.
        """
        indices: dict[str, dict[str, Tensor]] = {}
        ranks: dict[str, dict[str, Tensor]] = {}
        for role, pairs in ranked.items():
            places: dict[str, list[tuple[int, int]]] = {}
            for rank, (site, index) in enumerate(pairs):
                places.setdefault(site, []).append((int(index), rank))
            order = [site for site in widths if site in places] + [site for site in places if site not in widths]
            indices[role] = {site: torch.tensor([i for i, _ in places[site]], dtype=torch.long) for site in order}
            ranks[role] = {site: torch.tensor([r for _, r in places[site]], dtype=torch.long) for site in order}
        return cls(indices=indices, ranks=ranks, widths=dict(widths))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles, sorted by name: the order in which an adapter file stores them within a site."""
        return tuple(sorted(self.indices))

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that hold at least one selected neuron, in the model's order."""
        used = {site for sites in self.indices.values() for site, part in sites.items() if part.numel()}
        return tuple(site for site in self.widths if site in used) + tuple(sorted(used - set(self.widths)))

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Role to site to number of neurons, as the adapter's configuration stores it."""
        return {role: {s: t.numel() for s, t in self.indices[role].items() if t.numel()} for role in self.roles}

    @property
    def totals(self) -> dict[str, int]:
        """Number of neurons per role."""
        return {role: sum(sites.values()) for role, sites in self.counts.items()}

    @property
    def total(self) -> int:
        """Number of neurons over all roles."""
        return sum(self.totals.values())

    def ranked(self, role: str) -> list[tuple[str, int]]:
        """The `(site, index)` pairs of a role, the best first."""
        triples = [
            (int(rank), site, int(index))
            for site, part in self.indices[role].items()
            for index, rank in zip(part, self.ranks[role][site], strict=True)
        ]
        return [(site, index) for _, site, index in sorted(triples, key=lambda triple: triple[0])]

    def head(self, **counts: int) -> Neurons:
        """
        Keep the top-ranked neurons of the named roles; other roles stay whole.

        Args:
            counts (`int`): Role to count threshold, for example `head(safety=64)`.

        Raises:
            ValueError: When a role does not exist or a count exceeds what there is.
        """
        for role, count in counts.items():
            if role not in self.indices or not 0 <= count <= self.totals[role]:
                raise ValueError(
                    f"got {role}={count}; expected at most {self.totals}; lower the count or select more neurons"
                )
        cut = {role: self.ranked(role)[: counts.get(role, self.totals[role])] for role in self.indices}
        return Neurons.from_ranked(cut, widths=self.widths)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ranking as JSON: sites with widths, and per role `[site number, index]` pairs, best first."""
        number = {site: position for position, site in enumerate(self.widths)}
        roles = {role: [[number[site], index] for site, index in self.ranked(role)] for role in self.roles}
        content = {"format_version": NEURONS_FORMAT_VERSION, "sites": list(self.widths.items()), "roles": roles}
        write_atomically(path, json.dumps(content, separators=(",", ":")) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Neurons:
        """
        Read neurons written by [`Neurons.save`].

        Raises:
            ValueError: When the file is missing, is no neuron file, or holds impossible neurons.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            version, sites, roles = content["format_version"], content["sites"], content["roles"]
            widths = {str(name): int(width) for name, width in sites}
            names = list(widths)
            ranked = {role: [(names[site], int(index)) for site, index in pairs] for role, pairs in roles.items()}
        except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(
                f"got '{path}' ({error}); expected a neuron file; write one with `neurontune select` or Neurons.save"
            ) from error
        check_format_version(version, NEURONS_FORMAT_VERSION, what=f"neuron file '{path}'")
        return cls.from_ranked(ranked, widths=widths)

    def __str__(self) -> str:
        share = self.total / max(1, sum(self.widths.values()))
        lines = [f"{self.total} neurons ({share:.1%}) at {len(self.sites)} of {len(self.widths)} sites"]
        for role in self.roles:
            per_site = ", ".join(f"{site} {count}" for site, count in self.counts[role].items())
            lines.append(f"  {role}: {self.totals[role]} ({per_site})")
        return "\n".join(lines)
