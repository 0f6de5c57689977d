"""How far do two judges agree? Cohen's kappa and the table of their verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from neurontune_peft.judges.verdict import LABELS


@dataclass(frozen=True)
class Agreement:
    """
    Two judges on the same answers. Answers that one of them left unscored are not counted.

    Args:
        first (`str`): Name of a judge, whose verdicts are the rows of the table.
        second (`str`): Name of the other, whose verdicts are the columns.
        confusion (`Mapping[str, Mapping[str, int]]`): Verdict of the first to verdict of the second to answers.
        unscored (`int`, *optional*, defaults to `0`): Answers that one of the two could not tell about.
    """

    first: str
    second: str
    confusion: Mapping[str, Mapping[str, int]]
    unscored: int = 0

    @classmethod
    def of(cls, first: str, second: str, ones: Sequence[str | None], others: Sequence[str | None]) -> Agreement:
        """
        Compare verdicts one by one.

        Args:
            first (`str`): Name of a judge.
            second (`str`): Name of the other.
            ones (`Sequence[str | None]`): Labels by the first.
            others (`Sequence[str | None]`): Labels by the second.
        """
        pairs = [pair for pair in zip(ones, others, strict=True) if not {None, "unscored"} & set(pair)]
        counts = Counter(pairs)
        rows = [label for label in LABELS if any(one == label for one, _ in pairs)]
        columns = [label for label in LABELS if any(other == label for _, other in pairs)]
        confusion = {row: {column: counts[row, column] for column in columns} for row in rows}
        return cls(first, second, confusion, len(ones) - len(pairs))

    @property
    def total(self) -> int:
        """`int`: Answers that both judged."""
        return sum(sum(row.values()) for row in self.confusion.values())

    @property
    def agreed(self) -> float | None:
        """`float`, *optional*: Share of answers with the same verdict."""
        same = sum(row.get(label, 0) for label, row in self.confusion.items())
        return same / self.total if self.total else None

    @property
    def kappa(self) -> float | None:
        """
        `float`, *optional*: Cohen's kappa (1960), agreement beyond chance: 0 is chance, 1 is full agreement; `None`
        without answers, or where both judges gave one and the same verdict to all, so that chance explains all.
        """
        if self.agreed is None:
            return None
        ones = {label: sum(row.values()) for label, row in self.confusion.items()}
        others: Counter[str] = Counter()
        for row in self.confusion.values():
            others.update(row)
        chance = sum(ones[label] * others[label] for label in ones) / self.total**2
        return (self.agreed - chance) / (1 - chance) if chance < 1 else None

    def as_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: Fields by name, with `agreed` and `kappa`.
        """
        return {
            "first": self.first,
            "second": self.second,
            "confusion": {row: dict(columns) for row, columns in self.confusion.items()},
            "unscored": self.unscored,
            "agreed": self.agreed,
            "kappa": self.kappa,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Agreement:
        """
        Make this of what `as_dict` gave.

        Raises:
            KeyError: a field is missing.
        """
        return cls(values["first"], values["second"], values["confusion"], values["unscored"])

    def markdown(self) -> str:
        """
        Returns:
            `str`: The table, and a sentence with the share of equal verdicts and kappa.
        """
        if not self.total:
            return f"`{self.first}` and `{self.second}` have no answer that both could judge."
        columns = list(next(iter(self.confusion.values())))
        lines = ["| " + " | ".join((f"{self.first} \\ {self.second}", *columns)) + " |"]
        lines.append("|---|" + "---:|" * len(columns))
        lines += [
            "| " + " | ".join((row, *(str(n) for n in counts.values()))) + " |"
            for row, counts in self.confusion.items()
        ]
        kappa = "not defined (one verdict for all)" if self.kappa is None else f"{self.kappa:.2f}"
        aside = f"; {self.unscored} answers unscored by one of them" if self.unscored else ""
        return "\n".join(lines) + f"\n\nSame verdict: {self.agreed:.1%} of {self.total}, Cohen's kappa {kappa}{aside}."


def agreements(verdicts: Mapping[str, Iterable[str | None]]) -> tuple[Agreement, ...]:
    """
    Compare every two judges.

    Args:
        verdicts (`Mapping[str, Iterable[str | None]]`): Name of a judge to its labels, one for each answer.

    Returns:
        `tuple[Agreement, ...]`: One for each pair; empty for a single judge.
    """
    labels = {name: list(found) for name, found in verdicts.items()}
    return tuple(Agreement.of(one, other, labels[one], labels[other]) for one, other in combinations(labels, 2))
