"""A fingerprint of the weights that an adapter scales."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

# `ours`: sixteen blocks of 256 values per weight tell two models apart and cost milliseconds for a 7B model.
BLOCKS, BLOCK_SIZE = 16, 256


def fingerprint(weights: Mapping[str, Tensor | None]) -> str | None:
    """
    Hash shapes and sampled values of weights.

    Names are left out, so that a model whose modules are renamed, by a new version of its library or by a wrapper, is
    still the same model. Values are rounded to bfloat16 first, so that one checkpoint has one fingerprint, whether it
    is loaded in float32 or bfloat16. `checkpoint_fingerprint` gives the same for files, without loading a model.

    Args:
        weights (`Mapping[str, torch.Tensor or None]`): Site to its weight; `None` where it is quantised.

    Returns:
        `str` or `None`: 64 hexadecimal digits, or `None` when the values are not to be had (meta device, quantised).
    """
    known = {name: weight for name, weight in weights.items() if weight is not None and not weight.is_meta}
    if len(known) < len(weights):
        return None
    return joined(_digest(weight) for weight in known.values())


def joined(digests: Iterable[str]) -> str:
    """One hash out of those of the weights, whatever their order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def weight_digest(shape: tuple[int, ...], read: Callable[[int, int], Tensor]) -> str:
    """
    Hash of a weight's shape and of sampled values.

    Args:
        shape (`tuple[int, ...]`): Its shape.
        read (`Callable[[int, int], torch.Tensor]`): Gives the flattened weight's values from one place to another.
    """
    digest = hashlib.sha256(f"{shape}\n".encode())
    count = math.prod(shape)
    for start in torch.linspace(0, max(0, count - BLOCK_SIZE), BLOCKS, dtype=torch.float64).long().tolist():
        block = read(start, min(count, start + BLOCK_SIZE)).to(device="cpu", dtype=torch.bfloat16)
        digest.update(block.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _digest(weight: Tensor) -> str:
    flat = weight.detach().reshape(-1)
    return weight_digest(tuple(weight.shape), lambda start, stop: flat[start:stop])
