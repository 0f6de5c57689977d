"""Which options of training make sense?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurontune_peft.training.config import MetaConfig

CHOICES = {
    "order": ("first", "second", "none"),
    "refusal_targets": ("phrases", "own"),
    "validation": ("templates", "family"),
}
POSITIVE = (
    "steps",
    "inner_steps",
    "support_size",
    "query_size",
    "benign_size",
    "checkpoint_every",
    "validation_size",
)
COUNTS = ("plain_size", "borderline_size", "wrapped_size", "validate_every")
NUMBERS = (
    "lr",
    "inner_lr",
    "support_weight",
    "plain_weight",
    "utility_weight",
    "kl_weight",
    "nll_weight",
    "first_token_weight",
)
SHARES = ("validation_share",)  # less than 1


def check_config(config: MetaConfig) -> None:
    """
    Refuse impossible options.

    Raises:
        ValueError: Names the option and its value.
    """
    for name, known in CHOICES.items():
        if (value := getattr(config, name)) not in known:
            raise ValueError(f"got {name}={value!r}; expected one of {list(known)}; choose one of them")
    _check_at_least(config, 1, POSITIVE)
    _check_at_least(config, 0, COUNTS)
    _check_at_least(config, 0.0, NUMBERS + SHARES)
    for name in SHARES:
        if not getattr(config, name) < 1:
            raise ValueError(f"got {name}={getattr(config, name)}; expected less than 1; lower it")
    for role, bound in config.bounds.items():
        if len(bound) != 2 or not bound[0] <= 0 <= bound[1]:
            raise ValueError(
                f"got bounds {bound} for role '{role}'; expected (low, high) with low <= 0 <= high, since deltas "
                "start at 0; use for example (0.0, 2.0)"
            )


def _check_at_least(config: MetaConfig, low: float, names: Iterable[str]) -> None:
    whole = isinstance(low, int)
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= low:
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"got {name}={value!r}; expected {kind} of at least {low}; raise it")
