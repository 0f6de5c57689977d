"""What if the direction of refusals is taken out of the residual stream?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.evaluation.compare.steering import block_names, refusal_direction
from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject, percent
from neurontune_peft.prompts import PromptSet

MOST_BLOCKS = 6


def ablated_direction(subject: Subject) -> Iterator[Row]:
    """
    Take the refusal direction out of every block's output (arXiv 2406.11717, directional ablation).

    Of the directions of up to six blocks, evenly spread, the one is used whose ablation has the model refuse the
    fewest plain harmful requests of the train split.

    Args:
        subject ([`Subject`]): The model.
    """
    if not all(subject.prompts.select(kind=kind, split="train") for kind in ("harmful", "benign")):
        raise NotTestedError("the prompt set has no harmful or no benign train requests to find the direction with")
    try:
        blocks = block_names(subject.base)
    except ValueError as error:
        raise NotTestedError(str(error)) from error
    block, direction = best_direction(subject, blocks)
    with ablated(subject.base, blocks, direction):
        hits = subject.attacks()
        with subject.model.disable_adapter():
            base = subject.attacks()
    note = f"direction of {block}; the base model under the same ablation: {percent(base)}"
    yield subject.row("refusal direction", "ablated in every block", hits, note=note)


def best_direction(subject: Subject, blocks: Sequence[str]) -> tuple[str, Tensor]:
    """
    The block, and its direction of length 1 and shape `(H,)`, whose ablation has fewest plain requests refused.

    Args:
        subject ([`Subject`]): The model.
        blocks (`Sequence[str]`): Names of all blocks.
    """
    count = min(MOST_BLOCKS, len(blocks))
    candidates = [blocks[place * len(blocks) // count] for place in range(count)]
    plain = subject.prompts.select(kind="harmful", split="train")[: subject.max_tests]
    probe = PromptSet(tuple(replace(prompt, split="test") for prompt in plain))
    found: list[tuple[float, str, Tensor]] = []
    for block in candidates:
        direction = refusal_direction(
            subject.base, subject.tokenizer, subject.prompts, block, chat_template=subject.chat_template
        )
        direction = direction / direction.norm().clamp_min(1e-12)
        with ablated(subject.base, blocks, direction):
            refused = subject.report(probe).plain_refusal
        found.append((1.0 if refused is None else refused.rate, block, direction))
    _, block, direction = min(found, key=lambda candidate: candidate[0])
    return block, direction


@contextmanager
def ablated(model: nn.Module, blocks: Sequence[str], direction: Tensor) -> Iterator[None]:
    """
    Project a direction out of what every block takes and gives.

    Args:
        model (`nn.Module`): A causal LM; it is restored afterwards.
        blocks (`Sequence[str]`): Names of its blocks.
        direction (`torch.Tensor`): Shape `(H,)`, length 1.
    """

    def without(hidden: Tensor) -> Tensor:
        unit = direction.to(hidden)
        return hidden - (hidden @ unit).unsqueeze(-1) * unit  # (B, T, H)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (without(inputs[0]), *inputs[1:]) if inputs and isinstance(inputs[0], Tensor) else inputs

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    handles = []
    try:
        for block in blocks:
            module = model.get_submodule(block)
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
