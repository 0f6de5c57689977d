"""Which setting may be deployed? The dials measured, a setting certified, an adapter put under stress."""

from neurontune_peft.evaluation.decide.certificate import Certificate
from neurontune_peft.evaluation.decide.certify import certify
from neurontune_peft.evaluation.decide.frontier import Frontier, Measured
from neurontune_peft.evaluation.decide.stress import Stress, stress
from neurontune_peft.evaluation.decide.sweep import sweep

__all__ = ["Certificate", "Frontier", "Measured", "Stress", "certify", "stress", "sweep"]
