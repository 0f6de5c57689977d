"""How well does a trigger read requests, attacks and wrappings that it was not fitted on? What follows for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor
from transformers.utils import logging

from neurontune_peft.training.features import Features
from neurontune_peft.training.logistic import Linear, area_under_curve
from neurontune_peft.training.requests import WORDED, Example
from neurontune_peft.training.windowed import fit_windowed
from neurontune_peft.tuner.trigger import TRIGGER_DTYPE

# Weaker ones read kept-back wrappings a little better, and those that are further from the train ones worse.
L2 = (0.1, 1.0, 10.0)


def cross_fitted(
    examples: Sequence[Example],
    features: Features,
    *,
    chosen_for_reading: bool = False,
    penalties: Sequence[float] = L2,
) -> tuple[float, dict[str, float], Tensor, Linear]:
    """
    Keep each fold of the requests back once, and with it each family and frame in turn; then fit on all examples.

    The regularisation is the one that does best without a source on the first fold that is measured.

    Args:
        examples (`Sequence[Example]`): The examples.
        features ([`Features`]): What a trigger reads of them.
        chosen_for_reading (`bool`, *optional*, defaults to `False`):
            Never keep back the half of the requests that has chosen the neurons.
        penalties (`Sequence[float]`, *optional*): Regularisations to choose from.

    Returns:
        `tuple`: The regularisation; source to the area under the curve without it, mean over the folds; scores of all
        examples `(n,)`, each by a trigger that saw neither its request nor its source, and NaN where unmeasured; and
        the trigger that saw all.
    """
    measured = sorted({e.fold for e in examples if not (chosen_for_reading and e.chooses_readers)})
    best: tuple[float, float, dict[str, float], Tensor] | None = None
    for l2 in logging.tqdm(penalties, desc="fit trigger", unit="fit"):
        aucs, scores = cross_scored(examples, features, l2, fold=measured[0])
        mean = sum(aucs.values()) / max(1, len(aucs))
        if best is None or mean > best[0]:
            best = (mean, l2, aucs, scores)
    assert best is not None
    _, l2, first, scores = best
    by_fold = [first]
    for fold in measured[1:]:
        aucs, found = cross_scored(examples, features, l2, fold=fold)
        by_fold.append(aucs)
        scores = torch.where(found.isnan(), scores, found)
    sources = dict.fromkeys(source for aucs in by_fold for source in aucs)
    mean_auc = {s: fmean(aucs[s] for aucs in by_fold if s in aucs) for s in sources}
    labels = torch.tensor([example.harmful for example in examples])
    return l2, mean_auc, scores, fit_windowed(features, labels, l2=l2, precision=TRIGGER_DTYPE)


def cross_scored(
    examples: Sequence[Example], features: Features, l2: float, *, fold: int
) -> tuple[dict[str, float], Tensor]:
    """Source to the area under the curve without it, and scores `(n,)`, NaN outside the fold."""
    labels = torch.tensor([example.harmful for example in examples])
    kept = torch.tensor([example.fold == fold for example in examples])
    sources = [example.source for example in examples]
    plain = kept & torch.tensor([source is None for source in sources])
    scores = torch.full((len(examples),), math.nan, dtype=torch.float64)
    scores[plain] = features.of(plain).score(fit_windowed(features.of(~kept), labels[~kept], l2=l2))
    aucs: dict[str, float] = {}
    for source in dict.fromkeys(s for s in sources if s is not None):
        own = torch.tensor([s == source for s in sources])
        seen = ~kept & ~own
        there = features.score(fit_windowed(features.of(seen), labels[seen], l2=l2))
        scores[own & kept] = there[own & kept]
        positive, negative = there[own & kept & labels], there[(own & kept | plain) & ~labels]
        if len(positive) and len(negative):
            aucs[source] = area_under_curve(positive, negative)
    return aucs, scores


def calibrated(examples: Sequence[Example], scores: Tensor, budget: float) -> float:
    """
    The lowest threshold at which each group of harmless requests stays within the budget.

    Except for tasks in the wording of harmful requests: small models refuse many of them themselves, and a threshold
    above these would catch few attacks.
    """
    lowest = -math.inf
    for group in sorted({e.group for e in examples if not e.harmful} - {WORDED}):
        chosen = torch.tensor([not e.harmful and e.group == group for e in examples])
        ordered = scores[chosen].sort(descending=True).values
        lowest = max(lowest, float(ordered[int(budget * len(ordered))]))
    return lowest


def rates(examples: Sequence[Example], fires: Tensor, *, harmful: bool) -> dict[str, float]:
    """Group to the share of its requests that triggers."""
    found = {}
    for group in sorted({e.group for e in examples if e.harmful == harmful}):
        chosen = torch.tensor([e.harmful == harmful and e.group == group for e in examples])
        found[group] = float(fires[chosen].double().mean())
    return found
