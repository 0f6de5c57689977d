"""Gradient checkpointing without training mode: layers are computed again in the backward pass, dropout stays off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpointed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers for which gradient checkpointing was enabled."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in layers if layer.gradient_checkpointing]


def check_recomputable(model: nn.Module, order: str) -> None:
    """
    Refuse gradient checkpointing where it would be silently wrong.

    Raises:
        ValueError: When the order is second: the layers of earlier inner steps would be computed again with the deltas
            of later ones.
    """
    if order == "second" and checkpointed_layers(model):
        raise ValueError(
            "got order='second' for a model with gradient checkpointing; expected none, since layers would be "
            "computed again with deltas of another inner step; call gradient_checkpointing_disable(), or use "
            "order='first'"
        )


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """
    Do in evaluation mode what transformers does in training mode only.

    Args:
        model (`nn.Module`): A model, with or without `gradient_checkpointing_enable()`.
    """
    layers = checkpointed_layers(model)
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
