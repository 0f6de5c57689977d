"""Is there anything to learn? A model that resists the train attacks already has no use for scales."""

from __future__ import annotations

from typing import Any

from torch import nn

from neurontune_peft.judges import format_judge
from neurontune_peft.prompts import PromptSet, generate_answers


class NothingToLearnError(ValueError):
    """The model already refuses what it would be trained to refuse."""


def check_learnable(
    model: nn.Module,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    least: float = 0.05,
    n_prompts: int = 16,
    chat_template: str | None = None,
) -> float:
    """
    Refuse a model that already resists the train attacks, before time is spent on scoring and training.

    Args:
        model (`nn.Module`): The model to tune.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Its train split is asked.
        least (`float`, *optional*, defaults to `0.05`): Share of attacks that must succeed. *ours*
        n_prompts (`int`, *optional*, defaults to `16`): Harmful prompts asked in each family. *ours*
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        `float`: Share of train attacks whose greedy answer is no refusal.

    Raises:
        NothingToLearnError: When fewer attacks succeed; a `ValueError`.
    """
    harmful = prompts.select(kind="harmful", split="train")[:n_prompts]
    texts = []
    for family in prompts.train_families:
        part = prompts.attackable(harmful, family=family, split="train")
        texts += prompts.attacked(part, family=family, split="train")
    texts = texts or [prompt.prompt for prompt in harmful]
    answers = generate_answers(model, tokenizer, texts, chat_template=chat_template, desc="does it resist?")
    verdicts = [format_judge(text, answer) for text, answer in zip(texts, answers, strict=True)]
    share = sum(verdict.label != "refusal" for verdict in verdicts) / max(1, len(verdicts))
    if share < least:
        raise NothingToLearnError(
            f"got a model that refuses {1 - share:.0%} of {len(texts)} train attacks; expected one for which at least "
            f"{least:.0%} succeed, as there is nothing to learn; use it as it is, or force an adapter that may stay "
            "close to the identity"
        )
    return share
