"""How much does each kind of prompts weigh in a score? What is wanted counts, what is not wanted is subtracted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

REFUSED = ("harmful", "attacked")  # kinds that the refusal margin shall be high on
ANSWERED = ("borderline", "wrapped")  # kinds that it shall be low on


def kind_weights(role: str, counts: Mapping[str, int], contrast: float | Mapping[str, float]) -> dict[str, float]:
    """
    Signed weight of the mean of each kind of prompts: the wanted side adds up to 1, the other to minus the contrast.

    Args:
        role (`str`): The role.
        counts (`Mapping[str, int]`): Kind to number of prompts.
        contrast (`float` or `Mapping[str, float]`): As in `attribute`.

    Returns:
        `dict[str, float]`: Kind to weight.

    Raises:
        ValueError: When a mapping names an unknown kind, one without prompts, or a negative weight.
    """
    if role == "safety":
        wanted, other = _share(counts, REFUSED), _share(counts, ANSWERED)
    elif role == "utility":
        wanted, other = _share(counts, ["benign"]), _share(counts, ["harmful"])
    else:
        return _share(counts, list(counts))
    if not isinstance(contrast, Mapping):
        return wanted | {kind: -contrast * share for kind, share in other.items()}
    if role == "utility":
        return wanted | {kind: -share for kind, share in other.items()}
    _check_contrast(contrast, counts)
    given = {kind: weight for kind, weight in contrast.items() if kind in REFUSED}
    return (given or wanted) | {kind: -weight for kind, weight in contrast.items() if kind in ANSWERED}


def _share(counts: Mapping[str, int], kinds: Sequence[str]) -> dict[str, float]:
    """Kind to its share of the prompts of these kinds."""
    total = sum(counts.get(kind, 0) for kind in kinds)
    return {kind: counts[kind] / total for kind in kinds if counts.get(kind)}


def _check_contrast(contrast: Mapping[str, float], counts: Mapping[str, int]) -> None:
    for kind, weight in contrast.items():
        if kind not in REFUSED + ANSWERED or not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"got contrast {{'{kind}': {weight}}}; expected weights of at least 0 for {list(REFUSED + ANSWERED)}; "
                f"{list(REFUSED)} are added and {list(ANSWERED)} subtracted"
            )
        if weight and not counts.get(kind):
            raise ValueError(
                f"got a contrast with '{kind}' prompts; expected kinds that the prompt set has for training, "
                f"{dict(counts)}; add such prompts or leave the kind out"
            )
