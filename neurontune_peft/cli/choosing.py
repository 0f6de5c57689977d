"""Which neurons does `neurontune tune` take? Those that move answers, and those that its trigger reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from neurontune_peft.attribution import attribute
from neurontune_peft.attribution.engine import Method
from neurontune_peft.cli.attribute import resolved
from neurontune_peft.cli.common import parse_counts
from neurontune_peft.cli.steps import Steps
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.selection import select
from neurontune_peft.training import reading_scores, without
from neurontune_peft.training.reading import parted, with_readers

if TYPE_CHECKING:
    from neurontune_peft.cli.tune import Tune


def method_of(command: Tune) -> str | Method:
    """The method of attribution: its name, or the user's own function."""
    return resolved(command.method) if ":" in command.method else command.method


def share_for_reading(command: Tune) -> float:
    """Share of the safety neurons that is chosen for reading; none without a trigger, or without safety neurons."""
    has_readers = command.modulation == "dynamic" and "safety" in parse_counts(command.counts)
    return command.reading_share if has_readers else 0.0


def choose(
    command: Tune,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    steps: Steps,
    *,
    number: int,
    held: Neurons | None,
) -> tuple[Scores, Neurons]:
    """
    This round's neurons beside those of the rounds before.

    Args:
        command (`Tune`): The command.
        model (`nn.Module`): The base model, or from the second round on the one tuned so far.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompts, with answers.
        steps ([`Steps`]): Where scores stand meanwhile.
        number (`int`): Number of the round, from 1.
        held ([`Neurons`], *optional*): Neurons of the rounds before.

    Returns:
        `tuple`: The scores, and the neurons: first those of the highest scores, then, from the first round on, the
        part that the trigger reads.
    """
    scores = steps.scores(f"round-{number}", partial(_score, command, model, tokenizer, prompts))
    counts, readers = parted(parse_counts(command.counts), sum(scores.widths.values()), share_for_reading(command))
    part = {role: max(1, count // command.rounds) for role, count in counts.items() if count}
    more = select(
        scores if held is None else without(scores, held), part, overlap=command.overlap, spread=command.spread
    )
    held = more if held is None else held | more
    if readers and number == 1:
        options: dict[str, Any] = {"seed": command.training.seed, "chat_template": command.chat_template}
        reading = steps.scores("readers", lambda _: reading_scores(model, tokenizer, prompts, **options))
        held = with_readers(held, reading, readers)
    return scores, held


def _score(
    command: Tune, model: Any, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, checkpoint: Path
) -> Scores:
    return attribute(
        model,
        tokenizer,
        prompts,
        method=method_of(command),
        roles=tuple(parse_counts(command.counts)),
        seed=command.training.seed,
        chat_template=command.chat_template,
        checkpoint=checkpoint,
    )
