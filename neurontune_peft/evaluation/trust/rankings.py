"""How steady is a ranking, and do its scores add up? Completeness, stability, and effect against count."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.attribution import PairedBatch, activation_path, attribute, gate_path, objective_on_path
from neurontune_peft.attribution.engine import Method, gated, site_modules
from neurontune_peft.evaluation.trust.held_out import HeldOut
from neurontune_peft.evaluation.trust.interventions import attached, set_scale
from neurontune_peft.evaluation.trust.rows import Completeness, Curve, Overlap
from neurontune_peft.neurons import Neurons, Scores, Site
from neurontune_peft.prompts import Batch, PromptSet
from neurontune_peft.prompts.records import KINDS
from neurontune_peft.selection import select


@dataclass(frozen=True)
class Ranking:
    """
    One attribution after the other, with the same options.

    Args:
        model (`nn.Module`): A causal LM.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        sites (`Mapping[str, Site]`): The sites to score.
        role (`str`): The role.
        methods (`Mapping[str, str | Callable]`): Name to method; the first is ranked again for halves and seeds.
        n_prompts (`int`, *optional*): As in [`attribute`].
        n_phrases (`int`, *optional*): As in [`attribute`].
        chat_template (`str`, *optional*): As in [`attribute`].
    """

    model: nn.Module
    tokenizer: Any
    sites: Mapping[str, Site]
    role: str
    methods: Mapping[str, str | Method]
    n_prompts: int | None
    n_phrases: int | None
    chat_template: str | None

    def __call__(self, name: str, *, prompts: PromptSet, seed: int) -> Scores:
        """Scores of the role by one of the methods, from the train prompts of a set."""
        return attribute(
            self.model,
            self.tokenizer,
            prompts,
            method=self.methods[name],
            sites=self.sites,
            roles=(self.role,),
            n_prompts=self.n_prompts,
            n_phrases=self.n_phrases,
            seed=seed,
            chat_template=self.chat_template,
        )

    def all(self, given: Scores | None, prompts: PromptSet, *, seed: int) -> dict[str, Scores]:
        """Scores by every method; those that were given stand for the method that made them."""
        own = {} if given is None else {given.metadata.get("method", "given scores"): given}
        return own | {name: self(name, prompts=prompts, seed=seed) for name in self.methods if name not in own}


def measure_completeness(
    model: nn.Module, sites: Mapping[str, Site], tests: HeldOut, *, ends: Sequence[tuple[float, float]], steps: int
) -> tuple[Completeness, ...]:
    """
    Compare the sum of the scores of `gate_path` with the change of the objective between the ends of its path.

    Args:
        model (`nn.Module`): A causal LM, held still.
        sites (`Mapping[str, Site]`): All sites.
        tests ([`HeldOut`]): What to measure on.
        ends (`Sequence[tuple[float, float]]`): Common value of all gates at start and end of each path.
        steps (`int`): Steps along each path.
    """
    rows = []
    for start, end in ends:
        totals, changes = [], []
        for batch in logging.tqdm(tests.batches, desc=f"completeness {start:g} to {end:g}", unit="batch"):
            scores = gate_path(model, batch, sites, tests.objective, steps=steps, start=start, end=end)
            totals.append(torch.stack([score.double().sum(dim=1).cpu() for score in scores.values()]).sum(dim=0))
            first, last = (_at_gate(model, batch, sites, tests, value) for value in (start, end))
            changes.append(last - first)
        rows.append(_completeness(f"gate_path {start:g} to {end:g}", steps, torch.cat(totals), torch.cat(changes)))
    return tuple(rows)


def measure_activation_path(
    model: nn.Module, sites: Mapping[str, Site], tests: HeldOut, *, steps: int
) -> tuple[Completeness, ...]:
    """
    The same for `activation_path`, from the activations of plain prompts to those of attacked ones.

    Args:
        model (`nn.Module`): A causal LM, held still.
        sites (`Mapping[str, Site]`): All sites.
        tests ([`HeldOut`]): What to measure on; nothing is measured where prompts have no plain form.
        steps (`int`): Steps along the path.
    """
    totals, changes = [], []
    for batch in logging.tqdm(tests.batches, desc="completeness plain to attacked", unit="batch"):
        if isinstance(batch, PairedBatch):
            scores = activation_path(model, batch, sites, tests.objective, steps=steps)
            totals.append(torch.stack([score.double().sum(dim=1).cpu() for score in scores.values()]).sum(dim=0))
            first, last = (
                objective_on_path(model, batch, sites, tests.objective, position=end).double().cpu()
                for end in (0.0, 1.0)
            )
            changes.append(last - first)
    if not totals:
        return ()
    return (_completeness("activation_path, plain to attacked", steps, torch.cat(totals), torch.cat(changes)),)


def _at_gate(model: nn.Module, batch: Batch, sites: Mapping[str, Site], tests: HeldOut, value: float) -> Tensor:
    """The objective with all gates at one value, `(B,)`, float64."""
    device = batch.input_ids.device
    gates = {name: torch.full((len(batch), site.width), value, device=device) for name, site in sites.items()}
    with torch.no_grad(), gated(site_modules(model, sites), gates):
        return tests.objective(model, batch).double().cpu()


def _completeness(method: str, steps: int, totals: Tensor, changes: Tensor) -> Completeness:
    gap = float((totals - changes).abs().sum() / changes.abs().sum())  # nan where nothing changes
    return Completeness(method, steps, float(totals.mean()), float(changes.mean()), gap)


def top(scores: Scores, role: str, count: int) -> Neurons:
    """The neurons with the highest scores of a role; fewer where fewer scores are positive, none where none is."""
    positive = sum(int((score > 0).sum()) for score in scores.values[role].values())
    if not min(count, positive):
        return Neurons.from_ranked({role: []}, widths=scores.widths)
    return select(scores, {role: min(count, positive)})


def jaccard(first: Neurons, second: Neurons, role: str) -> float:
    """Size of the intersection of two lists over size of their union; 0 for two empty ones."""
    one, two = set(first.ranked(role)), set(second.ranked(role))
    return len(one & two) / max(1, len(one | two))


def measure_stability(
    neurons: Neurons, by_method: Mapping[str, Scores], rank: Ranking, prompts: PromptSet, *, n_splits: int, seed: int
) -> tuple[Overlap, ...]:
    """
    Overlaps of the top k: between random halves of the train prompts, between seeds, between methods, with the list.

    Args:
        neurons ([`Neurons`]): The list, of one role; k is its length.
        by_method (`Mapping[str, Scores]`): Scores of each method.
        rank ([`Ranking`]): How to score again.
        prompts ([`PromptSet`]): The prompt set.
        n_splits (`int`): How often the prompts are halved, and how many further seeds are tried.
        seed (`int`): How they are halved, and the first seed.
    """
    role, count = rank.role, neurons.total
    lists = {name: top(scores, role, count) for name, scores in by_method.items()}
    rows = []
    for name in list(rank.methods)[:1]:
        for number in range(n_splits):
            halves = _halves(prompts, random.Random(f"{seed}-halves-{number}"))
            one, two = (top(rank(name, prompts=half, seed=seed), role, count) for half in halves)
            rows.append(Overlap("halves", f"{name}, half 1", f"{name}, half 2", jaccard(one, two, role)))
            next_seed = seed + 1 + number
            other = top(rank(name, prompts=prompts, seed=next_seed), role, count)
            seeds = f"{name}, seed {seed}", f"{name}, seed {next_seed}"
            rows.append(Overlap("seeds", *seeds, jaccard(lists[name], other, role)))
    rows += [Overlap("methods", a, b, jaccard(lists[a], lists[b], role)) for a, b in combinations(lists, 2)]
    rows += [Overlap("list", "list", a, jaccard(neurons, lists[a], role)) for a in lists]
    return tuple(rows)


def _halves(prompts: PromptSet, rng: random.Random) -> tuple[PromptSet, PromptSet]:
    """Two sets that share no train prompt, each with half of every kind; test prompts are in both."""
    second: set[str] = set()
    for kind in KINDS:
        ids = [prompt.id for prompt in prompts.select(kind=kind, split="train")]
        second |= set(rng.sample(ids, len(ids) // 2))
    train = {prompt.id for prompt in prompts.select(split="train")}
    return _without(prompts, second), _without(prompts, train - second)


def _without(prompts: PromptSet, ids: set[str]) -> PromptSet:
    kept = tuple(prompt for prompt in prompts.prompts if prompt.id not in ids)
    attacks = tuple(attack for attack in prompts.attacks if attack.prompt_id not in ids)
    return replace(prompts, prompts=kept, attacks=attacks)


def measure_curves(
    model: nn.Module,
    by_method: Mapping[str, Scores],
    tests: HeldOut,
    *,
    role: str,
    counts: Sequence[int],
    scale: float,
) -> tuple[Curve, ...]:
    """
    Change of the objective when the top neurons of each method are set to one scale, for several counts.

    Args:
        model (`nn.Module`): A causal LM without adapters, held still.
        by_method (`Mapping[str, Scores]`): Scores of each method.
        tests ([`HeldOut`]): What to measure on.
        role (`str`): The role.
        counts (`Sequence[int]`): The counts, rising.
        scale (`float`): The scale.
    """
    curves = []
    for name, scores in logging.tqdm(by_method.items(), desc="effect against count", unit="method"):
        chosen = top(scores, role, counts[-1])
        possible = tuple(count for count in counts if count <= chosen.total)
        if not possible:
            continue
        with attached(model, chosen) as tuned:
            set_scale(tuned, 1.0)
            before = tests.values(tuned)
            set_scale(tuned, scale)
            changes = []
            for count in possible:
                tuned.set_neuron_counts(**{role: count})
                changes.append(float((tests.values(tuned) - before).mean()))
        curves.append(Curve(name, scale, possible, tuple(changes)))
    return tuple(curves)
