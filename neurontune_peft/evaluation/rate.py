"""A share of what was counted, with its interval."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """
    A share with its 95 % Wilson interval.

    Args:
        successes (`int`): How many had the property that was counted.
        total (`int`): How many there were.

    Raises:
        ValueError: `total` is below 1, or `successes` is not between 0 and `total`.
    """

    successes: int
    total: int

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.successes <= self.total:
            raise ValueError(
                f"got {self.successes} of {self.total}; expected 0 to total, and at least 1 in all; count answers"
            )

    @property
    def rate(self) -> float:
        """`float`: The share, 0 to 1."""
        return self.successes / self.total

    @property
    def low(self) -> float:
        """`float`: Lower end of the interval."""
        return max(0.0, self._wilson()[0])

    @property
    def high(self) -> float:
        """`float`: Upper end of the interval."""
        return min(1.0, self._wilson()[1])

    def _wilson(self, z: float = 1.96) -> tuple[float, float]:
        n, p = self.total, self.rate
        scale = 1 + z * z / n
        centre = (p + z * z / (2 * n)) / scale
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
        return centre - half, centre + half

    def as_dict(self) -> dict[str, float | int]:
        """
        Returns:
            `dict`: `rate`, `low` and `high`, rounded to four digits, with `successes` and `total`.
        """
        return {
            "rate": round(self.rate, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "successes": self.successes,
            "total": self.total,
        }

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({self.low:.1%}–{self.high:.1%})"
