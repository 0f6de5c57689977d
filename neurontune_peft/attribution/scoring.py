"""Scores of all neurons for the roles of an adapter, from a prompt set."""

from __future__ import annotations

import random as stdlib_random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.attribution.engine import Method, held_still
from neurontune_peft.attribution.gate_path import gate_path
from neurontune_peft.attribution.gradient import gradient
from neurontune_peft.attribution.random import random
from neurontune_peft.neurons import Scores, Site
from neurontune_peft.objectives import Objective, RefusalMargin, target_log_prob
from neurontune_peft.prompts import Prompt, PromptSet, encode
from neurontune_peft.sites import find_sites

METHODS = ("gradient", "gate_path", "random")
ROLES = ("safety", "utility")


@dataclass(frozen=True)
class _Task:
    """One part of a role's score: texts with the ids to name in messages, the objective, and the part's weight."""

    role: str
    weight: float
    ids: Sequence[str]
    texts: Sequence[str]
    responses: Sequence[str] | None
    objective: Objective


def _resolve_method(method: str | Method, *, steps: int, seed: int) -> Callable[[str], Method]:
    """Role to method with its options filled in; a user's own function is taken as it is."""
    if callable(method):
        return lambda role: method
    if method == "gate_path":
        return lambda role: partial(gate_path, steps=steps)
    if method == "random":  # each role draws its own numbers, or all roles would want the same neurons
        return lambda role: partial(random, seed=stdlib_random.Random(f"{seed}-{role}").randrange(2**31))
    if method == "gradient":
        return lambda role: gradient
    raise ValueError(
        f"got method '{method}'; expected one of {list(METHODS)} or a function; pass a name, or a function "
        "(model, batch, sites, objective) -> {site: (B, F)}"
    )


def _drawn(prompts: Sequence[Prompt], count: int | None, *, seed: int, role: str) -> list[Prompt]:
    """At most `count` of the prompts, by seed, in the order of the set."""
    if count is None or count >= len(prompts):
        return list(prompts)
    places = stdlib_random.Random(f"{seed}-{role}-prompts").sample(range(len(prompts)), count)
    return [prompts[place] for place in sorted(places)]


