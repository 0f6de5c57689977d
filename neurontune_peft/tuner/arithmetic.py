"""New adapter files out of others: weighted sums, the first part of a ranking, and what two have in common."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neurontune_peft.neurons import Neurons
from neurontune_peft.tuner.combine import combined_neurons
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.modulation import TRIGGER_FIELDS

# Role of the neurons that a pruned adapter only reads, because its trigger looks at them; their scale is 1.
READ_ONLY_ROLE = "trigger"
# Neurons of a site; fused experts of today's largest models have half a million.
WIDEST = 100_000_000


def compose(adapters: Sequence[AdapterFile], weights: Sequence[float], *, drop_triggers: bool = False) -> AdapterFile:
    """
    The weighted sum of adapters, as [`~NeuronTuneModel.add_weighted_adapter`] makes it, without any model.

    Each neuron that one of them holds gets `delta = sum(weight * delta)`, the role that the first of them gives it,
    and its best rank. The result is static: triggers are not summed.

    Args:
        adapters (`Sequence[AdapterFile]`): The adapters.
        weights (`Sequence[float]`): One weight for each; negative ones are allowed.
        drop_triggers (`bool`, *optional*, defaults to `False`):
            Take adapters with dynamic modulation, too; in the sum, their scales act on every request.

    Raises:
        ValueError: When adapters and weights do not fit together.
    """
    _check_composable(adapters, weights, drop_triggers=drop_triggers)
    neurons = combined_neurons([adapter.neurons for adapter in adapters])
    totals: dict[str, Tensor] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for role, sites in adapter.neurons.indices.items():
            for site, index in sites.items():
                total = totals.setdefault(site, torch.zeros(neurons.widths[site]))
                total.index_add_(0, index, weight * adapter.deltas[role][site].float())
    deltas = {r: {s: totals[s][index] for s, index in sites.items()} for r, sites in neurons.indices.items()}
    parts = [
        {"sha256": hashlib.sha256(adapter.to_bytes()).hexdigest(), "weight": float(weight)}
        for adapter, weight in zip(adapters, weights, strict=True)
    ]
    prints = {adapter.config.base_model_fingerprint for adapter in adapters}
    config = _config(
        adapters[0],
        neurons,
        provenance={"composed": parts},
        # Some of the sites may be other adapters' only; then it is taken anew when the result is first loaded.
        base_model_fingerprint=prints.pop() if len(prints) == 1 else None,
        modulation="static",
    )
    return AdapterFile(config=config, neurons=neurons, deltas=deltas, size=0)


def prune(adapter: AdapterFile, counts: Mapping[str, int], *, drop_trigger: bool = False) -> AdapterFile:
    """
    Keep the top-ranked neurons of the named roles, as [`~NeuronTuneModel.set_neuron_counts`] does for a model.

    The trigger of an adapter with dynamic modulation goes on reading the neurons that are cut, so they stay in the
    file, at scale 1 and in a role of their own, `"trigger"`: the result decides and answers as the whole adapter does
    with these counts.

    Args:
        adapter ([`AdapterFile`]): The adapter.
        counts (`Mapping[str, int]`): Role to the number of neurons that stay; other roles stay whole.
        drop_trigger (`bool`, *optional*, defaults to `False`):
            Give the trigger up, and the neurons with it: the scales then act on every request.

    Raises:
        ValueError: When a role does not exist, a count is negative or too large, or no neuron would stay.
    """
    _check_scales_only(adapter)
    kept = adapter.neurons.head(**counts)
    if not kept.total:
        raise ValueError(f"got counts {dict(counts)}, which leave no neuron; expected at least one; raise a count")
    dynamic = adapter.config.modulation == "dynamic" and not drop_trigger
    ranked = {role: kept.ranked(role) for role in kept.roles if kept.totals[role]}
    if dynamic:
        ranked |= _only_read(adapter, kept)
    neurons = Neurons.from_ranked(ranked, widths=adapter.neurons.widths)
    deltas, triggers = (_by_index(adapter, values) for values in (adapter.deltas, adapter.triggers))
    config = _config(
        adapter,
        neurons,
        provenance=(adapter.config.provenance or {})
        | {"pruned": {"from": adapter.neurons.totals, "to": dict(counts)}},
        # The trigger's neurons stand at every site that they stood at, so nothing is lost of what is fingerprinted.
        base_model_fingerprint=adapter.config.base_model_fingerprint
        if set(neurons.sites) == set(adapter.neurons.sites)
        else None,
        **({} if dynamic else {"modulation": "static"}),
    )
    scaled = {
        role: {site: deltas[site][index] * (role != READ_ONLY_ROLE) for site, index in sites.items()}
        for role, sites in neurons.indices.items()
    }
    read = {
        r: {s: triggers[s][index] for s, index in sites.items()} for r, sites in neurons.indices.items() if dynamic
    }
    return AdapterFile(config=config, neurons=neurons, deltas=scaled, size=0, triggers=read)


@dataclass(frozen=True)
class Difference:
    """
    How two adapters differ.

    Args:
        only_first (`Mapping[str, int]`): Role to the number of neurons that only the first holds in it.
        only_second (`Mapping[str, int]`): The same for the second.
        both (`Mapping[str, int]`): Role to the number that both hold in it.
        changes (`tuple[tuple[str, str, int, float, float], ...]`):
            Role, site, index and the two scales of neurons that both hold with other scales; largest change first.
        config (`Mapping[str, tuple[Any, Any]]`): Field of the configuration to its two values, where they differ.
    """

    only_first: Mapping[str, int]
    only_second: Mapping[str, int]
    both: Mapping[str, int]
    changes: tuple[tuple[str, str, int, float, float], ...]
    config: Mapping[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """`bool`: Whether neurons, scales and configurations are equal."""
        return not (self.changes or self.config or any(self.only_first.values()) or any(self.only_second.values()))


def differences(first: AdapterFile, second: AdapterFile) -> Difference:
    """
    Compare two adapters neuron by neuron.

    Args:
        first ([`AdapterFile`]): One adapter.
        second ([`AdapterFile`]): The other.
    """
    held = [
        {(role, *neuron) for role in adapter.neurons.roles for neuron in adapter.neurons.ranked(role)}
        for adapter in (first, second)
    ]
    roles = sorted({*first.neurons.roles, *second.neurons.roles})

    def count(neurons: set[tuple[str, str, int]]) -> dict[str, int]:
        return {role: sum(1 for name, _, _ in neurons if name == role) for role in roles}

    scales = [_scales(adapter) for adapter in (first, second)]
    pairs = [(*key, scales[0][key], scales[1][key]) for key in held[0] & held[1]]
    changes = sorted((p for p in pairs if p[3] != p[4]), key=lambda p: (-abs(p[4] - p[3]), p[:3]))
    configs = [adapter.config.to_dict() for adapter in (first, second)]
    names = dict.fromkeys([*configs[0], *configs[1]])
    config = {n: (configs[0].get(n), configs[1].get(n)) for n in names if configs[0].get(n) != configs[1].get(n)}
    return Difference(
        only_first=count(held[0] - held[1]),
        only_second=count(held[1] - held[0]),
        both=count(held[0] & held[1]),
        changes=tuple(changes),
        config=config,
    )


def _scales(adapter: AdapterFile) -> dict[tuple[str, str, int], float]:
    return {
        (role, site, index): 1 + delta
        for role, sites in adapter.deltas.items()
        for site, deltas in sites.items()
        for index, delta in zip(adapter.neurons.indices[role][site].tolist(), deltas.tolist(), strict=True)
    }


def _only_read(adapter: AdapterFile, kept: Neurons) -> dict[str, list[tuple[str, int]]]:
    """The neurons that are cut but that the trigger reads, under the role that says so."""
    triggers = _by_index(adapter, adapter.triggers)
    staying = {neuron for role in kept.roles for neuron in kept.ranked(role)}
    everything = [neuron for role in adapter.neurons.roles for neuron in adapter.neurons.ranked(role)]
    read = [n for n in everything if n not in staying and bool(triggers[n[0]][n[1]].any())]
    if read and READ_ONLY_ROLE in kept.totals:
        read = [*kept.ranked(READ_ONLY_ROLE), *read]
    return {READ_ONLY_ROLE: read} if read else {}


def _by_index(adapter: AdapterFile, values: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Site to the values of all its neurons, shape `(F, ...)`; 0 where the adapter has none."""
    found: dict[str, Tensor] = {}
    for role, sites in values.items():
        for site, part in sites.items():
            dense = found.setdefault(site, part.new_zeros(adapter.neurons.widths[site], *part.shape[1:]))
            dense[adapter.neurons.indices[role][site]] = part
    return found


