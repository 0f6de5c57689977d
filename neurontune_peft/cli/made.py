"""What `neurontune tune` made, and what it tells of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from neurontune_peft.cli.common import versions
from neurontune_peft.evaluation import Report
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.training import Log, MetaConfig, TriggerFit


@dataclass(frozen=True)
class Made:
    """An adapter, and how it came about: its model, its neurons, and the scores and log of each round."""

    model: PeftModel
    neurons: Neurons
    scores: tuple[Scores, ...]
    logs: tuple[Log, ...]
    trigger: TriggerFit | None


def measured_at(model: Any, shares: Sequence[float], measure: Callable[[], Report]) -> dict[float, Report]:
    """
    Measure the adapter with the first part of each role's ranking only.

    Args:
        model (`PeftModel`): The tuned model.
        shares (`Sequence[float]`): Shares of the counts.
        measure (`Callable`): Measures the model as it stands.
    """
    totals = model.base_model.get_neurons().totals
    found = {}
    for share in shares:
        model.base_model.set_neuron_counts(**{role: math.ceil(total * share) for role, total in totals.items()})
        found[share] = measure()
    model.base_model.set_neuron_counts(**dict.fromkeys(totals))
    return found


def provenance(
    prompts: PromptSet,
    made: Made,
    before: Report,
    after: Report,
    *,
    selection: Mapping[str, Any],
    training: MetaConfig,
) -> dict[str, Any]:
    """
    How the adapter was made, without times, paths or names of machines: the same run writes the same bytes.

    Args:
        prompts ([`PromptSet`]): The prompt set as it was given.
        made ([`Made`]): The adapter.
        before ([`Report`]): The base model.
        after ([`Report`]): The tuned one.
        selection (`Mapping[str, Any]`): How neurons were selected.
        training ([`MetaConfig`]): How scales were learnt.
    """
    return {
        "prompt_set": prompts.fingerprint,
        "attribution": dict(sorted(made.scores[0].metadata.items())),  # safetensors keeps no order
        "selection": dict(selection),
        "training": training.to_dict(),
        "trigger": None if made.trigger is None else made.trigger.as_dict(),
        "seed": training.seed,
        "versions": versions(),
        "metrics": {"base": before.as_dict(examples=False), "tuned": after.as_dict(examples=False)},
    }


def printed(made: Made, seconds: Mapping[str, float]) -> dict[str, str]:
    """What the report shows as it was printed: heading to text."""
    details = {"Neuron list": str(made.neurons), "Training": "\n\n".join(map(str, made.logs))}
    if made.trigger is not None:
        details["Trigger"] = str(made.trigger)
    return details | {"Time": "\n".join(f"{step}: {spent:.0f} s" for step, spent in seconds.items())}
