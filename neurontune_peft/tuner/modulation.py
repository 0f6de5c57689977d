"""What an adapter's configuration says about its modulation: static, or decided for each request by a trigger."""

from __future__ import annotations

import math
from typing import Any

# Version 2 of the file format is version 1 with a trigger, version 3 is version 2 with a trigger that reads windows.
# Adapters are written in the oldest version that can hold them.
STATIC_FORMAT, DYNAMIC_FORMAT, WINDOW_FORMAT = 1, 2, 3
# Fields of the configuration that only dynamic adapters write.
TRIGGER_FIELDS = (
    "modulation",
    "strength_off",
    "strength_on",
    "trigger_bias",
    "trigger_threshold",
    "trigger_gate",
    "trigger_ramp",
    "trigger_suffix",
    "trigger_opening",
    "trigger_window",
    "recheck_every",
)


def format_of(modulation: str, window: int | None) -> int:
    """The oldest version of the file format that can hold an adapter."""
    if modulation == "static":
        return STATIC_FORMAT
    return DYNAMIC_FORMAT if window is None else WINDOW_FORMAT


def check_modulation(config: Any) -> None:
    """
    Refuse impossible settings of a trigger.

    Args:
        config ([`NeuronTuneConfig`]): The configuration.

    Raises:
        ValueError: Names the first field that is wrong.
    """
    for name, choices in (("modulation", ("static", "dynamic")), ("trigger_gate", ("step", "ramp", "sigmoid"))):
        if getattr(config, name) not in choices:
            raise ValueError(
                f"got {name}={getattr(config, name)!r}; expected one of {list(choices)}; choose one of them"
            )
    for name in ("strength_off", "strength_on", "trigger_bias", "trigger_threshold", "trigger_ramp"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"got {name}={value!r}; expected a finite number; fit the trigger again or correct it")
    if config.trigger_ramp < 0 or (config.trigger_gate == "ramp" and config.trigger_ramp == 0):
        raise ValueError(
            f"got trigger_ramp={config.trigger_ramp} with trigger_gate={config.trigger_gate!r}; expected a number "
            "above 0 for 'ramp', at least 0 for others; fit the trigger again, or use 'step'"
        )
    _check_tokens("trigger_suffix", config.trigger_suffix, "generation_suffix")
    _check_tokens("trigger_opening", config.trigger_opening, "turn_opening")
    check_window(config.trigger_window)
    _check_recheck(config)


def check_window(window: object, name: str = "trigger_window") -> None:
    """
    Refuse impossible windows.

    Raises:
        ValueError: When the number of tokens is no positive even one.
    """
    if window is not None and (type(window) is not int or window < 2 or window % 2):
        raise ValueError(
            f"got {name}={window!r}; expected a positive even number of tokens, as windows overlap by half, or None "
            "for means over whole turns; use 24"
        )


def _check_tokens(name: str, tokens: object, source: str) -> None:
    well_formed = tokens is None or (
        isinstance(tokens, (list, tuple)) and tokens and all(type(token) is int and token >= 0 for token in tokens)
    )
    if not well_formed:
        raise ValueError(
            f"got {name}={tokens!r:.200}; expected token ids of the chat template, or None; take what "
            f"{source}(tokenizer) returns"
        )


def _check_recheck(config: Any) -> None:
    every = config.recheck_every
    if every is None:
        return
    if type(every) is not int or every < 1:
        raise ValueError(f"got recheck_every={every!r}; expected a positive number of tokens, or None; correct it")
    if config.trigger_gate == "sigmoid" or config.strength_off != 0:
        raise ValueError(
            f"got recheck_every={every} with trigger_gate={config.trigger_gate!r} and strength_off="
            f"{config.strength_off}; expected 'step' or 'ramp' and 0, as later decisions too are read from the base "
            "model's activations; leave out recheck_every or change the two"
        )
