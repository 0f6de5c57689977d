"""What if the tuned model is fine-tuned on harmless data?"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject, percent, restored
from neurontune_peft.objectives import response_logits
from neurontune_peft.prompts import encode
from neurontune_peft.prompts.answers import context_length, evaluating

Pair = tuple[str, str]  # request and answer
BATCH, MEMORY = 8, 0.95


def finetuned(subject: Subject, *, steps: int, lr: float) -> Iterator[Row]:
    """
    Train all weights of the base model, with the adapter attached and frozen, and measure: after benign data, with an
    exponential moving average of the weights instead (memory 0.95, `ours`), and after benign and borderline data
    without any refusal.

    Args:
        subject ([`Subject`]): The model; its weights come back bit for bit.
        steps (`int`): Steps of AdamW.
        lr (`float`): Its step size.
    """
    benign = pairs_of(subject, ("benign",))
    compliant = [pair for pair in pairs_of(subject, ("benign", "borderline")) if complies(subject, pair)]
    for name, what, pairs in (
        ("fine-tuning, benign", "on benign requests", benign),
        ("fine-tuning, no refusals", "on benign and borderline requests whose answers do not refuse", compliant),
    ):
        with restored(weights_of(subject)) as weights:
            average = trained(weights, subject, pairs, losses=answer_loss, steps=steps, lr=lr)
            yield _row(subject, name, f"{steps} steps {what}")
            if name == "fine-tuning, benign":
                with torch.no_grad():
                    for weight, mean in zip(weights, average, strict=True):
                        weight.copy_(mean)
                yield _row(subject, f"{name}, EMA", f"{steps} steps {what}, averaged weights")


def _row(subject: Subject, name: str, what: str) -> Row:
    hits = subject.attacks()
    with subject.model.disable_adapter():
        base = subject.attacks()
    return subject.row(name, what, hits, note=f"the base model after the same: {percent(base)}")


def pairs_of(subject: Subject, kinds: Sequence[str]) -> list[Pair]:
    """
    Train requests with reference answers.

    Raises:
        NotTestedError: When there are none.
    """
    train = subject.prompts.select(split="train")
    pairs = [(p.prompt, p.response) for p in train if p.kind in kinds and p.response]
    if not pairs:
        raise NotTestedError(f"the prompt set has no {' or '.join(kinds)} train requests with answers")
    return pairs


def complies(subject: Subject, pair: Pair) -> bool:
    """Whether the judge takes an answer for one that complies."""
    verdict = subject.judge(*pair)
    return verdict is not None and verdict.label == "compliance"


def weights_of(subject: Subject) -> list[Tensor]:
    """
    The weights of the base model that can be trained.

    Raises:
        NotTestedError: When they are quantised.
    """
    deltas = {id(p) for x in subject.tuner.neuron_layers(subject.adapter_name).values() for p in _deltas(x)}
    weights = [p for p in subject.base.parameters() if id(p) not in deltas]
    if not all(weight.is_floating_point() for weight in weights):
        raise NotTestedError("the base model is quantised, so its weights cannot be trained")
    return weights


def _deltas(layer: torch.nn.Module) -> list[Tensor]:
    return [parameter for name, parameter in layer.named_parameters() if "neurontune_delta" in name]


def trained(
    parameters: Sequence[Tensor],
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    losses: Callable[[Subject, Sequence[Pair]], Tensor],
    steps: int,
    lr: float,
) -> list[Tensor]:
    """
    Train parameters in place by AdamW without weight decay, everything else frozen.

    Args:
        parameters (`Sequence[torch.Tensor]`): What is trained.
        subject ([`Subject`]): The model.
        pairs (`Sequence[tuple[str, str]]`): Requests with answers, shuffled by the seed.
        losses (`Callable`): From subject and pairs to one number.
        steps (`int`): Steps.
        lr (`float`): Step size.

    Returns:
        `list[torch.Tensor]`: Exponential moving averages of the parameters.
    """
    everything = list(subject.base.parameters())
    flags = [parameter.requires_grad for parameter in everything]
    average = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in everything:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=0.0)
        with evaluating(subject.model), torch.enable_grad():
            for batch in logging.tqdm(batches(pairs, steps, subject.seed), total=steps, desc="stress: train"):
                optimizer.zero_grad()
                losses(subject, batch).backward()
                optimizer.step()
                with torch.no_grad():
                    for mean, parameter in zip(average, parameters, strict=True):
                        mean.lerp_(parameter, 1 - MEMORY)
    finally:
        for parameter, flag in zip(everything, flags, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None
    return average


def batches(pairs: Sequence[Pair], steps: int, seed: int) -> Iterator[list[Pair]]:
    """Batches of shuffled pairs, over and over again."""
    drawn = random.Random(f"{seed}-stress")
    left: list[Pair] = []
    for _ in range(steps):
        while len(left) < BATCH:
            left += drawn.sample(list(pairs), len(pairs))
        yield left[:BATCH]
        left = left[BATCH:]


def answer_loss(subject: Subject, pairs: Sequence[Pair]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, nats."""
    rows = encode(
        subject.tokenizer,
        [request for request, _ in pairs],
        [answer for _, answer in pairs],
        chat_template=subject.chat_template,
        max_length=context_length(subject.base),
    ).to(next(subject.base.parameters()).device)
    logits = response_logits(subject.model, rows)  # (N, V)
    return F.cross_entropy(logits.float(), rows.input_ids[rows.response_mask])
