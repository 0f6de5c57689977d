"""Configurations that take another method's options, so that a test written for one method configures another.

The translation: a module among IA3's `feedforward_modules` is scaled at its inputs, as in NEURONTUNE with
`neuron_side="input"`; the others at their outputs, as with `"output"`. Options that only LoRA has skip the case.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, PeftConfig

from neurontune_peft import NeuronTuneConfig

# Options of LoRA that say nothing about what is tested; the others skip a case.
NEUTRAL_LORA_OPTIONS = ("r", "lora_alpha", "lora_dropout", "fan_in_fan_out")


def ia3_options(options: dict[str, Any]) -> dict[str, Any]:
    """Translate options of LoRA into options of IA3; options that only LoRA has skip the case."""
    options = {name: value for name, value in options.items() if name not in NEUTRAL_LORA_OPTIONS}
    if options.get("bias") == "none":
        options.pop("bias")
    weights = options.pop("init_lora_weights", True)
    if not isinstance(weights, bool):
        pytest.skip(f"init_lora_weights={weights!r} is an option of LoRA")
    allowed = {field.name for field in dataclasses.fields(IA3Config)} | {"layers_to_transform", "layers_pattern"}
    for name, value in options.items():
        if name not in allowed:
            pytest.skip(f"`{name}={value!r:.40}` is an option of LoRA")
    targets = options.get("target_modules")
    if targets is not None and "feedforward_modules" not in options:
        options["feedforward_modules"] = [] if isinstance(targets, str) else list(targets)
    return {"init_ia3_weights": weights, **options}


def neurontune_options(options: dict[str, Any]) -> dict[str, Any]:
    """Translate options of IA3 into options of NEURONTUNE."""
    options = dict(options)
    if "init_ia3_weights" in options:
        options["init_weights"] = options.pop("init_ia3_weights")
    options.pop("fan_in_fan_out", None)
    if "feedforward_modules" in options:
        inputs = options.pop("feedforward_modules")
        targets = options.get("target_modules")
        if isinstance(targets, list) and isinstance(inputs, list) and not set(inputs) <= set(targets):
            pytest.skip("`feedforward_modules` is an option of IA3")
        if targets is not None:
            options.setdefault("neuron_side", "input" if inputs else "output")
    return options


class StandIn(type):
    """A class whose instances are, for `isinstance`, all configurations of the method that it stands for."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, cls.__mro__[1])


class LoraAsIA3(IA3Config, metaclass=StandIn):
    """IA3's configuration under LoRA's name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**ia3_options(options))


class IA3AsNeuronTune(NeuronTuneConfig, metaclass=StandIn):
    """NEURONTUNE's configuration under IA3's name."""

    feedforward_modules = None  # some tests ask whether the class has it

    def __init__(self, **options: Any) -> None:
        super().__init__(**neurontune_options(options))


class LoraAsNeuronTune(NeuronTuneConfig, metaclass=StandIn):
    """NEURONTUNE's configuration under LoRA's name."""

    def __init__(self, **options: Any) -> None:
        own = {field.name for field in dataclasses.fields(NeuronTuneConfig)} - {"target_modules"}
        rest = {name: value for name, value in options.items() if name not in own}
        kept = {name: value for name, value in options.items() if name in own}
        super().__init__(**{**neurontune_options(ia3_options(rest)), **kept})


# Some messages are compared with the name of a test's class.
LoraAsIA3.__name__, IA3AsNeuronTune.__name__, LoraAsNeuronTune.__name__ = "IA3Config", *["NeuronTuneConfig"] * 2

STAND_INS: dict[tuple[str, str], type[PeftConfig]] = {
    ("IA3", "LoraConfig"): LoraAsIA3,
    ("NEURONTUNE", "IA3Config"): IA3AsNeuronTune,
    ("NEURONTUNE", "LoraConfig"): LoraAsNeuronTune,
}


def translated(value: Any, method: str) -> Any:
    """A parameter of a test for one method: configuration classes and instances are exchanged."""
    for name, original in (("IA3Config", IA3Config), ("LoraConfig", LoraConfig)):
        stand_in = STAND_INS.get((method, name))
        if stand_in is None:
            continue
        if value is original:
            return stand_in
        if type(value) is original:
            changed = {
                field.name: getattr(value, field.name)
                for field in dataclasses.fields(value)
                if field.name not in ("peft_type", "peft_version") and getattr(value, field.name) != default_of(field)
            }
            return stand_in(**{k: sorted(v) if isinstance(v, set) else v for k, v in changed.items()})
    return value


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field of a dataclass."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
