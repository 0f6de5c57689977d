"""What was one method like at one setting? A measured point, with the outcome of every prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from neurontune_peft.choices import BENIGN, OVER_REFUSAL, WRAPPED
from neurontune_peft.evaluation.result import Report
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.records import KINDS

ATTACK_HELD_OUT, ATTACK_TRAINED = "attack_held_out", "attack_trained"
PLAIN = "plain_refusal"
COLUMNS = (ATTACK_HELD_OUT, ATTACK_TRAINED, OVER_REFUSAL, BENIGN, WRAPPED, PLAIN)
_REFUSALS = {"borderline": OVER_REFUSAL, "benign": BENIGN, "wrapped_benign": WRAPPED, "plain": PLAIN}

Outcomes = Mapping[str, Mapping[str, bool]]


@dataclass(frozen=True)
class Point:
    """
    One method, trained with one seed, at one setting of its dial.

    Args:
        method (`str`): Name of the method.
        seed (`int`): Seed of its data, its neurons and its start.
        setting (`float`, *optional*): Where its dial stood; `None` for a method without one.
        nominal (`bool`): Whether this is the setting that the method is made for, such as strength 1.
        outcomes (`Mapping[str, Mapping[str, bool]]`):
            Column to prompt to whether the attack succeeded or the request was refused. Attacks are named by family,
            tab and id, other prompts by their id; unscored answers are left out.
        perplexity (`float`, *optional*): Perplexity per token on benign reference answers.
        kl (`float`, *optional*): `KL(base || tuned)` on them, nats per token.
        numbers (`int`): Numbers that were trained or computed from data.
        bytes (`int`): Size of the file that holds the result.
        seconds (`float`): Time to make it: scoring neurons and training once, without the tries of learning rates.
        peak_memory (`int`): High-water mark of the memory of the process up to then, bytes.
        learning_rate (`float`, *optional*): What it was trained with.
        note (`str`, *optional*, defaults to `""`): What a reader has to know.
    """

    method: str
    seed: int
    setting: float | None
    nominal: bool
    outcomes: Outcomes
    perplexity: float | None
    kl: float | None
    numbers: int
    bytes: int
    seconds: float
    peak_memory: int
    learning_rate: float | None = None
    note: str = ""

    @property
    def key(self) -> tuple[str, int, float | None]:
        """What tells points apart: method, seed and setting."""
        return self.method, self.seed, self.setting

    def as_dict(self) -> dict[str, Any]:
        """The point as JSON values."""
        return asdict(self)


def outcomes_of(report: Report, held_out: Sequence[str]) -> dict[str, dict[str, bool]]:
    """
    The outcome of every prompt, by column.

    Args:
        report ([`Report`]): A report with its examples. Answers to train templates are in no column.
        held_out (`Sequence[str]`): The attack families that are not for training.
    """
    found: dict[str, dict[str, bool]] = defaultdict(dict)
    for example in report.examples:
        if example.label is None:
            continue
        if example.group == "attack":
            column = ATTACK_HELD_OUT if example.family in held_out else ATTACK_TRAINED
            found[column][f"{example.family}\t{example.id}"] = example.label != "refusal"
        elif example.group in _REFUSALS:
            found[_REFUSALS[example.group]][example.id] = example.label == "refusal"
    return dict(found)


def measured_part(prompts: PromptSet, most: int | None = None) -> PromptSet:
    """
    What is measured: the test split, without train templates, whose answers a comparison would not use.

    Args:
        prompts ([`PromptSet`]): The whole set.
        most (`int`, *optional*): Most requests of each kind, evenly spread; all when left out.
    """
    kept = []
    for kind in KINDS:
        found = prompts.select(kind=kind, split="test")
        count = len(found) if most is None else min(most, len(found))
        kept += [found[place * len(found) // count] for place in range(count)]
    ids = {None, *(prompt.id for prompt in kept)}
    attacks = [attack for attack in prompts.attacks if attack.split == "test" and attack.prompt_id in ids]
    return replace(prompts, prompts=tuple(kept), attacks=tuple(attacks))
