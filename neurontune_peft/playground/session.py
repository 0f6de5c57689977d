"""What does a chat with an adapter need? The dials, both answers, the trigger's value, and the neurons that fired."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TextStreamer

from neurontune_peft.playground.answered import Answered, Fired, TriggerState
from neurontune_peft.prompts import Attack, PromptSet
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.prompts.batches import padding_id, prompt_ids, shorten
from neurontune_peft.training.features import trigger_features
from neurontune_peft.tuner.requests import trigger_log
from neurontune_peft.tuner.trigger import TriggerDecision

OnText = Callable[[str], None]


class Playground:
    """
    A model with an adapter, its dials, and attacks to try. Each request stands alone; answers are greedy.

    Args:
        model (`PeftModel`): The model; its active adapter is the one that is tried.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Attack templates are taken from it.
        max_new_tokens (`int`, *optional*, defaults to `128`): Most tokens of an answer.
        chat_template (`str` or `os.PathLike`, *optional*): Replaces the tokenizer's own.

    Raises:
        ValueError: When `max_new_tokens` is below 1.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptSet,
        *,
        max_new_tokens: int = 128,
        chat_template: str | os.PathLike[str] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"got max_new_tokens {max_new_tokens}; expected at least 1; give a positive number")
        self.model = model
        self.tokenizer = tokenizer
        self.attacks: dict[str, Attack] = {
            attack.name: attack for attack in prompts.attacks if attack.template is not None
        }
        self.max_new_tokens = max_new_tokens
        self.chat_template = chat_template
        self.name: str = model.active_adapters[0]
        self.lock = threading.Lock()  # a page answers from several threads, and there is one set of dials
        self._tuner: Any = model.base_model
        self.own_threshold = float(self.config.trigger_threshold)

    @property
    def config(self) -> Any:
        """The adapter's configuration."""
        return self._tuner.peft_config[self.name]

    @property
    def dynamic(self) -> bool:
        """`bool`: Whether a trigger decides."""
        return bool(self.config.modulation == "dynamic")

    @property
    def totals(self) -> dict[str, int]:
        """`dict[str, int]`: Role to the number of its neurons."""
        return {role: sum(sites.values()) for role, sites in self.config.neuron_counts.items()}

    @property
    def presets(self) -> dict[str, Mapping[str, Any]]:
        """`dict[str, Mapping]`: Name to setting, as the adapter's configuration keeps them."""
        return dict(self.config.to_dict().get("presets") or {})

    @property
    def strengths(self) -> dict[str, float]:
        """`dict[str, float]`: Role to where its dial stands."""
        return {role: dial.strength for role, dial in self._dials().items()}

    @property
    def counts(self) -> dict[str, int]:
        """`dict[str, int]`: Role to how many of its neurons act."""
        return {role: self.totals[role] if dial.count is None else dial.count for role, dial in self._dials().items()}

    @property
    def threshold(self) -> float | None:
        """`float`, *optional*: Threshold of the trigger; `None` for static modulation."""
        return float(self.config.trigger_threshold) if self.dynamic else None

    def set_strength(self, strength: float, role: str | None = None) -> None:
        """
        Turn the strength, of one role or of all.

        Raises:
            ValueError: As [`~NeuronTuneModel.set_strength`].
        """
        self._tuner.set_strength(strength, role=role, adapter_name=self.name)

    def set_counts(self, **counts: int | None) -> None:
        """
        Use only the top-ranked neurons of the named roles; `None` means all.

        Raises:
            ValueError: As [`~NeuronTuneModel.set_neuron_counts`].
        """
        self._tuner.set_neuron_counts(adapter_name=self.name, **counts)

    def set_threshold(self, threshold: float | None) -> None:
        """
        Move the trigger's threshold; `None` brings back the adapter's own.

        Raises:
            ValueError: When the adapter has no trigger, or the threshold is not finite.
        """
        if not self.dynamic:
            raise ValueError(
                "got a threshold for an adapter with static modulation; expected one with a trigger; turn the strength"
            )
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"got threshold={threshold}; expected a finite number; correct it")
        self.config.trigger_threshold = self.own_threshold if threshold is None else float(threshold)

    def use_preset(self, name: str) -> None:
        """
        Turn all dials to a preset of the adapter.

        Raises:
            ValueError: When there is no such preset.
        """
        if name not in self.presets:
            known = list(self.presets) or "none"
            raise ValueError(
                f"got preset '{name}'; expected one of {known}; neurontune sweep --write-presets adds some"
            )
        setting = self.presets[name]
        self.set_strength(float(setting.get("strength", 1.0)))
        self.set_counts(**{role: (setting.get("counts") or {}).get(role) for role in self.totals})
        if self.dynamic:
            self.set_threshold(setting.get("threshold"))

    def attacked(self, text: str, attack: str | None) -> str:
        """
        Put a request into an attack template.

        Args:
            text (`str`): The request.
            attack (`str`, *optional*): Name of the attack; `None` leaves the request as it is.

        Raises:
            ValueError: When there is no such attack.
        """
        if attack is None:
            return text
        if attack not in self.attacks:
            close = get_close_matches(attack, self.attacks, n=3, cutoff=0.3) or list(self.attacks)[:3]
            raise ValueError(
                f"got attack '{attack}'; expected one of {len(self.attacks)} names, such as {close}; see /attacks"
            )
        return self.attacks[attack].apply(text)

    def base(self, prompt: str, on_text: OnText | None = None) -> str:
        """The base model's answer; `on_text` is called with each piece as it is made."""
        with self.model.disable_adapter():
            return self._generate(prompt, on_text)

    def tuned(self, prompt: str, on_text: OnText | None = None) -> tuple[str, TriggerState | None]:
        """The tuned model's answer with the dials as they stand, and what the trigger said."""
        with trigger_log() as decisions:
            answer = self._generate(prompt, on_text)
        return answer, self._state(decisions)

    def neurons(self, prompt: str) -> tuple[Fired, ...]:
        """The adapter's neurons where the request ends, those that scaling changes most first."""
        template = None if self.chat_template is None else os.fspath(self.chat_template)
        config = self.config
        suffix = config.trigger_suffix if self.dynamic else None
        found = trigger_features(
            self.model,
            self.tokenizer,
            [prompt],
            adapter_name=self.name,
            suffix=suffix,
            opening=None,
            chat_template=template,
        )
        ends = iter(found.ends[0].split(list(found.counts.values())))
        fired = []
        for site, layer in self._tuner.neuron_layers(self.name).items():
            own = next(ends)
            scales = 1 + layer.neurontune_delta[self.name].detach() * layer.neurontune_strength[self.name]
            for role, part in layer.roles[self.name].items():
                rows = (layer.neurontune_index[self.name][part], own[part], scales[part])
                fired += [
                    Fired(site, int(index), role, float(activation), float(scale))
                    for index, activation, scale in zip(*(row.tolist() for row in rows), strict=True)
                ]
        return tuple(sorted(fired, key=lambda neuron: -abs(neuron.change)))

    def answer(self, text: str, *, attack: str | None = None) -> Answered:
        """
        Both answers, and how the second came about.

        Args:
            text (`str`): The request.
            attack (`str`, *optional*): Name of an attack to put it into.
        """
        prompt = self.attacked(text, attack)
        with self.lock:
            base = self.base(prompt)
            tuned, state = self.tuned(prompt)
            return Answered(prompt, base, tuned, state, self.neurons(prompt))

    def _generate(self, prompt: str, on_text: OnText | None) -> str:
        model: Any = self.model
        ids = prompt_ids(self.tokenizer, [prompt], chat_template=self.chat_template)
        context = context_length(model)
        if context is not None and context - self.max_new_tokens >= 2:
            ids = shorten(ids, [[]], max_length=context - self.max_new_tokens)[0]
        rows = torch.tensor(ids, device=model.device)  # (1, T)
        options: dict[str, Any] = {"pad_token_id": padding_id(self.tokenizer), "do_sample": False}
        if model.generation_config.eos_token_id is None and self.tokenizer.eos_token_id is not None:
            options["eos_token_id"] = self.tokenizer.eos_token_id
        streamer = None if on_text is None else _Streamer(self.tokenizer, on_text)
        with evaluating(model), torch.no_grad():
            made = model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=self.max_new_tokens,
                streamer=streamer,
                **options,
            )  # (1, T + new)
        return str(self.tokenizer.decode(made[0, rows.shape[1] :], skip_special_tokens=True))

    def _state(self, decisions: Sequence[TriggerDecision]) -> TriggerState | None:
        read = [(made.score, made.strength) for made in decisions if made.score is not None]
        return None if not read else TriggerState(read[0][0], float(self.config.trigger_threshold), read[0][1])

    def _dials(self) -> dict[str, Any]:
        """Role to its dial; they stand alike in every layer."""
        layers = self._tuner.neuron_layers(self.name).values()
        return {role: layer.dials[self.name][role] for layer in layers for role in layer.dials[self.name]}


class _Streamer(TextStreamer):
    """Hands on each piece of text as soon as it is final."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: OnText) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.on_text(text)
