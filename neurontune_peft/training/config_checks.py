"""Which options of training make sense?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurontune_peft.training.config import MetaConfig

CHOICES = {
    "order": ("first", "second", "none", "reptile"),
    "refusal_targets": ("phrases", "own"),
    "tie": ("none", "cluster"),
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
    "margin_phrases",
    "clusters",
    "accumulation",
)
COUNTS = ("plain_size", "borderline_size", "wrapped_size", "validate_every", "finetune_steps")
NUMBERS = (
    "lr",
    "inner_lr",
    "support_weight",
    "plain_weight",
    "utility_weight",
    "kl_weight",
    "nll_weight",
    "first_token_weight",
    "barrier_weight",
    "l1",
    "margin_weight",
)
BUDGETS = ("over_refusal_budget", "wrapped_benign_budget", "kl_budget", "perplexity_budget")
SHARES = ("validation_share", "ema", "zero_share")  # less than 1


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
    _check_at_least(config, 1.0, ("focus",))
    for name in SHARES:
        if not getattr(config, name) < 1:
            raise ValueError(f"got {name}={getattr(config, name)}; expected less than 1; lower it")
    if config.finetune_steps and config.order in ("none", "reptile"):
        raise ValueError(
            f"got finetune_steps={config.finetune_steps} with order='{config.order}', which measures nothing after "
            "inner steps; expected 0; use order='first'"
        )
    _check_budgets(config)
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


def _check_budgets(config: MetaConfig) -> None:
    limits = {name: getattr(config, name) for name in BUDGETS if getattr(config, name) is not None}
    for name, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
            raise ValueError(
                f"got {name}={limit!r}, which the base model itself breaks or just meets; expected a number above 0, "
                "since budgets limit the rise over the base model; use for example 0.02 for two points of refusals, "
                "or for two per cent of perplexity"
            )
    if config.barrier and not (limits and config.barrier_weight > 0):
        raise ValueError(
            f"got barrier=True with the budgets {limits} and barrier_weight={config.barrier_weight}; expected at "
            "least one budget and a weight above 0; set over_refusal_budget, for example"
        )
