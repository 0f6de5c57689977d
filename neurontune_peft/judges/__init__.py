"""Judges: callables from a request and its answer to a verdict."""

from neurontune_peft.judges.format import REFUSAL_MARKS, FormatJudge, format_judge
from neurontune_peft.judges.verdict import Judge, Verdict

__all__ = ["REFUSAL_MARKS", "FormatJudge", "Judge", "Verdict", "format_judge"]
