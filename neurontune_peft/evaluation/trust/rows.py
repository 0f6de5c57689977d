"""The single findings of a trust report: frozen rows that turn into JSON types and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from neurontune_peft.evaluation.result import Rate

MIN_RANDOM = 20  # with fewer random sets no rank among them means "5 %"
_LEVEL = 0.05


@dataclass(frozen=True)
class Completeness:
    """
    Whether the scores of a path method add up to what they explain.

    Args:
        method (`str`): The method, with the ends of its path.
        steps (`int`): Steps along the path.
        total (`float`): Sum of the scores, averaged over the prompts.
        change (`float`): Change of the objective from one end of the path to the other, averaged over the prompts.
        gap (`float`):
            `sum |total - change| / sum |change|` over the prompts; 0 is exact. `nan` where nothing changed.
    """

    method: str
    steps: int
    total: float
    change: float
    gap: float


@dataclass(frozen=True)
class Overlap:
    """
    How much two rankings agree on the top k.

    Args:
        kind (`str`): What differs: `"halves"` of the prompts, `"seeds"`, `"methods"`, or `"list"` (against the list).
        first (`str`): Name of the first ranking.
        second (`str`): Name of the second ranking.
        jaccard (`float`): Size of the intersection over size of the union, 0 to 1.
    """

    kind: str
    first: str
    second: str
    jaccard: float


@dataclass(frozen=True)
class Curve:
    """
    Effect against count: the top neurons of one method, amplified together.

    Args:
        method (`str`): The method.
        scale (`float`): Scale of the neurons.
        counts (`tuple[int, ...]`): How many of the top neurons are scaled.
        changes (`tuple[float, ...]`): Mean change of the objective for each count, in nats.
    """

    method: str
    scale: float
    counts: tuple[int, ...]
    changes: tuple[float, ...]


@dataclass(frozen=True)
class Intervention:
    """
    What happens when all neurons of the list are set to one scale, beside layer-matched random sets.

    Args:
        scale (`float`): The scale.
        change (`float`): Mean change of the objective over the prompts, in nats.
        low (`float`): Lower end of its 95 % bootstrap interval over the prompts.
        high (`float`): Upper end of the interval.
        random (`tuple[float, ...]`): The change for each random set.
        wrapped_change (`float`, *optional*): Change of the refusal margin on benign prompts inside the same templates.
        refusal (`Rate`, *optional*): Generated refusals of the attacked prompts.
        random_refusal (`tuple[Rate, ...]`): The same for the first few random sets.
        perplexity (`float`, *optional*): Perplexity per token on benign reference answers.
        kl (`float`, *optional*): KL to the untouched model on the same answers, in nats per token.
        random_perplexity (`tuple[float, ...]`): The perplexity for the first few random sets.
        random_kl (`tuple[float, ...]`): The KL for the first few random sets.
    """

    scale: float
    change: float
    low: float
    high: float
    random: tuple[float, ...]
    wrapped_change: float | None = None
    refusal: Rate | None = None
    random_refusal: tuple[Rate, ...] = ()
    perplexity: float | None = None
    kl: float | None = None
    random_perplexity: tuple[float, ...] = ()
    random_kl: tuple[float, ...] = ()

    @property
    def effect(self) -> float:
        """`float`: The change in the direction that scores claim: up when amplified, down when suppressed."""
        return self._towards(self.change)

    @property
    def percentile(self) -> float:
        """`float`: Percentage of random sets with a smaller effect, 0 to 100."""
        return 100 * sum(self._towards(change) < self.effect for change in self.random) / len(self.random)

    @property
    def p_value(self) -> float:
        """`float`: `(1 + random sets with at least this effect) / (1 + random sets)`, a rank test (ours)."""
        reached = sum(self._towards(change) >= self.effect for change in self.random)
        return (1 + reached) / (1 + len(self.random))

    @property
    def beats_random(self) -> bool:
        """`bool`: Whether the effect lies above the 95th percentile of random sets, the list itself counted in."""
        return self.effect > 0 and self.p_value <= _LEVEL

    @property
    def random_mean(self) -> float:
        """`float`: Mean change for random sets."""
        return sum(self.random) / len(self.random)

    def _towards(self, change: float) -> float:
        return change if self.scale >= 1 else -change


@dataclass(frozen=True)
class Trained:
    """
    What a short training of the scales of some neurons achieves.

    Args:
        method (`str`): Who chose the neurons: a method, or `"list"`.
        share (`float`): Share of all neurons, 0 to 1.
        count (`int`): Number of neurons.
        control (`int`): 0 for the chosen neurons, 1 and up for layer-matched random sets in their place.
        attack_success (`float`, *optional*): Mean over the held-out families.
        borderline_refusal (`float`, *optional*): Share of borderline requests refused.
        wrapped_benign_refusal (`float`, *optional*): Share of benign requests inside held-out templates refused.
        perplexity (`float`, *optional*): Perplexity per token on benign reference answers.
        kl (`float`, *optional*): KL to the base model on them, in nats per token.
    """

    method: str
    share: float
    count: int
    control: int
    attack_success: float | None
    borderline_refusal: float | None
    wrapped_benign_refusal: float | None
    perplexity: float | None
    kl: float | None


def row_dict(row: Completeness | Overlap | Curve | Intervention | Trained) -> dict[str, Any]:
    """A row as JSON types; rates as `Rate.as_dict` gives them."""
    values = asdict(row)
    if isinstance(row, Intervention):
        values["refusal"] = row.refusal and row.refusal.as_dict()
        values["random_refusal"] = [rate.as_dict() for rate in row.random_refusal]
    return values


def intervention(values: Mapping[str, Any]) -> Intervention:
    """An intervention from what `row_dict` gave."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    fields["refusal"] = fields["refusal"] and _rate(fields["refusal"])
    fields["random_refusal"] = tuple(_rate(rate) for rate in fields["random_refusal"])
    return Intervention(**fields)


def curve(values: Mapping[str, Any]) -> Curve:
    """A curve from what `row_dict` gave."""
    return Curve(values["method"], values["scale"], tuple(values["counts"]), tuple(values["changes"]))


def _rate(values: Mapping[str, Any]) -> Rate:
    return Rate(values["successes"], values["total"])
