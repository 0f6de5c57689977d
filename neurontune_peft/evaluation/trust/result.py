"""What does a trust report say? The findings, the verdict in one sentence, and the file that holds them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurontune_peft.checks import check_format_version, write_atomically
from neurontune_peft.evaluation.trust.rows import (
    MIN_RANDOM,
    Completeness,
    Curve,
    Intervention,
    Overlap,
    Trained,
    curve,
    intervention,
    row_dict,
)

TRUST_FORMAT_VERSION = 1
_PLAIN = ("role", "count", "total", "objective", "n_prompts", "prompt_set", "judge", "judge_limits", "base_refusal")
_PARTS = ("completeness", "stability", "causality", "curves", "trainability")


@dataclass(frozen=True)
class Trust:
    """
    What `verify` found out about the neurons of one role, on held-out prompts.

    Args:
        role (`str`): The role.
        count (`int`): Number of its neurons.
        total (`int`): Number of neurons of all sites that were scored.
        objective (`str`): What was measured: `"refusal margin"`, or `"log-probability of answers"` for utility.
        n_prompts (`int`): Held-out prompts that it was measured on.
        families (`tuple[str, ...]`): Held-out attack families of those prompts; empty for utility.
        causality (`tuple[Intervention, ...]`): One row for each scale.
        completeness (`tuple[Completeness, ...]`, *optional*): Of path methods.
        stability (`tuple[Overlap, ...]`, *optional*): Overlaps of the top k, k being `count`.
        curves (`tuple[Curve, ...]`, *optional*): Effect against count for each method.
        trainability (`tuple[Trained, ...]`, *optional*): Short trainings; empty when not asked for.
        judge (`str`, *optional*): Name of the judge of generated answers.
        judge_limits (`str`, *optional*): What the judge cannot see.
        base_refusal (`float`, *optional*): Share of the attacked prompts that the untouched model refuses.
        prompt_set (`str`, *optional*): Fingerprint of the prompt set.
        options (`Mapping[str, Any]`, *optional*): Options of the measurement, as JSON types.

    Raises:
        ValueError: When there is no intervention, or one has too few random sets to state a percentile.
    """

    role: str
    count: int
    total: int
    objective: str
    n_prompts: int
    families: tuple[str, ...]
    causality: tuple[Intervention, ...]
    completeness: tuple[Completeness, ...] = ()
    stability: tuple[Overlap, ...] = ()
    curves: tuple[Curve, ...] = ()
    trainability: tuple[Trained, ...] = ()
    judge: str = ""
    judge_limits: str = ""
    base_refusal: float | None = None
    prompt_set: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fewest = min((len(row.random) for row in self.causality), default=0)
        if fewest < MIN_RANDOM:
            raise ValueError(
                f"got {len(self.causality)} interventions with {fewest} random sets; expected at least one, each with "
                f"{MIN_RANDOM} or more; measure with verify"
            )

    @property
    def deciding(self) -> tuple[Intervention, ...]:
        """
        `tuple[Intervention, ...]`: The interventions in the direction in which scales of the role are trained: above
        1, and below 1 for utility.
        """
        if self.role == "utility":
            return tuple(row for row in self.causality if row.scale < 1)
        return tuple(row for row in self.causality if row.scale > 1)

    @property
    def better_than_random(self) -> bool:
        """`bool`: Whether every deciding intervention beats the 95th percentile of layer-matched random sets."""
        return bool(self.deciding) and all(row.beats_random for row in self.deciding)

    @property
    def conclusion(self) -> str:
        """`str`: One sentence that says whether the list is better than random."""
        verdict = "are better" if self.better_than_random else "are not shown to be better"
        found = ", ".join(_found(row) for row in self.deciding) or "no scale in the trained direction was measured"
        rest = [row for row in self.causality if row not in self.deciding and row.scale != 1]
        aside = f"; for comparison, {', '.join(_found(row) for row in rest)}" if rest else ""
        where = f" inside held-out attacks ({', '.join(self.families)})" if self.families else ""
        return (
            f"The {self.count} neurons of role '{self.role}' {verdict} than random ones of the same layers on "
            f"{self.n_prompts} prompts{where}: the {self.objective} changes by {found}{aside}."
        )

    @property
    def chance_overlap(self) -> float:
        """`float`: Jaccard overlap that two random lists of `count` neurons have on average, about `s / (2 - s)`."""
        share = self.count / self.total
        return share / (2 - share)

    def controls(self, row: Trained) -> tuple[Trained, ...]:
        """The trainings of random sets that belong to a training of chosen neurons."""
        return tuple(other for other in self.trainability if other.control and _origin(other) == _origin(row))

    def training_percentile(self, row: Trained) -> float | None:
        """
        Percentage of the random sets of a training that attacks succeed on more often, 0 to 100.

        It looks at attack success alone; what it costs stands beside it in the table.

        Args:
            row ([`Trained`]): A training of chosen neurons.

        Returns:
            `float`, *optional*: The percentage; `None` without random sets.
        """
        rates = [other.attack_success for other in self.controls(row) if other.attack_success is not None]
        if row.attack_success is None or not rates:
            return None
        return 100 * sum(rate > row.attack_success for rate in rates) / len(rates)

    def as_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: Fields by name as JSON types, `better_than_random`, `conclusion` and `format_version`.
        """
        return {
            "format_version": TRUST_FORMAT_VERSION,
            "better_than_random": self.better_than_random,
            "conclusion": self.conclusion,
            **{name: getattr(self, name) for name in _PLAIN},
            "families": list(self.families),
            "options": dict(self.options),
            **{name: [row_dict(row) for row in getattr(self, name)] for name in _PARTS},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trust:
        """
        Make a report of what `as_dict` gave.

        Raises:
            ValueError: When fields are missing or wrong, or the format is newer than this version of the package.
        """
        check_format_version(values.get("format_version"), TRUST_FORMAT_VERSION, what="trust report")
        try:
            return cls(
                **{name: values[name] for name in _PLAIN},
                families=tuple(values["families"]),
                options=values["options"],
                causality=tuple(intervention(row) for row in values["causality"]),
                completeness=tuple(Completeness(**row) for row in values["completeness"]),
                stability=tuple(Overlap(**row) for row in values["stability"]),
                curves=tuple(curve(row) for row in values["curves"]),
                trainability=tuple(Trained(**row) for row in values["trainability"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"got a trust report with a missing or wrong field ({error}); expected what Trust.save writes; verify "
                "again"
            ) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON."""
        write_atomically(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trust:
        """
        Read a report that `save` wrote.

        Raises:
            ValueError: When the file is missing or no trust report.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"got '{path}' ({error}); expected what Trust.save writes; verify again") from error
        if not isinstance(values, dict):
            raise ValueError(f"got '{path}' without a JSON object; expected what Trust.save writes; verify again")
        return cls.from_dict(values)

    def __str__(self) -> str:
        lines = [self.conclusion]
        for row in self.causality:
            refusal = "" if row.refusal is None else f", refusals ({self.judge}) {row.refusal.rate:.1%}"
            kl = "" if row.kl is None else f", KL {row.kl:.4f}"
            lines.append(
                f"  scale {row.scale:g}: {row.change:+.3f} ({row.low:+.3f} to {row.high:+.3f}), random "
                f"{row.random_mean:+.3f}, percentile {row.percentile:.0f} of {len(row.random)} sets{refusal}{kl}"
            )
        lines += [f"  {row.method}, {row.steps} steps: completeness gap {row.gap:.2%}" for row in self.completeness]
        for kind in dict.fromkeys(row.kind for row in self.stability):
            shares = [row.jaccard for row in self.stability if row.kind == kind]
            low, high = min(shares), max(shares)
            lines.append(f"  overlap of the top {self.count}, {kind}: {low:.2f} to {high:.2f}")
        if self.stability:
            lines.append(f"  (overlap by chance: {self.chance_overlap:.2f})")
        if self.trainability:
            lines.append("  short trainings, attack success on held-out families:")
            lines += [self._training_line(row) for row in self.trainability if not row.control]
        return "\n".join(lines)

    def _training_line(self, row: Trained) -> str:
        rates = [other.attack_success for other in self.controls(row) if other.attack_success is not None]
        beside = f", random {sum(rates) / len(rates):.1%}" if rates else ""
        success = "not measured" if row.attack_success is None else f"{row.attack_success:.1%}"
        return f"    {row.method}, {row.count} neurons ({row.share:.1%}): {success}{beside}"


def _origin(row: Trained) -> tuple[str, float]:
    return row.method, row.share


def _found(row: Intervention) -> str:
    reached = sum(change >= row.change if row.scale >= 1 else change <= row.change for change in row.random)
    beaten = "none" if reached == 0 else str(reached)
    return f"{row.change:+.3f} nats at scale {row.scale:g} (reached by {beaten} of {len(row.random)} random sets)"
