"""Adapters as files: everything that one says about itself, read without loading any model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save
from torch import Tensor

from neurontune_peft.checks import write_atomically
from neurontune_peft.neurons import Neurons
from neurontune_peft.tuner.adapter_file import check_adapter_file
from neurontune_peft.tuner.checksum import with_checksum
from neurontune_peft.tuner.config import MAX_CONFIG, NeuronTuneConfig
from neurontune_peft.tuner.loading import SiteLayout, check_adapter_tensors, tensors_by_adapter
from neurontune_peft.tuner.names import DELTA, INDEX, RANK, TRIGGER
from neurontune_peft.tuner.remote import fetch

# PEFT's names of an adapter's tensors begin with this.
_STEM = "base_model.model."


@dataclass(frozen=True)
class AdapterFile:
    """
    A saved adapter, checked but attached to no model.

    Args:
        config ([`NeuronTuneConfig`]): Its configuration.
        neurons ([`Neurons`]): Its neurons with their ranks.
        deltas (`Mapping[str, Mapping[str, torch.Tensor]]`): Role to site to float tensors of shape `(k,)`.
        size (`int`): Bytes of `adapter_model.safetensors`.
        triggers (`Mapping[str, Mapping[str, torch.Tensor]]`, *optional*):
            As `deltas`, the weights of the trigger, of shape `(k, 2)`; empty for static modulation.
        checksum (`str`, *optional*): The checksum of its file, which is right; none where the file has none.
    """

    config: NeuronTuneConfig
    neurons: Neurons
    deltas: Mapping[str, Mapping[str, Tensor]]
    size: int
    triggers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    checksum: str | None = None

    @classmethod
    def load(cls, path_or_id: str | os.PathLike[str], **hub_options: Any) -> AdapterFile:
        """
        Read an adapter from a directory or from the Hub.

        Args:
            path_or_id (`str` or `os.PathLike`): The directory or the repository's name.
            hub_options: Options of [`~huggingface_hub.hf_hub_download`], such as `revision`.

        Raises:
            ValueError: When there is no adapter, it is damaged, or it is not one of this method.
        """
        is_local = Path(path_or_id).is_dir()
        if not is_local:  # PEFT would ask for it too, but say of every reason that it cannot be found
            fetch(str(path_or_id), CONFIG_NAME, limit=MAX_CONFIG, **hub_options)
        config = NeuronTuneConfig.from_pretrained(str(path_or_id), **hub_options)
        if not isinstance(config, NeuronTuneConfig):
            raise ValueError(
                f"got '{path_or_id}', an adapter of type {config.peft_type}; expected NEURONTUNE; load it "
                "with PEFT alone"
            )
        local = Path(path_or_id, SAFETENSORS_WEIGHTS_NAME)
        path = local if is_local else fetch(str(path_or_id), SAFETENSORS_WEIGHTS_NAME, **hub_options)
        checksum = check_adapter_file(path, modulation=config.modulation)
        layouts = site_layouts(config)
        found = {f"{key.removeprefix(_STEM)}.file": tensor for key, tensor in load_file(path).items()}
        tensors = tensors_by_adapter(found, "").get("file", {})
        check_adapter_tensors(tensors, layouts)

        def by_role(name: str) -> dict[str, dict[str, Tensor]]:
            roles = sorted(config.neuron_counts or {})
            return {
                role: {
                    site: tensors[site][name][lay.roles[role]] for site, lay in layouts.items() if role in lay.roles
                }
                for role in roles
            }

        indices, ranks = (
            {role: {site: part.long() for site, part in sites.items()} for role, sites in by_role(name).items()}
            for name in (INDEX, RANK)
        )
        widths = {site: layout.width for site, layout in layouts.items()}
        neurons = Neurons(indices=indices, ranks=ranks, widths=widths)
        triggers = by_role(TRIGGER) if config.modulation == "dynamic" else {}
        size = path.stat().st_size
        return cls(
            config=config, neurons=neurons, deltas=by_role(DELTA), size=size, triggers=triggers, checksum=checksum
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """
        Write what [`~peft.PeftModel.save_pretrained`] would write for this adapter, without its card.

        Args:
            directory (`str` or `os.PathLike`): The directory, created when missing.
        """
        write_atomically(Path(directory, SAFETENSORS_WEIGHTS_NAME), self.to_bytes())
        self.config.save_pretrained(str(directory))

    def to_bytes(self) -> bytes:
        """The content of `adapter_model.safetensors`; equal adapters give equal bytes."""
        tensors = {}
        for site, layout in site_layouts(self.config).items():
            roles = [role for role, _ in sorted(layout.roles.items(), key=lambda item: item[1].start)]
            parts = {
                DELTA: [self.deltas[role][site] for role in roles],
                INDEX: [self.neurons.indices[role][site].int() for role in roles],
                RANK: [self.neurons.ranks[role][site].int() for role in roles],
                TRIGGER: [self.triggers[role][site] for role in roles if self.triggers],
            }
            for name in layout.saved:
                tensors[f"{_STEM}{site}.{name}"] = torch.cat(parts[name])
        return with_checksum(save(tensors, metadata={"format": "pt"}))


def site_layouts(config: NeuronTuneConfig) -> dict[str, SiteLayout]:
    """
    What a configuration says about the tensors of each site, in the order of its sites.

    Raises:
        ValueError: When the configuration names no neurons or leaves out a width.
    """
    counts, widths = config.neuron_counts, config.site_widths
    if not counts or widths is None or not {site for per_site in counts.values() for site in per_site} <= set(widths):
        raise ValueError(
            "got an adapter_config.json without neuron_counts and site_widths for each site; expected both; save the "
            "adapter with save_pretrained"
        )
    layouts = {}
    # JSON objects are written with sorted keys, which puts layer 10 before layer 2.
    for site in sorted(widths, key=lambda name: [(int(n), "") if n.isdigit() else (-1, n) for n in name.split(".")]):
        roles, start = {}, 0
        for role in sorted(counts):
            if site in counts[role]:
                roles[role] = slice(start, start + counts[role][site])
                start = roles[role].stop
        layouts[site] = SiteLayout(roles=roles, width=widths[site], dynamic=config.modulation == "dynamic")
    return {site: layout for site, layout in layouts.items() if layout.count}
