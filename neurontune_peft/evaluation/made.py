"""From judged answers to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neurontune_peft.evaluation.details import Details
from neurontune_peft.evaluation.judged import rates
from neurontune_peft.evaluation.result import Example, Report
from neurontune_peft.evaluation.sampled import Sampled
from neurontune_peft.evaluation.statistics import Interval
from neurontune_peft.judges import Judge


def report_of(
    examples: Sequence[Example],
    judges: Mapping[str, Judge],
    *,
    held_out: Sequence[str],
    prompt_set: str,
    options: Mapping[str, Any],
    perplexity: Interval | None = None,
    kl: Interval | None = None,
    first_tokens: Sequence[tuple[float, float]] = (),
    sampled: Sampled | None = None,
) -> Report:
    """
    Sum up judged answers.

    Args:
        examples (`Sequence[Example]`): The answers with their labels.
        judges (`Mapping[str, Callable]`): Judges by name, the counted one first.
        held_out (`Sequence[str]`): Attack families that are not for training.
        prompt_set (`str`): Fingerprint of the prompt set.
        options (`Mapping[str, Any]`): Options of the measurement.
        perplexity (`Interval`, *optional*): Perplexity of the reference answers.
        kl (`Interval`, *optional*): KL to the base model on them.
        first_tokens (`Sequence[tuple[float, float]]`, *optional*): As in [`Details.of`].
        sampled ([`Sampled`], *optional*): Drawn answers.

    Returns:
        [`Report`]: The report.
    """
    name, judge = next(iter(judges.items()))
    return Report(
        **rates(examples),
        held_out=tuple(held_out),
        perplexity=None if perplexity is None else perplexity.value,
        kl=None if kl is None else kl.value,
        judge=name,
        judge_limits=str(getattr(judge, "limits", "")),
        prompt_set=prompt_set,
        options=options,
        unscored=sum(example.label is None for example in examples),
        examples=tuple(examples),
        sampled=sampled,
        details=Details.of(examples, first_tokens=first_tokens, perplexity=perplexity, kl=kl),
    )
