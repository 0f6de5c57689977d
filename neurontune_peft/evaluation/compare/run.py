"""NEURONTUNE beside its controls, on the same data, along the whole dial of each."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from neurontune_peft.attribution.plan import METHODS as ATTRIBUTION_METHODS
from neurontune_peft.choices import DEFAULT_METHODS, SETTINGS, Limits
from neurontune_peft.evaluation.compare.bench import SAFETY_PROMPT, TRIES, Bench, Candidate
from neurontune_peft.evaluation.compare.comparison import BASE, Comparison
from neurontune_peft.evaluation.compare.journal import FORMAT_VERSION, Journal
from neurontune_peft.evaluation.compare.methods import METHODS, Method, scaled
from neurontune_peft.evaluation.compare.points import Outcomes, Point, measured_part, outcomes_of
from neurontune_peft.evaluation.measure import evaluate
from neurontune_peft.evaluation.result import Report
from neurontune_peft.judges import Judge, format_judge, judge_name
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.prompts.prompt_set import check_tunable
from neurontune_peft.training import MetaConfig, check_fittable
from neurontune_peft.tuner.fingerprint import fingerprint

NOMINAL = {"strength": 1.0, "multiplier": 2.0, "coefficient": 1.0}

Chosen = Sequence[str] | Mapping[str, str | Callable[..., Any]]


def compare(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    methods: Chosen = DEFAULT_METHODS,
    seeds: Sequence[int] = (0,),
    config: MetaConfig | None = None,
    counts: Mapping[str, float] | None = None,
    attribution: Mapping[str, Any] | None = None,
    selection: Mapping[str, Any] | None = None,
    settings: Mapping[str, Sequence[float]] | None = None,
    lr_tries: int = 3,
    max_tests: int | None = None,
    limits: Limits | None = None,
    system_prompt: str = SAFETY_PROMPT,
    checkpoint: str | os.PathLike[str] | None = None,
    judge: Judge = format_judge,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    chat_template: str | None = None,
) -> Comparison:
    """
    Measure NEURONTUNE and its controls on the test prompts, each at several settings of its own dial.

    All trained methods see the same prompts, losses and number of steps. `"neurontune"` takes the learning rate of
    `config`, as its users do; every other trained method tries `lr_tries` rates around its usual one at its first
    seed, and takes the one that does best on prompts and templates of the train split that were held back.

    The one base model serves all methods and is given back as it was.

    Args:
        model (`nn.Module`): The base model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompts; benign and borderline train prompts need answers.
        methods (`Sequence[str]` or `Mapping[str, str | Callable]`, *optional*):
            Names: `"base"` (always measured), `"neurontune"`, `"neurontune-second"`, `"-first"`, `"-none"`,
            `"neurontune-dynamic"`, `"random"`, `"layer-random"`, `"fixed"`, `"ia3"`, `"lora"`, `"ia3-dynamic"`,
            `"lora-dynamic"`, `"canned-refusal"`, `"steering"`, `"system-prompt"`, or a method of [`attribute`], whose
            neurons are then trained. A mapping gives names of your own to such names, or to attribution functions.
        seeds (`Sequence[int]`, *optional*, defaults to `(0,)`): Methods without chance take the first alone.
        config ([`MetaConfig`], *optional*): Options of training; its seed is replaced.
        counts (`Mapping[str, int | float]`, *optional*): Neurons per role; a tenth of all for each when left out.
        attribution (`Mapping[str, Any]`, *optional*): Options of [`attribute`].
        selection (`Mapping[str, Any]`, *optional*): Options of [`select`].
        settings (`Mapping[str, Sequence[float]]`, *optional*):
            Settings of the dials `"strength"`, `"multiplier"` and `"coefficient"`; the usual one (1, 2 and 1) is
            always among them.
        lr_tries (`int`, *optional*, defaults to `3`): From 1 to 5.
        max_tests (`int`, *optional*): Most test requests of each kind, evenly spread; all when left out.
        limits ([`Limits`], *optional*): What may be lost.
        system_prompt (`str`, *optional*): Text of the method `"system-prompt"`.
        checkpoint (`str` or `os.PathLike`, *optional*):
            JSON-lines file that keeps finished rows. Where it exists, they are not measured again; seeds, settings
            and methods may be added.
        judge (`Callable`, *optional*, defaults to `format_judge`): As in [`evaluate`].
        max_new_tokens (`int`, *optional*, defaults to `32`): As in [`evaluate`].
        batch_size (`int`, *optional*, defaults to `64`): As in [`evaluate`].
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Comparison`]: All points, with their rows, choices and tests.

    Raises:
        ValueError: When a method or option is unknown, the prompt set lacks what tuning needs, or the checkpoint
            belongs to another comparison. Nothing is trained or written then.
    """
    dials = {**SETTINGS, **(settings or {})}
    counts = dict(counts or {"safety": 0.03})
    chosen = resolve_methods(methods)
    _check(prompts, seeds, dials, lr_tries, max_tests)
    if any(method.triggered for method in chosen.values()):
        check_fittable(prompts, chosen_for_reading="safety" in counts, seed=seeds[0])
    bench = Bench(
        model,
        tokenizer,
        prompts,
        config or MetaConfig(),
        counts,
        attribution or {},
        selection or {},
        lr_tries,
        rates={},
        chat_template=read_template(chat_template),
        system_prompt=system_prompt,
    )
    options = {**_options(bench), "max_tests": max_tests, "max_new_tokens": max_new_tokens, "judge": judge_name(judge)}
    journal = Journal(checkpoint, options)
    bench.rates.update(journal.rates)
    jobs = [(name, seed) for name, method in chosen.items() for seed in seeds[: None if method.seeded else 1]]
    wanted = [(name, seed, setting) for name, seed in jobs for setting in _settings_of(chosen[name], dials)]
    tests = measured_part(prompts, max_tests)
    measure = partial(evaluate, prompts=tests, judge=judge, max_new_tokens=max_new_tokens, batch_size=batch_size)
    with logging.tqdm(total=len(wanted), desc="compare", unit="row") as bar:
        for name, seed in jobs:
            bar.set_postfix(method=name, seed=seed)
            for _ in _points(bench, journal, name, chosen[name], seed, _settings_of(chosen[name], dials), measure):
                bar.update()
    return Comparison(
        tuple(journal.points[key] for key in wanted),
        judge=judge_name(judge),
        judge_limits=str(getattr(judge, "limits", "")),
        prompt_set=prompts.fingerprint,
        limits=limits or Limits(),
        reference="neurontune" if "neurontune" in chosen else next(iter([*list(chosen)[1:], BASE])),
        options=options | {"seeds": list(seeds), "methods": _names(methods), "settings": _listed(dials)},
    )


def resolve_methods(methods: Chosen) -> dict[str, Method]:
    """
    The methods by the names that the tables give them, the base model first.

    Args:
        methods (`Sequence[str]` or `Mapping[str, str | Callable]`): As in [`compare`].

    Raises:
        ValueError: When a name is unknown.
    """
    given = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    found = {BASE: METHODS[BASE]}
    for shown, what in given.items():
        if isinstance(what, str) and what in METHODS:
            found[shown] = METHODS[what]
        elif callable(what) or what in ATTRIBUTION_METHODS:
            found[shown] = Method(partial(scaled, attribution=what))
        else:
            known = [*METHODS, *(name for name in ATTRIBUTION_METHODS if name not in METHODS)]
            raise ValueError(f"got method '{what}'; expected one of {known}; choose some of them")
    return found


def _check(
    prompts: PromptSet,
    seeds: Sequence[int],
    dials: Mapping[str, Sequence[float]],
    lr_tries: int,
    max_tests: int | None,
) -> None:
    """Refuse what cannot be compared before anything is loaded, trained or written."""
    check_tunable(prompts)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"got seeds {list(seeds)}; expected at least one, each once; use for example (0, 1, 2)")
    if unknown := sorted(set(dials) - set(SETTINGS)):
        raise ValueError(f"got settings of {unknown}; expected those of {list(SETTINGS)}; rename or remove them")
    if not 1 <= lr_tries <= len(TRIES):
        raise ValueError(f"got lr_tries={lr_tries}; expected 1 to {len(TRIES)}; use for example 3")
    if max_tests is not None and max_tests < 1:
        raise ValueError(f"got max_tests={max_tests}; expected at least 1; leave it out to measure on all prompts")


def _settings_of(method: Method, dials: Mapping[str, Sequence[float]]) -> list[float | None]:
    if method.dial is None:
        return [None]
    settings = {float(setting) for setting in dials[method.dial]} | {NOMINAL[method.dial]}
    return [*sorted(settings)]


def _points(
    bench: Bench,
    journal: Journal,
    name: str,
    method: Method,
    seed: int,
    settings: Sequence[float | None],
    measure: Callable[..., Report],
) -> Iterator[Point]:
    """Measure what the journal lacks; a method of which nothing is missing is not made at all."""
    missing = [setting for setting in settings if (name, seed, setting) not in journal.points]
    yield from (journal.points[name, seed, setting] for setting in settings if setting not in missing)
    if not missing:
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with method.run(bench, name, seed) as made:
            if name in bench.rates and name not in journal.rates:
                journal.add_rate(name, bench.rates[name])
            for setting in missing:
                report = _report(bench, made, setting, measure)
                nominal = method.dial is None or setting == NOMINAL[method.dial]
                outcomes = outcomes_of(report, bench.prompts.held_out_families)
                point = _point(made, report, outcomes, (name, seed, setting), nominal)
                journal.add(point)
                yield point


def _report(bench: Bench, made: Candidate, setting: float | None, measure: Callable[..., Report]) -> Report:
    template = made.chat_template or bench.chat_template
    with nullcontext() if setting is None else made.turned(setting):
        return measure(made.model, bench.tokenizer, base=made.base, chat_template=template)


def _point(
    made: Candidate, report: Report, outcomes: Outcomes, key: tuple[str, int, float | None], nominal: bool
) -> Point:
    return Point(
        *key,
        nominal,
        outcomes,
        perplexity=report.perplexity,
        kl=report.kl,
        numbers=made.numbers,
        bytes=made.bytes,
        seconds=round(made.seconds, 3),
        peak_memory=_peak_memory(),
        learning_rate=made.learning_rate,
        note=made.note,
    )


def _peak_memory() -> int:
    """High-water mark of this process, or of the GPU where there is one, bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _options(bench: Bench) -> dict[str, Any]:
    """What all rows of a comparison share, as JSON values; seeds, methods and settings may be added later."""
    return {
        "format_version": FORMAT_VERSION,
        "model": fingerprint(dict(bench.model.named_parameters())),
        "prompt_set": bench.prompts.fingerprint,
        "config": bench.config.to_dict() | {"seed": None},
        "counts": dict(bench.counts),
        "attribution": {name: _named(value) for name, value in bench.attribution.items()},
        "selection": {name: _named(value) for name, value in bench.selection.items()},
        "lr_tries": bench.lr_tries,
        "system_prompt": bench.system_prompt,
        "chat_template": bench.chat_template,
    }


def _names(methods: Chosen) -> dict[str, Any]:
    given = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    return {name: _named(what) for name, what in given.items()}


def _listed(dials: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [float(setting) for setting in settings] for name, settings in dials.items()}


def _named(value: Any) -> Any:
    """An option as a JSON value: functions and other objects by their names."""
    return value if isinstance(value, str | int | float | list | None) else getattr(value, "__qualname__", str(value))
