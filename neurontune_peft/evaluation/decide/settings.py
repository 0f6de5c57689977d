"""Which settings of the dials are there to choose from, and which is milder than which?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neurontune_peft.choices import COUNTS, STRENGTHS
from neurontune_peft.tuner.presets import Setting, check_setting

DIALS = ("strength", "counts", "threshold")
# Steps of the trigger's threshold around its own, in log-odds, as the trigger is a logistic regression (`ours`).
SHIFTS = (2.0, 1.0, -1.0, -2.0)
# What `certify` walks along, from the mildest to the strongest; fine steps cost nothing but time (`ours`).
PATHS: dict[str, tuple[float, ...]] = {
    "strength": (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5),
    "counts": (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    "threshold": (4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, -2.0),
}

Count = float | Mapping[str, int]


def grid(
    config: Any,
    *,
    strengths: Sequence[float] = STRENGTHS,
    counts: Sequence[Count] = COUNTS,
    thresholds: Sequence[float] | None = None,
) -> tuple[Setting, ...]:
    """
    Settings to measure: the base model, each strength with each count, and each threshold with all dials as trained.

    Args:
        config ([`NeuronTuneConfig`]): Configuration of the adapter.
        strengths (`Sequence[float]`, *optional*): Strengths.
        counts (`Sequence[float | Mapping[str, int]]`, *optional*): Shares of every role's ranking, or counts by role.
        thresholds (`Sequence[float]`, *optional*):
            Thresholds of the trigger. Left out, the adapter's own and some around it; none for static modulation.

    Returns:
        `tuple[Setting, ...]`: From the mildest to the strongest, each once, with every count and threshold named.

    Raises:
        ValueError: When a value is impossible for this adapter.
    """
    own = own_threshold(config)
    if thresholds is None:
        thresholds = () if own is None else tuple(own + shift for shift in SHIFTS)
    chosen = [Setting(0.0, counts_of(config, 1.0), own)]
    chosen += [Setting(float(s), counts_of(config, count), own) for s in strengths for count in counts]
    chosen += [Setting(1.0, counts_of(config, 1.0), float(threshold)) for threshold in thresholds]
    for setting in chosen:
        check_setting(setting, config)
    return in_order(chosen)


def path(config: Any, dial: str | None = None) -> tuple[Setting, ...]:
    """
    Settings of one dial from the mildest to the strongest, the others as trained.

    Args:
        config ([`NeuronTuneConfig`]): Configuration of the adapter.
        dial (`str`, *optional*):
            `"strength"`, `"counts"` or `"threshold"`; left out, the threshold of an adapter with a trigger, and the
            strength of another.

    Raises:
        ValueError: When the dial is unknown, or the adapter has no trigger.
    """
    own = own_threshold(config)
    dial = dial or ("strength" if own is None else "threshold")
    if dial not in DIALS or (dial == "threshold" and own is None):
        known = DIALS if own is not None else DIALS[:2]
        raise ValueError(f"got dial '{dial}'; expected one of {list(known)} for this adapter; choose one of them")
    whole = counts_of(config, 1.0)
    if dial == "strength":
        return in_order(Setting(strength, whole, own) for strength in PATHS[dial])
    if dial == "counts":
        return in_order(Setting(1.0, counts_of(config, share), own) for share in PATHS[dial])
    assert own is not None
    return in_order(Setting(1.0, whole, own + shift) for shift in PATHS[dial])


def in_order(settings: Any) -> tuple[Setting, ...]:
    """
    Settings from the mildest to the strongest, each once: by strength times number of neurons, then by falling
    threshold. Nothing that was measured goes into it.

    Args:
        settings (`Iterable[Setting]`): Settings of one adapter.
    """
    unique = {str(setting.as_dict()): setting for setting in settings}
    return tuple(sorted(unique.values(), key=mildness))


def mildness(setting: Setting) -> tuple[float, float, float]:
    """What [`in_order`] sorts by."""
    threshold = 0.0 if setting.threshold is None else setting.threshold
    return setting.strength * sum(setting.counts.values()), -threshold, setting.strength


def counts_of(config: Any, count: Count) -> dict[str, int]:
    """
    Count thresholds of all roles.

    Args:
        config ([`NeuronTuneConfig`]): Configuration of the adapter.
        count (`float` or `Mapping[str, int]`): A share of every role's ranking, rounded up, or counts of some roles.

    Raises:
        ValueError: When a share is not between 0 and 1.
    """
    held = {role: sum(sites.values()) for role, sites in (config.neuron_counts or {}).items()}
    if isinstance(count, Mapping):
        return {**held, **count}
    if not 0 <= count <= 1:
        raise ValueError(f"got counts {count}; expected a share from 0 to 1, or counts by role; correct it")
    return {role: -int(-total * count // 1) for role, total in held.items()}


def own_threshold(config: Any) -> float | None:
    """The threshold of an adapter's trigger; `None` for static modulation."""
    return float(config.trigger_threshold) if config.modulation == "dynamic" else None
