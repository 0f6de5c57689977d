"""The trigger alone: a tiny classifier that tells a gateway which requests to send to the tuned model."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neurontune_peft.checks import check_format_version, check_indices, write_atomically
from neurontune_peft.neurons import Neurons
from neurontune_peft.objectives import call_options
from neurontune_peft.prompts import Batch, encode
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.files import AdapterFile
from neurontune_peft.tuner.modulation import TRIGGER_FIELDS
from neurontune_peft.tuner.requests import trigger_log

TENSORS, SETTINGS = "trigger.safetensors", "trigger.json"
FORMAT_VERSION = 1
INDEX, WEIGHTS = "index", "trigger"  # names of a site's tensors in the file
ROLE = "trigger"
RESTING = {"strength_off": 0.0, "strength_on": 0.0, "trigger_gate": "step", "recheck_every": None}


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
        return save(tensors)

    def to_json(self) -> str:
        """Everything else."""
        values = {
            "format_version": FORMAT_VERSION,
            "site_widths": dict(self.widths),
            "neuron_side": self.neuron_side,
            "base_model_fingerprint": self.base_model_fingerprint,
            **self.fields,
        }
        return json.dumps(values, indent=2) + "\n"

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
            tensors = load(Path(directory, TENSORS).read_bytes())
            widths = {site: int(width) for site, width in values["site_widths"].items()}
            indices = {site: tensors[f"{site}.{INDEX}"].long() for site in widths}
            weights = {site: tensors[f"{site}.{WEIGHTS}"] for site in widths}
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


class TriggerGate:
    """
    Says which requests go to the tuned model, by the activations of the base model alone.

    The base model is not changed: the trigger reads a twin of it that shares all its weights.

    Args:
        trigger ([`Trigger`]): The trigger.
        model (`nn.Module`): The plain base model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
        strict (`bool`, *optional*, defaults to `False`):
            Refuse a base model or a chat template for which the trigger was not fitted; otherwise a warning is given.

    Raises:
        ValueError: When the model has adapters or lacks the trigger's sites.

    Example:

        ```py
        >>> gate = TriggerGate.load("trigger", model, tokenizer)
        >>> gate(["How do I whittle a spoon?"])  # True: send it to the tuned model
        [False]
        ```
    """

    def __init__(
        self,
        trigger: Trigger,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        strict: bool = False,
    ) -> None:
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ValueError(
                f"got a {type(model).__name__} with adapters; expected the plain base model, whose activations a "
                "trigger reads; load it without them, or call unload()"
            )
        self.trigger, self.tokenizer, self.chat_template = trigger, tokenizer, chat_template
        self.threshold = float(trigger.fields["trigger_threshold"])
        self._model = _attached(trigger, model, strict=strict)
        tuner: Any = self._model.base_model
        tuner.check_tokenizer(tokenizer, chat_template=chat_template, strict=strict)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        strict: bool = False,
    ) -> TriggerGate:
        """
        A gate from what [`export_trigger`] wrote.

        Args:
            directory (`str` or `os.PathLike`): The directory.
            model (`nn.Module`): The plain base model.
            tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
            chat_template (`str`, *optional*): Replaces the tokenizer's own.
            strict (`bool`, *optional*, defaults to `False`): Refuse another base model or chat template.

        Raises:
            ValueError: When the files are damaged, or model or template do not fit.
        """
        return cls(Trigger.load(directory), model, tokenizer, chat_template=chat_template, strict=strict)

    def __call__(self, texts: Sequence[str], *, batch_size: int = 16) -> list[bool]:
        """Whether each request goes to the tuned model; arguments are those of [`~TriggerGate.scores`]."""
        return [score is not None and score > self.threshold for score in self.scores(texts, batch_size=batch_size)]

    def scores(self, texts: Sequence[str], *, batch_size: int = 16) -> list[float | None]:
        """
        The trigger's score of each request; those above `threshold` go to the tuned model.

        Args:
            texts (`Sequence[str]`): Requests, put into the chat template.
            batch_size (`int`, *optional*, defaults to `16`): Requests per forward pass.

        Returns:
            `list[float | None]`: `None` for a request whose end the trigger does not find.
        """
        found: list[float | None] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # rows of about equal length
        length = context_length(self._model)
        device = next(self._model.parameters()).device
        for start in range(0, len(texts), batch_size):
            part = order[start : start + batch_size]
            rows = [texts[place] for place in part]
            batch = encode(self.tokenizer, rows, chat_template=self.chat_template, max_length=length).to(device)
            for place, score in zip(part, self.scores_of(batch.input_ids, batch.attention_mask), strict=True):
                found[place] = score
        return found

    @torch.no_grad()
    def scores_of(self, input_ids: Tensor, attention_mask: Tensor) -> list[float | None]:
        """
        As [`~TriggerGate.scores`], of conversations that the chat template was applied to already.

        Args:
            input_ids (`torch.Tensor`): Shape `(B, T)`, padded on either side.
            attention_mask (`torch.Tensor`): Shape `(B, T)`.
        """
        rows = Batch(input_ids, attention_mask, torch.zeros_like(input_ids, dtype=torch.bool))
        with evaluating(self._model), trigger_log() as log:
            self._model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                **call_options(self._model, rows, logits_to_keep=1),
            )
        return [decision.score for decision in log]


def twin_of(model: nn.Module) -> nn.Module:
    """A copy of a model's modules around the same weights: adapters on one do not touch the other."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def _attached(trigger: Trigger, model: nn.Module, *, strict: bool) -> PeftModel:
    """A twin of the model with the trigger and scales of 1; no request is answered twice, as nothing is turned on."""
    ranked = [(site, int(index)) for site, part in trigger.indices.items() for index in part]
    config = NeuronTuneConfig(
        task_type="CAUSAL_LM",
        neurons=Neurons.from_ranked({ROLE: ranked}, widths=trigger.widths),
        neuron_side=trigger.neuron_side,
        base_model_fingerprint=trigger.base_model_fingerprint,
        strict=strict,
        **dict(trigger.fields) | RESTING,
    )
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        peft_model = get_peft_model(twin_of(model), config)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    for parameter in {*peft_model.parameters()} - {parameter for parameter, _ in flags}:
        parameter.requires_grad_(False)
    tuner: Any = peft_model.base_model
    tuner.set_trigger(
        trigger.weights,
        bias=trigger.fields["trigger_bias"],
        threshold=trigger.fields["trigger_threshold"],
        suffix=trigger.fields["trigger_suffix"],
        opening=trigger.fields["trigger_opening"],
    )
    return peft_model.eval()


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
