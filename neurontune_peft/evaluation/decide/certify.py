"""How strongly may an adapter act? The strongest setting whose limits hold with a stated confidence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.choices import BENIGN, OVER_REFUSAL, WRAPPED
from neurontune_peft.evaluation.decide.certificate import Certificate, made_certificate
from neurontune_peft.evaluation.decide.frontier import Frontier, Measured
from neurontune_peft.evaluation.decide.measuring import Measurer, journal_for
from neurontune_peft.evaluation.decide.settings import counts_of, in_order, own_threshold, path
from neurontune_peft.evaluation.decide.testing import Count, check_limits, fixed_sequence
from neurontune_peft.evaluation.measure import evaluate
from neurontune_peft.judges import Judge, format_judge, judge_name
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.training.trigger import check_adapter
from neurontune_peft.tuner.presets import Setting, check_setting

# Limit to its column, and to whether only requests count that the base model does not refuse.
LIMITS = {
    "over_refusal": (OVER_REFUSAL, False),
    "benign_refusal": (BENIGN, False),
    "wrapped_benign_refusal": (WRAPPED, False),
    "new_over_refusal": (OVER_REFUSAL, True),
    "new_benign_refusal": (BENIGN, True),
    "new_wrapped_benign_refusal": (WRAPPED, True),
}
_NEEDS = {"borderline": {OVER_REFUSAL}, "benign": {BENIGN, WRAPPED}}
_WHAT = {OVER_REFUSAL: "borderline prompts", BENIGN: "benign prompts", WRAPPED: "benign prompts and test templates"}


def certify(
    measured: Frontier | PeftModel,
    prompts: PromptSet,
    limits: Mapping[str, float] | None = None,
    *,
    confidence: float = 0.95,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dial: str | None = None,
    settings: Sequence[Setting] | None = None,
    tuned_on: PromptSet | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    judge: Judge = format_judge,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: str | None = None,
) -> Certificate:
    """
    Find the strongest setting of an adapter's dials whose limits hold with a stated confidence.

    Learn-then-Test (arXiv 2110.01052): settings are tested from the mildest to the strongest, an order that no
    measurement goes into, with exact binomial tests, and the first that fails ends the search. With probability
    `confidence` over the draw of the prompts, the setting that is returned keeps all limits at once on prompts drawn
    like those of the test split. Nothing is promised for other kinds of prompts, for another judge, or about attacks.

    Args:
        measured ([`Frontier`] or `PeftModel`):
            What [`sweep`] measured on the test split of the same prompts, or a model, whose settings are then measured
            one by one as far as the search goes. Its dials are given back as they were.
        prompts ([`PromptSet`]): Its test split stands for the deployment's requests.
        limits (`Mapping[str, float]`, *optional*, defaults to `{"over_refusal": 0.05}`):
            Bounds above 0 and below 1. `over_refusal`, `benign_refusal` and `wrapped_benign_refusal` bound the share
            of borderline, benign and wrapped benign requests that are refused; answers that the judge cannot tell
            about count as refusals. With `new_` in front (`ours`), the share of requests that the base model does not
            refuse and the tuned one does, which also bounds the rise of the rate.
        confidence (`float`, *optional*, defaults to `0.95`): Between 0 and 1.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's; needed with a model.
        dial (`str`, *optional*):
            With a model: the one dial to turn, `"strength"`, `"counts"` or `"threshold"`. Left out, the trigger's
            threshold where there is one, else the strength.
        settings (`Sequence[Setting]`, *optional*): With a model: these instead; they are tested in [`in_order`].
        tuned_on ([`PromptSet`], *optional*): The prompts that the adapter was tuned on, where they are another set.
        checkpoint (`str` or `os.PathLike`, *optional*): As in [`sweep`], with a model.
        judge (`Callable`, *optional*, defaults to `format_judge`): As in [`evaluate`], with a model.
        max_new_tokens (`int`, *optional*, defaults to `32`): As in [`evaluate`].
        batch_size (`int`, *optional*, defaults to `64`): As in [`evaluate`].
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Certificate`]: The setting, or none with the number of prompts that it would take.

    Raises:
        ValueError: When a limit or the confidence is impossible, prompts of a limit are missing, or the certifying
            prompts were tuned on. Nothing is measured then.

    Example:

        ```py
        >>> certificate = certify(model, prompts, {"new_benign_refusal": 0.05}, tokenizer=tokenizer)
        >>> if certificate.setting is not None:
        ...     model.turn_to(certificate.setting)
        ```
    """
    limits = {"over_refusal": 0.05} if limits is None else dict(limits)
    check_limits(limits, LIMITS, confidence)
    check_fresh(prompts, tuned_on)
    check_prompts(prompts, limits)
    if isinstance(measured, Frontier):
        if measured.prompt_set != prompts.fingerprint:
            raise ValueError(
                f"got a frontier measured on prompt set {measured.prompt_set:.12}, and prompt set "
                f"{prompts.fingerprint:.12}; expected the same; pass the prompts that sweep was given"
            )
        base: Measured | None = measured.points[0]
        points, name = iter(measured.points[1:]), measured.judge
    else:
        if tokenizer is None:
            raise ValueError("got a model without tokenizer; expected both; pass tokenizer=...")
        name = judge_name(judge)
        measurer = _measurer(
            measured,
            certifying(prompts, limits),
            checkpoint,
            tokenizer=tokenizer,
            judge=judge,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            chat_template=chat_template,
        )
        config: Any = measured.peft_config[measurer.adapter_name]
        chosen = _chosen(config, dial, settings)
        relative = any(LIMITS[limit][1] for limit in limits)
        base = measurer.at(Setting(0.0, counts_of(config, 1.0), own_threshold(config))) if relative else None
        points = measurer.each(logging.tqdm(chosen, desc="certify", unit="setting"))
    return made_certificate(
        _tested(points, base, limits, confidence), limits, confidence=confidence, judge=name, prompts=prompts
    )


def _tested(
    points: Iterator[Measured], base: Measured | None, limits: Mapping[str, float], confidence: float
) -> list[tuple[Setting, Any]]:
    seen: list[Measured] = []

    def sequence() -> Iterator[Mapping[str, Count]]:
        for point in points:
            seen.append(point)
            yield violations(point, base, limits)

    tested = list(fixed_sequence(sequence(), limits, confidence=confidence))
    return [(point.setting, result) for point, result in zip(seen, tested, strict=True)]


def violations(point: Measured, base: Measured | None, limits: Iterable[str]) -> dict[str, Count]:
    """
    How often each limit is violated at a setting; answers that no judge could tell about count as refusals.

    Args:
        point ([`Measured`]): The setting.
        base ([`Measured`], *optional*): The base model; needed for limits that begin with `new_`.
        limits (`Iterable[str]`): Names of limits.

    Raises:
        ValueError: When nothing was measured for a limit.
    """
    counts = {}
    for limit in limits:
        column, new = LIMITS[limit]
        refused = _refused(point, column)
        if not refused:
            raise ValueError(
                f"got no answers for the limit '{limit}'; expected some; add {_WHAT[column]} of the test split"
            )
        if new:
            assert base is not None
            # A request whose answer by the base model is unknown counts as one that it does not refuse.
            before = base.outcomes.get(column, {})
            refused = {key: hit and not before.get(key, False) for key, hit in refused.items()}
        counts[limit] = Count(sum(refused.values()), len(refused))
    return counts


def check_fresh(prompts: PromptSet, tuned_on: PromptSet | None) -> None:
    """
    Refuse to certify on requests that the adapter was tuned on: they would not be like the deployment's.

    Args:
        prompts ([`PromptSet`]): The certifying prompts.
        tuned_on ([`PromptSet`], *optional*): The prompts of tuning.

    Raises:
        ValueError: When a test request is also a train request, of either set, or there are no test requests.
    """
    tests = prompts.select(split="test")
    if not tests:
        raise ValueError(
            "got a prompt set without test prompts; expected requests that tuning has not seen; mark requests that "
            'were not tuned on with "split": "test"'
        )
    trained = {p.prompt.strip() for found in (prompts, tuned_on) if found for p in found.select(split="train")}
    # Limits are about harmless requests; harmful ones are not asked.
    seen = [prompt for prompt in tests if prompt.kind != "harmful" and prompt.prompt.strip() in trained]
    if seen:
        raise ValueError(
            f"got {len(seen)} certifying requests (such as '{seen[0].id}') that tuning has seen; expected none; "
            "remove them from the test split, or take other requests"
        )


def check_prompts(prompts: PromptSet, limits: Iterable[str]) -> None:
    """
    Refuse limits for which the prompt set has no requests.

    Raises:
        ValueError: Names the limit and what is missing.
    """
    for limit in limits:
        column = LIMITS[limit][0]
        kind = "borderline" if column == OVER_REFUSAL else "benign"
        wrapped = column != WRAPPED or prompts.templates(split="test")
        if not prompts.select(kind=kind, split="test") or not wrapped:
            raise ValueError(
                f"got limit '{limit}' and no {_WHAT[column]} in the test split; expected some to measure it on; add "
                "them, or leave the limit out"
            )


def check_known_source(config: Any, prompts: PromptSet, tuned_on: PromptSet | None) -> None:
    """
    Warn where nothing tells whether the certifying requests were tuned on.

    Args:
        config ([`NeuronTuneConfig`]): The adapter's configuration, which names its prompt set.
        prompts ([`PromptSet`]): The certifying prompts, as they were loaded.
        tuned_on ([`PromptSet`], *optional*): The prompts of tuning.
    """
    known = {found.fingerprint for found in (prompts, tuned_on) if found}
    source = (config.provenance or {}).get("prompt_set")
    if source not in known:
        warnings.warn(
            f"got an adapter tuned on prompt set {source!s:.12}, which is not at hand; expected to compare it with "
            "the certifying requests; pass it as tuned_on, or make sure that none of them were tuned on",
            UserWarning,
            stacklevel=2,
        )


def certifying(prompts: PromptSet, limits: Iterable[str]) -> PromptSet:
    """
    The part of a prompt set that limits are measured on: harmless test requests without answers, and test templates.

    Args:
        prompts ([`PromptSet`]): The whole set.
        limits (`Iterable[str]`): Names of limits.
    """
    columns = {LIMITS[limit][0] for limit in limits}
    kinds = [kind for kind, needs in _NEEDS.items() if columns & needs]
    kept = tuple(replace(p, response=None) for p in prompts.select(split="test") if p.kind in kinds)
    templates = prompts.templates(split="test") if WRAPPED in columns else ()
    return replace(prompts, prompts=kept, attacks=tuple(templates))


def _chosen(config: Any, dial: str | None, settings: Sequence[Setting] | None) -> tuple[Setting, ...]:
    if settings is None:
        return path(config, dial)
    if not settings:
        raise ValueError("got no settings; expected some to certify; leave them out for the usual ones")
    whole, own = counts_of(config, 1.0), own_threshold(config)
    named = [
        replace(s, counts={**whole, **s.counts}, threshold=own if s.threshold is None else s.threshold)
        for s in settings
    ]
    for setting in named:
        check_setting(setting, config)
    return in_order(named)


def _refused(point: Measured, column: str) -> dict[str, bool]:
    unscored = dict.fromkeys(point.unscored.get(column, ()), True)
    return {**point.outcomes.get(column, {}), **unscored}


def _measurer(
    model: PeftModel, tests: PromptSet, checkpoint: str | os.PathLike[str] | None, **options: Any
) -> Measurer:
    name = check_adapter(model)
    measure: Callable[..., Any] = partial(evaluate, prompts=tests, **options)
    key = {"max_new_tokens": options["max_new_tokens"], "chat_template": read_template(options["chat_template"])}
    key |= {"prompt_set": tests.fingerprint, "judge": judge_name(options["judge"]), "certify": True}
    return Measurer(model, name, measure, (), journal_for(model, name, checkpoint, key))
