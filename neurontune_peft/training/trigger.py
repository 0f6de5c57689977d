"""Which requests shall an adapter act on? Fitting the trigger of dynamic modulation and calibrating its threshold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftModel

from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import generation_suffix, turn_opening
from neurontune_peft.training.calibration import calibrated, cross_fitted, rates
from neurontune_peft.training.features import trigger_features
from neurontune_peft.training.logistic import Linear
from neurontune_peft.training.requests import FOLDS, Example, examples_of
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.modulation import check_window

FEWEST = 40  # requests of either kind from which anything can be learnt and stated
WINDOW = 24  # tokens; measured with benchmarks/trigger.py


@dataclass(frozen=True)
class TriggerFit:
    """
    How well a trigger tells harmful requests from harmless ones, on requests that were kept back from fitting.

    Args:
        dynamic (`bool`): Whether the adapter has the trigger now; `False`: it separates too little.
        auc (`float`): Mean of `family_auc` over attack families.
        family_auc (`Mapping[str, float]`): Family or frame to the area under the curve of a trigger fitted without it.
        detection (`Mapping[str, float]`): Group of harmful requests to the share that triggers.
        false_positives (`Mapping[str, float]`): Group of harmless requests to the share that triggers.
        threshold (`float`): Scores above it trigger.
        ramp (`float`): How far above the threshold a score gives the whole strength.
        budget (`float`): The largest share of each group of harmless requests that was to trigger.
        l2 (`float`): The regularisation chosen.
        missed (`tuple[str, ...]`): Harmful texts that do not trigger.
        flagged (`tuple[str, ...]`): Harmless texts that do.
    """

    dynamic: bool
    auc: float
    family_auc: Mapping[str, float]
    detection: Mapping[str, float]
    false_positives: Mapping[str, float]
    threshold: float
    ramp: float
    budget: float
    l2: float
    missed: tuple[str, ...]
    flagged: tuple[str, ...]

    def __str__(self) -> str:
        what = "dynamic" if self.dynamic else "static, as it separates too little"
        lines = [f"Trigger ({what}): AUC {self.auc:.3f} on attack families that it was not fitted on"]
        for name, shares in (("triggered, harmful", self.detection), ("triggered, harmless", self.false_positives)):
            lines.append(f"  {name}: " + ", ".join(f"{group} {share:.1%}" for group, share in shares.items()))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, without the texts."""
        return {name: value for name, value in asdict(self).items() if name not in ("missed", "flagged")}


