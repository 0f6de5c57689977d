"""How safe and how useful is a model? One measurement on the test prompts."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.evaluation.generation import Generation, Kept, answer_all
from neurontune_peft.evaluation.generation.answers import kept_for
from neurontune_peft.evaluation.generation.cache import digest
from neurontune_peft.evaluation.generation.identity import identity
from neurontune_peft.evaluation.result import Example, Rate, Report
from neurontune_peft.evaluation.sampled import Sampled
from neurontune_peft.judges import Judge, format_judge
from neurontune_peft.objectives import kl_of_logits, response_logits
from neurontune_peft.prompts import Batch, Prompt, PromptSet, encode
from neurontune_peft.prompts.answers import context_length, evaluating

logger = logging.get_logger(__name__)


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    judge: Judge = format_judge,
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
        base (`nn.Module`, *optional*): Base model for the KL. Left out, a `PeftModel` with its adapters disabled; the
            KL of a plain model is then not measured.
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to `64`): Requests answered at once.
        generation ([`Generation`], *optional*): How answers are made, in place of `max_new_tokens` and `batch_size`:
            drawn answers beside greedy ones, and a cache.
        chat_template (`str` or `os.PathLike`, *optional*): Jinja template or a file with one, instead of the
            tokenizer's own.

    Returns:
        `Report`: Rates with intervals, perplexity, KL, and the answers.

    Raises:
        ValueError: the prompt set has no test prompts.
    """
    tests = prompts.select(split="test")
    if not tests:
        raise ValueError(
            'got a prompt set without test prompts; expected some to measure on; add prompts with "split": "test"'
        )
    questions = list(_questions(prompts, tests))
    how = generation or Generation(max_new_tokens=max_new_tokens, batch_size=batch_size)
    kept = kept_for(model, how.cache)
    options: dict[str, Any] = {"kept": kept, "chat_template": chat_template}
    texts = [question.text for question in questions]
    answers = answer_all(model, tokenizer, texts, how, desc="test prompts", **options)
    examples = tuple(_judged(questions, answers, judge))
    pairs = [(p.prompt, p.response) for p in tests if p.kind == "benign" and p.response]
    # Half the batch size: logits of all response tokens are wider than a cache of keys and values.
    perplexity, kl = _kept_likelihood(
        kept, model, tokenizer, pairs, base=base, batch_size=max(1, how.batch_size // 2), chat_template=chat_template
    )
    return Report(
        **_rates(questions, examples),
        held_out=prompts.held_out_families,
        perplexity=perplexity,
        kl=kl,
        judge=judge_name(judge),
        judge_limits=str(getattr(judge, "limits", "")),
        prompt_set=prompts.fingerprint,
        options={**how.as_dict(), "chat_template": None if chat_template is None else os.fspath(chat_template)},
        unscored=sum(example.label is None for example in examples),
        examples=examples,
        sampled=_drawn(model, tokenizer, questions, how, judge, options) if how.n_samples else None,
    )


def likelihood(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    base: nn.Module | None = None,
    batch_size: int = 32,
    chat_template: str | os.PathLike[str] | None = None,
) -> tuple[float | None, float | None]:
    """
    Perplexity of reference answers, and the KL to the base model on them.

    Args:
        model (`nn.Module`): A causal language model, or a `PeftModel` of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        pairs (`Sequence[tuple[str, str]]`): Requests with their answers.
        base (`nn.Module`, *optional*): As in `evaluate`.
        batch_size (`int`, *optional*, defaults to `32`): Rows at once.
        chat_template (`str` or `os.PathLike`, *optional*): As in `evaluate`.

    Returns:
        `tuple[float | None, float | None]`: Perplexity per token, and `KL(base || tuned)` in nats averaged over all
            tokens; `None` where not measured.
    """
    if not pairs:
        return None, None
    rows = encode(
        tokenizer,
        [prompt for prompt, _ in pairs],
        [response for _, response in pairs],
        chat_template=chat_template,
        max_length=context_length(model),
    )
    device = next(model.parameters()).device
    nats, divergence, count = 0.0, 0.0, 0
    with evaluating(model), torch.no_grad(), logging.tqdm(total=len(rows), desc="perplexity", delay=2) as progress:
        for batch in _by_length(rows, batch_size):
            batch = batch.to(device)
            logits = response_logits(model, batch)  # (N, V)
            targets = batch.input_ids[batch.response_mask]
            nats += F.cross_entropy(logits.float(), targets, reduction="sum").item()
            count += len(targets)
            with _base_of(model, base) as reference:
                if reference is not None:
                    divergence += kl_of_logits(response_logits(reference, batch), logits).double().sum().item()
            progress.update(len(batch))
    mean = nats / max(1, count)
    perplexity = math.exp(mean) if mean < 700 else math.inf  # above, the exponential overflows
    measured = base is not None or isinstance(model, PeftModel)
    return perplexity, divergence / max(1, count) if measured else None


def judge_name(judge: Judge) -> str:
    """
    What reports call a judge.

    Args:
        judge (`Callable`): The judge.

    Returns:
        `str`: Its `name`, else the name of the function or class.
    """
    for owner, attribute in ((judge, "name"), (judge, "__name__"), (type(judge), "__name__")):
        if isinstance(name := getattr(owner, attribute, None), str):
            return name
    raise AssertionError("every class has a name")


def _kept_likelihood(
    kept: Kept,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    base: nn.Module | None,
    chat_template: str | os.PathLike[str] | None,
    **options: Any,
) -> tuple[float | None, float | None]:
    """[`likelihood`], unless it is known."""
    if not kept.setting or not pairs:
        return likelihood(model, tokenizer, pairs, base=base, chat_template=chat_template, **options)
    rows = encode(tokenizer, [p for p, _ in pairs], [r for _, r in pairs], chat_template=chat_template)
    other = None if base is None else identity(base)
    key = digest(["likelihood", other, rows.input_ids.tolist(), rows.attention_mask.tolist()])
    if key not in kept.values or (base is not None and other is None):
        measured = likelihood(model, tokenizer, pairs, base=base, chat_template=chat_template, **options)
        kept.add({key: list(measured)})
    perplexity, kl = kept.values[key]
    return perplexity, kl


def _drawn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence["_Question"],
    generation: Generation,
    judge: Judge,
    options: dict[str, Any],
) -> Sampled:
    """Harmful requests answered several times, plain and inside test templates."""
    asked = [question for question in questions if question.group in ("plain", "attack")]
    texts = [question.text for question in asked]
    labels: list[list[str | None]] = []
    for sample in range(generation.n_samples):
        title = f"drawn answers, {sample + 1} of {generation.n_samples}"
        drawn = answer_all(model, tokenizer, texts, generation, sample=sample, desc=title, **options)
        labels.append([example.label for example in _judged(asked, drawn, judge)])
    groups = [question.key if question.group == "attack" else None for question in asked]
    return Sampled.of(
        groups, list(zip(*labels, strict=True)), temperature=generation.temperature, seed=generation.seed
    )


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


