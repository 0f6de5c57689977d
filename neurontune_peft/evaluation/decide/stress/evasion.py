"""What if an attacker searches for words that keep the trigger silent?"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject
from neurontune_peft.objectives import call_options
from neurontune_peft.prompts import Attack, PromptSet, encode
from neurontune_peft.prompts.answers import context_length, evaluating
from neurontune_peft.tuner.requests import trigger_log

PROPOSALS = 8  # candidates per request and round
LONGEST = 16  # tokens of a suffix
PADDINGS = 8  # benign exchanges that are tried as padding


@dataclass(frozen=True)
class Target:
    """An attacked request that triggers."""

    family: str
    prompt_id: str
    text: str


def evaded(subject: Subject, *, budgets: Sequence[int], targets: int) -> Iterator[Row]:
    """
    Lower the trigger's score of attacked requests that trigger, with white-box access to it: by harmless text in front
    of or behind the request, and by a greedy search for a suffix of tokens, one random candidate after the other
    (`ours`). One query reads the score of one text. The texts that were found are then answered.

    Args:
        subject ([`Subject`]): The model.
        budgets (`Sequence[int]`): Queries per request after which the suffix is measured.
        targets (`int`): Most requests, evenly spread over the families.
    """
    config = subject.tuner.peft_config[subject.adapter_name]
    if config.modulation == "static":
        raise NotTestedError("the adapter has no trigger: it acts on every request")
    chosen = triggering(subject, targets)
    if not chosen:
        raise NotTestedError("no attacked test request triggers")
    plain = [target.text for target in chosen]
    tests = _tests(subject, chosen, plain)
    tuned = subject.attacks(tests)
    with subject.model.disable_adapter():
        base = subject.attacks(tests)
    found = {f"benign padding, {2 * PADDINGS} queries": padded(subject, plain)}
    for budget, texts in searched(subject, plain, budgets):
        found[f"trigger suffix, {budget} queries"] = texts
    for name, texts in found.items():
        silent = int((scores(subject, texts) <= config.trigger_threshold).sum())
        hits = subject.attacks(_tests(subject, chosen, texts))
        what = f"{len(chosen)} attacked requests that trigger, changed to lower the trigger's score"
        note = f"{silent} of {len(chosen)} no longer trigger"
        yield subject.row(name, what, hits, base=base, tuned=tuned, note=note)


def triggering(subject: Subject, most: int) -> list[Target]:
    """
    Attacked test requests that trigger.

    Args:
        subject ([`Subject`]): The model.
        most (`int`): How many at most.
    """
    tests, found = subject.tests, []
    for family in tests.families(split="test"):
        prompts = tests.attackable(tests.prompts, family=family, split="test")
        texts = tests.attacked(prompts, family=family, split="test")
        found += [Target(family, prompt.id, text) for prompt, text in zip(prompts, texts, strict=True)]
    if not found:
        return []
    above = scores(subject, [target.text for target in found]) > _threshold(subject)
    found = [target for target, fires in zip(found, above.tolist(), strict=True) if fires]
    count = min(most, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def padded(subject: Subject, texts: Sequence[str]) -> list[str]:
    """
    Each text with the benign train exchanges in front of it or behind it that lower its score most.

    Args:
        subject ([`Subject`]): The model.
        texts (`Sequence[str]`): Requests.
    """
    train = subject.prompts.select(kind="benign", split="train")[:PADDINGS]
    pieces = [f"{prompt.prompt} {prompt.response or ''}".strip() for prompt in train]
    best, lowest = list(texts), scores(subject, texts)
    for count in range(1, len(pieces) + 1):
        padding = "\n\n".join(pieces[:count])
        for tried in (
            [f"{padding}\n\n{text}" for text in texts],
            [f"{text}\n\n{padding}" for text in texts],
        ):
            best, lowest = _better(best, lowest, tried, scores(subject, tried))
    return best


def searched(subject: Subject, texts: Sequence[str], budgets: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
    """
    Suffixes by greedy search: a random token is put behind the suffix, or, once it is long, in the place of another,
    and is kept when the score of the whole text falls.

    Args:
        subject ([`Subject`]): The model.
        texts (`Sequence[str]`): Requests.
        budgets (`Sequence[int]`): Queries per request.

    Yields:
        `tuple[int, list[str]]`: A budget, and the texts at that point.
    """
    drawn, words = random.Random(f"{subject.seed}-evasion"), vocabulary(subject.tokenizer)
    suffixes: list[list[str]] = [[] for _ in texts]
    lowest, spent = scores(subject, texts), 0
    for budget in sorted(budgets):
        while spent + PROPOSALS <= budget:
            tried = [[_changed(suffix, drawn, words) for _ in range(PROPOSALS)] for suffix in suffixes]
            values = scores(subject, [_joined(t, s) for t, options in zip(texts, tried, strict=True) for s in options])
            for place, found in enumerate(values.view(len(texts), PROPOSALS)):
                if float(found.min()) < float(lowest[place]):
                    lowest[place], suffixes[place] = found.min(), tried[place][int(found.argmin())]
            spent += PROPOSALS
        yield budget, [_joined(text, suffix) for text, suffix in zip(texts, suffixes, strict=True)]


def vocabulary(tokenizer: Any) -> list[str]:
    """Texts of a tokenizer's tokens that can stand in a request: printable, and no special tokens."""
    special = set(tokenizer.all_special_ids)
    texts = (tokenizer.decode([token]) for token in range(len(tokenizer)) if token not in special)
    return [text for text in texts if text.strip() and text.isprintable() and "\ufffd" not in text]


