"""Which neurons share one delta? Those that act alike: k-means on their activations, after NeST (arXiv 2602.16835)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from neurontune_peft.objectives import response_logits
from neurontune_peft.prompts import Batch
from neurontune_peft.training.deltas import active_layers
from neurontune_peft.training.inner import Values
from neurontune_peft.training.views import View
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.linear import Linear

ROUNDS = 50  # of k-means, unless it settles before


def tied_view(labels: Sequence[Tensor]) -> View:
    """
    Every delta becomes the mean of its cluster, and so does its gradient: neurons of a cluster move as one.

    Args:
        labels (`Sequence[torch.Tensor]`): Number of each neuron's cluster, from 0, per site `(k,)`.
    """
    joined, sizes = torch.cat(list(labels)), [label.numel() for label in labels]
    counts = torch.bincount(joined)

    def view(values: Values) -> Values:
        flat = torch.cat(list(values))  # (K,), all sites
        sums = flat.new_zeros(len(counts)).index_add(0, joined, flat)
        return list((sums / counts)[joined].split(sizes))

    return view


@torch.no_grad()
def cluster_neurons(model: PeftModel, batches: Sequence[Batch], *, clusters: int, seed: int) -> list[Tensor]:
    """
    Clusters of the active adapter's neurons, each role by itself, across all sites.

    Args:
        model (`PeftModel`): The model; its scales are off while activations are read.
        batches (`Sequence[Batch]`): Prompts with answers; activations are read at each prompt's last token.
        clusters (`int`): How many per role, at most.
        seed (`int`): Where k-means starts.

    Returns:
        `list[torch.Tensor]`: Number of each neuron's cluster, per site `(k,)`.

    Raises:
        ValueError: When a site holds fused experts, whose tokens arrive in an order of their own.
    """
    layers, name = active_layers(model)
    profiles = [F.normalize(profile, dim=1) for profile in activation_profiles(model, batches)]  # (k, M)
    labels = [torch.empty(len(profile), dtype=torch.long, device=profile.device) for profile in profiles]
    start = 0
    for role in sorted({role for layer in layers for role in layer.roles[name]}):
        parts = [(site, layer.roles[name][role]) for site, layer in enumerate(layers) if role in layer.roles[name]]
        found = k_means(torch.cat([profiles[site][part] for site, part in parts]), clusters, seed=seed)
        for (site, part), label in zip(parts, found.split([p.stop - p.start for _, p in parts]), strict=True):
            labels[site][part] = label + start
        start += int(found.max()) + 1
    return labels


def activation_profiles(model: PeftModel, batches: Sequence[Batch]) -> list[Tensor]:
    """Activations of the adapter's neurons under the base model, per site `(k, M)`, at the last token of M prompts."""
    layers, name = active_layers(model)
    seen: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        handles = [_watch(layer, partial(_note, batch, layer, name, seen[i])) for i, layer in enumerate(layers)]
        try:
            with model.disable_adapter():
                response_logits(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    return [torch.cat(parts, dim=1) for parts in seen]


def _watch(layer: NeuronTuneLayer, note: Any) -> Any:
    """Have a layer's neurons noted whenever it computes."""
    if not isinstance(layer, Linear):
        raise ValueError(
            f"got tie='cluster' with {type(layer).__name__}; expected linear sites, since tokens reach fused experts "
            "in an order of their own; use tie='none', or other sites"
        )
    if layer.neuron_side == "input":
        return layer.register_forward_pre_hook(lambda module, args: note(args[0]))
    return layer.register_forward_hook(lambda module, args, output: note(output))


def _note(batch: Batch, layer: NeuronTuneLayer, name: str, seen: list[Tensor], hidden: Tensor) -> None:
    rows = torch.arange(len(batch), device=hidden.device)
    chosen = hidden.reshape(*batch.input_ids.shape, -1)[rows, batch.last_prompt]  # (B, F)
    seen.append(chosen[:, layer.neurontune_index[name]].T.float())  # (k, B)


def k_means(points: Tensor, clusters: int, *, seed: int) -> Tensor:
    """
    Lloyd's algorithm from starting points that are far apart (k-means++, Arthur and Vassilvitskii 2007).

    Args:
        points (`torch.Tensor`): Shape `(n, M)`.
        clusters (`int`): At most so many.
        seed (`int`): Decides the starting points.

    Returns:
        `torch.Tensor`: Cluster of each point, `(n,)`, numbered from 0 without gaps.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < min(clusters, len(points)):
        distance = torch.cdist(points, points[chosen]).min(dim=1).values.square().cpu()  # (n,)
        if not bool(distance.any()):  # only copies of what is chosen are left
            break
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    centres = points[chosen]  # (C, M)
    labels = torch.cdist(points, centres).argmin(dim=1)
    for _ in range(ROUNDS):
        kept = F.one_hot(labels, len(centres)).to(points)  # (n, C)
        filled = kept.sum(dim=0) > 0
        centres = torch.where(filled[:, None], kept.T @ points / kept.sum(dim=0).clamp(min=1)[:, None], centres)
        before, labels = labels, torch.cdist(points, centres).argmin(dim=1)
        if torch.equal(before, labels):
            break
    return labels.unique(return_inverse=True)[1]
