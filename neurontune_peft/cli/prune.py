"""`neurontune prune`: the top-ranked neurons of an adapter as an adapter. No model is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from neurontune_peft.cli.common import check_output, parse_counts, written_whole


@dataclass(frozen=True)
class Prune:
    """
    Keep the top-ranked neurons of each named role, for good; roles that are not named stay whole.

    Where a trigger decides for each request, it goes on reading the neurons that are cut, so they stay in the file at
    scale 1, in the role "trigger"; --modulation static drops trigger and neurons.

    Example: neurontune prune user/adapter --counts safety=128 --output small

    Args:
        adapter: Directory or Hub name of the adapter.
        counts: Neurons per role, as a number or as a share of those that the adapter has.
        output: New directory for the adapter.
        modulation: "static" drops the trigger; the scales then act on every request.
    """

    adapter: Annotated[str, tyro.conf.Positional]
    counts: tuple[str, ...] = field(kw_only=True)
    output: Path = field(kw_only=True)
    modulation: Literal["as-it-is", "static"] = "as-it-is"

    def run(self) -> None:
        """Read, cut, save."""
        from neurontune_peft.tuner.arithmetic import READ_ONLY_ROLE, prune
        from neurontune_peft.tuner.files import AdapterFile
        from neurontune_peft.tuner.saved import relative_base

        check_output(self.output)
        file = AdapterFile.load(self.adapter)
        totals = file.neurons.totals
        counts = {
            role: math.ceil(count * totals.get(role, 0)) if isinstance(count, float) else count
            for role, count in parse_counts(self.counts).items()
        }
        made = prune(file, counts, drop_trigger=self.modulation == "static")
        made.config.base_model_name_or_path = relative_base(made.config.base_model_name_or_path)
        with written_whole(self.output) as directory:
            made.save(directory)
        print(made.neurons)
        if read := made.neurons.totals.get(READ_ONLY_ROLE):
            print(f"{read} neurons are kept at scale 1, as the trigger reads them; --modulation static drops them.")
        print(f"Adapter: {self.output}")
