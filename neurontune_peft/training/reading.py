"""Which neurons tell harmful requests from harmless ones, so that a trigger can read them?"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.attribution import attribute
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import PromptSet
from neurontune_peft.prompts.chat import generation_suffix, turn_opening
from neurontune_peft.selection import select
from neurontune_peft.selection.candidates import as_count
from neurontune_peft.sites import find_sites
from neurontune_peft.training.features import trigger_features
from neurontune_peft.training.logistic import fit_logistic
from neurontune_peft.training.requests import FOLDS, examples_of
from neurontune_peft.training.rounds import without
from neurontune_peft.tuner import NeuronTuneConfig

CANDIDATES = 4096  # neurons that a regression is fitted on at first; bounds memory, whatever the model
MOST_READERS = 1024  # a quarter of the candidates, so that there are enough whatever the model
EXAMPLES = 4096  # texts that it is fitted on
FRAMES_PER_REQUEST = 3  # more than a trigger is fitted on: readers shall be those that see through them
FEWEST = 16  # neurons among which the last regression ranks
L2, STEPS = 1e-2, 60
ELIMINATIONS, PART_SEEN = 5, 0.6  # more of them did not choose better
SHARE = 0.5  # of the safety neurons; measured with benchmarks/choices.py
ROLE = "safety"


def reading_scores(
    model: nn.Module,
    tokenizer: Any,
    prompts: PromptSet,
    *,
    examples_per_kind: int = 300,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    chat_template: str | None = None,
) -> Scores:
    """
    Rank neurons by how much a trigger needs them (`ours`).

    Recursive feature elimination (Guyon et al., 2002) with the regression of [`fit_trigger`] on half of its requests:
    fit, drop the half of the neurons whose standardised weights are smallest, and again. The places of five such
    eliminations, each on a part of these requests, are averaged (as in Saeys et al., 2008). Neurons that move the
    model's answers most are not those that tell requests apart best. Of large models only the 4,096 neurons of largest
    effect size take part.

    Args:
        model (`nn.Module`): A causal LM without adapters; left as it was.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts ([`PromptSet`]): The prompt set; its test split is not touched.
        examples_per_kind (`int`, *optional*, defaults to `300`):
            Most requests of each kind. Give [`fit_trigger`] the same number, and the same seed, so that both mean the
            same half.
        batch_size (`int`, *optional*, defaults to `16`): Requests per forward pass.
        max_length (`int`, *optional*): Most tokens of a request; the model's context when left out.
        seed (`int`, *optional*, defaults to `0`): Decides which requests are drawn.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.

    Returns:
        [`Scores`]: Role `safety`; `1 / (1 + place)` of every neuron that took part, the most needed at place 0, and 0
        for the others.

    Example:

        ```py
        >>> readers = select(reading_scores(model, tokenizer, prompts), {"safety": 50})
        ```
    """
    candidates = _candidates(model, tokenizer, prompts, seed=seed, chat_template=chat_template)
    examples = examples_of(prompts, folds=FOLDS, seed=seed, most=examples_per_kind, frames=FRAMES_PER_REQUEST)
    examples = [example for example in examples if example.chooses_readers]
    if len(examples) > EXAMPLES:
        examples = random.Random(f"{seed}-reading").sample(examples, EXAMPLES)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    tuned: Any = get_peft_model(model, NeuronTuneConfig(task_type="CAUSAL_LM", neurons=candidates))
    try:
        features = trigger_features(
            tuned,
            tokenizer,
            [example.text for example in examples],
            adapter_name="default",
            suffix=generation_suffix(tokenizer, chat_template=chat_template),
            opening=turn_opening(tokenizer, chat_template=chat_template),
            batch_size=batch_size,
            max_length=max_length,
            chat_template=chat_template,
        )
        layers = tuned.base_model.neuron_layers("default")
        indices = {site: layer.neurontune_index["default"].cpu().long() for site, layer in layers.items()}
    finally:
        tuned.unload()
        for parameter, flag in flags:  # PEFT freezes the base model
            parameter.requires_grad_(flag)
    labels = torch.tensor([example.harmful for example in examples])
    places = elimination(features.means, labels, seed=seed)
    scores = (1 / (1 + places.double())).float().split(list(features.counts.values()))
    values = {site: torch.zeros(width) for site, width in candidates.widths.items()}
    for site, own in zip(features.counts, scores, strict=True):
        values[site][indices[site]] = own
    return Scores(values={ROLE: values}, metadata={"method": "reading", "seed": str(seed)})


def parted(counts: Mapping[str, float], total: int, share: float) -> tuple[dict[str, int], int]:
    """
    How many neurons of each role move answers, and how many more safety neurons the trigger reads.

    Args:
        counts (`Mapping[str, float]`): Neurons per role, as a number (`int`) or a share of all neurons (`float`).
        total (`int`): Number of all neurons.
        share (`float`):
            Share of the safety neurons that is chosen for reading, 1,024 at most; one is left to move answers.
    """
    wanted = {role: as_count(count, total, what=f"role '{role}'") for role, count in counts.items()}
    if not wanted.get(ROLE):
        return wanted, 0
    readers = min(round(share * wanted[ROLE]), wanted[ROLE] - 1, MOST_READERS)
    return wanted | {ROLE: wanted[ROLE] - readers}, readers


def with_readers(neurons: Neurons, reading: Scores, count: int) -> Neurons:
    """The neurons, and ranked behind them so many more, or as many as took part, from which a trigger reads best."""
    left = without(reading, neurons)
    count = min(count, sum(int((scores > 0).sum()) for scores in left.values[ROLE].values()))
    return neurons | select(left, {ROLE: count}) if count else neurons


def elimination(features: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
    """
    Place of each neuron in the mean order of several recursive feature eliminations, `(k,)`: 0 is needed most.

    Each sees a part of the requests, as which neurons a single one keeps hangs on the requests that it saw. Places are
    averaged on a logarithmic scale, on which being first or tenth differs as much as being tenth or hundredth.

    Args:
        features (`torch.Tensor`): What is read of each neuron, shape `(n, k, r)`.
        labels (`torch.Tensor`): True for harmful requests, bool, shape `(n,)`.
        seed (`int`, *optional*, defaults to `0`): Decides which requests each of them sees.
    """
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for number in logging.tqdm(range(ELIMINATIONS), desc="choose readers", unit="elimination"):
        rng = random.Random(f"{seed}-elimination-{number}")
        classes = [torch.nonzero(labels == kind).flatten().tolist() for kind in (True, False)]
        seen = torch.tensor([i for own in classes for i in rng.sample(own, math.ceil(PART_SEEN * len(own)))])
        total += _eliminated(features[seen], labels[seen]).double().log1p()
    return total.argsort(stable=True).argsort()


def _eliminated(features: Tensor, labels: Tensor) -> Tensor:
    """Place of each neuron in the order of one elimination, `(k,)`."""
    left = torch.arange(features.shape[1])
    dropped: list[Tensor] = []
    rounds = max(1, math.ceil(math.log2(len(left) / FEWEST))) if len(left) > FEWEST else 1
    for _ in range(rounds):
        own = features[:, left].flatten(1)
        weights = fit_logistic(own, labels, l2=L2, most_steps=STEPS).weights
        needed = (weights * own.std(dim=0)).view(len(left), -1).norm(dim=1)
        order = left[needed.argsort(descending=True, stable=True)]
        kept = max(FEWEST, len(left) // 2)
        dropped.insert(0, order[kept:])
        left = order[:kept]
    return torch.cat([left, *dropped]).argsort()


def _candidates(
    model: nn.Module, tokenizer: Any, prompts: PromptSet, *, seed: int, chat_template: str | None
) -> Neurons:
    """All neurons, or those whose activations differ most between harmful and harmless requests."""
    widths = {site.name: site.width for site in find_sites(model).values()}
    if sum(widths.values()) <= CANDIDATES:
        ranked = {ROLE: [(site, index) for site, width in widths.items() for index in range(width)]}
        return Neurons.from_ranked(ranked, widths=widths)
    scores = attribute(
        model,
        tokenizer,
        prompts,
        method="effect_size",
        roles=(ROLE,),
        seed=seed,
        chat_template=chat_template,
    )
    sizes = {site: score.abs() for site, score in scores.values[ROLE].items()}  # less active tells as much
    return select(Scores(values={ROLE: sizes}), {ROLE: CANDIDATES})
