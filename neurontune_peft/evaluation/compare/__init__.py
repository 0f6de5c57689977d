"""NEURONTUNE beside its controls: who protects best for what may be lost?"""

from neurontune_peft.choices import DEFAULT_METHODS, Limits
from neurontune_peft.evaluation.compare.comparison import Comparison, Row
from neurontune_peft.evaluation.compare.points import Point
from neurontune_peft.evaluation.compare.run import compare
from neurontune_peft.evaluation.compare.statistics import Interval, Paired

__all__ = ["DEFAULT_METHODS", "Comparison", "Interval", "Limits", "Paired", "Point", "Row", "compare"]