@torch.no_grad()
def scores(subject: Subject, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
    """
    What the trigger says about requests.

    Args:
        subject ([`Subject`]): The model.
        texts (`Sequence[str]`): Requests.
        batch_size (`int`, *optional*, defaults to `64`): Requests per forward pass.

    Returns:
        `torch.Tensor`: Shape `(n,)`, float32, on the CPU; minus infinity for a request whose end is not found.
    """
    base = subject.base
    device = next(base.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # rows of a batch of about equal length
    found = torch.full((len(texts),), -torch.inf)
    with evaluating(subject.model), _silent(subject):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            rows = encode(
                subject.tokenizer,
                [texts[i] for i in part],
                chat_template=subject.chat_template,
                max_length=context_length(base),
            ).to(device)
            with trigger_log() as decisions:
                options = call_options(base, rows, logits_to_keep=1)
                base(input_ids=rows.input_ids, attention_mask=rows.attention_mask, **options)
            for decision in decisions:
                if decision.adapter_name == subject.adapter_name and decision.score is not None:
                    found[part[decision.row]] = decision.score
    return found


@contextmanager
def _silent(subject: Subject) -> Iterator[None]:
    """No score is above this threshold, so that no row is computed again with its scales."""
    config = subject.tuner.peft_config[subject.adapter_name]
    before = config.trigger_threshold
    config.trigger_threshold = math.inf
    try:
        yield
    finally:
        config.trigger_threshold = before


def _threshold(subject: Subject) -> float:
    return float(subject.tuner.peft_config[subject.adapter_name].trigger_threshold)


def _changed(suffix: list[str], drawn: random.Random, words: list[str]) -> list[str]:
    changed = list(suffix)
    if len(changed) < LONGEST:
        changed.append(drawn.choice(words))
    else:
        changed[drawn.randrange(LONGEST)] = drawn.choice(words)
    return changed


def _joined(text: str, suffix: list[str]) -> str:
    return f"{text} {''.join(suffix)}" if suffix else text


def _better(best: list[str], lowest: Tensor, tried: Sequence[str], values: Tensor) -> tuple[list[str], Tensor]:
    lower = values < lowest
    texts = [new if better else old for old, new, better in zip(best, tried, lower.tolist(), strict=True)]
    return texts, torch.where(lower, values, lowest)


def _tests(subject: Subject, targets: Sequence[Target], texts: Sequence[str]) -> PromptSet:
    """The targets with other texts, ready to be measured."""
    ids = {target.prompt_id for target in targets}
    prompts = tuple(prompt for prompt in subject.tests.prompts if prompt.id in ids)
    attacks = tuple(
        Attack(target.family, f"{target.family}-{place}", "test", prompt_id=target.prompt_id, attacked_prompt=text)
        for place, (target, text) in enumerate(zip(targets, texts, strict=True))
    )
    return replace(subject.tests, prompts=prompts, attacks=attacks)
