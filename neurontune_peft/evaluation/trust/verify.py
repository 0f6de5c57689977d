"""Is a list of neurons better than random? The one call that finds out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from neurontune_peft.attribution.engine import Method, held_still
from neurontune_peft.attribution.plan import METHODS
from neurontune_peft.evaluation.trust.causality import Details, measure_causality
from neurontune_peft.evaluation.trust.held_out import held_out
from neurontune_peft.evaluation.trust.interventions import only
from neurontune_peft.evaluation.trust.rankings import (
    Ranking,
    measure_activation_path,
    measure_completeness,
    measure_curves,
    measure_stability,
)
from neurontune_peft.evaluation.trust.result import Trust
from neurontune_peft.evaluation.trust.rows import MIN_RANDOM
from neurontune_peft.evaluation.trust.trainability import TrainingPlan, measure_trainability
from neurontune_peft.judges import Judge, format_judge, judge_name
from neurontune_peft.neurons import Neurons, Scores, Site
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.sites.modules import bare_model, projections

DEFAULT_METHODS = ("gradient", "gate_path", "random")
# Methods that need nothing but model and prompts, so that scores given by name can be made again.
REPEATABLE = tuple(name for name in METHODS if name not in ("rms_change", "causal"))
CURVE_SHARES = (0.001, 0.003, 0.01, 0.03, 0.12)


def verify(
    model: nn.Module,
    tokenizer: Any,
    neurons: Neurons,
    prompts: PromptSet,
    *,
    scores: Scores | None = None,
    role: str = "safety",
    scales: Sequence[float] = (0.0, 1.5, 2.0),
    n_random: int = MIN_RANDOM,
    n_detailed: int = 3,
    n_prompts: int | None = 32,
    n_phrases: int | None = 4,
    n_splits: int = 1,
    methods: Sequence[str | Method] | None = None,
    trainability: bool | TrainingPlan = False,
    steps: int = 32,
    judge: Judge = format_judge,
    max_new_tokens: int = 32,
    batch_size: int = 8,
    seed: int = 0,
    chat_template: str | None = None,
) -> Trust:
    """
    Test a list of neurons against layer-matched random ones, on test prompts inside attacks of held-out families.

    The neurons are set to each scale, and so are random sets with as many neurons at every site. The list counts as
    better than random when, at every scale in the direction in which scales are trained (above 1; below 1 for
    `utility`), its effect lies above the 95th percentile of the random sets (*ours*).

    Args:
        model (`nn.Module`): A causal LM without adapters; measured in evaluation mode and restored bit for bit.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        neurons ([`Neurons`]): The list.
        prompts ([`PromptSet`]): Test prompts to measure on; rankings for stability come from the train prompts.
        scores ([`Scores`], *optional*): Where the list comes from; spares one attribution.
        role (`str`, *optional*, defaults to `"safety"`): Role to test. `utility` is measured by the log-probability of
            benign answers, every other role by the refusal margin.
        scales (`Sequence[float]`, *optional*, defaults to `(0.0, 1.5, 2.0)`): Scales of the neurons.
        n_random (`int`, *optional*, defaults to `20`): Random sets.
        n_detailed (`int`, *optional*, defaults to `3`): Random sets that also generate answers and measure perplexity.
        n_prompts (`int`, *optional*, defaults to `32`): Prompts of each kind, drawn by seed; `None` takes all.
        n_phrases (`int`, *optional*, defaults to `4`): Openings of each kind in the refusal margin; `None` takes all.
        n_splits (`int`, *optional*, defaults to `1`): Halvings of the prompts, and further seeds, for stability.
        methods (`Sequence[str | Callable]`, *optional*): Methods to compare, the first one for halves and seeds;
            `("gradient", "gate_path", "random")` when left out, the method of `scores` before them. `()` leaves out
            stability, curves and the methods' trainings.
        trainability (`bool` or [`TrainingPlan`], *optional*, defaults to `False`): Short trainings, which are slow.
        steps (`int`, *optional*, defaults to `32`): Steps of the completeness test; 0 leaves it out.
        judge (`Callable`, *optional*, defaults to `format_judge`): Judge of generated answers.
        max_new_tokens (`int`, *optional*, defaults to `32`): Most tokens of an answer.
        batch_size (`int`, *optional*, defaults to `8`): Prompts at once; answers are generated for four times as many.
        seed (`int`, *optional*, defaults to `0`): Random sets, prompts, resamples.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Trust`]: The findings; `Trust.better_than_random` is the verdict and `Trust.conclusion` its sentence.

    Raises:
        ValueError: When the neurons or scores belong to another model, the model has adapters, there are no held-out
            prompts, or `n_random` is too small to state a percentile.

    Example:

        ```py
        >>> trust = verify(model, tokenizer, Neurons.load("neurons.json"), PromptSet.load())
        >>> print(trust.conclusion)
        ```
    """
    _check_numbers(scales, n_random, n_detailed)
    chat_template = read_template(chat_template)
    sites = _check_neurons(model, neurons, role)
    named = _methods(methods, scores, role)
    if scores is not None:
        _check_scores(scores, neurons, role)
    listed = only(neurons, role)
    drawn: dict[str, Any] = {"n_prompts": n_prompts, "n_phrases": n_phrases, "chat_template": chat_template}
    tests = held_out(model, tokenizer, prompts, role=role, batch_size=batch_size, seed=seed, **drawn)
    details = Details(tokenizer, judge, n_detailed, max_new_tokens, 4 * batch_size, chat_template)
    rank = Ranking(model, tokenizer, sites, role, named, **drawn)
    plan = TrainingPlan() if trainability is True else trainability
    with held_still(model):
        rows, base_refusal = measure_causality(
            model, listed, tests, scales=scales, n_random=n_random, seed=seed, details=details
        )
        by_method = rank.all(scores, prompts, seed=seed)
        parts: dict[str, Any] = {"causality": rows, "base_refusal": base_refusal}
        if steps:
            ends = [(0.0, 1.0), *((1.0, float(scale)) for scale in (max(scales),) if scale > 1)]
            parts["completeness"] = (
                *measure_completeness(model, sites, tests, ends=ends, steps=steps),
                *measure_activation_path(model, sites, tests, steps=steps),
            )
        parts["stability"] = measure_stability(listed, by_method, rank, prompts, n_splits=n_splits, seed=seed)
        counts = _curve_counts(sum(neurons.widths.values()))
        parts["curves"] = measure_curves(model, by_method, tests, role=role, counts=counts, scale=float(max(scales)))
        if plan:
            trained: dict[str, Any] = {"role": role, "seed": seed, "judge": judge, "chat_template": chat_template}
            parts["trainability"] = measure_trainability(model, tokenizer, listed, by_method, prompts, plan, **trained)
    return Trust(
        role=role,
        count=listed.total,
        total=sum(neurons.widths.values()),
        objective=tests.name,
        n_prompts=tests.count,
        families=tests.families,
        judge=judge_name(judge),
        judge_limits=str(getattr(judge, "limits", "")),
        prompt_set=prompts.fingerprint,
        options=drawn | {"seed": seed, "n_random": n_random, "n_splits": n_splits, "max_new_tokens": max_new_tokens},
        **parts,
    )


def _check_numbers(scales: Sequence[float], n_random: int, n_detailed: int) -> None:
    if not scales or not all(math.isfinite(scale) for scale in scales) or len(set(scales)) != len(scales):
        raise ValueError(f"got scales {tuple(scales)}; expected different finite numbers; use (0.0, 1.5, 2.0)")
    if n_random < MIN_RANDOM:
        raise ValueError(
            f"got n_random={n_random}; expected at least {MIN_RANDOM}, as fewer random sets have no 95th percentile; "
            "raise it"
        )
    if n_detailed < 0:
        raise ValueError(f"got n_detailed={n_detailed}; expected 0 or more; raise it")


def _check_neurons(model: nn.Module, neurons: Neurons, role: str) -> dict[str, Site]:
    """The sites that the neurons were selected from, as sites of this model."""
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "got a model with adapters; expected one without, as neurons are set to scales by an adapter; call "
            "unload() or merge_and_unload() first"
        )
    if not neurons.totals.get(role):
        raise ValueError(f"got role '{role}'; expected one with neurons, of {neurons.totals}; name one of these")
    known = {projection.name: projection for projection in projections(bare_model(model), prune=False)}
    for site, width in neurons.widths.items():
        found = known[site].width if site in known else None
        if found != width:
            what = f"{found} neurons there" if found else "no such site"
            raise ValueError(
                f"got neurons of '{site}' with {width} neurons; expected a site of this {type(model).__name__}, which "
                f"has {what}; use neurons selected on this model"
            )
    return {site: Site(site, width, known[site].kind, "user") for site, width in neurons.widths.items()}


def _check_scores(scores: Scores, neurons: Neurons, role: str) -> None:
    if role not in scores.values:
        raise ValueError(f"got scores of the roles {list(scores.roles)}; expected '{role}' among them; score it, too")
    if scores.widths != dict(neurons.widths):
        different = sorted(set(scores.widths.items()) ^ set(neurons.widths.items()))[0]
        raise ValueError(
            f"got scores and neurons that differ at {different}; expected the same sites and widths in both; use the "
            "scores that the neurons were selected from"
        )


def _methods(methods: Sequence[str | Method] | None, scores: Scores | None, role: str) -> dict[str, str | Method]:
    """Name to method, the one that is ranked again first."""
    if methods is None:
        own = () if scores is None else (scores.metadata.get("method"),)
        known = [method for method in (*own, *DEFAULT_METHODS) if method in REPEATABLE]
        methods = (
            known if role in ("safety", "utility") else ()
        )  # other roles have no prompts of their own to be scored on
    return {m if isinstance(m, str) else getattr(m, "__qualname__", type(m).__name__): m for m in methods}


def _curve_counts(total: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(1, round(share * total)) for share in CURVE_SHARES))
