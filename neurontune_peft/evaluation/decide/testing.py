"""Which settings are shown to keep their limits? Exact tests along a fixed sequence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_NEEDED = 1_000_000


@dataclass(frozen=True)
class Count:
    """
    How often a limit was violated at a setting.

    Args:
        violations (`int`): Prompts that violate it.
        total (`int`): Prompts in all.
    """

    violations: int
    total: int

    @property
    def rate(self) -> float:
        """`float`: Share of violations."""
        return self.violations / self.total


@dataclass(frozen=True)
class Tested:
    """
    One setting that was tested.

    Args:
        counts (`Mapping[str, Count]`): Limit to its violations.
        p (`float`): The largest of the limits' p-values.
        held (`bool`): Whether all limits are shown to hold.
    """

    counts: Mapping[str, Count]
    p: float
    held: bool


def tail(violations: int, total: int, bound: float) -> float:
    """
    Probability of at most so many violations when each prompt violates with probability `bound`: the exact p-value of
    "the rate is above the bound" (arXiv 2110.01052, binary losses).

    Args:
        violations (`int`): Observed violations.
        total (`int`): Prompts.
        bound (`float`): Above 0 and below 1.
    """
    if violations >= total:
        return 1.0
    start = total * math.log1p(-bound)
    odds = math.log(bound) - math.log1p(-bound)
    terms, term = [], start
    for k in range(violations + 1):
        if k:
            term += math.log(total - k + 1) - math.log(k) + odds
        terms.append(term)
    highest = max(terms)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(term - highest) for term in terms))


def fixed_sequence(
    sequence: Iterable[Mapping[str, Count]], limits: Mapping[str, float], *, confidence: float
) -> Iterator[Tested]:
    """
    Test settings in a fixed order, and stop at the first that is not shown to keep all limits.

    Each limit is tested at the whole level `1 - confidence`: a setting passes only if its largest p-value is at most
    the level, and no test comes after a failed one, so that with probability `confidence` no setting passes that
    violates a limit (fixed-sequence testing, arXiv 2110.01052; intersection-union test for several limits). This holds
    for any order that was chosen without the data; mildest first makes it strong.

    Args:
        sequence (`Iterable[Mapping[str, Count]]`): Violations of each setting, in order; taken as far as needed.
        limits (`Mapping[str, float]`): Limit to its bound.
        confidence (`float`): Between 0 and 1.

    Yields:
        [`Tested`]: Each setting that was tested; only the last may have failed.
    """
    for counts in sequence:
        p = max(tail(counts[name].violations, counts[name].total, bound) for name, bound in limits.items())
        held = p <= 1 - confidence + 1e-12  # 1 - 0.95 is a hair above 0.05
        yield Tested(counts, p, held)
        if not held:
            return


def needed(bound: float, *, confidence: float, rate: float = 0.0) -> int | None:
    """
    How many prompts it takes to show that a rate is below a bound.

    Args:
        bound (`float`): The bound.
        confidence (`float`): Between 0 and 1.
        rate (`float`, *optional*, defaults to `0.0`): The share of violations that the prompts will show.

    Returns:
        `int`, *optional*: The number; `None` where the rate is not below the bound, or more than a million are needed.
    """
    if rate >= bound:
        return None

    def enough(total: int) -> bool:
        return tail(math.ceil(rate * total - 1e-9), total, bound) <= 1 - confidence + 1e-12

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_NEEDED:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def check_limits(limits: Mapping[str, float], known: Mapping[str, Any], confidence: float) -> None:
    """
    Refuse limits and confidences that mean nothing.

    Args:
        limits (`Mapping[str, float]`): Limit to its bound.
        known (`Mapping[str, Any]`): The limits that there are.
        confidence (`float`): The confidence.

    Raises:
        ValueError: Names the limit.
    """
    if not limits:
        raise ValueError(f"got no limits; expected some of {list(known)}; name what may be lost")
    for name, bound in limits.items():
        if name not in known:
            raise ValueError(f"got limit '{name}'; expected one of {list(known)}; rename or remove it")
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not 0 < bound < 1:
            raise ValueError(
                f"got limit {name}={bound!r}; expected a share above 0 and below 1; write 0.05 for 5 %, as no number "
                "of prompts shows that something never happens"
            )
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"got confidence={confidence!r}; expected a number between 0 and 1; write 0.95 for 95 %")
