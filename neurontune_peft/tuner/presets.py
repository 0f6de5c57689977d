"""Named settings of an adapter's dials, chosen from measurements and kept in its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurontune_peft.tuner.layer import NeuronTuneLayer

# What a preset may say: where the dials stand, and what was measured there.
_DIALS, _MEASURED = ("strength", "counts", "threshold"), "measured"


@dataclass(frozen=True)
class Setting:
    """
    Where the dials of an adapter stand.

    Args:
        strength (`float`, *optional*, defaults to `1.0`): Effective scales are `1 + strength * delta`.
        counts (`Mapping[str, int]`, *optional*): Role to how many of its top-ranked neurons act; roles that are not
            named use all of theirs.
        threshold (`float`, *optional*): Scores of the trigger above it trigger; left out, it stays as it is.

    Raises:
        ValueError: When a value is impossible.
    """

    strength: float = 1.0
    counts: Mapping[str, int] = field(default_factory=dict)
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("strength", self.strength), ("threshold", self.threshold)):
            optional = name == "threshold" and value is None
            if not optional and (type(value) not in (int, float) or not math.isfinite(value)):  # type: ignore[arg-type]
                raise ValueError(f"got {name}={value!r}; expected a finite number; correct the setting")
        if not isinstance(self.counts, Mapping) or not all(
            isinstance(role, str) and type(count) is int and count >= 0 for role, count in self.counts.items()
        ):
            raise ValueError(
                f"got counts={self.counts!r:.200}; expected {{role: number of neurons}}; correct the setting"
            )

    def as_dict(self) -> dict[str, Any]:
        """The setting as JSON values: `strength`, `counts` and `threshold`."""
        return {"strength": self.strength, "counts": dict(self.counts), "threshold": self.threshold}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setting:
        """
        Make a setting of what `as_dict` gave; what was measured there is left aside.

        Raises:
            ValueError: When a field is unknown or wrong.
        """
        if not isinstance(values, Mapping) or (unknown := sorted(set(values) - {*_DIALS, _MEASURED})):
            what = f"got a preset with the fields {unknown}" if isinstance(values, Mapping) else f"got {values!r:.200}"
            raise ValueError(f"{what}; expected an object of {[*_DIALS, _MEASURED]}; correct or remove it")
        return cls(**{name: values[name] for name in _DIALS if name in values})

    def __str__(self) -> str:
        counts = "".join(f", {role}={count}" for role, count in sorted(self.counts.items()))
        threshold = "" if self.threshold is None else f", threshold {self.threshold:.3f}"
        return f"strength {self.strength:g}{counts}{threshold}"


def check_presets(config: Any) -> None:
    """
    Refuse presets that could not be used.

    Args:
        config ([`NeuronTuneConfig`]): The configuration.

    Raises:
        ValueError: Names the first preset that is wrong, and why.
    """
    presets = config.presets
    if presets is None:
        return
    if not isinstance(presets, dict) or not all(isinstance(name, str) and name for name in presets):
        raise ValueError(f"got presets={presets!r:.200}; expected {{name: setting}}; run neurontune sweep again")
    for name, values in presets.items():
        try:
            check_setting(Setting.from_dict(values), config)
        except ValueError as error:
            raise ValueError(f"preset '{name}': {error}") from None


def check_setting(setting: Setting, config: Any) -> None:
    """
    Refuse a setting that an adapter cannot have.

    Args:
        setting ([`Setting`]): The setting.
        config ([`NeuronTuneConfig`]): Configuration of the adapter.

    Raises:
        ValueError: When a role is unknown, a count is above what the adapter holds, or it has no trigger.
    """
    held = {role: sum(sites.values()) for role, sites in (config.neuron_counts or {}).items()}
    for role, count in setting.counts.items():
        if role not in held:
            raise ValueError(f"got counts of role '{role}'; expected one of {sorted(held)}; correct the setting")
        if count > held[role]:
            raise ValueError(f"got {role}={count}; expected 0 to {held[role]}; lower the count")
    if setting.threshold is not None and config.modulation == "static":
        raise ValueError(
            f"got threshold={setting.threshold} for an adapter with static modulation, which has no trigger; expected "
            "none; leave it out"
        )


class Presets:
    """Methods of [`NeuronTuneModel`] that turn all dials of an adapter at once."""

    peft_config: dict
    active_adapters: list[str]
    if TYPE_CHECKING:  # of the classes that this one is mixed with

        def neuron_layers(self, adapter_name: str) -> dict[str, NeuronTuneLayer]: ...

    @property
    def presets(self) -> dict[str, Setting]:
        """`dict[str, Setting]`: Name to setting, of the active adapter; of the first, where several are active."""
        presets = self.peft_config[self.active_adapters[0]].presets or {}
        return {name: Setting.from_dict(values) for name, values in presets.items()}

    def use_preset(self, name: str, adapter_name: str | None = None) -> None:
        """
        Turn the dials to a setting that the adapter brings, such as `"security"`, `"balanced"` or `"utility"`.

        A threshold of the trigger is kept in the configuration, and so saved with the adapter.

        Args:
            name (`str`): The preset; `presets` lists them.
            adapter_name (`str`, *optional*): Only this adapter; the active ones by default.

        Raises:
            ValueError: When an adapter has no such preset. Nothing is changed then.
        """
        adapters = self.active_adapters if adapter_name is None else [adapter_name]
        for adapter in adapters:
            self.neuron_layers(adapter)  # refuses an unknown adapter
            known = self.peft_config[adapter].presets or {}
            if name not in known:
                raise ValueError(
                    f"got preset '{name}'; expected one of {sorted(known)} for adapter '{adapter}'; choose one of "
                    "them, or write presets with neurontune sweep"
                )
        for adapter in adapters:
            self.turn_to(Setting.from_dict(self.peft_config[adapter].presets[name]), adapter)

    def turn_to(self, setting: Setting, adapter_name: str | None = None) -> None:
        """
        Turn all dials of an adapter: strength, counts of every role, and the trigger's threshold where one is given.

        Args:
            setting ([`Setting`]): Where they shall stand.
            adapter_name (`str`, *optional*): Only this adapter; the active ones by default.

        Raises:
            ValueError: When the adapter cannot be set so. Nothing is changed then.
        """
        adapters = self.active_adapters if adapter_name is None else [adapter_name]
        for adapter in adapters:
            check_setting(setting, self.peft_config[adapter])
        for adapter in adapters:
            for layer in self.neuron_layers(adapter).values():
                for role in layer.roles[adapter]:
                    layer.turn_dial(adapter, role, strength=float(setting.strength), count=setting.counts.get(role))
            if setting.threshold is not None:
                self.peft_config[adapter].trigger_threshold = float(setting.threshold)

    @contextmanager
    def turned_to(self, setting: Setting, adapter_name: str | None = None) -> Iterator[None]:
        """
        [`~NeuronTuneModel.turn_to`] for the duration of a `with` block; the old setting comes back on exceptions too.

        Args:
            setting ([`Setting`]): Where the dials shall stand.
            adapter_name (`str`, *optional*): Only this adapter; the active ones by default.
        """
        adapters = self.active_adapters if adapter_name is None else [adapter_name]
        layers = [(layer, name) for name in adapters for layer in self.neuron_layers(name).values()]
        dials = [(layer, name, role, dial) for layer, name in layers for role, dial in layer.dials[name].items()]
        thresholds = {name: self.peft_config[name].trigger_threshold for name in adapters}
        try:
            self.turn_to(setting, adapter_name)
            yield
        finally:
            for layer, name, role, dial in dials:
                layer.turn_dial(name, role, strength=dial.strength, count=dial.count)
            for name, threshold in thresholds.items():
                self.peft_config[name].trigger_threshold = threshold
