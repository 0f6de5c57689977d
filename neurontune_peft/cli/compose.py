"""`neurontune compose`: several adapters into one. No model is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from neurontune_peft.cli.common import check_output, written_whole


@dataclass(frozen=True)
class Compose:
    """
    Add adapters of one base model up into a new one: delta = sum(weight * delta), neuron by neuron.

    Example: neurontune compose jailbreaks privacy --weights 1.0 0.5 --output both

    Args:
        adapters: Directories or Hub names of the adapters.
        weights: One weight for each adapter, in their order.
        output: New directory for the adapter.
        modulation: "static": take adapters with a trigger, too; in the sum, their scales act on every request.
    """

    adapters: Annotated[tuple[str, ...], tyro.conf.Positional]
    weights: tuple[float, ...] = field(kw_only=True)
    output: Path = field(kw_only=True)
    modulation: Literal["as-they-are", "static"] = "as-they-are"

    def run(self) -> None:
        """Read all adapters, add them up, save the sum."""
        from neurontune_peft.tuner.arithmetic import compose
        from neurontune_peft.tuner.files import AdapterFile
        from neurontune_peft.tuner.saved import relative_base

        check_output(self.output)
        files = [AdapterFile.load(adapter) for adapter in self.adapters]
        made = compose(files, self.weights, drop_triggers=self.modulation == "static")
        made.config.base_model_name_or_path = relative_base(made.config.base_model_name_or_path)
        with written_whole(self.output) as directory:
            made.save(directory)
        print(made.neurons)
        print(f"Adapter: {self.output}")
