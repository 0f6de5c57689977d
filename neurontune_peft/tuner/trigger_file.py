"""The trigger as a file: what an adapter reads to decide about requests, without its scales."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from neurontune_peft.checks import check_format_version, check_indices, write_atomically
from neurontune_peft.tuner.checksum import CONFIG_KEY, check_checksum, check_settings, values_checksum, with_checksum
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.modulation import TRIGGER_FIELDS

TENSORS, SETTINGS = "trigger.safetensors", "trigger.json"
FORMAT_VERSION = 2  # 1 where means are over whole turns, which older versions read as well
INDEX, WEIGHTS = "index", "trigger"  # names of a site's tensors in the file


@dataclass(frozen=True)
class Trigger:
    """
    A trigger without its adapter.

    Args:
        indices (`Mapping[str, torch.Tensor]`): Site to the neurons that it reads, `(k,)`, int64.
        weights (`Mapping[str, torch.Tensor]`): Site to weights as `get_trigger` gives them, `(k, 2)`.
        widths (`Mapping[str, int]`): Site to the number of its neurons in all.
        neuron_side (`str`): As in [`NeuronTuneConfig`].
        fields (`Mapping[str, Any]`): The adapter's configuration as far as it is about the trigger, JSON values.
        base_model_fingerprint (`str`, *optional*): Fingerprint of the weights that it was fitted on.
    """

    indices: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    widths: Mapping[str, int]
    neuron_side: str
    fields: Mapping[str, Any]
    base_model_fingerprint: str | None

    @property
    def numbers(self) -> int:
        """How many numbers were fitted: the weights, the bias and the threshold."""
        return sum(part.numel() for part in self.weights.values()) + 2

    @classmethod
    def of(cls, model: PeftModel, adapter_name: str = "default") -> Trigger:
        """
        The trigger of an attached adapter.

        Raises:
            ValueError: When the adapter has none.
        """
        tuner: Any = model.base_model
        layers = tuner.neuron_layers(adapter_name)
        indices = {site: layer.neurontune_index[adapter_name] for site, layer in layers.items()}
        widths = {site: layer.width for site, layer in layers.items()}
        return _trigger(tuner.peft_config[adapter_name], indices, tuner.get_trigger(adapter_name), widths)

    @classmethod
    def of_file(cls, path_or_id: str | os.PathLike[str], **hub_options: Any) -> Trigger:
        """
        The trigger of a saved adapter; arguments are those of [`AdapterFile.load`].

        Raises:
            ValueError: When there is no such adapter, or it has no trigger.
        """
        file = AdapterFile.load(path_or_id, **hub_options)
        indices, weights = (_joined(roles) for roles in (file.neurons.indices, file.triggers))
        return _trigger(file.config, indices, weights, file.neurons.widths)

    def to_bytes(self) -> bytes:
        """The tensors as a safetensors file."""
        tensors = {f"{site}.{INDEX}": part.int().contiguous() for site, part in self.indices.items()}
        tensors |= {f"{site}.{WEIGHTS}": part.contiguous() for site, part in self.weights.items()}
        return with_checksum(save(tensors))

    def to_json(self) -> str:
        """Everything else."""
        windows = self.fields["trigger_window"] is not None
        values = {
            "format_version": FORMAT_VERSION if windows else FORMAT_VERSION - 1,
            "site_widths": dict(self.widths),
            "neuron_side": self.neuron_side,
            "base_model_fingerprint": self.base_model_fingerprint,
            **{name: value for name, value in self.fields.items() if windows or name != "trigger_window"},
        }
        return json.dumps({**values, CONFIG_KEY: values_checksum(values)}, indent=2) + "\n"

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Trigger:
        """
        Read what [`export_trigger`] wrote.

        Raises:
            ValueError: When a file is missing, damaged or of a newer format.
        """
        try:
            values = json.loads(Path(directory, SETTINGS).read_text(encoding="utf-8"))
            check_format_version(values.get("format_version"), FORMAT_VERSION, what="trigger")
            if (expected := values.pop(CONFIG_KEY, None)) is not None:
                check_settings(values_checksum(values), expected, what=SETTINGS)
            check_checksum(Path(directory, TENSORS))
            tensors = load(Path(directory, TENSORS).read_bytes())
            widths = {site: int(width) for site, width in values["site_widths"].items()}
            indices = {site: tensors[f"{site}.{INDEX}"].long() for site in widths}
            weights = {site: tensors[f"{site}.{WEIGHTS}"] for site in widths}
            values = {"trigger_ramp": 0.0, "trigger_window": None} | values  # files of older versions know neither
            fields = {name: values[name] for name in TRIGGER_FIELDS}
            found = cls(indices, weights, widths, values["neuron_side"], fields, values.get("base_model_fingerprint"))
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"got '{directory}' ({error}); expected {SETTINGS} and {TENSORS} of a trigger; write them with "
                "export_trigger"
            ) from error
        for site, part in indices.items():
            check_indices(site, part, widths[site])
            if len(weights[site]) != len(part) or not bool(torch.isfinite(weights[site]).all()):
                raise ValueError(
                    f"got weights of shape {tuple(weights[site].shape)} for {len(part)} neurons at '{site}' of "
                    f"'{directory}'; expected finite ones, a row per neuron; export the trigger again"
                )
        return found


def export_trigger(adapter: str | os.PathLike[str], output: str | os.PathLike[str], **hub_options: Any) -> Path:
    """
    Write the trigger of a saved adapter without its scales: `trigger.safetensors` and `trigger.json`.

    Args:
        adapter (`str` or `os.PathLike`): Directory or Hub name of an adapter with dynamic modulation.
        output (`str` or `os.PathLike`): Directory to write into; made when missing.
        hub_options: Options of [`~huggingface_hub.hf_hub_download`], such as `revision`.

    Returns:
        `Path`: The directory, for [`TriggerGate.load`].

    Raises:
        ValueError: When there is no such adapter, or it has no trigger. Nothing is written then.
    """
    trigger, directory = Trigger.of_file(adapter, **hub_options), Path(output)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"got output '{output}', which is a file; expected a directory; choose another")
    write_atomically(directory / TENSORS, trigger.to_bytes())
    write_atomically(directory / SETTINGS, trigger.to_json())
    return directory


def _trigger(
    config: NeuronTuneConfig,
    indices: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    widths: Mapping[str, int],
) -> Trigger:
    if config.modulation != "dynamic" or not weights:
        raise ValueError(
            f"got an adapter with modulation='{config.modulation}', which has no trigger; expected 'dynamic'; fit a "
            "trigger with fit_trigger or `neurontune tune`"
        )
    return Trigger(
        {site: indices[site].cpu().long() for site in weights},
        {site: part.cpu() for site, part in weights.items()},
        {site: int(widths[site]) for site in weights},
        config.neuron_side,
        {name: getattr(config, name) for name in TRIGGER_FIELDS},
        config.base_model_fingerprint,
    )


def _joined(roles: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Site to the values of all its roles, one after the other in the order of their names."""
    sites: dict[str, list[Tensor]] = {}
    for role in sorted(roles):
        for site, part in roles[role].items():
            sites.setdefault(site, []).append(part)
    return {site: torch.cat(parts) for site, parts in sites.items()}
