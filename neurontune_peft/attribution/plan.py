"""What does a method's name stand for? The function to run, what it needs, and how its results become a score."""

from __future__ import annotations

import random as stdlib_random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.accumulate import Keep, Moments, merged
from neurontune_peft.attribution.activation_contrast import activation_contrast
from neurontune_peft.attribution.activation_path import activation_path
from neurontune_peft.attribution.causal import causal
from neurontune_peft.attribution.engine import Method
from neurontune_peft.attribution.gate_path import gate_path
from neurontune_peft.attribution.gradient import gradient
from neurontune_peft.attribution.probe import ROUNDING, pooled, probe_weights
from neurontune_peft.attribution.random import random
from neurontune_peft.attribution.rms_change import rms_change
from neurontune_peft.attribution.snip import snip
from neurontune_peft.attribution.tasks import Task
from neurontune_peft.attribution.wanda import wanda

METHODS = (
    "gradient",
    "gate_path",
    "activation_path",
    "activation_contrast",
    "effect_size",
    "snip",
    "wanda",
    "probe",
    "rms_change",
    "causal",
    "random",
)


@dataclass(frozen=True)
class MethodOptions:
    """The options of `attribute` that belong to single methods; it documents them."""

    steps: int = 8
    start: float = 0.0
    end: float = 1.0
    joint: bool = True
    other: nn.Module | None = None
    shortlist: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """
    How a method is run.

    Args:
        name (`str`): What the score file calls it.
        method (`Callable`): From role to the function `(model, batch, sites, objective) -> {site: (B, F)}`.
        keep (`str`, *optional*, defaults to `"mean"`): What is kept of the scores of a group of prompts.
        pairs (`bool`, *optional*, defaults to `False`): Batches are `PairedBatch`es.
        compare (`bool`, *optional*, defaults to `False`): It reads activations, which speak in comparison only.
        signed (`bool`, *optional*, defaults to `True`): A difference between kinds of prompts has a meaning.
        objective (`bool`, *optional*, defaults to `True`): The objective is used.
        shortlist (`int`, *optional*): Neurons per role that `gradient` chooses beforehand.
    """

    name: str
    method: Callable[[str], Method]
    keep: Keep = "mean"
    pairs: bool = False
    compare: bool = False
    signed: bool = True
    objective: bool = True
    shortlist: int | None = None


def make_plan(method: str | Method, options: MethodOptions, *, pairs: bool | None = None) -> Plan:
    """
    Look up a method.

    Args:
        method (`str` or `Callable`): One of `METHODS`, or a function, which is taken as it is.
        options ([`MethodOptions`]): Options of single methods.
        pairs (`bool`, *optional*): Whether a function wants plain and attacked forms together.

    Raises:
        ValueError: When the name is unknown or an option that it needs is missing.
    """
    if callable(method):
        return Plan(function_name(method), lambda role: method, pairs=bool(pairs))
    if method not in METHODS:
        raise ValueError(
            f"got method '{method}'; expected one of {list(METHODS)} or a function; pass a name, or a function "
            "(model, batch, sites, objective) -> {site: (B, F)}"
        )
    if method == "rms_change" and options.other is None:
        raise ValueError(
            "got method 'rms_change' without a second model; expected the model to compare with; pass other=model"
        )
    if method == "causal" and options.shortlist < 1:
        raise ValueError(f"got shortlist={options.shortlist}; expected at least 1 neuron; use shortlist=64")
    return _named(method, options)


def _named(method: str, options: MethodOptions) -> Plan:
    match method:
        case "gradient":
            return Plan(method, lambda role: gradient)
        case "gate_path":
            gates = partial(gate_path, steps=options.steps, start=options.start, end=options.end)
            return Plan(method, lambda role: gates)
        case "activation_path":
            path = partial(activation_path, steps=options.steps, joint=options.joint)
            return Plan(method, lambda role: path, pairs=True)
        case "activation_contrast":
            return Plan(method, lambda role: activation_contrast, compare=True, objective=False)
        case "effect_size":
            return Plan(method, lambda role: activation_contrast, keep="spread", compare=True, objective=False)
        case "probe":
            return Plan(method, lambda role: pooled, keep="rows", compare=True, objective=False)
        case "snip":
            return Plan(method, lambda role: snip, signed=False)
        case "wanda":
            return Plan(method, lambda role: wanda, signed=False, objective=False)
        case "rms_change":
            change = partial(rms_change, other=options.other)
            return Plan(method, lambda role: change, signed=False, objective=False)
        case "causal":
            return Plan(method, lambda role: causal, shortlist=options.shortlist)
        case _:  # each role draws its own numbers, or all roles would want the same neurons
            draw = partial(_random_for, seed=options.seed)
            return Plan(method, draw, signed=False, objective=False)


