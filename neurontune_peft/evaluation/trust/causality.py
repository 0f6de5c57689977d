"""Do the neurons cause what their scores claim? Interventions beside layer-matched random sets."""

from __future__ import annotations

import random as stdlib_random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.evaluation.likelihood import likelihood
from neurontune_peft.evaluation.result import Rate
from neurontune_peft.evaluation.trust.held_out import HeldOut
from neurontune_peft.evaluation.trust.interventions import attached, exchange, set_scale
from neurontune_peft.evaluation.trust.rows import Intervention
from neurontune_peft.judges import Judge, ask
from neurontune_peft.neurons import Neurons
from neurontune_peft.prompts import generate_answers

RESAMPLES = 1000


@dataclass(frozen=True)
class Details:
    """
    How the costly part of an intervention is measured: answers, perplexity and KL.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        judge (`Callable`): The judge of the answers.
        sets (`int`): Random sets that are measured in this way, too.
        max_new_tokens (`int`): Most tokens of an answer.
        batch_size (`int`): Requests answered at once.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
    """

    tokenizer: Any
    judge: Judge
    sets: int
    max_new_tokens: int
    batch_size: int
    chat_template: str | None

    def refusal(self, model: nn.Module, prompts: Sequence[str]) -> Rate | None:
        """Share of refusals among the answers that the judge can tell about."""
        answers = generate_answers(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            chat_template=self.chat_template,
        )
        verdicts = [ask(self.judge, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        labels = [verdict.label for verdict in verdicts if verdict.label != "unscored"]
        return Rate(labels.count("refusal"), len(labels)) if labels else None

    def likelihood(self, model: nn.Module, pairs: Sequence[tuple[str, str]]) -> tuple[float | None, float | None]:
        """Perplexity on benign answers, and KL to the model with its adapter off."""
        return likelihood(
            model, self.tokenizer, pairs, batch_size=max(1, self.batch_size // 2), chat_template=self.chat_template
        )


def measure_causality(
    model: nn.Module,
    neurons: Neurons,
    tests: HeldOut,
    *,
    scales: Sequence[float],
    n_random: int,
    seed: int,
    details: Details,
) -> tuple[tuple[Intervention, ...], float | None]:
    """
    Set the neurons, and then each random set in their place, to every scale.

    Args:
        model (`nn.Module`): A causal LM without adapters, held still.
        neurons ([`Neurons`]): The neurons of one role.
        tests ([`HeldOut`]): What to measure on.
        scales (`Sequence[float]`): The scales.
        n_random (`int`): Number of random sets.
        seed (`int`): Which random sets, and which bootstrap samples.
        details ([`Details`]): How answers and side effects are measured.

    Returns:
        `tuple[tuple[Intervention, ...], float | None]`: One row for each scale, and the share of attacked prompts that
        the untouched model refuses.
    """
    with attached(model, neurons) as tuned:
        set_scale(tuned, 1.0)
        before, wrapped = tests.values(tuned), tests.wrapped_values(tuned)
        base = details.refusal(tuned, tests.attacked)
        with logging.tqdm(total=(1 + n_random) * len(scales), desc="interventions", unit="set") as bar:
            rows = []
            for scale in _each(tuned, scales):
                change = tests.values(tuned) - before  # (N,)
                rows.append(_row(tuned, tests, scale, change, wrapped, details, seed))
                bar.update()
            for number in range(n_random):
                exchange(tuned, neurons.layer_matched_random(random_seed(seed, number)))
                for place, _ in enumerate(_each(tuned, scales)):
                    shift = float((tests.values(tuned) - before).mean())
                    rows[place] = _with_random(rows[place], shift)
                    if number < details.sets:
                        rows[place] = _with_random_details(rows[place], tuned, tests, details)
                    bar.update()
    return tuple(rows), None if base is None else base.rate


def random_seed(seed: int, number: int) -> int:
    """Seed of the random set with a number."""
    return stdlib_random.Random(f"{seed}-random-{number}").randrange(2**31)


def bootstrap(values: Tensor, *, seed: int) -> tuple[float, float]:
    """
    95 % percentile interval of the mean over prompts.

    Args:
        values (`torch.Tensor`): One value per prompt, `(N,)`.
        seed (`int`): Which resamples are drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values[draws].mean(dim=1)  # (RESAMPLES,)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def _each(tuned: Any, scales: Sequence[float]) -> Iterator[float]:
    for scale in scales:
        set_scale(tuned, scale)
        yield scale


def _row(
    tuned: Any, tests: HeldOut, scale: float, change: Tensor, wrapped: Tensor, details: Details, seed: int
) -> Intervention:
    low, high = bootstrap(change, seed=seed)
    aside = float((tests.wrapped_values(tuned) - wrapped).mean()) if len(wrapped) else None
    perplexity, kl = details.likelihood(tuned, tests.pairs)
    return Intervention(
        scale=float(scale),
        change=float(change.mean()),
        low=low,
        high=high,
        random=(),
        wrapped_change=aside,
        refusal=details.refusal(tuned, tests.attacked),
        perplexity=perplexity,
        kl=kl,
    )


def _with_random(row: Intervention, shift: float) -> Intervention:
    return replace(row, random=(*row.random, shift))


def _with_random_details(row: Intervention, tuned: Any, tests: HeldOut, details: Details) -> Intervention:
    refusal = details.refusal(tuned, tests.attacked)
    perplexity, kl = details.likelihood(tuned, tests.pairs)
    return replace(
        row,
        random_refusal=row.random_refusal if refusal is None else (*row.random_refusal, refusal),
        random_perplexity=row.random_perplexity if perplexity is None else (*row.random_perplexity, perplexity),
        random_kl=row.random_kl if kl is None else (*row.random_kl, kl),
    )
