"""Judges: callables from a request and its answer to a verdict."""

from neurontune_peft.judges.agreement import Agreement, agreements
from neurontune_peft.judges.classifier import ClassifierJudge
from neurontune_peft.judges.coherence import incoherence, repetition
from neurontune_peft.judges.endpoint import EndpointJudge
from neurontune_peft.judges.ensemble import Ensemble, ensemble
from neurontune_peft.judges.format import FormatJudge, format_judge
from neurontune_peft.judges.named import judge_of
from neurontune_peft.judges.opening import REFUSAL_MARKS, OpeningJudge, opening_judge
from neurontune_peft.judges.rubric import RubricJudge
from neurontune_peft.judges.verdict import LABELS, Judge, Verdict, ask, judge_name

__all__ = [
    "LABELS",
    "REFUSAL_MARKS",
    "Agreement",
    "ClassifierJudge",
    "EndpointJudge",
    "Ensemble",
    "FormatJudge",
    "Judge",
    "OpeningJudge",
    "RubricJudge",
    "Verdict",
    "agreements",
    "ask",
    "ensemble",
    "format_judge",
    "incoherence",
    "judge_name",
    "judge_of",
    "opening_judge",
    "repetition",
]
