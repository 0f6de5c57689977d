"""Scores of all neurons for the roles of an adapter, from a prompt set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from torch import Tensor, nn

from neurontune_peft.attribution.accumulate import Checkpoint, Moments
from neurontune_peft.attribution.engine import Method, held_still
from neurontune_peft.attribution.job import Job, weights_of
from neurontune_peft.attribution.plan import (
    MethodOptions,
    Plan,
    by_layer,
    family_score,
    function_name,
    make_plan,
    pooled_score,
)
from neurontune_peft.attribution.tasks import ROLES, CheckedObjective, Draw, Objectives, Task, make_task
from neurontune_peft.neurons import Scores, Site
from neurontune_peft.prompts import PromptSet
from neurontune_peft.sites import find_sites


def attribute(
    model: nn.Module,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    method: str | Method = "gradient",
    sites: Mapping[str, Site] | None = None,
    roles: Sequence[str] = ROLES,
    objective: Objectives | None = None,
    batch_size: int | Literal["auto"] = "auto",
    steps: int = 8,
    start: float = 0.0,
    end: float = 1.0,
    joint: bool = True,
    other: nn.Module | None = None,
    shortlist: int = 64,
    n_prompts: int | None = 32,
    n_phrases: int | None = 4,
    contrast: float | Mapping[str, float] = 1.0,
    normalize: Literal["layer"] | None = None,
    families: Sequence[str] | None = None,
    attacks_per_prompt: int | None = 1,
    pairs: bool | None = None,
    seed: int = 0,
    chat_template: str | None = None,
    max_length: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Scores:
    """
    Score every neuron of every site for the roles of an adapter, on train prompts only.

    `safety` is the refusal margin on harmful prompts, each once plain and once inside an attack of the train families
    (in turns), less the same margin on borderline prompts and on benign prompts inside train templates; `utility` is
    the log-probability of the reference answers of benign prompts. `Scores.by_family` holds the same per family, from
    the same passes: harmful prompts attacked by that family alone, less the same contrast.

    Where `torch.distributed` is initialised (under `accelerate launch`), every process must make the same call; the
    prompts are divided among them, and all get the whole result.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`; scored in evaluation mode and restored.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): Where the prompts come from.
        method (`str` or `Callable`, *optional*, defaults to `"gradient"`):
            `"gradient"`, `"gate_path"`, `"activation_path"`, `"activation_contrast"`, `"effect_size"` (the same
            difference of means by the pooled standard deviation), `"snip"`, `"wanda"`, `"probe"`, `"rms_change"`,
            `"causal"`, `"random"`, or a function `(model, batch, sites, objective) -> {site: (B, F)}`. The default is
            *ours*: of the methods that follow a gradient, only its neurons beat random ones of the same layers on the
            testbed. `"probe"` keeps one number per prompt and neuron; all others keep sums only.
        sites (`Mapping[str, Site]`, *optional*): The sites to score; those of [`find_sites`] when left out.
        roles (`Sequence[str]`, *optional*, defaults to `("safety", "utility")`):
            The roles to score. A role of your own needs an `objective`; its prompts are the train prompts of every
            kind that have an answer, with that answer.
        objective (`Callable` or `Mapping[str, Callable]`, *optional*):
            `(model, batch) -> (B,)` in place of the roles' own, or role to such a function. Batches of `safety` are
            prompts alone, those of other roles prompts with answers. An attribute `rows_per_example` tells how many
            rows of the model's input the function makes of an example; 1 without it.
        batch_size (`int` or `"auto"`, *optional*, defaults to `"auto"`):
            Prompts per pass. For `safety` every prompt is a row per phrase, `2 * n_phrases` in all. `"auto"` halves
            from 256 where memory ends, and goes on with what was done; it starts with 8 on a CPU.
        steps (`int`, *optional*, defaults to `8`): Steps of `gate_path` and `activation_path`.
        start (`float`, *optional*, defaults to `0.0`): Where `gate_path` starts.
        end (`float`, *optional*, defaults to `1.0`): Where it ends; 1 is the model as it is.
        joint (`bool`, *optional*, defaults to `True`): Whether `activation_path` moves all sites at once.
        other (`nn.Module`, *optional*): The model that `rms_change` compares with.
        shortlist (`int`, *optional*, defaults to `64`):
            Neurons per role that `causal` switches off one by one, those with the highest `gradient`; others score 0.
        n_prompts (`int`, *optional*, defaults to `32`):
            Prompts of each kind to draw by seed; `None` takes all. More prompts make a steadier ranking.
        n_phrases (`int`, *optional*, defaults to `4`):
            Openings of each kind in the refusal margin, evenly spread over the prompt set's; `None` takes all.
        contrast (`float` or `Mapping[str, float]`, *optional*, defaults to `1.0`):
            Weight of the part of `safety` that is subtracted. With 0, neurons that refuse everything rank as high as
            neurons that refuse what is harmful. A mapping gives the mean of each kind a weight of its own, of at
            least 0: `"harmful"` and `"attacked"` are added (their usual shares when neither is named), `"borderline"`
            and `"wrapped"` subtracted. Methods that compare activations subtract the same way, for `utility` the
            harmful prompts. Not used by `snip`, `wanda`, `rms_change` and `random`, which have no sign. *ours*
        normalize (`"layer"`, *optional*):
            Divide the scores of each site by their root mean square, so that no layer outranks the rest as a whole.
        families (`Sequence[str]`, *optional*): Train families to attack and wrap with; all when left out.
        attacks_per_prompt (`int`, *optional*, defaults to `1`):
            Families that each harmful prompt is attacked with, in turns; `None` takes all of them. *ours*
        pairs (`bool`, *optional*):
            Whether a function gets [`PairedBatch`]es: attacked prompts with their plain forms, and no others.
        seed (`int`, *optional*, defaults to `0`): Which prompts are drawn, and the sequence of `random`.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
        max_length (`int`, *optional*):
            Most tokens of a row; the model's context when left out. Longer prompts lose their middle, and one warning
            counts them.
        checkpoint (`str` or `os.PathLike`, *optional*):
            File that keeps the state after each batch. The same call goes on from it after an interruption of any
            kind, with the same result to the last bit. It is deleted at the end.

    Returns:
        [`Scores`]: Role to site to the mean score over the prompts, shape `(F,)`; positive means that amplifying the
        neuron raises the role's objective (for methods with a sign).

    Raises:
        ValueError: When the method, a role, a family or a site is unknown, the model has no weights, there are no
            prompts (or no attacked forms for a method that needs them), the objective does not depend on the model, a
            score is NaN, all scores are zero, or the checkpoint is one of other options.
        KeyboardInterrupt: On Ctrl-C; with a checkpoint, its message says how to go on.
    """
    if normalize not in (None, "layer"):
        raise ValueError(f"got normalize={normalize!r}; expected None or 'layer'; use one of them")
    methods = MethodOptions(steps, start, end, joint, other, shortlist, seed)
    plan = make_plan(method, methods, pairs=pairs)
    draw = Draw(n_prompts, n_phrases, contrast, families, attacks_per_prompt, seed, plan.pairs, plan.compare)
    if not plan.signed:  # a part that is subtracted would say nothing
        draw = replace(draw, contrast=0.0)
    tasks = {role: make_task(role, tokenizer, prompts, draw, objective=objective) for role in roles}
    with held_still(model), held_still(model if other is None else other):
        job = Job(
            model=model,
            tokenizer=tokenizer,
            plan=plan,
            tasks=tasks,
            sites=find_sites(model) if sites is None else sites,
            batch_size=batch_size,
            chat_template=chat_template,
            max_length=max_length,
        )
        state = None
        if checkpoint is not None:
            options = {**asdict(replace(methods, other=None)), **asdict(draw), "prompt_set": prompts.fingerprint}
            options["other"] = None if other is None else weights_of(other)
            state = Checkpoint.at(checkpoint, {**options, **job.identity()})
        groups = job.run(state)
    return _finish(plan, tasks, groups, normalize, _provenance(plan, tasks, prompts, methods, draw, normalize))


def _finish(
    plan: Plan,
    tasks: Mapping[str, Task],
    groups: Mapping[str, Mapping[str, Moments]],
    normalize: str | None,
    metadata: Mapping[str, str],
) -> Scores:
    """Scores of the roles, and of the attack families, from what was kept of the groups."""

    def shaped(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = by_layer(scores) if normalize == "layer" else scores
        return {site: score.float() for site, score in scores.items()}

    values = {role: shaped(pooled_score(plan, task, groups[role])) for role, task in tasks.items()}
    by_family: dict[str, dict[str, Tensor]] = {}
    if safety := tasks.get("safety"):
        for family in safety.families:
            by_family[family] = shaped(family_score(plan, safety, groups["safety"], family))
    return Scores(values=values, by_family=by_family, metadata=metadata)


def _provenance(
    plan: Plan,
    tasks: Mapping[str, Task],
    prompts: PromptSet,
    methods: MethodOptions,
    draw: Draw,
    normalize: str | None,
) -> dict[str, str]:
    """Where scores come from, as the score file stores it."""
    metadata = {
        "method": plan.name,
        "seed": str(draw.seed),
        "prompts": ", ".join(f"{len(task.examples)} for {role}" for role, task in tasks.items()),
        "prompt_set": prompts.fingerprint,
    }
    if "safety" in tasks:
        metadata["contrast"] = str(draw.contrast)
    if plan.name in ("gate_path", "activation_path"):
        metadata["steps"] = str(methods.steps)
    if plan.name == "gate_path" and (methods.start, methods.end) != (0.0, 1.0):
        metadata |= {"start": str(methods.start), "end": str(methods.end)}
    if plan.name == "activation_path":
        metadata["joint"] = str(methods.joint)
    if plan.shortlist is not None:
        metadata["shortlist"] = str(plan.shortlist)
    if normalize is not None:
        metadata["normalize"] = normalize
    own = {role: task.objective for role, task in tasks.items() if isinstance(task.objective, CheckedObjective)}
    if own:
        metadata["objective"] = ", ".join(f"{function_name(o.inner)} for {role}" for role, o in own.items())
    return metadata
