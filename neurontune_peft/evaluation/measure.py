"""How safe and how useful is a model? One measurement on the test prompts."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.evaluation.first_token import first_token_probabilities_of_rows
from neurontune_peft.evaluation.generation import Generation, Kept, answer_rows
from neurontune_peft.evaluation.generation.answers import kept_for
from neurontune_peft.evaluation.generation.cache import digest
from neurontune_peft.evaluation.generation.identity import identity
from neurontune_peft.evaluation.judged import judge_all, named_judges
from neurontune_peft.evaluation.likelihood import likelihood_intervals, likelihood_of_rows
from neurontune_peft.evaluation.made import report_of
from neurontune_peft.evaluation.result import Report
from neurontune_peft.evaluation.sampled import Sampled
from neurontune_peft.evaluation.statistics import Interval
from neurontune_peft.judges import Judge, format_judge
from neurontune_peft.prompts import Phrases, Prompt, PromptSet, encode
from neurontune_peft.prompts.answers import fitting_ids
from neurontune_peft.prompts.chat import read_template

logger = logging.get_logger(__name__)


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    judge: Judge = format_judge,
    judges: Mapping[str, Judge] | None = None,
    base: nn.Module | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    generation: Generation | None = None,
    chat_template: str | os.PathLike[str] | None = None,
) -> Report:
    """
    Measure a model on the test prompts of a prompt set: greedy answers, one template for each request.

    In a group of processes, as accelerate and torchrun start it, each answers its share; all return the same report.

    Args:
        model (`nn.Module`): A causal language model, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`PromptSet`): The prompt set. Perplexity and KL use the benign test requests that have a response.
        judge (`Callable`, *optional*, defaults to `format_judge`): From request and answer to a `Verdict`, or to
            `None` where it cannot tell.
        judges (`Mapping[str, Callable]`, *optional*): Several judges by name, in place of `judge`. The rates are those
            of the first; how far they agree stands in the report's details.
        base (`nn.Module`, *optional*): Base model for the KL. Left out, a `PeftModel` with its adapters disabled; the
            KL of a plain model is then not measured.
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to `64`): Requests answered at once.
        generation ([`Generation`], *optional*): How answers are made, in place of `max_new_tokens` and `batch_size`:
            drawn answers beside greedy ones, and a cache.
        chat_template (`str` or `os.PathLike`, *optional*): Jinja template or a file with one, instead of the
            tokenizer's own.

    Returns:
        `Report`: Rates with intervals, perplexity, KL, details, and the answers.

    Raises:
        ValueError: the prompt set has no test prompts, or `judges` is empty.
    """
    tests = prompts.select(split="test")
    named = named_judges(judge, judges)
    questions = questions_of(prompts)
    how = generation or Generation(max_new_tokens=max_new_tokens, batch_size=batch_size)
    kept = kept_for(model, how.cache)
    texts = [question.text for question in questions]
    rows = fitting_ids(model, tokenizer, texts, how.max_new_tokens, chat_template=chat_template)
    answers = answer_rows(model, tokenizer, rows, how, kept=kept, desc="test prompts")
    examples = judge_all(questions, answers, named)
    pairs = [(p.prompt, p.response) for p in tests if p.kind == "benign" and p.response]
    # Half the batch size: logits of all response tokens are wider than a cache of keys and values.
    half = max(1, how.batch_size // 2)
    perplexity, kl = _kept_likelihood(
        kept, model, tokenizer, pairs, base=base, batch_size=half, chat_template=chat_template
    )
    first_tokens = _kept_first_tokens(kept, model, tokenizer, rows, prompts.phrases, how.max_new_tokens, half)
    return report_of(
        examples,
        named,
        held_out=prompts.held_out_families,
        prompt_set=prompts.fingerprint,
        options={**how.as_dict(), "chat_template": read_template(chat_template)},
        perplexity=perplexity,
        kl=kl,
        first_tokens=first_tokens,
        sampled=_drawn(model, tokenizer, questions, rows, how, named, kept) if how.n_samples else None,
    )


def _kept_likelihood(
    kept: Kept,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    base: nn.Module | None,
    chat_template: str | os.PathLike[str] | None,
    **options: Any,
) -> tuple[Interval | None, Interval | None]:
    """[`likelihood_intervals`], of rows that are measured unless they are known."""
    if not kept.setting or not pairs:
        measured = likelihood_of_rows(model, tokenizer, pairs, base=base, chat_template=chat_template, **options)
        return likelihood_intervals(measured)
    rows = encode(tokenizer, [p for p, _ in pairs], [r for _, r in pairs], chat_template=chat_template)
    other = None if base is None else identity(base)
    key = digest(["likelihood of rows", other, rows.input_ids.tolist(), rows.attention_mask.tolist()])
    if key not in kept.values or (base is not None and other is None):
        measured = likelihood_of_rows(model, tokenizer, pairs, base=base, chat_template=chat_template, **options)
        kept.add({key: measured})
    return likelihood_intervals(kept.values[key])


def _kept_first_tokens(
    kept: Kept,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    phrases: Phrases,
    max_new_tokens: int,
    batch_size: int,
) -> list[tuple[float, float]]:
    """[`first_token_probabilities_of_rows`], unless they are known."""
    key = digest(["first tokens", rows, phrases.refusal, phrases.compliance, max_new_tokens])
    if key not in kept.values:
        kept.add({key: first_token_probabilities_of_rows(model, tokenizer, rows, phrases, batch_size=batch_size)})
    return [(refused, complied) for refused, complied in kept.values[key]]


def _drawn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence["_Question"],
    rows: Sequence[list[int]],
    generation: Generation,
    judges: Mapping[str, Judge],
    kept: Kept,
) -> Sampled:
    """Harmful requests answered several times, plain and inside test templates."""
    places = [place for place, question in enumerate(questions) if question.group in ("plain", "attack")]
    asked, chosen = [questions[place] for place in places], [rows[place] for place in places]
    labels: list[list[str | None]] = []
    first = dict([next(iter(judges.items()))])
    for sample in range(generation.n_samples):
        title = f"drawn answers, {sample + 1} of {generation.n_samples}"
        drawn = answer_rows(model, tokenizer, chosen, generation, sample=sample, kept=kept, desc=title)
        labels.append([example.label for example in judge_all(asked, drawn, first)])
    groups = [question.key if question.group == "attack" else None for question in asked]
    return Sampled.of(
        groups, list(zip(*labels, strict=True)), temperature=generation.temperature, seed=generation.seed
    )


def questions_of(prompts: PromptSet) -> list["_Question"]:
    """
    All texts that are put to a model.

    Args:
        prompts (`PromptSet`): The prompt set; its test prompts are asked.

    Returns:
        `list`: Plain, attacked and wrapped requests, with their group, key (source or family), id and text.

    Raises:
        ValueError: the prompt set has no test prompts.
    """
    tests = prompts.select(split="test")
    if not tests:
        raise ValueError(
            'got a prompt set without test prompts; expected some to measure on; add prompts with "split": "test"'
        )
    return list(_questions(prompts, tests))


@dataclass(frozen=True)
class _Question:
    """One text to answer: `key` is a source for plain requests and a family for attacks."""

    group: str
    key: str
    id: str
    text: str


def _questions(prompts: PromptSet, tests: Sequence[Prompt]) -> Iterator[_Question]:
    """All texts to answer, in an order that is fixed: requests of equal length share batches by it."""
    plain = defaultdict(list)
    for prompt in tests:
        harmful = prompt.kind == "harmful"
        group, key = ("plain", prompt.source or "unknown") if harmful else (prompt.kind, "")
        plain[group, key].append(_Question(group, key, prompt.id, prompt.prompt))
    for questions in plain.values():
        yield from questions

    targets = [prompt for prompt in tests if prompt.kind == "harmful"]
    for family, split in dict.fromkeys((attack.family, attack.split) for attack in prompts.attacks):
        group = "attack" if split == "test" else "attack_train_templates"
        members = prompts.attackable(targets, family=family, split=split)
        if not members:
            logger.warning("Family '%s' (%s attacks) fits no harmful test request; it is not measured", family, split)
        texts = prompts.attacked(members, family=family, split=split)
        yield from (_Question(group, family, p.id, text) for p, text in zip(members, texts, strict=True))

    benign = [prompt for prompt in tests if prompt.kind == "benign"]
    if prompts.templates(split="test"):
        texts = prompts.wrapped(benign, split="test")
        yield from (_Question("wrapped_benign", "", p.id, text) for p, text in zip(benign, texts, strict=True))
