"""Measurements of a model's safety and usefulness."""

from neurontune_peft.evaluation.measure import evaluate, likelihood
from neurontune_peft.evaluation.result import Example, Rate, Report

__all__ = ["Example", "Rate", "Report", "evaluate", "likelihood"]
