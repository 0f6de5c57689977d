"""What if the adapter's neurons are cut out of the model? The strongest ones, and those of each site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject
from neurontune_peft.tuner.merge import MergeableLayer

SHARES = (0.1, 0.5)


def pruned(subject: Subject) -> Iterator[Row]:
    """
    Set the weights of the adapter's strongest neurons (largest `|delta|`) to 0, and then those of each single site.

    Args:
        subject ([`Subject`]): The model.
    """
    layers = subject.tuner.neuron_layers(subject.adapter_name)
    if not all(isinstance(layer, MergeableLayer) for layer in layers.values()):
        raise NotTestedError("the model has sites whose weights cannot be written")
    deltas = {site: layer.neurontune_delta[subject.adapter_name].detach() for site, layer in layers.items()}
    total = sum(delta.numel() for delta in deltas.values())
    for share in SHARES:
        count = max(1, round(share * total))
        with silenced(subject, strongest(deltas, count)):
            hits = subject.attacks()
        yield subject.row(f"pruning {share:.0%}", f"the {count} strongest neurons set to 0", hits)
    for site, delta in deltas.items():
        with silenced(subject, {site: torch.ones_like(delta, dtype=torch.bool)}):
            hits = subject.attacks()
        yield subject.row(f"pruning {site}", f"its {delta.numel()} neurons set to 0", hits)


def strongest(deltas: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """
    Masks of the neurons whose scales differ most from 1.

    Args:
        deltas (`Mapping[str, torch.Tensor]`): Site to shape `(k,)`.
        count (`int`): How many; more where several are equally strong.
    """
    joined = torch.cat([delta.abs().flatten() for delta in deltas.values()])
    lowest = joined.topk(count).values[-1]
    return {site: delta.abs() >= lowest for site, delta in deltas.items()}


@contextmanager
def silenced(subject: Subject, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """
    Set weights of neurons to 0 for the duration of a `with` block; they come back bit for bit.

    Args:
        subject ([`Subject`]): The model.
        masks (`Mapping[str, torch.Tensor]`): Site to which of the adapter's neurons there, `(k,)`.
    """
    layers = subject.tuner.neuron_layers(subject.adapter_name)
    kept = []
    try:
        for site, mask in masks.items():
            index = layers[site].neurontune_index[subject.adapter_name][mask].long()
            slices = layers[site].read_slices(index)
            kept.append((layers[site], slices, index))
            layers[site].write_slices({name: torch.zeros_like(part) for name, part in slices.items()}, index)
        yield
    finally:
        for layer, slices, index in reversed(kept):
            layer.write_slices(slices, index)
