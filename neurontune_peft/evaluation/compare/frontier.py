"""Which setting is compared with which? Frontiers of attack success over cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from neurontune_peft.choices import ROUNDING


def attack_at_cost(path: Sequence[tuple[float, float]], cost: float) -> float | None:
    """
    Lowest attack success along a frontier at a given cost, or below it.

    Between two neighbouring settings a deployment can choose one of them for a share of its requests, and so reach
    every point of the line between them.

    Args:
        path (`Sequence[tuple[float, float]]`): `(cost, attack success)` of the settings, in their order.
        cost (`float`): The cost that is allowed.

    Returns:
        `float`, *optional*: `None` where every setting costs more.
    """
    found = [attack for at, attack in path if at <= cost + ROUNDING]
    for (x0, y0), (x1, y1) in pairwise(path):
        if min(x0, x1) < cost < max(x0, x1):
            found.append(y0 + (y1 - y0) * (cost - x0) / (x1 - x0))
    return min(found, default=None)
