"""What does an adapter's protection withstand? One module for each stress."""

from neurontune_peft.choices import KINDS
from neurontune_peft.evaluation.decide.stress.result import Row, Stress
from neurontune_peft.evaluation.decide.stress.run import stress

__all__ = ["KINDS", "Row", "Stress", "stress"]
