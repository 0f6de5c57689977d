"""Activation path: integrated gradients along the activations, from those on plain prompts to attacked ones'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.activations import filled, sum_by_example
from neurontune_peft.attribution.engine import differentiable
from neurontune_peft.attribution.on_path import SitePath, activation_paths, placed
from neurontune_peft.attribution.pairs import PairedBatch
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective


def activation_path(
    model: nn.Module,
    batch: PairedBatch,
    sites: Mapping[str, Site],
    objective: Objective,
    *,
    steps: int = 16,
    joint: bool = True,
) -> dict[str, Tensor]:
    """
    Integral of `dF/dh` along the line from `h(q)` to `h(p, q)`, times `h(p, q) - h(q)`, by the midpoint rule
    (`re-implementation`; the alignment is `ours`).

    A neuron's activations on the plain prompt q and on the attacked prompt (p, q) are aligned on the last token of the
    prompt and on the tokens of the response; all other tokens are those of the attacked prompt. The scores of an
    example add up to the change of F along the path ([`objective_on_path`]), up to the error of the rule.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch ([`PairedBatch`]): B examples, attacked, with their plain forms.
        sites (`Mapping[str, Site]`): The sites to score.
        objective (`Callable`): `(model, batch) -> (B,)`; calls the model once, with an attention mask.
        steps (`int`, *optional*, defaults to `16`): Number of midpoints; each costs a forward and a backward pass.
        joint (`bool`, *optional*, defaults to `True`):
            Move all sites at once. Otherwise one site after the other, while the others run freely: as many times the
            cost as there are sites, and downstream effects count.

    Returns:
        `dict[str, torch.Tensor]`: Site to scores, `(B, F)`. Of experts, activations are weighted by routing, and 0
        where a token is not routed to them.

    Raises:
        ValueError: When the batch holds no plain forms or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"got steps={steps}; expected at least one; use steps=16")
    _check_paired(batch)
    scores = filled(batch, sites, 0.0)
    with differentiable(model):
        paths = activation_paths(model, batch, sites, objective)
        groups = [paths] if joint else [{name: path} for name, path in paths.items()]
        for group in groups:
            for step in range(steps):
                _add_gradients(scores, model, batch, objective, group, (step + 0.5) / steps)
    return {name: score / steps for name, score in scores.items()}


def objective_on_path(
    model: nn.Module, batch: PairedBatch, sites: Mapping[str, Site], objective: Objective, *, position: float
) -> Tensor:
    """
    The objective where [`activation_path`] with `joint=True` passes.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch ([`PairedBatch`]): B examples, attacked, with their plain forms.
        sites (`Mapping[str, Site]`): All sites that move.
        objective (`Callable`): `(model, batch) -> (B,)`.
        position (`float`): From 0, activations of the plain prompt, to 1, the attacked prompt as it is.

    Returns:
        `torch.Tensor`: `(B,)`.
    """
    _check_paired(batch)
    with torch.no_grad():
        paths = activation_paths(model, batch, sites, objective)
        with placed(model, batch, paths, {name: path.leaves(position) for name, path in paths.items()}, position):
            return objective(model, batch)


def _check_paired(batch: Any) -> None:
    if not isinstance(batch, PairedBatch):
        raise ValueError(
            f"got a {type(batch).__name__} without plain prompts; expected attacked prompts with their plain forms; "
            "build it with pair(attacked, plain)"
        )


def _add_gradients(
    scores: Mapping[str, Tensor],
    model: nn.Module,
    batch: PairedBatch,
    objective: Objective,
    paths: Mapping[str, SitePath],
    position: float,
) -> None:
    """Add to the scores the gradient at one position, times the way that each activation goes in all."""
    leaves = {name: [leaf.requires_grad_() for leaf in path.leaves(position)] for name, path in paths.items()}
    with torch.enable_grad(), placed(model, batch, paths, leaves, position):
        total = objective(model, batch).sum()
        flat = [leaf for group in leaves.values() for leaf in group]
        gradients = iter(torch.autograd.grad(total, flat, allow_unused=True))
    for name, path in paths.items():
        for span, gradient in zip(path.spans, gradients, strict=False):
            if gradient is not None:
                part = sum_by_example(span.direction * gradient, span.examples, len(batch))
                score = scores[name]
                score[:, span.start : span.start + part.shape[1]] += part.to(score)
