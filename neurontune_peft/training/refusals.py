"""What shall the model say when it refuses? Phrases of the prompt set, or what it says itself."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers.utils import logging

from neurontune_peft.judges import format_judge
from neurontune_peft.objectives import RefusalMargin
from neurontune_peft.prompts import PromptSet, generate_answers

logger = logging.get_logger(__name__)

LEAST_OWN = 0.1  # share of plain harmful prompts that a model must refuse to teach in its own words; `ours`


def refusal_texts(
    model: PeftModel, tokenizer: Any, prompts: PromptSet, *, source: str, chat_template: str | None = None
) -> tuple[str, ...]:
    """
    Texts to refuse with.

    Args:
        model (`PeftModel`): The model; asked with its scales off.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Where phrases and harmful train prompts come from.
        source (`str`): `"phrases"`, or `"own"` for the model's greedy answers to plain harmful train prompts, as far
            as they refuse; a frequent answer stands there as often as it was given. A model that refuses less than a
            tenth of them has too little voice of its own; the phrases are taken then, and a warning says so.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
    """
    if source == "phrases":
        return prompts.phrases.refusal
    requests = [prompt.prompt for prompt in prompts.select(kind="harmful", split="train")]
    with model.disable_adapter():
        answers = generate_answers(model, tokenizer, requests, chat_template=chat_template, desc="own refusals")
    verdicts = [format_judge(request, answer) for request, answer in zip(requests, answers, strict=True)]
    refusals = tuple(answer for answer, verdict in zip(answers, verdicts, strict=True) if verdict.label == "refusal")
    if len(refusals) < max(1, LEAST_OWN * len(requests)):
        logger.warning(
            f"got {len(refusals)} refusals among the model's answers to {len(requests)} plain harmful train prompts; "
            f"expected at least {LEAST_OWN:.0%} to refuse in its own words; the phrases of the prompt set are used "
            "(refusal_targets='phrases')"
        )
        return prompts.phrases.refusal
    return refusals


def margin_of(tokenizer: Any, prompts: PromptSet, count: int) -> RefusalMargin:
    """
    The refusal margin over some of a prompt set's openings.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        prompts ([`PromptSet`]): Where the openings come from.
        count (`int`): How many of each kind, evenly spread, the first among them.
    """
    phrases = prompts.phrases
    refusal, compliance = (
        [texts[place * len(texts) // count] for place in range(count)] if count < len(texts) else texts
        for texts in (phrases.refusal, phrases.compliance)
    )
    return RefusalMargin.from_texts(tokenizer, refusal=refusal, compliance=compliance)