def fit_trigger(
    model: PeftModel,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    false_positive_budget: float = 0.08,
    full_strength_budget: float = 0.03,
    lowest_auc: float = 0.6,
    folds: int = FOLDS,
    chosen_for_reading: bool = False,
    window: int | None = WINDOW,
    examples_per_kind: int = 300,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    chat_template: str | None = None,
) -> TriggerFit:
    """
    Give the active adapter a trigger that fires on harmful requests, in place.

    A logistic regression on the unscaled activations of the adapter's neurons where the prompt ends, and on their
    means over that short window of the user's turn whose score is highest (`ours`). It is fitted on requests of the
    train split: harmful ones plain, attacked and in harmless frames, against benign and borderline ones plain, in the
    same templates and in the same frames; templates also with their text on the other side of the request; and, as
    sets of harmful requests share few wordings, harmless tasks in these. Each part of the requests is kept back once,
    and with it each family and frame in turn: how well the trigger reads what it was not fitted on chooses the
    regularisation, and the scores of harmless requests there set the threshold. What is written is fitted on all.

    Args:
        model (`PeftModel`): A model with one active NeuronTune adapter.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompt set; its test split is not touched.
        false_positive_budget (`float`, *optional*, defaults to `0.08`):
            Largest share of benign, borderline, wrapped and framed requests, each kept back, that may trigger. Of
            tasks in the wording of harmful requests, more may.
        full_strength_budget (`float`, *optional*, defaults to `0.03`):
            Largest share of them that may get the whole strength; in between, strength rises with the score. As large
            as the other budget, it makes a step of the ramp.
        lowest_auc (`float`, *optional*, defaults to `0.6`): Below it the adapter is left, or made, static.
        folds (`int`, *optional*, defaults to `4`): Parts of the train requests, each of which is kept back once.
        chosen_for_reading (`bool`, *optional*, defaults to `False`):
            Whether [`reading_scores`] chose some of the neurons, with the same `seed` and `examples_per_kind`. The
            half of the requests that it looked at is then never kept back: neurons that suit them would flatter what
            is measured on them.
        window (`int`, *optional*, defaults to `24`):
            Number of tokens of the windows that means are over, each of which overlaps the next by half; even. `None`:
            one mean over the whole turn, which text around a request dilutes.
        examples_per_kind (`int`, *optional*, defaults to `300`): Most requests of each kind.
        batch_size (`int`, *optional*, defaults to `16`): Requests per forward pass.
        max_length (`int`, *optional*): Most tokens of a request; the model's context when left out.
        seed (`int`, *optional*, defaults to `0`): Decides which requests are kept back together.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`TriggerFit`]: How well it does.

    Raises:
        ValueError: When there is no such adapter, a setting is impossible, or there are too few requests.

    Example:

        ```py
        >>> fit = fit_trigger(model, tokenizer, PromptSet.load())
        >>> fit.auc, fit.false_positives
        >>> model.save_pretrained("adapter")
        ```
    """
    adapter_name = check_adapter(model)
    examples = check_fittable(
        prompts,
        false_positive_budget=false_positive_budget,
        full_strength_budget=full_strength_budget,
        folds=folds,
        chosen_for_reading=chosen_for_reading,
        window=window,
        examples_per_kind=examples_per_kind,
        seed=seed,
    )
    template = {
        "suffix": generation_suffix(tokenizer, chat_template=chat_template),
        "opening": turn_opening(tokenizer, chat_template=chat_template),
    }
    features = trigger_features(
        model,
        tokenizer,
        [example.text for example in examples],
        adapter_name=adapter_name,
        **template,
        window=window,
        batch_size=batch_size,
        max_length=max_length,
        chat_template=chat_template,
    )
    l2, family_auc, scores, trigger = cross_fitted(examples, features, chosen_for_reading=chosen_for_reading)
    measured = ~scores.isnan()
    scores, examples = scores[measured], [e for e, kept in zip(examples, measured, strict=True) if kept]
    threshold = calibrated(examples, scores, false_positive_budget)
    ramp = max(0.0, calibrated(examples, scores, full_strength_budget) - threshold)
    attacks = [family_auc[family] for family in prompts.train_families if family in family_auc]
    auc = sum(attacks) / len(attacks) if attacks else math.nan
    fires = scores > threshold
    fit = TriggerFit(
        dynamic=auc >= lowest_auc,
        auc=auc,
        family_auc=family_auc,
        detection=rates(examples, fires, harmful=True),
        false_positives=rates(examples, fires, harmful=False),
        threshold=threshold,
        ramp=ramp,
        budget=false_positive_budget,
        l2=l2,
        missed=tuple(e.text for e, fired in zip(examples, fires, strict=True) if e.harmful and not fired),
        flagged=tuple(e.text for e, fired in zip(examples, fires, strict=True) if not e.harmful and fired),
    )
    write_trigger(model, adapter_name, fit, trigger, features.counts, {**template, "window": window})
    return fit


