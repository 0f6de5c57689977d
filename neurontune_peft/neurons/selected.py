"""Selected neurons with their ranking."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neurontune_peft.checks import check_indices, check_ranks, write_atomically
from neurontune_peft.neurons.text import draw_bars, no_neuron_file, read_json, write_json


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
            (rank, site, index)
            for site, part in self.indices[role].items()
            for index, rank in zip(part.tolist(), self.ranks[role][site].tolist(), strict=True)
        ]
        return [(site, index) for _, site, index in sorted(triples)]

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

    def __or__(self, other: Neurons) -> Neurons:
        """
        Per role, the neurons that one of the two holds: ranked as on the left, then the rest as on the right.

        Raises:
            ValueError: When the two come from different models, or hold a neuron in different roles.
        """
        widths = self._common_widths(other)
        mine, theirs = self._rankings(), other._rankings()
        ranked = {role: list(dict.fromkeys([*mine.get(role, []), *theirs.get(role, [])])) for role in mine | theirs}
        return Neurons.from_ranked(ranked, widths=widths)

    def __and__(self, other: Neurons) -> Neurons:
        """
        Per role of the left, the neurons that both hold in it, ranked as on the left.

        Raises:
            ValueError: When the two come from different models.
        """
        return self._kept(other, shared=True)

    def __sub__(self, other: Neurons) -> Neurons:
        """
        Per role of the left, the neurons that the right does not hold in the same role, ranked as on the left.

        Raises:
            ValueError: When the two come from different models.
        """
        return self._kept(other, shared=False)

    def jaccard(self, other: Neurons, role: str | None = None) -> float:
        """
        Overlap of two selections: neurons that both hold in the same role, divided by those that either holds.

        Args:
            other ([`Neurons`]): The other selection.
            role (`str`, *optional*): Look at this role only; at all of them when left out.

        Returns:
            `float`: From 0 (nothing shared) to 1 (the same neurons, or none at all in both).

        Raises:
            ValueError: When neither has the role, or the two come from different models.
        """
        self._common_widths(other)
        if role is not None and role not in {*self.roles, *other.roles}:
            raise ValueError(
                f"got role '{role}'; expected one of {sorted({*self.roles, *other.roles})}; leave it out to compare "
                "all roles"
            )
        held = [
            {(name, *pair) for name, pairs in one._rankings().items() if role in (None, name) for pair in pairs}
            for one in (self, other)
        ]
        either = len(held[0] | held[1])
        return len(held[0] & held[1]) / either if either else 1.0

    def histogram(self, role: str | None = None) -> dict[str, int]:
        """
        Number of selected neurons at every site, in the model's order, sites without any included.

        Args:
            role (`str`, *optional*): Count this role only; all of them when left out.

        Raises:
            ValueError: When the role does not exist.
        """
        if role is not None and role not in self.indices:
            raise ValueError(f"got role '{role}'; expected one of {list(self.roles)}; leave it out to count all roles")
        roles = self.roles if role is None else (role,)
        return {site: sum(self.counts[name].get(site, 0) for name in roles) for site in self.widths}

    def histogram_text(self, role: str | None = None) -> str:
        """
        The histogram as lines of text: site, number of neurons, and a bar in proportion to it.

        Args:
            role (`str`, *optional*): Count this role only; all of them when left out.
        """
        return draw_bars(self.histogram(role))

    def layer_matched_random(self, seed: int, *, exclude: bool = True) -> Neurons:
        """
        Random neurons of the same sites, as many per site and role: the control for what the layers alone explain.

        Each takes the rank of one of these neurons of its site, so that `head` cuts both alike.

        Args:
            seed (`int`): Start of the random sequence.
            exclude (`bool`, *optional*, defaults to `True`):
                Draw none of these neurons, of whatever role. Where a site has too few others, some of these fill up,
                which can only make the control stronger.
        """
        generator = torch.Generator().manual_seed(seed)
        indices: dict[str, dict[str, Tensor]] = {role: {} for role in self.indices}
        for site in self.sites:
            roles = [role for role, sites in self.indices.items() if site in sites]
            sizes = [self.indices[role][site].numel() for role in roles]
            drawn = torch.randperm(self.widths[site], generator=generator)  # (F,)
            if exclude:
                own = torch.cat([self.indices[role][site] for role in roles])
                held = torch.isin(drawn, own.to(drawn.device))
                drawn = torch.cat([drawn[~held], drawn[held]])
            for role, part in zip(roles, drawn[: sum(sizes)].split(sizes), strict=True):
                indices[role][site] = part
        ranks = {role: {site: self.ranks[role][site] for site in sites} for role, sites in indices.items()}
        return Neurons(indices=indices, ranks=ranks, widths=self.widths)

    def to_json(self) -> str:
        """
        The ranking as JSON: sites with widths, and per role `[site number, index]` pairs, best first.

        Equal values give equal bytes: roles are sorted by name, sites keep the model's order.
        """
        return write_json(self._rankings(), self.widths)

    @classmethod
    def from_json(cls, text: str, *, source: str = "JSON") -> Neurons:
        """
        Read what [`Neurons.to_json`] gave.

        Args:
            text (`str`): The JSON.
            source (`str`, *optional*, defaults to `"JSON"`): Where it comes from, for messages.

        Raises:
            ValueError: When it describes no neurons, or impossible ones.
        """
        ranked, widths = read_json(text, source=source)
        return cls.from_ranked(ranked, widths=widths)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON of [`Neurons.to_json`] to a file."""
        write_atomically(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Neurons:
        """
        Read neurons written by [`Neurons.save`].

        Raises:
            ValueError: When the file is missing, is no neuron file, or holds impossible neurons.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise no_neuron_file(path, error) from error
        return cls.from_json(text, source=str(path))

    def _rankings(self) -> dict[str, list[tuple[str, int]]]:
        return {role: self.ranked(role) for role in self.roles}

    def _kept(self, other: Neurons, *, shared: bool) -> Neurons:
        self._common_widths(other)
        theirs = {role: set(pairs) for role, pairs in other._rankings().items()}
        ranked = {
            role: [pair for pair in pairs if (pair in theirs.get(role, ())) == shared]
            for role, pairs in self._rankings().items()
        }
        return Neurons.from_ranked(ranked, widths=self.widths)

    def _common_widths(self, other: Neurons) -> dict[str, int]:
        widths = {**self.widths, **other.widths}
        wrong = next((site for site, width in self.widths.items() if widths[site] != width), None)
        if wrong is not None:
            raise ValueError(
                f"got neurons of '{wrong}' with widths {self.widths[wrong]} and {other.widths[wrong]}; expected two "
                "selections of one model; select both on the same one"
            )
        return widths

    def __str__(self) -> str:
        share = self.total / max(1, sum(self.widths.values()))
        lines = [f"{self.total} neurons ({share:.1%}) at {len(self.sites)} of {len(self.widths)} sites"]
        for role in self.roles:
            per_site = ", ".join(f"{site} {count}" for site, count in self.counts[role].items())
            lines.append(f"  {role}: {self.totals[role]} ({per_site})")
        return "\n".join(lines)