def _random_for(role: str, *, seed: int) -> Method:
    return partial(random, seed=stdlib_random.Random(f"{seed}-{role}").randrange(2**31))


def function_name(function: Any) -> str:
    """The name of a function, or of what else can be called."""
    return str(getattr(function, "__qualname__", type(function).__name__))


def shortlist_of(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` highest of all scores, as site to sorted int64 indices `(k,)`; sites without any are left out."""
    flat = torch.cat(list(scores.values()))
    best = torch.argsort(flat, descending=True, stable=True)[:count].sort().values
    found, offset = {}, 0
    for site, score in scores.items():
        inside = best[(best >= offset) & (best < offset + score.numel())] - offset
        if inside.numel():
            found[site] = inside
        offset += score.numel()
    return found


def pooled_score(plan: Plan, task: Task, groups: Mapping[str, Moments]) -> dict[str, Tensor]:
    """
    The score of a role from what was kept of its prompts.

    Args:
        plan ([`Plan`]): The method.
        task ([`Task`]): The role's examples and weights.
        groups (`Mapping[str, Moments]`): What was kept of each group, over all processes.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores `(F,)`, float64.
    """
    weights = {group: task.weights[group.split("/")[0]] for group in groups}
    if plan.keep != "mean":
        return _compared(plan, *([groups[g] for g, w in weights.items() if w * sign > 0] for sign in (1, -1)))
    kinds: dict[str, list[Moments]] = {}
    for group, moments in groups.items():
        kinds.setdefault(group.split("/")[0], []).append(moments)
    means = {kind: merged(parts).mean for kind, parts in kinds.items()}
    return {
        site: torch.stack([task.weights[kind] * mean[site] for kind, mean in means.items()]).sum(dim=0)
        for site in next(iter(means.values()))
    }


def family_score(plan: Plan, task: Task, groups: Mapping[str, Moments], family: str) -> dict[str, Tensor]:
    """The same with the prompts attacked by one family alone on the wanted side."""
    own = f"attacked/{family}"
    kept = {group: moments for group, moments in groups.items() if task.weights[group.split("/")[0]] < 0}
    alone = Task(task.role, task.examples, task.objective, {**task.weights, "attacked": 1.0})
    return pooled_score(plan, alone, {own: groups[own], **kept})


def _compared(plan: Plan, positive: list[Moments], negative: list[Moments]) -> dict[str, Tensor]:
    """One number per neuron that tells two sets of prompts apart."""
    wanted, other = merged(positive), merged(negative)
    if plan.keep == "spread":
        return {site: _effect_size(wanted, other, site) for site in wanted.total}
    return {site: probe_weights(wanted.rows[site], other.rows[site]).double() for site in wanted.total}


def _effect_size(wanted: Moments, other: Moments, site: str) -> Tensor:
    """Cohen's d: difference of means by the pooled standard deviation; 0 for a neuron that never changes."""
    mean, apart = wanted.mean[site], other.mean[site]  # (F,)
    freedom = max(1, wanted.count + other.count - 2)
    deviation = ((wanted.spread[site] + other.spread[site]) / freedom).sqrt()
    constant = deviation <= ROUNDING * torch.maximum(mean.abs(), apart.abs())
    return (mean - apart) / deviation.masked_fill(constant, 1.0) * ~constant


def by_layer(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide the scores of each site by their root mean square, so that no layer outranks the others as a whole."""
    return {
        site: score / norm if (norm := score.square().mean().sqrt()) > 0 else score for site, score in scores.items()
    }
