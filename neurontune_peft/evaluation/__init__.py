"""Measurements of a model's safety and usefulness."""

from neurontune_peft.evaluation.generation import Generation
from neurontune_peft.evaluation.measure import evaluate, likelihood
from neurontune_peft.evaluation.rate import Rate
from neurontune_peft.evaluation.result import Example, Report
from neurontune_peft.evaluation.sampled import Sampled

__all__ = ["Example", "Generation", "Rate", "Report", "Sampled", "evaluate", "likelihood"]
