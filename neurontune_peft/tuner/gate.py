"""The trigger alone: a tiny classifier that tells a gateway which requests to send to the tuned model."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neurontune_peft.neurons import Neurons
from neurontune_peft.objectives import call_options
from neurontune_peft.prompts import Batch, encode
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.requests import trigger_log
from neurontune_peft.tuner.trigger_file import Trigger

ROLE = "trigger"
RESTING = {"strength_off": 0.0, "strength_on": 0.0, "trigger_gate": "step", "recheck_every": None}


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
        window=trigger.fields["trigger_window"],
    )
    return peft_model.eval()