def _config(adapter: AdapterFile, neurons: Neurons, **changes: Any) -> Any:
    if changes.get("modulation") == "static":
        defaults = {name: type(adapter.config).__dataclass_fields__[name].default for name in TRIGGER_FIELDS}
        changes = defaults | changes
    return replace(
        adapter.config,
        neurons=None,
        neuron_counts=neurons.counts,
        site_widths={site: neurons.widths[site] for site in neurons.sites},
        target_modules=list(neurons.sites),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
        presets=None,  # they were measured with the neurons that it had
        **changes,
    )


def _check_scales_only(adapter: AdapterFile) -> None:
    if adapter.config.modules_to_save:
        raise ValueError(
            f"got an adapter with modules_to_save={adapter.config.modules_to_save}; expected scales alone, as whole "
            "modules are not summed or cut; use add_weighted_adapter on a model"
        )
    if too_wide := [site for site, width in adapter.neurons.widths.items() if width > WIDEST]:
        raise ValueError(
            f"got '{too_wide[0][:200]}' with {adapter.neurons.widths[too_wide[0]]:,} neurons; expected at most "
            f"{WIDEST:,}; no known model has more, so look at the adapter with neurontune audit"
        )


def _check_composable(adapters: Sequence[AdapterFile], weights: Sequence[float], *, drop_triggers: bool) -> None:
    if len(adapters) != len(weights) or not adapters or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(
            f"got {len(adapters)} adapters with weights {list(weights)}; expected one finite weight per adapter; "
            "make them equally long"
        )
    for adapter in adapters:
        _check_scales_only(adapter)
    for what in ("neuron_side", "task_type", "base_model_fingerprint"):
        found = {str(getattr(a.config, what)) for a in adapters if getattr(a.config, what) is not None}
        same_sites = len({a.neurons.sites for a in adapters}) == 1
        if len(found) > 1 and (same_sites or what != "base_model_fingerprint"):
            raise ValueError(
                f"got adapters with {what} {sorted(found)}; expected the same, as their neurons are not the same "
                "things; compose adapters of one base model"
            )
    widths: dict[str, int] = {}
    for site, width in (pair for adapter in adapters for pair in adapter.neurons.widths.items()):
        if widths.setdefault(site, width) != width:
            raise ValueError(
                f"got widths {widths[site]} and {width} at '{site}'; expected one; compose adapters of one base model"
            )
    if any(adapter.config.modulation == "dynamic" for adapter in adapters) and not drop_triggers:
        raise ValueError(
            "got an adapter whose trigger decides for each request (dynamic modulation); expected static ones, as "
            "triggers are not summed; say modulation static to have the scales act on every request"
        )