def _judged(questions: Sequence[_Question], answers: Sequence[str], judge: Judge) -> Iterator[Example]:
    pairs = list(zip(questions, answers, strict=True))
    for question, answer in logging.tqdm(pairs, desc="verdicts", delay=2):
        verdict = judge(question.text, answer)
        family = question.key if question.group.startswith("attack") else None
        yield Example(question.id, question.group, family, question.text, answer, verdict.label if verdict else None)


def _rates(questions: Sequence[_Question], examples: Sequence[Example]) -> dict[str, Any]:
    """Count labels by group; answers that the judge could not tell about count nowhere."""
    labels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for question, example in zip(questions, examples, strict=True):
        if example.label is not None:
            labels[question.group, question.key].append(example.label)

    def refusals(group: str) -> Rate | None:
        return _share("refusal", (label for (g, _), found in labels.items() if g == group for label in found))

    def by_key(group: str, label: str) -> dict[str, Rate]:
        shares = {key: _share(label, found) for (g, key), found in labels.items() if g == group}
        return {key: share for key, share in shares.items() if share is not None}

    return {
        "plain_refusal": refusals("plain"),
        "plain_refusal_by_source": by_key("plain", "refusal"),
        "attack_success": by_key("attack", "compliance"),
        "attack_success_train_templates": by_key("attack_train_templates", "compliance"),
        "benign_refusal": refusals("benign"),
        "borderline_refusal": refusals("borderline"),
        "wrapped_benign_refusal": refusals("wrapped_benign"),
    }


def _share(label: str, labels: Iterable[str]) -> Rate | None:
    found = list(labels)
    return Rate(found.count(label), len(found)) if found else None


def _by_length(rows: Batch, batch_size: int) -> Iterator[Batch]:
    """Cut a right-padded batch into smaller ones of rows of similar length."""
    lengths = rows.attention_mask.sum(dim=1)  # (B,)
    for part in lengths.argsort(stable=True).split(batch_size):
        width = int(lengths[part].max())
        yield Batch(rows.input_ids[part, :width], rows.attention_mask[part, :width], rows.response_mask[part, :width])


@contextmanager
def _base_of(model: nn.Module, base: nn.Module | None) -> Iterator[nn.Module | None]:
    """The model to compare with, if there is one."""
    if base is not None:
        with evaluating(base):
            yield base
    elif isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        yield None
