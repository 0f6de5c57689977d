"""Dynamic modulation as a user sees it: setting a trigger, seeing what it decided, checking a tokenizer against it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neurontune_peft.tuner.dynamic import install_hooks
from neurontune_peft.tuner.layer import NeuronTuneLayer, check_finite
from neurontune_peft.tuner.modulation import format_of
from neurontune_peft.tuner.rows import CURRENT
from neurontune_peft.tuner.trigger import TRIGGER_DTYPE, TriggerDecision


@contextmanager
def trigger_log(
    callback: Callable[[list[TriggerDecision]], None] | None = None,
) -> Iterator[list[TriggerDecision]]:
    """
    Collect what triggers decide about the requests of this thread for the duration of a `with` block.

    Args:
        callback (`Callable`, *optional*): Called with the decisions of each batch as they are made.

    Returns:
        `list[TriggerDecision]`: Fills up as the models of the block decide.

    Example:

        ```py
        >>> with model.trigger_log() as decisions:
        ...     model.generate(**inputs)
        >>> [(decision.row, decision.score, decision.strength) for decision in decisions]
        ```
    """
    decisions: list[TriggerDecision] = []
    before = CURRENT.observer

    def observe(made: list[TriggerDecision]) -> None:
        decisions.extend(made)
        for told in (callback, before):
            if told is not None:
                told(made)

    CURRENT.observer = observe
    try:
        yield decisions
    finally:
        CURRENT.observer = before


class Requests:
    """Methods of [`NeuronTuneModel`] about adapters that decide for each request."""

    model: nn.Module
    peft_config: dict
    active_adapters: list[str]
    if TYPE_CHECKING:  # of the classes that this one is mixed with

        def neuron_layers(self, adapter_name: str) -> dict[str, NeuronTuneLayer]: ...

    @contextmanager
    def trigger_log(
        self, callback: Callable[[list[TriggerDecision]], None] | None = None
    ) -> Iterator[list[TriggerDecision]]:
        """[`~neurontune_peft.tuner.requests.trigger_log`], of which this is the same."""
        with trigger_log(callback) as decisions:
            yield decisions

    def get_trigger(self, adapter_name: str = "default") -> dict[str, Tensor]:
        """
        The weights of an adapter's trigger.

        Args:
            adapter_name (`str`, *optional*, defaults to `"default"`): The adapter.

        Returns:
            `dict[str, torch.Tensor]`: Site to shape `(k, 2)`, bfloat16: weights of the neurons' activations where the
            prompt ends, and of their means over the turn; empty for static modulation.
        """
        layers = self.neuron_layers(adapter_name)
        held = {site: x.neurontune_trigger for site, x in layers.items() if adapter_name in x.neurontune_trigger}
        return {site: trigger[adapter_name].clone() for site, trigger in held.items()}

    def set_trigger(
        self,
        weights: Mapping[str, Tensor],
        *,
        bias: float,
        threshold: float,
        suffix: Sequence[int] | None,
        opening: Sequence[int] | None = None,
        ramp: float = 0.0,
        window: int | None = None,
        adapter_name: str = "default",
    ) -> None:
        """
        Give an attached adapter a trigger, and dynamic modulation with it.

        Args:
            weights (`Mapping[str, torch.Tensor]`):
                Site to the weights of its neurons in the adapter's order: `(k, 2)`, for their activations where the
                prompt ends and for their means over the turn, or `(k,)` for the former alone. Kept as bfloat16.
            bias (`float`): Added to the weighted sum of activations.
            threshold (`float`): Scores above it trigger.
            suffix (`Sequence[int]`, *optional*): Token ids of the chat template's generation prompt.
            opening (`Sequence[int]`, *optional*): Token ids with which the chat template opens a user's turn.
            ramp (`float`, *optional*, defaults to `0.0`):
                How far above the threshold a score gives the whole strength; 0 makes a step of a ramp.
            window (`int`, *optional*):
                Number of tokens of the windows of a turn that means are over, the highest of which counts; even.
                Without it, one mean over the whole turn.
            adapter_name (`str`, *optional*, defaults to `"default"`): The adapter.

        Raises:
            ValueError: When sites, shapes or values are wrong, or the model is merged. Nothing is changed then.
        """
        layers = self.neuron_layers(adapter_name)
        self._check_unmerged(layers)
        weights = {
            site: torch.stack([weight, torch.zeros_like(weight)], dim=-1) if weight.ndim == 1 else weight
            for site, weight in weights.items()
        }
        shapes = {site: (x.neurontune_delta[adapter_name].numel(), 2) for site, x in layers.items()}
        given = {site: tuple(weight.shape) for site, weight in weights.items()}
        if given != shapes:
            differing = sorted(site for site in {*given, *shapes} if given.get(site) != shapes.get(site))
            raise ValueError(
                f"got trigger weights that do not fit the neurons at {differing[:3]}; expected (k, 2) or (k,) for "
                "the k neurons of each site; take the order of get_neurons()"
            )
        for site, weight in weights.items():
            check_finite(site, weight, what="trigger weight")
        config = self.peft_config[adapter_name]
        # Presets were measured with the trigger that this one replaces.
        fields: dict[str, Any] = {
            "trigger_bias": float(bias),
            "trigger_threshold": float(threshold),
            "trigger_gate": "ramp" if ramp else config.trigger_gate.replace("ramp", "step"),
            "trigger_ramp": float(ramp),
            "trigger_window": window,
            "presets": None,
        }
        ids = {"trigger_suffix": suffix, "trigger_opening": opening}
        lists = {name: None if tokens is None else list(tokens) for name, tokens in ids.items()}
        checked = replace(config, modulation="dynamic", **lists, **fields)
        for site, layer in layers.items():
            delta = layer.neurontune_delta[adapter_name]
            layer.neurontune_trigger[adapter_name] = weights[site].detach().to(delta.device, TRIGGER_DTYPE, copy=True)
        for name in ("modulation", "format_version", *lists, *fields):
            setattr(config, name, getattr(checked, name))
        install_hooks(self.model)

    def set_modulation(self, modulation: str, adapter_name: str = "default") -> None:
        """
        Let an adapter act on every request (`"static"`), or on those that trigger (`"dynamic"`).

        `"static"` takes the trigger off for good; [`~NeuronTuneModel.set_trigger`] gives a new one.

        Args:
            modulation (`str`): `"static"` or `"dynamic"`.
            adapter_name (`str`, *optional*, defaults to `"default"`): The adapter.

        Raises:
            ValueError: When the modulation is unknown, or `"dynamic"` is asked for an adapter without trigger.
        """
        config, layers = self.peft_config[adapter_name], self.neuron_layers(adapter_name)
        replace(config, modulation=modulation, presets=None)  # refuses an unknown one
        self._check_unmerged(layers)
        if modulation == "dynamic" and not self.get_trigger(adapter_name):
            raise ValueError(
                f"got modulation='dynamic' for adapter '{adapter_name}', which has no trigger; expected one; fit it "
                "with fit_trigger, or pass set_trigger its weights"
            )
        for layer in layers.values():
            if modulation == "static" and adapter_name in layer.neurontune_trigger:
                del layer.neurontune_trigger[adapter_name]
        if modulation != config.modulation:
            config.presets = None  # they were measured with the other one
        config.modulation = modulation
        config.format_version = format_of(modulation, config.trigger_window)

    def check_tokenizer(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | os.PathLike[str] | None = None,
        strict: bool = False,
    ) -> None:
        """
        Compare a tokenizer's generation prompt with that for which the active adapters' triggers were fitted.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The tokenizer that will write prompts.
            chat_template (`str` or `os.PathLike`, *optional*): Replaces the tokenizer's own.
            strict (`bool`, *optional*, defaults to `False`): Raise an error instead of a warning.

        Raises:
            ValueError: With `strict`, when they differ.
        """
        # Attaching an adapter loads nothing of the pipeline.
        from neurontune_peft.prompts.chat import generation_suffix, turn_opening

        for name in self.active_adapters:
            config = self.peft_config[name]
            if config.modulation == "static":
                continue
            found = generation_suffix(tokenizer, chat_template=chat_template)
            expected, what = config.trigger_suffix, "prompts end in"
            if found == expected:
                found = turn_opening(tokenizer, chat_template=chat_template)
                expected, what = config.trigger_opening, "user's turns open with"
            if found == expected:
                continue
            message = (
                f"got a tokenizer whose {what} {_shown(tokenizer, found)}; expected {_shown(tokenizer, expected)}, "
                f"for which the trigger of adapter '{name}' was fitted; use the chat template of that model, or fit "
                "the trigger again"
            )
            if strict:
                raise ValueError(message)
            warnings.warn(message, UserWarning, stacklevel=2)

    def _check_unmerged(self, layers: Mapping[str, Any]) -> None:
        if any(layer.merged for layer in layers.values()):
            raise ValueError("got a merged model; expected plain weights; call unmerge_adapter() first")


def _shown(tokenizer: PreTrainedTokenizerBase, suffix: Sequence[int] | None) -> str:
    return "nothing of their own" if suffix is None else f"{tokenizer.decode(suffix)!r} ({list(suffix)})"
