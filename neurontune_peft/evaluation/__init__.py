"""Measurements of a model's safety and usefulness."""

from neurontune_peft.evaluation.answer_file import read_answers, report_from_answers
from neurontune_peft.evaluation.details import Details
from neurontune_peft.evaluation.generation import Generation
from neurontune_peft.evaluation.likelihood import likelihood
from neurontune_peft.evaluation.measure import evaluate
from neurontune_peft.evaluation.paired import Difference, paired_differences
from neurontune_peft.evaluation.rate import Rate
from neurontune_peft.evaluation.result import Example, Report
from neurontune_peft.evaluation.sampled import Sampled

__all__ = [
    "Details",
    "Difference",
    "Example",
    "Generation",
    "Rate",
    "Report",
    "Sampled",
    "evaluate",
    "likelihood",
    "paired_differences",
    "read_answers",
    "report_from_answers",
]
