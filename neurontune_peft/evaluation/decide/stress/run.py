"""An adapter under stress: what holds, and what breaks?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.choices import KINDS
from neurontune_peft.evaluation.decide.stress.ablation import ablated_direction
from neurontune_peft.evaluation.decide.stress.composed import composed
from neurontune_peft.evaluation.decide.stress.evasion import evaded
from neurontune_peft.evaluation.decide.stress.finetuning import finetuned
from neurontune_peft.evaluation.decide.stress.flips import flipped
from neurontune_peft.evaluation.decide.stress.languages import in_other_languages
from neurontune_peft.evaluation.decide.stress.pruning import pruned
from neurontune_peft.evaluation.decide.stress.relearning import relearned
from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row, Skipped, Stress
from neurontune_peft.evaluation.decide.stress.subject import Subject, flags_kept
from neurontune_peft.judges import Judge, format_judge, judge_name
from neurontune_peft.prompts import PromptSet
from neurontune_peft.training.trigger import check_adapter


def stress(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    kinds: Sequence[str] = KINDS,
    max_tests: int = 12,
    finetune_steps: int = 30,
    finetune_lr: float = 1e-4,
    relearn_steps: int = 20,
    relearn_lr: float = 0.05,
    flips: int = 100,
    budgets: Sequence[int] = (32, 256),
    judge: Judge = format_judge,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: str | None = None,
    seed: int = 0,
) -> Stress:
    """
    Measure an adapter's protection again after attempts to take it away.

    The model is given back bit for bit. What is left after a stress says nothing about stronger attempts: whoever has
    the weights of a model can undo any tuning.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Train requests for the attacker, test requests to measure on.
        kinds (`Sequence[str]`, *optional*):
            Which stresses: `"pruning"` (the strongest neurons and those of each site set to 0), `"direction"` (the
            refusal direction ablated), `"finetuning"` (of the base weights, on harmless data), `"composed"` (nested
            and encoded attacks), `"flips"` (bits of the file), `"languages"`, `"relearning"` (the scales trained
            towards compliance), `"evasion"` (of the trigger). All when left out.
        max_tests (`int`, *optional*, defaults to `12`): Most harmful test requests, each with every attack family.
        finetune_steps (`int`, *optional*, defaults to `30`): Steps of fine-tuning, of 8 requests.
        finetune_lr (`float`, *optional*, defaults to `1e-4`): Its step size.
        relearn_steps (`int`, *optional*, defaults to `20`): Steps of relearning, of 8 requests.
        relearn_lr (`float`, *optional*, defaults to `0.05`): Its step size.
        flips (`int`, *optional*, defaults to `100`): Files with one bit flipped.
        budgets (`Sequence[int]`, *optional*, defaults to `(32, 256)`): Queries of the trigger per request.
        judge (`Callable`, *optional*, defaults to `format_judge`): As in [`evaluate`].
        max_new_tokens (`int`, *optional*, defaults to `32`): As in [`evaluate`].
        batch_size (`int`, *optional*, defaults to `64`): As in [`evaluate`].
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
        seed (`int`, *optional*, defaults to `0`): Of everything that is drawn.

    Returns:
        [`Stress`]: One row for each stress, and why some could not be tested.

    Raises:
        ValueError: When there is no such adapter, a kind is unknown, or a number is impossible.

    Example:

        ```py
        >>> print(stress(model, tokenizer, PromptSet.load(), kinds=("pruning", "evasion")))
        ```
    """
    name = check_adapter(model)
    numbers = {"max_tests": max_tests, "finetune_steps": finetune_steps, "relearn_steps": relearn_steps}
    _check(kinds, numbers | {"flips": flips, "the smallest of budgets": min(budgets, default=0)})
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "chat_template": chat_template}
    subject = Subject(model, tokenizer, prompts, name, judge, max_tests, options, seed)
    if not subject.tests.prompts or not subject.tests.attacks:
        raise ValueError(
            "got a prompt set without harmful test requests or without test attacks; expected both; add them"
        )
    runs: dict[str, Callable[[Subject], Iterator[Row | Skipped]]] = {
        "pruning": pruned,
        "direction": ablated_direction,
        "finetuning": partial(finetuned, steps=finetune_steps, lr=finetune_lr),
        "composed": composed,
        "flips": partial(flipped, flips=flips),
        "languages": in_other_languages,
        "relearning": partial(relearned, steps=relearn_steps, lr=relearn_lr),
        "evasion": partial(evaded, budgets=budgets, targets=2 * max_tests),
    }
    bar = logging.tqdm(kinds, desc="stress", unit="kind")
    with flags_kept(model):
        results = [found for kind in bar for found in _found(kind, runs[kind], subject)]
    return Stress(
        tuple(found for found in results if isinstance(found, Row)),
        {found.name: found.why for found in results if isinstance(found, Skipped)},
        judge=judge_name(judge),
        prompt_set=prompts.fingerprint,
        options={**numbers, "kinds": list(kinds), "max_new_tokens": max_new_tokens, "seed": seed},
    )


def _found(kind: str, run: Callable[[Subject], Iterator[Row | Skipped]], subject: Subject) -> Iterator[Row | Skipped]:
    with torch.random.fork_rng():
        torch.manual_seed(subject.seed)
        try:
            yield from run(subject)
        except NotTestedError as error:
            yield Skipped(kind, str(error))


def _check(kinds: Sequence[str], numbers: dict[str, int]) -> None:
    if not kinds or (unknown := sorted(set(kinds) - set(KINDS))):
        raise ValueError(f"got kinds {list(kinds) if not kinds else unknown}; expected some of {list(KINDS)}")
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"got {name}={value}; expected at least 1; give a positive number")
