"""What `neurontune tune` made."""

from __future__ import annotations

from dataclasses import dataclass

from peft import PeftModel

from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.training import Log, TriggerFit


@dataclass(frozen=True)
class Made:
    """An adapter, and how it came about: its model, its neurons, and the scores and log of each round."""

    model: PeftModel
    neurons: Neurons
    scores: tuple[Scores, ...]
    logs: tuple[Log, ...]
    trigger: TriggerFit | None
