"""What lies behind the rates of a report: all verdicts, how answers read, and how sure the other figures are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from neurontune_peft.evaluation.judged import outcomes, part_of
from neurontune_peft.evaluation.rate import Rate
from neurontune_peft.evaluation.result import Example
from neurontune_peft.evaluation.statistics import Interval, bootstrap_mean
from neurontune_peft.judges import LABELS, Agreement, agreements, repetition

_BY_PART = ("words", "repetition", "first_token_refusal", "first_token_compliance")
_SINGLE = ("perplexity", "kl")


@dataclass(frozen=True)
class Details:
    """
    Figures by part of the report: a group of requests (`plain`, `benign`, …), or `attack/FAMILY`.

    Intervals are 95 % percentile intervals over resampled prompts.

    Args:
        outcomes (`Mapping[str, Mapping[str, int]]`): Part to verdict to number of answers; `unscored` is one of them.
        words (`Mapping[str, Interval]`): Words of an answer, mean.
        repetition (`Mapping[str, Interval]`): Share of an answer that repeats itself at once, mean, 0 to 1.
        first_token_refusal (`Mapping[str, Interval]`, *optional*): Probability that the first token is one that only
            refusals begin with, mean; a view that needs neither decoding nor a judge.
        first_token_compliance (`Mapping[str, Interval]`, *optional*): The same for openings that comply.
        perplexity (`Interval`, *optional*): Perplexity of the reference answers.
        kl (`Interval`, *optional*): KL to the base model on them, nats per token.
        agreement (`tuple[Agreement, ...]`, *optional*): Every two of several judges compared.
        tasks (`Mapping[str, Mapping[str, float]]`, *optional*): Task of lm-evaluation-harness to measure to value.
    """

    outcomes: Mapping[str, Mapping[str, int]]
    words: Mapping[str, Interval]
    repetition: Mapping[str, Interval]
    first_token_refusal: Mapping[str, Interval] = field(default_factory=dict)
    first_token_compliance: Mapping[str, Interval] = field(default_factory=dict)
    perplexity: Interval | None = None
    kl: Interval | None = None
    agreement: tuple[Agreement, ...] = ()
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        *,
        first_tokens: Sequence[tuple[float, float]] = (),
        perplexity: Interval | None = None,
        kl: Interval | None = None,
    ) -> Details:
        """
        Sum up answers.

        Args:
            examples (`Sequence[Example]`): The answers.
            first_tokens (`Sequence[tuple[float, float]]`, *optional*): For each of them what
                `first_token_probabilities` says; empty where not measured.
            perplexity (`Interval`, *optional*): As in the class.
            kl (`Interval`, *optional*): As in the class.
        """
        several = [example.verdicts for example in examples if example.verdicts]
        names = list(several[0]) if several else []
        by_judge = {name: [verdicts.get(name) for verdicts in several] for name in names}
        return cls(
            outcomes=outcomes(examples),
            words=_means(examples, [float(len(example.answer.split())) for example in examples]),
            repetition=_means(examples, [repetition(example.answer) for example in examples]),
            first_token_refusal=_means(examples, [refused for refused, _ in first_tokens]),
            first_token_compliance=_means(examples, [complied for _, complied in first_tokens]),
            perplexity=_rounded(perplexity),
            kl=_rounded(kl),
            agreement=agreements(by_judge),
        )

    def share(self, part: str, *labels: str) -> Rate | None:
        """
        How many answers of a part have one of some verdicts.

        Args:
            part (`str`): Such as `benign` or `attack/prefix`; `attack` is all families.
            labels (`str`): Verdicts, such as `partial`.

        Returns:
            `Rate`, *optional*: Of the answers that were scored; `None` where there are none.
        """
        found = [n for name, n in self.outcomes.items() if name == part or name.startswith(f"{part}/")]
        total = sum(count for counts in found for label, count in counts.items() if label != "unscored")
        hits = sum(counts.get(label, 0) for counts in found for label in labels)
        return Rate(hits, total) if total else None

    def as_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: Fields by name, as JSON types.
        """
        return {
            "outcomes": {part: dict(counts) for part, counts in self.outcomes.items()},
            **{name: {p: i.as_dict() for p, i in getattr(self, name).items()} for name in _BY_PART},
            **{name: i and i.as_dict() for name in _SINGLE for i in (getattr(self, name),)},
            "agreement": [one.as_dict() for one in self.agreement],
            "tasks": {task: dict(values) for task, values in self.tasks.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Details:
        """
        Make this of what `as_dict` gave.

        Raises:
            KeyError: a field is missing.
        """
        fields: dict[str, Any] = {
            **{name: {p: Interval.from_dict(i) for p, i in values[name].items()} for name in _BY_PART},
            **{name: values[name] and Interval.from_dict(values[name]) for name in _SINGLE},
        }
        return cls(
            **fields,
            outcomes=values["outcomes"],
            agreement=tuple(Agreement.from_dict(one) for one in values["agreement"]),
            tasks=values["tasks"],
        )

    def markdown(self) -> str:
        """
        Returns:
            `str`: Tables of the verdicts, of how answers read, and of the judges' agreement.
        """
        parts = [_table(("answers to", *LABELS), self._verdict_rows()), self._reading()]
        parts += [one.markdown() for one in self.agreement]
        if self.tasks:
            rows = [(t, name, f"{value:.4f}") for t, found in self.tasks.items() for name, value in found.items()]
            parts.append(_table(("task", "measure", "value"), rows))
        return "\n\n".join(filter(None, parts))

    def _verdict_rows(self) -> list[tuple[str, ...]]:
        return [(part, *(str(n.get(label, 0)) for label in LABELS)) for part, n in self.outcomes.items()]

    def _reading(self) -> str:
        header = ("answers to", "words", "repeated", "first token refuses", "first token complies")
        rows = []
        for part in self.outcomes:
            words = self.words.get(part)
            shares = [getattr(self, name).get(part) for name in _BY_PART[1:]]
            rows.append((part, _plain(words), *("–" if share is None else str(share) for share in shares)))
        return _table(header, rows)


def _means(examples: Sequence[Example], values: Sequence[float]) -> dict[str, Interval]:
    """Mean of a value for each part; empty where there are no values."""
    if not values:
        return {}
    found: dict[str, list[float]] = defaultdict(list)
    for example, value in zip(examples, values, strict=True):
        found[part_of(example)].append(value)
    means = {part: bootstrap_mean(each) for part, each in found.items()}
    return {part: rounded for part, mean in means.items() if (rounded := _rounded(mean)) is not None}


def _rounded(interval: Interval | None) -> Interval | None:
    """Five digits: further ones depend on the order in which numbers were added, and so on the batch size."""
    if interval is None:
        return None
    return Interval(*(float(f"{value:.5g}") for value in (interval.value, interval.low, interval.high)))


def _plain(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.1f} ({interval.low:.1f}–{interval.high:.1f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
