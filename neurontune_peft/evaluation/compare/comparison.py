"""Who protects best for what may be lost? All measured points, and what follows from them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neurontune_peft.checks import check_format_version, write_atomically
from neurontune_peft.choices import OVER_REFUSAL, Limits
from neurontune_peft.evaluation.compare.frontier import attack_at_cost
from neurontune_peft.evaluation.compare.points import ATTACK_HELD_OUT, ATTACK_TRAINED, COLUMNS, Point
from neurontune_peft.evaluation.compare.statistics import Interval, Paired, bootstrap, paired

FORMAT_VERSION = 1
BASE = "base"


@dataclass(frozen=True)
class Row:
    """
    One method at one setting: medians over its seeds.

    Args:
        method (`str`): Name of the method.
        setting (`float`, *optional*): Where its dial stood.
        seeds (`int`): How many seeds.
        rates (`Mapping[str, Interval]`): Column to share, with an interval over prompts; absent if not measured.
        perplexity (`float`, *optional*): Perplexity per token.
        kl (`float`, *optional*): `KL(base || tuned)`, nats per token.
        numbers (`int`): Numbers that were trained or computed from data.
        bytes (`int`): Size of the file.
        seconds (`float`): Time to make it.
        peak_memory (`int`): Bytes; the most of all seeds.
        learning_rate (`float`, *optional*): What it was trained with.
        note (`str`): What a reader has to know.
    """

    method: str
    setting: float | None
    seeds: int
    rates: Mapping[str, Interval]
    perplexity: float | None
    kl: float | None
    numbers: int
    bytes: int
    seconds: float
    peak_memory: int
    learning_rate: float | None
    note: str

    @property
    def attack(self) -> Interval | None:
        """Attack success on held-out families, or on those for training where none is held out."""
        return self.rates.get(ATTACK_HELD_OUT) or self.rates.get(ATTACK_TRAINED)


@dataclass(frozen=True)
class Comparison:
    """
    All measured points of a comparison.

    Args:
        points (`tuple[Point, ...]`): Every method with every seed at every setting.
        judge (`str`): Name of the judge.
        judge_limits (`str`): What the judge cannot see.
        prompt_set (`str`): Fingerprint of the prompt set.
        limits ([`Limits`]): What may be lost.
        reference (`str`): The method that the others are tested against.
        options (`Mapping[str, Any]`): How the comparison was made, JSON values.

    Raises:
        ValueError: When the base model or the reference was not measured.
    """

    points: tuple[Point, ...]
    judge: str
    judge_limits: str
    prompt_set: str
    limits: Limits
    reference: str
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name in (BASE, self.reference):
            if name not in self.methods:
                raise ValueError(
                    f"got points of {list(self.methods)}; expected '{name}' among them; measure it with compare(...)"
                )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order in which they were measured."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Every method at every setting, settings ascending."""
        return tuple(self._row(name, setting) for name in self.methods for setting in self.settings(name))

    def settings(self, method: str) -> tuple[float | None, ...]:
        """The settings at which a method was measured, ascending."""
        found = {point.setting for point in self.points if point.method == method}
        return tuple(sorted(found, key=lambda setting: -1e300 if setting is None else setting))

    def row(self, method: str, setting: float | None = None) -> Row:
        """
        One row.

        Raises:
            ValueError: When it was not measured.
        """
        for row in self.rows:
            if (row.method, row.setting) == (method, setting):
                return row
        raise ValueError(
            f"got method '{method}' at {setting}; expected one of {list(self.methods)} at one of its settings; see "
            "Comparison.settings"
        )

    def as_trained(self, method: str) -> Row:
        """The row at the setting that a method is made for, such as strength 1."""
        nominal = [point.setting for point in self.points if point.method == method and point.nominal]
        return self.row(method, nominal[0] if nominal else self.settings(method)[-1])

    def within_limits(self, method: str) -> Row | None:
        """
        The row with the lowest attack success whose costs stay within the limits; `None` if there is no such setting.

        The choice is made on the test prompts, which is optimistic, for every method in the same way.
        """
        base = self.as_trained(BASE)
        before = {column: rate.value for column, rate in base.rates.items()}
        allowed = [
            row
            for row in self.rows
            if row.method == method
            and row.attack is not None
            and self.limits.allow({c: r.value for c, r in row.rates.items()}, row.perplexity, before, base.perplexity)
        ]
        return min(allowed, key=lambda row: row.attack.value if row.attack else 1.0, default=None)

    def compared_row(self) -> Row:
        """The reference's row within the limits, or as trained when none is."""
        return self.within_limits(self.reference) or self.as_trained(self.reference)

    def attack_at_equal_cost(self, method: str, column: str = OVER_REFUSAL) -> float | None:
        """
        Attack success of a method where it costs no more than the reference does, interpolated along its frontier.

        Args:
            method (`str`): Name of the method.
            column (`str`, *optional*, defaults to `"over_refusal"`): The cost.

        Returns:
            `float`, *optional*: `None` where every setting costs more, or the cost was not measured.
        """
        cost = self.compared_row().rates.get(column)
        rows = [self.as_trained(BASE), *(row for row in self.rows if row.method == method != BASE)]
        path = [(row.rates[column].value, row.attack.value) for row in rows if column in row.rates and row.attack]
        return None if cost is None else attack_at_cost(path, cost.value)

    def test(self, method: str, setting: float | None, *, against: float | None) -> Paired:
        """
        Exact McNemar test on the held-out attacks: the reference at `against` beside a method at `setting`.

        Args:
            method (`str`): The control.
            setting (`float`, *optional*): Its setting.
            against (`float`, *optional*): The setting of the reference.
        """
        first, second = (self._hits(name, at) for name, at in ((self.reference, against), (method, setting)))
        return paired(first, second)

    def _at(self, method: str, setting: float | None) -> list[Point]:
        return [point for point in self.points if (point.method, point.setting) == (method, setting)]

    def _hits(self, method: str, setting: float | None) -> list[Mapping[str, bool]]:
        outcomes = [point.outcomes for point in self._at(method, setting)]
        return [found.get(ATTACK_HELD_OUT) or found.get(ATTACK_TRAINED, {}) for found in outcomes]

    def _row(self, method: str, setting: float | None) -> Row:
        points = self._at(method, setting)
        rates = {column: bootstrap([p.outcomes.get(column, {}) for p in points]) for column in COLUMNS}
        return Row(
            method,
            setting,
            len(points),
            {column: rate for column, rate in rates.items() if rate is not None},
            perplexity=_median([p.perplexity for p in points]),
            kl=_median([p.kl for p in points]),
            numbers=points[0].numbers,
            bytes=points[0].bytes,
            seconds=statistics.median(p.seconds for p in points),
            peak_memory=max(p.peak_memory for p in points),
            learning_rate=points[0].learning_rate,
            note=points[0].note,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the comparison as JSON."""
        values = {
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in ("judge", "judge_limits", "prompt_set", "reference", "options")},
            "limits": asdict(self.limits),
            "points": [point.as_dict() for point in self.points],
        }
        write_atomically(path, json.dumps(values, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """
        Read a comparison that `save` wrote.

        Raises:
            ValueError: When the file is missing or no comparison.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            check_format_version(values.pop("format_version", None), FORMAT_VERSION, what="comparison")
            points = tuple(Point(**point) for point in values.pop("points"))
            return cls(points=points, limits=Limits(**values.pop("limits")), **values)
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"got '{path}' ({error}); expected a comparison; write one with Comparison.save"
            ) from error

    def __str__(self) -> str:
        """Held-out attack success of every method within the limits, and as it was trained."""
        lines = [f"Comparison on prompt set {self.prompt_set[:12]} (judge: {self.judge})"]
        width = max(len(name) for name in self.methods)
        for name in self.methods:
            row = self.within_limits(name)
            inside = "no setting within the limits" if row is None else f"{row.attack} within the limits"
            trained = self.as_trained(name).attack
            lines.append(f"  {name:<{width}}  {inside}; {trained or 'not measured'} as trained")
        return "\n".join(lines)


def _median(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return statistics.median(measured) if measured else None
