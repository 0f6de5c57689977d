"""What is a list of neurons tested on? Held-out prompts inside held-out attacks, encoded once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution import pair
from neurontune_peft.objectives import Objective, RefusalMargin, target_log_prob
from neurontune_peft.prompts import Batch, Prompt, PromptSet, encode
from neurontune_peft.prompts.answers import context_length


@dataclass(frozen=True)
class HeldOut:
    """
    Held-out prompts of one role, ready to be measured.

    Args:
        name (`str`): What is measured, for people.
        objective (`Callable`): `(model, batch) -> (B,)`.
        batches (`tuple[Batch, ...]`): The prompts, shorter ones first; of attacked ones with their plain forms.
        count (`int`): Number of prompts.
        families (`tuple[str, ...]`): Held-out attack families; empty for utility.
        attacked (`tuple[str, ...]`): Attacked harmful requests, whose answers are generated; empty for utility.
        wrapped (`tuple[Batch, ...]`): Benign requests inside the same templates.
        pairs (`tuple[tuple[str, str], ...]`): Benign requests with reference answers.
    """

    name: str
    objective: Objective
    batches: tuple[Batch, ...]
    count: int
    families: tuple[str, ...]
    attacked: tuple[str, ...]
    wrapped: tuple[Batch, ...]
    pairs: tuple[tuple[str, str], ...]

    def values(self, model: nn.Module) -> Tensor:
        """The objective of each prompt, `(N,)`, float64, in an order that is always the same."""
        return _values(model, self.objective, self.batches)

    def wrapped_values(self, model: nn.Module) -> Tensor:
        """The objective of each wrapped benign prompt, `(M,)`, float64."""
        return _values(model, self.objective, self.wrapped)


def held_out(
    model: nn.Module,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    role: str,
    n_prompts: int | None,
    n_phrases: int | None,
    batch_size: int,
    seed: int,
    chat_template: str | None,
) -> HeldOut:
    """
    Draw the test prompts for a role: attacked harmful ones, or benign ones with answers for `utility`.

    Raises:
        ValueError: When there are none, or no family is held out.
    """
    encoded = partial(_encoded, tokenizer, model, batch_size=batch_size, chat_template=chat_template)
    benign = _drawn(prompts.select(kind="benign", split="test"), n_prompts, f"{seed}-benign")
    pairs = tuple((prompt.prompt, prompt.response) for prompt in benign if prompt.response)
    if role == "utility":
        if not pairs:
            raise ValueError(
                "got no benign test prompt with an answer; expected held-out prompts to measure utility on; add them, "
                "or fill missing answers with complete_responses"
            )
        batches = encoded([prompt for prompt, _ in pairs], [answer for _, answer in pairs])
        return HeldOut("log-probability of answers", target_log_prob, batches, len(pairs), (), (), (), pairs)
    margin = refusal_margin(tokenizer, prompts, n_phrases)
    room = max(len(ids) for ids in (*margin.refusal_ids, *margin.compliance_ids))
    families, attacked, plain = _attacked(prompts, n_prompts, seed)
    templates = prompts.templates(split="test", families=families)
    wrapped = prompts.wrapped(benign, split="test", families=families) if templates else []
    return HeldOut(
        "refusal margin",
        margin,
        encoded(attacked, plain=plain, room=room),
        len(attacked),
        families,
        tuple(attacked),
        encoded(wrapped, room=room),
        pairs,
    )


def _encoded(
    tokenizer: Any,
    model: nn.Module,
    texts: Sequence[str],
    responses: Sequence[str] | None = None,
    *,
    batch_size: int,
    chat_template: str | None,
    plain: Sequence[str] = (),
    room: int = 0,
) -> tuple[Batch, ...]:
    """Batches of texts of similar length, on the model's device, with room for as many tokens behind each."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    context = context_length(model)
    limit = None if context is None else max(2, context - room)
    batches = []
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        answers = None if responses is None else [responses[i] for i in part]
        batch = encode(tokenizer, [texts[i] for i in part], answers, chat_template=chat_template, max_length=limit)
        if plain:
            own = [plain[i] for i in part]
            batch = pair(batch, encode(tokenizer, own, chat_template=chat_template, max_length=limit))
        batches.append(batch.to(next(model.parameters()).device))
    return tuple(batches)


def refusal_margin(tokenizer: Any, prompts: PromptSet, n_phrases: int | None) -> RefusalMargin:
    """The refusal margin over at most `n_phrases` openings of each kind, evenly spread over those of the set."""

    def spread(texts: Sequence[str]) -> list[str]:
        count = len(texts) if n_phrases is None else min(n_phrases, len(texts))
        return [texts[place * len(texts) // count] for place in range(count)]

    phrases = prompts.phrases
    return RefusalMargin.from_texts(tokenizer, refusal=spread(phrases.refusal), compliance=spread(phrases.compliance))


def _attacked(prompts: PromptSet, n_prompts: int | None, seed: int) -> tuple[tuple[str, ...], list[str], list[str]]:
    """Harmful test prompts, each attacked once, the held-out families in turns."""
    harmful = prompts.select(kind="harmful", split="test")
    families = tuple(family for family in prompts.held_out_families if family in prompts.families(split="test"))
    drawn = _drawn(harmful, n_prompts, f"{seed}-harmful")
    texts: list[str] = []
    plain: list[str] = []
    for turn, family in enumerate(families):
        part = prompts.attackable(drawn[turn :: len(families)], family=family, split="test")
        texts += prompts.attacked(part, family=family, split="test")
        plain += [prompt.prompt for prompt in part]
    if not texts:
        raise ValueError(
            f"got {len(harmful)} harmful test prompts and the held-out families {list(families)}; expected at least "
            'one of each, so that a list is tested on what it was not made from; add prompts with "split": "test" and '
            "a family that has test attacks only"
        )
    return families, texts, plain


def _drawn(prompts: Sequence[Prompt], count: int | None, seed: str) -> list[Prompt]:
    """At most `count` of the prompts, by seed, in the order of the set."""
    if count is None or count >= len(prompts):
        return list(prompts)
    return [prompts[place] for place in sorted(random.Random(seed).sample(range(len(prompts)), count))]


def _values(model: nn.Module, objective: Objective, batches: Sequence[Batch]) -> Tensor:
    with torch.no_grad():
        parts = [objective(model, batch).double().cpu() for batch in batches]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
