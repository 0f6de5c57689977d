"""The model under stress: how it is measured, and how its weights are given back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from neurontune_peft.evaluation.compare.points import ATTACK_HELD_OUT, ATTACK_TRAINED, measured_part, outcomes_of
from neurontune_peft.evaluation.decide.frontier import attack_rate
from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row, has_held
from neurontune_peft.evaluation.measure import evaluate
from neurontune_peft.evaluation.result import Report
from neurontune_peft.judges import Judge
from neurontune_peft.prompts import PromptSet

Hits = Mapping[str, bool]  # family, tab and id of the request to whether the attack succeeded


@dataclass(frozen=True)
class Subject:
    """
    What all stresses share.

    Args:
        model (`PeftModel`): The tuned model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The whole prompt set.
        adapter_name (`str`): The adapter.
        judge (`Callable`): As in [`evaluate`].
        max_tests (`int`): Most harmful test requests.
        options (`Mapping[str, Any]`, *optional*): Further options of [`evaluate`].
        seed (`int`, *optional*, defaults to `0`): Of everything that is drawn.
    """

    model: PeftModel
    tokenizer: Any
    prompts: PromptSet
    adapter_name: str
    judge: Judge
    max_tests: int
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def tuner(self) -> Any:
        """[`NeuronTuneModel`]: Where the adapter's methods are."""
        return self.model.base_model

    @property
    def base(self) -> Any:
        """`nn.Module`: The model without PEFT's wrappers; its modules keep the scales."""
        return self.model.get_base_model()

    @property
    def chat_template(self) -> str | None:
        """`str`, *optional*: Replaces the tokenizer's own."""
        return self.options.get("chat_template")

    @cached_property
    def tests(self) -> PromptSet:
        """[`PromptSet`]: Some harmful test requests, evenly spread, with all test attacks on them."""
        part = measured_part(self.prompts, self.max_tests)
        kept = tuple(p for p in part.prompts if p.kind == "harmful")
        ids = {None, *(prompt.id for prompt in kept)}
        attacks = tuple(attack for attack in part.attacks if attack.prompt_id in ids)
        return PromptSet(kept, attacks, self.prompts.phrases)

    @cached_property
    def base_hits(self) -> Hits:
        """Attacks on the base model."""
        with self.model.disable_adapter():
            return self.attacks()

    @cached_property
    def tuned_hits(self) -> Hits:
        """Attacks on the tuned model as it is."""
        return self.attacks()

    def report(self, tests: PromptSet) -> Report:
        """Measure the model in its present state."""
        return evaluate(self.model, self.tokenizer, tests, judge=self.judge, **self.options)

    def attacks(self, tests: PromptSet | None = None) -> Hits:
        """
        Attack the model in its present state.

        Args:
            tests ([`PromptSet`], *optional*): What with; `tests` when left out.
        """
        found = outcomes_of(self.report(self.tests if tests is None else tests), ())
        return {**found.get(ATTACK_TRAINED, {}), **found.get(ATTACK_HELD_OUT, {})}

    def row(
        self,
        name: str,
        what: str,
        stressed: Hits,
        *,
        base: Hits | None = None,
        tuned: Hits | None = None,
        note: str = "",
    ) -> Row:
        """
        The row of a stress that is measured by attack success.

        Args:
            name (`str`): Name of the stress.
            what (`str`): What was done.
            stressed (`Mapping[str, bool]`): Attacks under the stress.
            base (`Mapping[str, bool]`, *optional*): Attacks on the base model; the usual ones when left out.
            tuned (`Mapping[str, bool]`, *optional*): Attacks on the tuned model; the usual ones when left out.
            note (`str`, *optional*): What a reader has to know.

        Raises:
            NotTestedError: When no answer could be judged.
        """
        shares = [attack_rate(hits) for hits in (base or self.base_hits, tuned or self.tuned_hits, stressed)]
        if not all(shares):
            raise NotTestedError("there are no attacks in the test split whose answers could be judged")
        before, after, found = (share or {} for share in shares)
        return Row(
            name,
            what,
            "attack success",
            before["value"],
            after["value"],
            found["value"],
            found["low"],
            found["high"],
            has_held(before["value"], after["value"], found["value"]),
            note,
        )


@contextmanager
def flags_kept(model: nn.Module) -> Iterator[None]:
    """Give parameters their `requires_grad` back: PEFT sets it where adapters are switched off and on again."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """
    Give tensors of a model back bit for bit, with their `requires_grad`, on exceptions too.

    Args:
        tensors (`Iterable[torch.Tensor]`): Parameters or buffers that will be changed in place.
    """
    held = list(tensors)
    kept = [tensor.detach().clone() for tensor in held]
    flags = [tensor.requires_grad for tensor in held]
    try:
        yield held
    finally:
        with torch.no_grad():
            for tensor, before, flag in zip(held, kept, flags, strict=True):
                tensor.requires_grad_(False).copy_(before)
                tensor.requires_grad_(flag)
                tensor.grad = None


def percent(hits: Hits) -> str:
    """A share of hits for people."""
    return f"{sum(hits.values()) / len(hits):.1%}" if hits else "not measured"
