"""What does the trigger alone bring? Controls that act on the requests which NEURONTUNE's trigger flags."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from neurontune_peft.evaluation.compare.bench import Bench, Candidate, attached
from neurontune_peft.evaluation.compare.routed import CannedRefusal, GateFlags, Routed, none_flagged
from neurontune_peft.prompts import PromptSet
from neurontune_peft.training import MetaConfig, TriggerFit, fit_trigger, for_flagged_requests, nearly_flagged
from neurontune_peft.tuner import NeuronTuneConfig
from neurontune_peft.tuner.gate import TriggerGate
from neurontune_peft.tuner.trigger_file import Trigger


@contextmanager
def behind_trigger(bench: Bench, name: str, seed: int, *, method: Callable[..., Any]) -> Iterator[Candidate]:
    """
    Another adapter that acts on the requests alone that the trigger of NEURONTUNE flags.

    It is trained as the scales of flagged requests are, on the same prompts and with the same small weight of the
    utility terms, and gets the trigger that `neurontune-dynamic` has with this seed.

    Args:
        bench ([`Bench`]): What every method gets.
        name (`str`): Name of the method.
        seed (`int`): Seed.
        method (`Callable`): [`ia3`] or [`lora`].
    """
    gate, met, cost = trigger_of(bench, seed)
    with method(replace(bench, prompts=met), name, seed, options=for_flagged(bench.config)) as made:
        yield replace(
            made,
            model=Routed(made.model, GateFlags(gate)),
            base=Routed(made.model, none_flagged),
            numbers=made.numbers + cost.numbers,
            bytes=made.bytes + cost.bytes,
            seconds=made.seconds + cost.seconds,
            note="; ".join(filter(None, (cost.note, made.note))),
        )


@contextmanager
def canned_refusal(bench: Bench, name: str, seed: int) -> Iterator[Candidate]:
    """The trigger alone: what it flags gets the prompt set's first refusal, everything else the base model."""
    gate, _, cost = trigger_of(bench, seed)
    vocabulary = bench.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    canned = CannedRefusal(bench.tokenizer, bench.prompts.phrases.refusal[0], vocabulary)
    yield replace(cost, model=Routed(bench.model, GateFlags(gate), canned), base=bench.model)


def trigger_of(bench: Bench, seed: int) -> tuple[TriggerGate | None, PromptSet, Candidate]:
    """
    The trigger that `neurontune-dynamic` has with this seed, for other methods to use.

    It reads the base model's activations, so scales need not be trained for it.

    Args:
        bench ([`Bench`]): What every method gets.
        seed (`int`): Seed.

    Returns:
        `tuple`: The gate, the prompts that scales behind it are learnt from, and what it costs. Where a trigger
        separates too little, the adapter is static; the gate is then `None`, and every request is flagged.
    """
    trigger, met, cost = bench.once(("trigger", seed), lambda: _fitted(bench, seed))
    gate = None
    if trigger is not None:
        gate = TriggerGate(trigger, bench.model, bench.tokenizer, chat_template=bench.chat_template)
    return gate, met, cost


def fitted_on(bench: Bench, model: Any, seed: int) -> tuple[TriggerFit, PromptSet]:
    """Give an attached adapter a trigger, and leave those prompts that scales of flagged requests are learnt from."""
    options: dict[str, Any] = {"seed": seed, "chat_template": bench.chat_template}
    fit = fit_trigger(model, bench.tokenizer, bench.prompts, chosen_for_reading="safety" in bench.counts, **options)
    return fit, nearly_flagged(model, bench.tokenizer, bench.prompts, **options) if fit.dynamic else bench.prompts


def _fitted(bench: Bench, seed: int) -> tuple[Trigger | None, PromptSet, Candidate]:
    neurons, scoring = bench.neurons_to_read(seed)
    start = time.monotonic()
    with attached(bench, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons)) as model:
        fit, met = fitted_on(bench, model, seed)
        trigger = Trigger.of(model) if fit.dynamic else None
    cost = Candidate(
        bench.model,
        numbers=0 if trigger is None else trigger.numbers,
        bytes=0 if trigger is None else len(trigger.to_bytes()) + len(trigger.to_json().encode()),
        seconds=scoring + time.monotonic() - start,
        note=_note(fit.auc if fit.dynamic else None),
    )
    return trigger, met, cost


def for_flagged(config: MetaConfig) -> MetaConfig:
    """The options with what `neurontune tune` changes for adapters that act on flagged requests alone."""
    strong, usual = for_flagged_requests(), MetaConfig()
    changed = {each.name for each in fields(MetaConfig) if getattr(strong, each.name) != getattr(usual, each.name)}
    return replace(config, **{name: getattr(strong, name) for name in changed - {"lr"}})  # rates are chosen apart


def note_of(model: Any) -> str:
    """What a reader has to know of an attached adapter's trigger."""
    return _note(model.peft_config["default"].provenance["trigger"]["auc"] if model.get_trigger() else None)


def _note(auc: float | None) -> str:
    return "static: the trigger separates too little" if auc is None else f"AUC {auc:.3f}"


def fitted_numbers(model: Any) -> int:
    """Numbers of an attached adapter's trigger; 0 where the adapter is static."""
    return Trigger.of(model).numbers if model.get_trigger() else 0