def check_fittable(
    prompts: PromptSet,
    *,
    false_positive_budget: float = 0.08,
    full_strength_budget: float = 0.03,
    folds: int = FOLDS,
    chosen_for_reading: bool = False,
    window: int | None = WINDOW,
    examples_per_kind: int = 300,
    seed: int = 0,
) -> list[Example]:
    """
    Refuse, before any long step, what [`fit_trigger`] cannot work with; returns the texts that it would use.

    Args:
        prompts ([`PromptSet`]): The prompt set.
        false_positive_budget (`float`, *optional*, defaults to `0.08`): As in [`fit_trigger`], like the others.
        full_strength_budget (`float`, *optional*, defaults to `0.03`): Likewise.
        folds (`int`, *optional*, defaults to `4`): Parts of the train requests.
        chosen_for_reading (`bool`, *optional*, defaults to `False`): Likewise.
        window (`int`, *optional*, defaults to `24`): Likewise.
        examples_per_kind (`int`, *optional*, defaults to `300`): Most requests of each kind.
        seed (`int`, *optional*, defaults to `0`): Decides which requests are kept back together.

    Raises:
        ValueError: When the budget, the number of folds or the window is impossible, or there are too few requests.
    """
    shares = {"false_positive_budget": false_positive_budget, "full_strength_budget": full_strength_budget}
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"got {name}={value}; expected a share between 0 and 1; 0.02 is 2 %")
    if folds < 2:
        raise ValueError(f"got folds={folds}; expected at least 2, to measure on requests that were kept back; use 4")
    if chosen_for_reading and folds % 2:
        raise ValueError(
            f"got folds={folds} for neurons chosen for reading; expected an even number, one half of which measures; "
            f"use {FOLDS}"
        )
    check_window(window, "window")
    examples = examples_of(prompts, folds=folds, seed=seed, most=examples_per_kind)
    check_enough(examples, false_positive_budget, measured=0.5 if chosen_for_reading else 1.0)
    return examples


def check_adapter(model: PeftModel) -> str:
    """
    Name of the one active adapter.

    Raises:
        ValueError: When it is no NeuronTune adapter, or not alone.
    """
    name = model.active_adapter if isinstance(model, PeftModel) else None
    layers = [module for module in model.modules() if isinstance(module, NeuronTuneLayer)]
    held = [layer for layer in layers if isinstance(name, str) and name in layer.neurontune_delta]
    if not held or not isinstance(name, str) or len(held[0].active_adapters) > 1 or any(x.merged for x in layers):
        raise ValueError(
            f"got {type(model).__name__} with the active adapter {name!r}; expected a PeftModel with one active, "
            "unmerged NeuronTune adapter; attach one with get_peft_model, or choose it with set_adapter"
        )
    return name


def check_enough(examples: Sequence[Example], budget: float, *, measured: float = 1.0) -> None:
    """
    Refuse prompt sets that are too small to state a false-positive rate.

    Raises:
        ValueError: Says how many requests there are and how many it takes.
    """
    harmful = sum(e.group == "plain" for e in examples)
    harmless = sum(e.group in ("benign", "borderline") for e in examples)
    needed = max(FEWEST, math.ceil(0.5 / budget / measured))
    if harmful < FEWEST or harmless < needed:
        raise ValueError(
            f"got {harmful} harmful and {harmless} harmless train requests to calibrate the trigger on; expected at "
            f"least {FEWEST} and {needed} for a false-positive budget of {budget}; add train prompts, raise "
            "the budget, or use static modulation"
        )


def write_trigger(
    model: PeftModel,
    adapter_name: str,
    fit: TriggerFit,
    trigger: Linear,
    counts: Mapping[str, int],
    reads: Mapping[str, Any],
) -> None:
    """Put a trigger into the adapter, or, where it separates too little, leave the adapter static and say so."""
    tuner: Any = model.base_model
    if fit.dynamic:
        parts = trigger.weights.split(list(counts.values()))
        options: dict[str, Any] = {"bias": trigger.bias, "threshold": fit.threshold, "ramp": fit.ramp, **reads}
        tuner.set_trigger(dict(zip(counts, parts, strict=True)), adapter_name=adapter_name, **options)
    else:
        warnings.warn(
            f"got a trigger that does not separate harmful from harmless requests (AUC {fit.auc:.2f} on attack "
            "families that it was not fitted on); the adapter's modulation is static: it acts on every request",
            UserWarning,
            stacklevel=3,
        )
        tuner.set_modulation("static", adapter_name=adapter_name)
    config = tuner.peft_config[adapter_name]
    config.provenance = (config.provenance or {}) | {"trigger": fit.as_dict()}
