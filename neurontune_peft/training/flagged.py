"""Scales that act on flagged requests alone are learnt from harmless requests that come nearest to being flagged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel

from neurontune_peft.prompts import Prompt, PromptSet
from neurontune_peft.prompts.records import PLACEHOLDER
from neurontune_peft.training.features import trigger_features
from neurontune_peft.training.logistic import Linear
from neurontune_peft.training.trigger import check_adapter

FEWEST = 40  # harmless requests of each kind that are kept where there are as many
WRAPPINGS = 3  # train templates in which each harmless request is scored, besides plain


def nearly_flagged(
    model: PeftModel,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    share: float = 0.25,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    chat_template: str | None = None,
) -> PromptSet:
    """
    The prompt set with only those harmless train requests that come nearest to triggering (`ours`).

    Scales that act on flagged requests alone never meet other harmless requests, so that is where they must not
    refuse. A request counts by the highest of its scores, plain and in some train templates.

    Args:
        model (`PeftModel`): A model with one active adapter that has a trigger.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompt set.
        share (`float`, *optional*, defaults to `0.25`):
            Share of the benign and of the borderline train requests that stays; no fewer than 40 of each.
        batch_size (`int`, *optional*, defaults to `16`): Requests per forward pass.
        max_length (`int`, *optional*): Most tokens of a request; the model's context when left out.
        seed (`int`, *optional*, defaults to `0`): Decides which templates are taken.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`PromptSet`]: Harmful and test prompts, and attacks, as they were.

    Raises:
        ValueError: When the share is impossible, or the adapter has no trigger.
    """
    if not 0 < share <= 1:
        raise ValueError(f"got share={share}; expected a share above 0 and at most 1; 0.25 is a quarter")
    adapter_name = check_adapter(model)
    tuner: Any = model.base_model
    weights, config = tuner.get_trigger(adapter_name), tuner.peft_config[adapter_name]
    if not weights:
        raise ValueError(
            f"got adapter '{adapter_name}' without a trigger; expected one, which says what is nearly flagged; call "
            "fit_trigger first"
        )
    harmless = [p for kind in ("benign", "borderline") for p in prompts.select(kind=kind, split="train")]
    features = trigger_features(
        model,
        tokenizer,
        [text for prompt in harmless for text in _wrapped(prompts, prompt, seed)],
        adapter_name=adapter_name,
        suffix=config.trigger_suffix,
        opening=config.trigger_opening,
        window=config.trigger_window,
        batch_size=batch_size,
        max_length=max_length,
        chat_template=chat_template,
    )
    held = torch.cat([weights[site].cpu() for site in features.counts])  # (k, 2)
    highest = features.score(Linear(held, config.trigger_bias)).view(len(harmless), -1).amax(dim=1)  # (n,)
    kept: set[str] = set()
    for kind in ("benign", "borderline"):
        own = sorted(
            ((float(score), p.id) for score, p in zip(highest, harmless, strict=True) if p.kind == kind), reverse=True
        )
        kept |= {name for _, name in own[: max(FEWEST, round(share * len(own)))]}
    dropped = {prompt.id for prompt in harmless} - kept
    return replace(
        prompts,
        prompts=tuple(p for p in prompts.prompts if p.id not in dropped),
        attacks=tuple(attack for attack in prompts.attacks if attack.prompt_id not in dropped),
    )


def _wrapped(prompts: PromptSet, prompt: Prompt, seed: int) -> list[str]:
    templates = [attack.template for attack in prompts.templates(split="train") if attack.template]
    drawn = random.Random(f"{seed}-{prompt.id}").sample(templates, min(WRAPPINGS, len(templates)))
    return [prompt.prompt, *(template.replace(PLACEHOLDER, prompt.prompt) for template in drawn)]


@contextmanager
def trigger_aside(model: PeftModel) -> Iterator[None]:
    """Take the active adapter's trigger off for the duration of a `with` block, in which its scales are trained."""
    name = check_adapter(model)
    tuner: Any = model.base_model
    weights, config = tuner.get_trigger(name), tuner.peft_config[name]
    if not weights:
        yield
        return
    kept = {
        "bias": config.trigger_bias,
        "threshold": config.trigger_threshold,
        "ramp": config.trigger_ramp,
        "suffix": config.trigger_suffix,
        "opening": config.trigger_opening,
        "window": config.trigger_window,
    }
    tuner.set_modulation("static", adapter_name=name)
    try:
        yield
    finally:
        tuner.set_trigger(weights, adapter_name=name, **kept)
