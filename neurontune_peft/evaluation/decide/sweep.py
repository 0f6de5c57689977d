"""The dials of an adapter, measured from the mildest setting to the strongest; nothing is trained."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.choices import COUNTS, STRENGTHS
from neurontune_peft.evaluation.compare.points import measured_part
from neurontune_peft.evaluation.decide.frontier import Frontier
from neurontune_peft.evaluation.decide.measuring import Measurer, journal_for
from neurontune_peft.evaluation.decide.settings import Count, grid, in_order
from neurontune_peft.evaluation.measure import evaluate
from neurontune_peft.judges import Judge, format_judge, judge_name
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.training.trigger import check_adapter
from neurontune_peft.tuner.presets import Setting, check_setting


def sweep(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    counts: Sequence[Count] = COUNTS,
    strengths: Sequence[float] = STRENGTHS,
    thresholds: Sequence[float] | None = None,
    settings: Sequence[Setting] | None = None,
    max_tests: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    judge: Judge = format_judge,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: str | None = None,
) -> Frontier:
    """
    Measure an adapter along its dials: what each setting protects and what it costs.

    The counts are nested, as each keeps a beginning of the same ranking, so nothing is trained. The base model
    (strength 0) is always measured first.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter; its dials are given back as they were.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Measured on its test split.
        counts (`Sequence[float | Mapping[str, int]]`, *optional*, defaults to `(0.25, 0.5, 1.0)`):
            Shares of every role's ranking, or counts by role.
        strengths (`Sequence[float]`, *optional*, defaults to `(0.5, 1.0, 1.5)`): Strengths, each with each count.
        thresholds (`Sequence[float]`, *optional*):
            Thresholds of the trigger, at strength 1 and with all neurons. Left out, some around the adapter's own;
            static adapters have none.
        settings (`Sequence[Setting]`, *optional*): These settings instead of all of the above.
        max_tests (`int`, *optional*): Most test requests of each kind, evenly spread; all when left out.
        checkpoint (`str` or `os.PathLike`, *optional*):
            JSON-lines file that keeps finished settings, so that an interrupted sweep goes on.
        judge (`Callable`, *optional*, defaults to `format_judge`): As in [`evaluate`].
        max_new_tokens (`int`, *optional*, defaults to `32`): As in [`evaluate`].
        batch_size (`int`, *optional*, defaults to `64`): As in [`evaluate`].
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Frontier`]: The points, which of them are Pareto points, and presets.

    Raises:
        ValueError: When there is no such adapter, a setting is impossible, or the checkpoint is another sweep's.

    Example:

        ```py
        >>> frontier = sweep(model, tokenizer, PromptSet.load(), strengths=(0.5, 1.0), counts=(0.5, 1.0))
        >>> print(frontier)
        >>> model.peft_config["default"].presets = frontier.preset_settings()
        >>> model.use_preset("balanced")
        ```
    """
    name = check_adapter(model)
    config: Any = model.peft_config[name]
    chosen = grid(config, strengths=strengths, counts=counts, thresholds=thresholds)
    if settings is not None:
        for setting in settings:
            check_setting(setting, config)
        chosen = in_order([*grid(config, strengths=(), counts=(), thresholds=()), *settings])
    if max_tests is not None and max_tests < 1:
        raise ValueError(f"got max_tests={max_tests}; expected at least 1; leave it out to measure on all prompts")
    tests = measured_part(prompts, max_tests)
    options = {"max_new_tokens": max_new_tokens, "chat_template": read_template(chat_template), "max_tests": max_tests}
    measure = partial(
        evaluate,
        tokenizer=tokenizer,
        prompts=tests,
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        chat_template=chat_template,
    )
    key = options | {"prompt_set": prompts.fingerprint, "judge": judge_name(judge)}
    journal = journal_for(model, name, checkpoint, key)
    measurer = Measurer(model, name, measure, prompts.held_out_families, journal)
    points = tuple(logging.tqdm(measurer.each(chosen), total=len(chosen), desc="sweep", unit="setting"))
    return Frontier(points, judge=judge_name(judge), prompt_set=prompts.fingerprint, options=options)
