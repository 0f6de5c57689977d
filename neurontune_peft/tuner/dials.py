"""The dials of attached adapters: strength and count thresholds, turned at run time without reloading."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.modulation import TRIGGER_FIELDS


class Dials:
    """Methods of [`NeuronTuneModel`] that change how strongly, and with how many neurons, its adapters act."""

    model: nn.Module
    peft_config: dict
    active_adapters: list[str]

    def neuron_layers(self, adapter_name: str) -> dict[str, NeuronTuneLayer]:
        """
        The layers that hold neurons of an adapter, by site, in the model's order.

        Raises:
            ValueError: When there is no such adapter.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(
                f"got adapter_name={adapter_name!r}; expected one of {list(self.peft_config)}; load or add it first"
            )
        # A compiled model names its modules with a prefix that is no part of a site's name.
        modules = {name.removeprefix("_orig_mod."): module for name, module in self.model.named_modules()}
        layers = {name: layer for name, layer in modules.items() if isinstance(layer, NeuronTuneLayer)}
        return {name: layer for name, layer in layers.items() if adapter_name in layer.neurontune_delta}

    def set_strength(self, strength: float, role: str | None = None, adapter_name: str | None = None) -> None:
        """
        Turn the dial: a neuron's effective scale is `1 + strength * delta`.

        Strength 0 is the base model bit for bit, 1 the adapter as trained; values between and above are allowed. A
        merged adapter is merged again, exactly.

        Args:
            strength (`float`): The dial.
            role (`str`, *optional*): Only the neurons of this role; all roles by default.
            adapter_name (`str`, *optional*): Only this adapter; the active ones by default.

        Raises:
            ValueError: When the strength is not finite, or role or adapter do not exist. Nothing is changed then.
        """
        if not math.isfinite(strength):
            raise ValueError(f"got strength={strength}; expected a finite number; 0 is the base model, 1 the adapter")
        for layer, name, found in self._dials(adapter_name, roles=None if role is None else (role,)):
            layer.turn_dial(name, found, strength=float(strength))

    def set_neuron_counts(self, adapter_name: str | None = None, **counts: int | None) -> None:
        """
        Use only the top-ranked neurons of the named roles; the others rest until the count is raised again.

        Args:
            adapter_name (`str`, *optional*): Only this adapter; the active ones by default.
            counts (`int` or `None`): Role to count threshold, for example `safety=64, utility=0`; `None` means all.

        Raises:
            ValueError: When a role does not exist, or a count is negative or above what the adapter holds.
        """
        dials = self._dials(adapter_name, roles=tuple(counts))
        for role, count in counts.items():
            held = min(self._totals(name, role) for name in {name for _, name, _ in dials})
            if count is not None and not 0 <= count <= held:
                raise ValueError(f"got {role}={count}; expected 0 to {held}; lower the count, or select more neurons")
        for layer, name, role in dials:
            layer.turn_dial(name, role, count=counts[role])

    @contextmanager
    def strength(self, strength: float, role: str | None = None, adapter_name: str | None = None) -> Iterator[None]:
        """
        Turn the dial for the duration of a `with` block; the old setting comes back on exceptions too.

        Args:
            strength (`float`): As in [`~NeuronTuneModel.set_strength`].
            role (`str`, *optional*): Only the neurons of this role.
            adapter_name (`str`, *optional*): Only this adapter.

        Example:

            ```py
            >>> with model.strength(0.0):  # the base model
            ...     logits = model(**batch).logits
            ```
        """
        before = [(layer, name, r, layer.dials[name][r]) for layer, name, r in self._dials(adapter_name, roles=None)]
        self.set_strength(strength, role=role, adapter_name=adapter_name)
        try:
            yield
        finally:
            for layer, name, found, dial in before:
                layer.turn_dial(name, found, strength=dial.strength, count=dial.count)

    def load_scales_(
        self, path_or_id: str | os.PathLike[str], adapter_name: str | None = None, **hub_options: Any
    ) -> None:
        """
        Replace the numbers of an attached adapter in place by those of a file, without recompiling anything.

        Everything is checked before the first number changes. The dials keep their settings; a merged adapter is
        merged again.

        Args:
            path_or_id (`str` or `os.PathLike`): Directory or Hub name of an adapter with as many neurons per site and
                role.
            adapter_name (`str`, *optional*): The adapter; by default the only active one.
            hub_options: Options of [`~huggingface_hub.hf_hub_download`], such as `revision`.

        Raises:
            ValueError: When the file is broken, made for another base model, or has other sites, roles or counts.
        """
        name = self.active_adapters[0] if adapter_name is None else adapter_name
        layers = self.neuron_layers(name)
        file = AdapterFile.load(path_or_id, **hub_options)
        attached = self.peft_config[name]
        for what in ("neuron_counts", "site_widths", "neuron_side", "base_model_fingerprint", "modulation"):
            if getattr(file.config, what) != getattr(attached, what):
                raise ValueError(
                    f"got '{path_or_id}', whose {what} differs from that of adapter '{name}'; expected the same "
                    "shapes, modulation and base model; attach it with load_adapter instead"
                )
        with torch.no_grad():
            for site, layer in layers.items():
                for role, part in layer.roles[name].items():
                    layer.neurontune_delta[name][part] = file.deltas[role][site].to(layer.neurontune_delta[name])
                    layer.neurontune_index[name][part] = file.neurons.indices[role][site].to(
                        layer.neurontune_index[name]
                    )
                    layer.neurontune_rank[name][part] = file.neurons.ranks[role][site].to(layer.neurontune_rank[name])
                    if file.triggers:
                        trigger = layer.neurontune_trigger[name]
                        trigger[part] = file.triggers[role][site].to(trigger)
        for layer in layers.values():
            for role in layer.roles[name]:
                layer.turn_dial(name, role)
        for what in ("provenance", "presets", "format_version", *TRIGGER_FIELDS):
            setattr(attached, what, getattr(file.config, what))

    def _totals(self, adapter_name: str, role: str) -> int:
        return sum(self.peft_config[adapter_name].neuron_counts.get(role, {}).values())

    def _dials(
        self, adapter_name: str | None, *, roles: tuple[str, ...] | None
    ) -> list[tuple[NeuronTuneLayer, str, str]]:
        """Layer, adapter and role of every dial that a call is about; checked before any is turned."""
        names = self.active_adapters if adapter_name is None else [adapter_name]
        found = [
            (layer, name, role)
            for name in names
            for layer in self.neuron_layers(name).values()
            for role in layer.dials[name]
        ]
        existing = {role for _, _, role in found}
        if roles is not None and not existing.issuperset(roles):
            raise ValueError(
                f"got role {sorted(set(roles) - existing)}; expected one of {sorted(existing)}; see the adapter's "
                "neuron_counts"
            )
        return [dial for dial in found if roles is None or dial[2] in roles]