def _spread(texts: Sequence[str], count: int | None) -> list[str]:
    """`count` of the texts, evenly spaced, the first among them."""
    if count is None or count >= len(texts):
        return list(texts)
    return [texts[place * len(texts) // count] for place in range(count)]


def _safety_tasks(
    tokenizer: Any, prompts: PromptSet, *, n_prompts: int | None, n_phrases: int | None, contrast: float, seed: int
) -> list[_Task]:
    """Refusal margin on harmful train prompts, less `contrast` times the same margin on what must be answered."""
    margin = RefusalMargin.from_texts(
        tokenizer,
        refusal=_spread(prompts.phrases.refusal, n_phrases),
        compliance=_spread(prompts.phrases.compliance, n_phrases),
    )
    ids, texts = _to_refuse(prompts, n_prompts=n_prompts, seed=seed)
    tasks = [_Task("safety", 1.0, ids, texts, None, margin)]
    if contrast:
        ids, texts = _to_answer(prompts, n_prompts=n_prompts, seed=seed)
        tasks.append(_Task("safety", -contrast, ids, texts, None, margin))
    return tasks


def _to_refuse(prompts: PromptSet, *, n_prompts: int | None, seed: int) -> tuple[list[str], list[str]]:
    """Harmful train prompts, each once plain and once attacked, the train families in turns; ids and texts."""
    harmful = _drawn(prompts.select(kind="harmful", split="train"), n_prompts, seed=seed, role="safety")
    ids, texts = [prompt.id for prompt in harmful], [prompt.prompt for prompt in harmful]
    families = prompts.train_families
    for turn, family in enumerate(families):
        part = prompts.attackable(harmful[turn :: len(families)], family=family, split="train")
        ids += [f"{prompt.id} attacked by {family}" for prompt in part]
        texts += prompts.attacked(part, family=family, split="train")
    return ids, texts


def _to_answer(prompts: PromptSet, *, n_prompts: int | None, seed: int) -> tuple[list[str], list[str]]:
    """Borderline train prompts, and benign ones inside train templates; ids and texts."""
    borderline = _drawn(prompts.select(kind="borderline", split="train"), n_prompts, seed=seed, role="borderline")
    ids, texts = [prompt.id for prompt in borderline], [prompt.prompt for prompt in borderline]
    if prompts.templates(split="train"):
        benign = _drawn(prompts.select(kind="benign", split="train"), n_prompts, seed=seed, role="wrapped")
        ids += [f"{prompt.id} wrapped" for prompt in benign]
        texts += prompts.wrapped(benign, split="train")
    return ids, texts


def _utility_task(prompts: PromptSet, *, n_prompts: int | None, seed: int) -> _Task:
    """Log-probability of the reference answers of benign train prompts."""
    answered = [p for p in prompts.select(kind="benign", split="train") if p.response is not None]
    benign = _drawn(answered, n_prompts, seed=seed, role="utility")
    responses = [str(prompt.response) for prompt in benign]
    return _Task("utility", 1.0, [p.id for p in benign], [p.prompt for p in benign], responses, target_log_prob)


def _make_tasks(role: str, tokenizer: Any, prompts: PromptSet, **options: Any) -> list[_Task]:
    """The parts of a role's score that have prompts; the first part must."""
    if role == "safety":
        tasks = _safety_tasks(tokenizer, prompts, **options)
    elif role == "utility":
        tasks = [_utility_task(prompts, n_prompts=options["n_prompts"], seed=options["seed"])]
    else:
        raise ValueError(f"got role '{role}'; expected one of {list(ROLES)}; score other roles with a method directly")
    if not tasks[0].texts:
        raise ValueError(
            f"got no prompts to score the role '{role}'; expected harmful train prompts for safety and benign train "
            "prompts with an answer for utility; add them, or fill missing answers with complete_responses"
        )
    return [task for task in tasks if task.texts]


def _batches(
    task: _Task, tokenizer: Any, batch_size: int, *, device: torch.device, **options: Any
) -> Iterator[tuple[list[str], Any]]:
    """Batches of similar length, with the ids of their prompts."""
    order = sorted(range(len(task.texts)), key=lambda i: (len(task.texts[i]), i))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        responses = None if task.responses is None else [task.responses[i] for i in part]
        batch = encode(tokenizer, [task.texts[i] for i in part], responses, **options)
        yield [task.ids[i] for i in part], batch.to(device)


def _check_result(role: str, ids: Sequence[str], sites: Mapping[str, Site], part: Mapping[str, Tensor]) -> None:
    """Refuse what a method may not return: other sites or shapes than asked for, NaN and infinite scores."""
    shapes = {site: tuple(score.shape) for site, score in part.items()}
    expected = {name: (len(ids), site.width) for name, site in sites.items()}
    if shapes != expected:
        wrong = next(iter(set(shapes.items()) ^ set(expected.items())))[0]
        raise ValueError(
            f"got scores of shape {shapes.get(wrong)} at '{wrong}' from the method; expected {expected.get(wrong)}, a "
            "row per prompt at every site; correct the method"
        )
    for site, score in part.items():
        finite = torch.isfinite(score).all(dim=1)
        if not finite.all():
            prompt = ids[int((~finite).nonzero()[0])]
            raise ValueError(
                f"got a NaN or infinite score for role '{role}' at '{site}' on prompt '{prompt}'; expected finite "
                "numbers; load the model in float32 or bfloat16, or remove the prompt"
            )


def _score(
    task: _Task, batches: Iterator[tuple[list[str], Any]], sites: Mapping[str, Site], run: Method
) -> dict[str, Tensor]:
    """Weighted mean over the prompts of a task, in float64 so that the batch size does not show."""
    sums: dict[str, Tensor] = {}
    with logging.tqdm(total=len(task.texts), desc=f"attribute {task.role}", unit="prompt") as bar:
        for ids, batch in batches:
            part = run(batch, task.objective)
            _check_result(task.role, ids, sites, part)
            for site, score in part.items():
                column = score.double().sum(dim=0).cpu()  # (B, F) -> (F,)
                sums[site] = sums[site] + column if site in sums else column
            bar.update(len(ids))
    if not any(bool(column.any()) for column in sums.values()):
        raise ValueError(
            f"got a gradient of zero at every neuron for role '{task.role}'; expected an objective that depends on "
            "the neurons; make the phrases and the chat template of the prompt set match the model"
        )
    return {site: column * (task.weight / len(task.texts)) for site, column in sums.items()}


def _linear_sites(model: nn.Module) -> dict[str, Site]:
    """The sites that gates can reach; fused experts alone are left as they are, for the error that says why not."""
    found = find_sites(model)
    return {name: site for name, site in found.items() if site.kind == "linear"} or found


def attribute(
    model: nn.Module,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    method: str | Method = "gate_path",
    sites: Mapping[str, Site] | None = None,
    roles: Sequence[str] = ROLES,
    batch_size: int = 8,
    steps: int = 8,
    n_prompts: int | None = 32,
    n_phrases: int | None = 4,
    contrast: float = 1.0,
    seed: int = 0,
    chat_template: str | None = None,
) -> Scores:
    """
    Score every neuron of every site for the roles of an adapter, on train prompts only.

    `safety` is the refusal margin on harmful prompts, each once plain and once inside an attack of the train families
    (in turns), less the same margin on borderline prompts and on benign prompts inside train templates; `utility` is
    the log-probability of the reference answers of benign prompts.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`; scored in evaluation mode and restored.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Where the prompts come from.
        method (`str` or `Callable`, *optional*, defaults to `"gate_path"`):
            `"gate_path"`, `"gradient"`, `"random"`, or a function
            `(model, batch, sites, objective) -> {site: (B, F)}`. *ours*: with the contrast below, training on the
            neurons of `gate_path` protected better than on those of `gradient`, at less cost.
        sites (`Mapping[str, Site]`, *optional*):
            The sites to score; the linear ones of [`find_sites`] when left out.
        roles (`Sequence[str]`, *optional*, defaults to `("safety", "utility")`): The roles to score.
        batch_size (`int`, *optional*, defaults to `8`):
            Prompts per pass. For `safety` every prompt is a row per phrase, `2 * n_phrases` in all.
        steps (`int`, *optional*, defaults to `8`): Steps of `gate_path`.
        n_prompts (`int`, *optional*, defaults to `32`):
            Prompts of each kind to draw by seed; `None` takes all. More prompts make a steadier ranking.
        n_phrases (`int`, *optional*, defaults to `4`):
            Openings of each kind in the refusal margin, evenly spread over the prompt set's; `None` takes all.
        contrast (`float`, *optional*, defaults to `1.0`):
            Weight of the part of `safety` that is subtracted. With 0, neurons that refuse everything rank as high as
            neurons that refuse what is harmful. Not used by `random`. *ours*
        seed (`int`, *optional*, defaults to `0`): Which prompts are drawn, and the sequence of `random`.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Scores`]: Role to site to the mean score over the prompts, shape `(F,)`; positive means that amplifying the
        neuron raises the role's objective.

    Raises:
        ValueError: When the method, a role or a site is unknown, the model has no weights, there are no prompts, a
            score is NaN, or all scores are zero.
    """
    make_run = _resolve_method(method, steps=steps, seed=seed)
    options = {"n_prompts": n_prompts, "n_phrases": n_phrases, "contrast": contrast, "seed": seed}
    if method == "random":  # a control that knows nothing has nothing to contrast
        options["contrast"] = 0.0
    tasks = {role: _make_tasks(role, tokenizer, prompts, **options) for role in roles}
    values: dict[str, dict[str, Tensor]] = {}
    with held_still(model):
        sites = _linear_sites(model) if sites is None else sites
        device = next(model.parameters()).device
        for role, parts in tasks.items():
            run = partial(_run_on, make_run(role), model, sites)
            scored = []
            for task in parts:
                batches = _batches(task, tokenizer, batch_size, device=device, chat_template=chat_template)
                scored.append(_score(task, batches, sites, run))
            values[role] = {site: torch.stack([part[site] for part in scored]).sum(dim=0).float() for site in sites}
    return Scores(values=values, metadata=_provenance(method, tasks, prompts, steps=steps, **options))


def _run_on(
    method: Method, model: nn.Module, sites: Mapping[str, Site], batch: Any, objective: Objective
) -> dict[str, Tensor]:
    return method(model, batch, sites, objective)


def _provenance(
    method: str | Method, tasks: Mapping[str, Sequence[_Task]], prompts: PromptSet, **options: Any
) -> dict[str, str]:
    """Where scores come from, as the score file stores it."""
    name = method if isinstance(method, str) else getattr(method, "__qualname__", type(method).__name__)
    counts = {role: sum(len(task.texts) for task in parts) for role, parts in tasks.items()}
    metadata = {
        "method": name,
        "seed": str(options["seed"]),
        "prompts": ", ".join(f"{count} for {role}" for role, count in counts.items()),
        "prompt_set": prompts.fingerprint,
    }
    if "safety" in tasks:
        metadata["contrast"] = str(options["contrast"])
    if method == "gate_path":
        metadata["steps"] = str(options["steps"])
    return metadata
