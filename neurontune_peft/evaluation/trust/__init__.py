"""Can a list of neurons be believed? Completeness, stability, causality, trainability and side effects."""

from neurontune_peft.evaluation.trust.result import Trust
from neurontune_peft.evaluation.trust.rows import Completeness, Curve, Intervention, Overlap, Trained
from neurontune_peft.evaluation.trust.trainability import TrainingPlan
from neurontune_peft.evaluation.trust.verify import verify

__all__ = ["Completeness", "Curve", "Intervention", "Overlap", "Trained", "TrainingPlan", "Trust", "verify"]
