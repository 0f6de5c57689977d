"""`neurontune select`: which neurons of a score file are kept?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neurontune_peft.cli.common import parse_counts


@dataclass(frozen=True)
class Select:
    """
    Keep the best-scored neurons of every role. No model is loaded.

    Example: neurontune select scores.safetensors --counts safety=0.02 utility=0.01 --output neurons.json

    Args:
        scores: Score file, as `neurontune attribute` writes it.
        output: New JSON file for the neurons.
        counts: Neurons per role, as a number or as a share of all neurons.
        quantile: In place of counts, keep what lies above this quantile of each role's scores, such as 0.99.
        overlap: Who keeps a neuron that two roles want: "drop" (none), the name of a role, "difference" or "ratio"
            (the role in which it scores relatively higher).
        per_layer: Most neurons of each site and role, as a number or as a share of the site's neurons.
        layers: First and last block from which neurons are taken, counted from 0.
        min_agreement: Keep safety neurons only that are among the best of at least this many attack families.
        spread: Largest share of a role's neurons in one site; "auto" is a quarter, more where there are few sites.
    """

    scores: Annotated[Path, tyro.conf.Positional]
    output: Path = field(kw_only=True)
    counts: tuple[str, ...] = ()
    quantile: float | None = None
    overlap: str = "drop"
    per_layer: int | float | None = None
    layers: tuple[int, int] | None = None
    min_agreement: int | None = None
    spread: float | Literal["auto"] | None = None

    def run(self) -> dict[str, Any]:
        """Select, save and print; an existing file is never overwritten."""
        from neurontune_peft.neurons import Scores
        from neurontune_peft.selection import select

        if self.output.exists():
            raise ValueError(f"got output '{self.output}', which exists; expected a new file; choose another name")
        neurons = select(
            Scores.load(self.scores),
            parse_counts(self.counts) or None,
            quantile=self.quantile,
            overlap=self.overlap,
            per_layer=self.per_layer,
            layers=self.layers,
            min_agreement=self.min_agreement,
            spread=self.spread,
        )
        neurons.save(self.output)
        print(neurons)
        for role in neurons.roles:
            print(f"\nNeurons of role {role} per site:\n{neurons.histogram_text(role)}")
        print(f"\nNeurons: {self.output}")
        return {"totals": neurons.totals, "sites": len(neurons.sites)}
