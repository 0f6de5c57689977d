"""What `neurontune tune` made, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peft import PeftModel

from neurontune_peft.evaluation import Report
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.report import compare_markdown, summary
from neurontune_peft.training import Log, TriggerFit


@dataclass(frozen=True)
class Made:
    """An adapter, and how it came about: its model, its neurons, and the scores and log of each round."""

    model: PeftModel
    neurons: Neurons
    scores: tuple[Scores, ...]
    logs: tuple[Log, ...]
    trigger: TriggerFit | None


def report_markdown(before: Report, after: Report, counts: str, made: Made, seconds: Mapping[str, float]) -> str:
    """
    The report of a tuned adapter.

    Args:
        before ([`Report`]): The base model.
        after ([`Report`]): The tuned one.
        counts (`str`): Table of the adapter with parts of its neurons.
        made ([`Made`]): The adapter.
        seconds (`Mapping[str, float]`): Step to its time.
    """
    steps = "\n".join(f"| {step} | {spent:.0f} s |" for step, spent in seconds.items())
    logs = "\n\n".join(f"```\n{log}\n```" for log in made.logs)
    parts = (
        f"# Report\n\n{summary(before, after)}",
        compare_markdown(before, after),
        counts,
        f"## Neurons\n\n```\n{made.neurons}\n```",
        f"## Training\n\n{logs}",
        "" if made.trigger is None else f"## Trigger\n\n```\n{made.trigger}\n```",
        f"## Time\n\n| step | time |\n|---|---|\n{steps}",
    )
    return "\n\n".join(part.strip() for part in parts if part) + "\n"
