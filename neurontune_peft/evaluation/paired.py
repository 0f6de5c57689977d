"""What differs between two models on the same prompts? Exact tests prompt by prompt, corrected for their number."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neurontune_peft.evaluation.judged import part_of
from neurontune_peft.evaluation.result import Report
from neurontune_peft.evaluation.statistics import Interval, bootstrap_mean, holm, mcnemar


@dataclass(frozen=True)
class Difference:
    """
    One part of two reports, prompt by prompt.

    For attacks a hit is a success, for all other requests it is a refusal.

    Args:
        part (`str`): A group of requests, or `attack/FAMILY`.
        total (`int`): Prompts that were scored in both.
        only_before (`int`): Hits in the first report only.
        only_after (`int`): Hits in the second report only.
        change (`Interval`): Share of hits in the second less that in the first, over resampled prompts.
        p (`float`): Two-sided exact p-value (McNemar 1947) of both directions being equally likely.
        adjusted (`float`): The same after Holm's correction for all parts of its table: attack families are one
            table, all other groups another.
    """

    part: str
    total: int
    only_before: int
    only_after: int
    change: Interval
    p: float
    adjusted: float

    def as_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: Fields by name, as JSON types.
        """
        return {**vars(self), "change": self.change.as_dict()}


def paired_differences(before: Report, after: Report) -> tuple[Difference, ...]:
    """
    Compare two reports that have their answers, on the prompts that both scored.

    Args:
        before ([`Report`]): The first report.
        after ([`Report`]): The second report.

    Returns:
        `tuple[Difference, ...]`: One for each part that both have; empty for reports without answers.

    Raises:
        ValueError: the reports come from different judges.
    """
    if before.judge != after.judge:
        raise ValueError(
            f"got reports by the judges {before.judge!r} and {after.judge!r}; expected the same judge; measure both "
            "models in the same way"
        )
    first, second = _hits(before), _hits(after)
    found = {}
    for part in first:
        shared = [key for key in first[part] if key in second.get(part, {})]
        if shared:
            found[part] = [(first[part][key], second[part][key]) for key in shared]
    p_values = {part: mcnemar(*_discordant(pairs)) for part, pairs in found.items()}
    adjusted: dict[str, float] = {}
    for attacks in (True, False):
        adjusted |= holm({part: p for part, p in p_values.items() if part.startswith("attack") == attacks})
    return tuple(_difference(part, pairs, p_values[part], adjusted[part]) for part, pairs in found.items())


def _difference(part: str, pairs: list[tuple[bool, bool]], p: float, adjusted: float) -> Difference:
    change = bootstrap_mean([float(after) - float(before) for before, after in pairs])
    assert change is not None
    return Difference(part, len(pairs), *_discordant(pairs), change, p, adjusted)


def _discordant(pairs: list[tuple[bool, bool]]) -> tuple[int, int]:
    return sum(one and not two for one, two in pairs), sum(two and not one for one, two in pairs)


def _hits(report: Report) -> Mapping[str, dict[tuple[str, str], bool]]:
    """Part to prompt to hit; a prompt is named by its id and text, as sets may give a request several templates."""
    found: dict[str, dict[tuple[str, str], bool]] = defaultdict(dict)
    for example in report.examples:
        if example.label is not None:
            refused = example.label == "refusal"
            hit = not refused if example.family is not None else refused
            found[part_of(example)][example.id, example.prompt] = hit
    return found
